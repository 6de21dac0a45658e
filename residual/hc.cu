// Hyper-Connections: equations in hc.cuh.
#include "residual/hc.cuh"

#include "residual/stream_kernel.cuh"

namespace {

// What the kernels need of a dynamic module.
struct Dynamic {
    const float *base, *folded, *sa, *sb;
    HcSaved saved;
    bool tanh;
};
__device__ __forceinline__ float phi(float m, bool tanh) { return tanh ? tanhf(m) : m; }

template <NormKind KIND, bool DYNAMIC, int NS>
__global__ void __launch_bounds__(STREAM_THREADS<NS>, 1)
    forward_kernel(StreamWrite write, Coefficients read, Dynamic next, SeamNorm in, InputRows input,
                   StreamShape shape) {
    auto& shared = shared_as<StreamShared<NS>>();
    StreamLane lane(row_shape(shape), shared.row);
    const int n = shape.n, width = n + 2, K = n * width;
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y; first < lane.N; first += gridDim.x * blockDim.y) {
        lane.row = first + threadIdx.y;
        Streams<NS> H = write_streams<KIND, NS>(lane, write, n);
#pragma unroll
        for (int i = 0; i < NS; i++)
            if (i < n) store_stream(lane, write.H, n, i, H.pack[i]);
        const float* c;
        if constexpr (DYNAMIC) {
            // Sum number i*width+q is <H_i, g*W_q>, number K+i the square of H_i.
            float values[NS];
#pragma unroll
            for (int i = 0; i < NS; i++) values[i] = dot(unpack(H.pack[i]), unpack(H.pack[i]));
            shared.put(values, K, 1, n);
            for (int q = 0; q < width; q++) {
                Channels w = lane.load_channels(next.folded + static_cast<int64_t>(q) * lane.C);
#pragma unroll
                for (int i = 0; i < NS; i++) values[i] = dot(unpack(H.pack[i]), w);
                shared.put(values, q, width, n);
            }
            __syncthreads();
            for (int k = static_cast<int>(threadIdx.x); k < K; k += blockDim.x) {
                int i = k / width, q = k % width;
                float r = rsqrtf(shared.total(K + i) * lane.inv_C + lane.eps), m = shared.total(k) * r;
                float value = (q <= n ? *next.sa : *next.sb) * phi(m, next.tanh) + next.base[k];
                shared.a[threadIdx.y][k] = value;
                if (lane.row >= lane.N) continue;
                next.saved.c[lane.row * K + k] = value;
                if (next.saved.m != nullptr) next.saved.m[lane.row * K + k] = m;
                if (next.saved.rstd != nullptr && q == 0) next.saved.rstd[lane.row * n + i] = r;
            }
            __syncthreads();
            c = shared.a[threadIdx.y];
        } else {
            c = token_coefficients(lane, read);
        }
        Channels h = mix_read(H, c, read.stream_stride, n);
        if (in.gain != nullptr) h = norm_forward<KIND>(lane, h, in, in.scale);
        input.store(lane, h);
    }
    input.finish(shared.row);
}

// Where the sums over tokens stand: G_q, then N_in's, then N_out's.
template <NormKind KIND, bool DYNAMIC, bool OUT, int NS>
struct HcSums {
    static constexpr int per_norm = KIND == NormKind::layer ? 2 : 1;
    static constexpr int in = DYNAMIC ? NS + 2 : 0, out = in + per_norm, count = out + (OUT ? per_norm : 0);
    static_assert(count <= MAX_PARTIAL_SUMS);
};

template <NormKind KIND, bool DYNAMIC, bool OUT, int NS>
__global__ void __launch_bounds__(STREAM_THREADS<NS>, 1)
    backward_kernel(HcBackward seam, Coefficients read, Dynamic next, StreamShape shape, float* partial,
                    float* coefficient_partial) {
    using Index = HcSums<KIND, DYNAMIC, OUT, NS>;
    constexpr int SLOTS = ceil_div(NS * (NS + 2), WARP);  // coefficients a thread looks after, if a row is one warp
    constexpr int GROUP = NS < 4 ? NS : 4;                // streams that are handled together
    auto& shared = shared_as<StreamShared<NS>>();
    StreamLane lane(row_shape(shape), shared.row);
    StreamSums<Index::count> sums(shared.row);
    KeptStreams D = KeptStreams::behind(shared, sums);
    const int n = shape.n, width = n + 2, K = n * width, step = read.stream_stride;
    const bool last = seam.next == nullptr;
    float sum_dc[SLOTS] = {}, sum_dc_phi[SLOTS] = {};
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y; first < lane.N; first += gridDim.x * blockDim.y) {
        lane.row = first + threadIdx.y;
        const bool real = lane.row < lane.N;
        Streams<NS> H = load_streams<NS>(lane, seam.H, n);
        if (!last) D.load<NS>(lane, seam.D, n);
        Channels d = lane.load(seam.dz);
        PackX u = pack_channels(lane.load(seam.first ? nullptr : seam.u));
        const float* c = token_coefficients(lane, read);
        if (seam.in.gain != nullptr)
            d = norm_backward<KIND, Index::in>(lane, d, mix_read(H, c, step, n), seam.in, seam.in.scale, sums);

        // The coefficients of sublayer s+1. Sum number i*width+q is dc[i,q].
        if (!last) {
#pragma unroll 1
            for (int q = 0; q <= n; q++) {
                Channels x = q == 0 ? d : unpack(D[q - 1]);
                float values[NS];
#pragma unroll
                for (int i = 0; i < NS; i++) values[i] = dot(unpack(H.pack[i]), x);
                shared.put(values, q, width, n);
            }
            __syncthreads();
#pragma unroll
            for (int s = 0; s < SLOTS; s++) {
                int k = static_cast<int>(threadIdx.x) + s * static_cast<int>(blockDim.x), i = k / width, q = k % width;
                if (k >= K) continue;
                float dc = q <= n ? shared.total(k) : real ? seam.dB[lane.row * n + i] : 0.0f;
                sum_dc[s] += dc;
                if constexpr (DYNAMIC) {
                    float m = real ? next.saved.m[lane.row * K + k] : 0.0f, t = phi(m, next.tanh);
                    float r = real ? next.saved.rstd[lane.row * n + i] : 0.0f;
                    float e = (q <= n ? *next.sa : *next.sb) * dc * (next.tanh ? 1.0f - t * t : 1.0f);
                    sum_dc_phi[s] += dc * t;
                    shared.a[threadIdx.y][k] = e * r;
                    shared.b[threadIdx.y][k] = e * m * r * r * lane.inv_C;
                }
            }
            __syncthreads();
        }

        // dH, and back through the write of sublayer s.
        Channels v = unpack(u), dv = {};
        if (!seam.first) v = write_input<KIND, OUT>(lane, v, seam.out, seam.scale);
        const float* write = token_coefficients(lane, seam.first ? read : seam.write);
        float dB[NS];
#pragma unroll
        for (int g = 0; g < NS; g += GROUP) {
            Channels dH[GROUP];
#pragma unroll
            for (int i = 0; i < GROUP; i++) {
                dH[i] = {};
                if (g + i < n) add_scaled(dH[i], c[(g + i) * step], d);
            }
#pragma unroll 1
            for (int j = 0; j < (last ? 0 : n); j++) {
                Channels dY = unpack(D[j]);
#pragma unroll
                for (int i = 0; i < GROUP; i++)
                    if (g + i < n) add_scaled(dH[i], c[(g + i) * step + 1 + j], dY);
            }
            if constexpr (DYNAMIC) {
                const float *e = shared.a[threadIdx.y] + g * width, *back = shared.b[threadIdx.y] + g * width;
                float along[GROUP] = {};
#pragma unroll 1
                for (int q = 0; q < width; q++) {
                    Channels w = lane.load_channels(next.folded + static_cast<int64_t>(q) * lane.C), G = {};
#pragma unroll
                    for (int i = 0; i < GROUP; i++) {
                        if (g + i >= n) continue;
                        add_scaled(G, e[i * width + q], unpack(H.pack[g + i]));
                        add_scaled(dH[i], e[i * width + q], w);
                        along[i] += back[i * width + q];
                    }
                    sums.add(q, G);
                }
#pragma unroll
                for (int i = 0; i < GROUP; i++) add_scaled(dH[i], -along[i], unpack(H.pack[g + i]));
            }
#pragma unroll
            for (int i = 0; i < GROUP; i++) {
                dB[g + i] = 0.0f;
                if (g + i >= n) continue;
                if (seam.first) {
                    if (g + i == 0 || !seam.only_stream_0) add_scaled(dv, 1.0f, dH[i]);
                    continue;
                }
                PackX pack = pack_channels(dH[i]);
                store_stream(lane, seam.D, n, g + i, pack);
                Channels rounded = unpack(pack);
                add_scaled(dv, write[(g + i) * width + n + 1], rounded);
                dB[g + i] = dot(rounded, v);
            }
        }
        if (seam.first) {
            lane.store(seam.dx0, dv);
            continue;
        }
        shared.put(dB, 0, 1, n);
        __syncthreads();
        int i = static_cast<int>(threadIdx.x);
        if (i < n && real) seam.dB[lane.row * n + i] = shared.total(i);
        __syncthreads();
        if constexpr (OUT) {
            if (seam.out_scale != nullptr) row_scale(dv, *seam.out_scale);
            dv = norm_backward<KIND, Index::out>(lane, dv, unpack(u), seam.out, 1.0f, sums);
        }
        lane.store(seam.du, dv);
    }
    sums.write(lane, partial, nullptr);
    if (last) return;
    // This block's line (2,K) of the coefficients' sums: dc, and dc*phi(m).
    __syncthreads();
#pragma unroll
    for (int s = 0; s < SLOTS; s++) {
        int k = static_cast<int>(threadIdx.x) + s * static_cast<int>(blockDim.x);
        if (k >= K) continue;
        shared.a[threadIdx.y][k] = sum_dc[s];
        shared.b[threadIdx.y][k] = sum_dc_phi[s];
    }
    __syncthreads();
    for (int k = static_cast<int>(threadIdx.x); threadIdx.y == 0 && k < K; k += blockDim.x) {
        float dc = 0.0f, dc_phi = 0.0f;
        for (unsigned y = 0; y < blockDim.y; y++) {
            dc += shared.a[y][k];
            dc_phi += shared.b[y][k];
        }
        coefficient_partial[(blockIdx.x * 2) * K + k] = dc;
        coefficient_partial[(blockIdx.x * 2 + 1) * K + k] = dc_phi;
    }
}

constexpr int PARAMETER_THREADS = 128;

__global__ void prepare_kernel(HcModule parameters, int C, int n) {
    int c = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (c < n * (n + 2)) {
        int i = c / (n + 2), q = c % (n + 2);
        parameters.base[c] = q <= n ? parameters.alpha[i * (n + 1) + q] : parameters.beta[i];
    }
    if (!parameters.dynamic || c >= C) return;
    float gain = parameters.gain[c];
    for (int q = 0; q <= n; q++) parameters.folded[static_cast<int64_t>(q) * C + c] = gain * parameters.wa[c * (n + 1) + q];
    parameters.folded[static_cast<int64_t>(n + 1) * C + c] = gain * parameters.wb[c];
}

// From the totals G (n+2,C), dc (n,n+2) and dc*phi (n,n+2) to the parameters.
__global__ void gradients_kernel(HcModule parameters, HcGradients to, const float* G, const float* dc, const float* dc_phi,
                                 int C, int n) {
    int c = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), width = n + 2;
    if (c < n * width) {
        int i = c / width, q = c % width;
        if (q <= n) to.alpha[i * (n + 1) + q] += dc[c];
        else to.beta[i] += dc[c];
    }
    if (!parameters.dynamic) return;
    if (c == 0) {
        float sa = 0.0f, sb = 0.0f;
        for (int i = 0; i < n; i++) {
            for (int q = 0; q <= n; q++) sa += dc_phi[i * width + q];
            sb += dc_phi[i * width + n + 1];
        }
        *to.sa += sa;
        *to.sb += sb;
    }
    if (c >= C) return;
    float gain = parameters.gain[c], dgain = 0.0f;
    for (int q = 0; q <= n + 1; q++) {
        float g = G[static_cast<int64_t>(q) * C + c];
        int at = c * (n + 1) + q;
        (q <= n ? to.wa[at] : to.wb[c]) += gain * g;
        dgain += (q <= n ? parameters.wa[at] : parameters.wb[c]) * g;
    }
    to.gain[c] += dgain;
}

int parameter_blocks(int C, int n) { return ceil_div(C > n * (n + 2) ? C : n * (n + 2), PARAMETER_THREADS); }

// The coefficients a seam reads with; of a dynamic module in the forward pass only their strides.
Coefficients read_coefficients(const HcModule* next, const HcSaved& saved, const float* readout, int n) {
    return next != nullptr ? hc_coefficients(*next, saved, n) : Coefficients::read_fixed(readout);
}
Dynamic dynamic_part(const HcModule* next, const HcSaved& saved) {
    if (next == nullptr || !next->dynamic) return {};
    return {next->base, next->folded, next->sa, next->sb, saved, next->tanh};
}

}  // namespace

Coefficients hc_coefficients(const HcModule& parameters, const HcSaved& saved, int n) {
    return parameters.dynamic ? Coefficients::per_token(saved.c, n) : Coefficients::fixed(parameters.base, n);
}

void hc_prepare(const HcModule& parameters, int C, int n, cudaStream_t stream) {
    CHECK(n >= 1 && n <= MAX_STREAMS);
    const int64_t wide = parameters.dynamic ? (n + 2) * static_cast<int64_t>(C) : 0, K = n * (n + 2);
    MOVES("hc_prepare", {reads(parameters.alpha, n * (n + 1)), reads(parameters.beta, n), writes(parameters.base, K),
                         reads(parameters.wa, wide - (wide ? C : 0)), reads(parameters.wb, C),
                         reads(parameters.gain, C), writes(parameters.folded, wide)});
    launch(prepare_kernel, parameter_blocks(C, n), PARAMETER_THREADS, 0, stream, parameters, C, n);
}

void hc_forward(const HcForward& seam, const StreamShape& shape, cudaStream_t stream) {
    RowGrid grid = stream_grid(shape, FORWARD_RESIDENT);
    CHECK(seam.next != nullptr || seam.readout != nullptr);
    if (shape.N == 0) return;
    with_streams(shape, [&](auto ns, auto kind) {
        with_flag(seam.next != nullptr && seam.next->dynamic, [&](auto dynamic) {
            constexpr int NS = decltype(ns)::value;
            const int64_t n = shape.n, K = n * (n + 2), N = shape.N;
            MOVES("hc_forward", {});
            input_moves(seam.z, seam.z8, N * shape.C);
            write_moves(seam.write, shape);
            norm_moves(seam.in, row_shape(shape), false, true);
            if (decltype(dynamic)::value)
                MOVES_MORE({reads(seam.next->folded, (n + 2) * shape.C), reads(seam.next->base, K),
                            writes(seam.saved.c, N * K), writes(seam.saved.m, N * K), writes(seam.saved.rstd, N * n)});
            else
                coefficient_moves(read_coefficients(seam.next, seam.saved, seam.readout, shape.n), shape, 1);
            launch(forward_kernel<decltype(kind)::value, decltype(dynamic)::value, NS>, row_blocks(grid, shape.N),
                   grid.block, sizeof(StreamShared<NS>), stream, seam.write,
                   read_coefficients(seam.next, seam.saved, seam.readout, shape.n), dynamic_part(seam.next, seam.saved),
                   seam.in, InputRows{seam.z, seam.z8}, shape);
        });
    });
}

void hc_backward(const HcBackward& seam, const StreamShape& shape, float* scratch, cudaStream_t stream) {
    RowGrid grid = stream_grid(shape, BACKWARD_RESIDENT);
    CHECK(seam.next != nullptr || seam.readout != nullptr);
    if (shape.N == 0) return;
    const int blocks = row_blocks(grid, shape.N), C = shape.C, n = shape.n, K = n * (n + 2);
    auto run = [&](auto ns, auto kind, auto dynamic, auto out) {
        constexpr bool DYNAMIC = decltype(dynamic)::value, OUT = decltype(out)::value;
        constexpr int NS = decltype(ns)::value;
        constexpr NormKind KIND = decltype(kind)::value;
        using Index = HcSums<KIND, DYNAMIC, OUT, NS>;
        float* coefficient_partial = scratch + static_cast<size_t>(blocks) * Index::count * C;
        float* totals = coefficient_partial + static_cast<size_t>(blocks) * 2 * K;  // dc (K), dc*phi (K), G (n+2,C)
        const int64_t N = shape.N, count = N * C;
        const bool last = seam.next == nullptr;
        MOVES("hc_backward",
              {reads(seam.H, n * count), reads(last ? nullptr : seam.D, n * count), reads(seam.dz, count),
               reads(last ? nullptr : seam.dB, N * n), writes(scratch, int64_t{blocks} * Index::count * C),
               writes(last ? nullptr : coefficient_partial, int64_t{blocks} * 2 * K)});
        coefficient_moves(read_coefficients(seam.next, seam.saved, seam.readout, n), shape, last ? 1 : n + 1);
        norm_moves(seam.in, row_shape(shape), true, false);
        if (DYNAMIC)
            MOVES_MORE({reads(seam.next->folded, (n + 2) * int64_t{C}), reads(seam.saved.m, N * K),
                        reads(seam.saved.rstd, N * n)});
        if (seam.first) {
            MOVES_MORE({writes(seam.dx0, count)});
        } else {
            MOVES_MORE({reads(seam.u, count), writes(seam.D, n * count), writes(seam.dB, N * n),
                        writes(seam.du, count)});
            coefficient_moves(seam.write, shape, 1);
            norm_moves(seam.out, row_shape(shape), true, true);
        }
        launch(backward_kernel<KIND, DYNAMIC, OUT, NS>, blocks, grid.block,
               backward_shared_bytes<NS, Index::count>(grid.block, n), stream, seam,
               read_coefficients(seam.next, seam.saved, seam.readout, n), dynamic_part(seam.next, seam.saved), shape,
               scratch, coefficient_partial);

        PartialTargets targets, coefficient_targets;
        float* G = totals + 2 * K;
        if (seam.next != nullptr) {
            size_t zeros = 2 * K + (DYNAMIC ? static_cast<size_t>(n + 2) * C : 0);
            set_zero(totals, zeros * sizeof(float), stream);
            for (int q = 0; DYNAMIC && q < n + 2; q++) targets.total[q] = G + static_cast<size_t>(q) * C;
            for (int i = 0; i < 2; i++) coefficient_targets.total[i] = totals + static_cast<size_t>(i) * K;
            add_partials(coefficient_targets, coefficient_partial, blocks, 2, K, stream);
        }
        norm_targets(targets, seam.in, KIND, Index::in);
        if (OUT) norm_targets(targets, seam.out, KIND, Index::out);
        add_partials(targets, scratch, blocks, Index::count, C, stream);
        if (seam.next != nullptr) {
            const HcModule& next = *seam.next;
            const HcGradients& to = seam.gradients;
            const int64_t wide = DYNAMIC ? (n + 1) * int64_t{C} : 0, row = DYNAMIC ? C : 0;
            MOVES("hc_gradients",
                  {reads(totals, DYNAMIC ? 2 * K : K), reads(G, wide + row), reads(next.gain, row),
                   reads(next.wa, wide), reads(next.wb, row), updates(to.alpha, n * (n + 1)), updates(to.beta, n), updates(to.wa, wide),
                   updates(to.wb, row), updates(to.gain, row)});
            launch(gradients_kernel, parameter_blocks(C, n), PARAMETER_THREADS, 0, stream, next, to, G, totals, totals + K,
                   C, n);
        }
    };
    with_streams(shape, [&](auto ns, auto kind) {
        with_flag(seam.next != nullptr && seam.next->dynamic, [&](auto dynamic) {
            with_flag(seam.out.gain != nullptr, [&](auto out) { run(ns, kind, dynamic, out); });
        });
    });
}
