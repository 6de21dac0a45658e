// The kernels of streams whose coefficients are ready: write, read, and their backward passes. See streams.cuh.
#include "residual/streams.cuh"

#include "residual/stream_kernel.cuh"

namespace {

template <NormKind KIND, int NS>
__global__ void __launch_bounds__(STREAM_THREADS<NS>, 1) write_kernel(StreamWrite write, StreamShape shape) {
    auto& shared = shared_as<StreamShared<NS>>();
    StreamLane lane(row_shape(shape), shared.row);
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y; first < lane.N; first += gridDim.x * blockDim.y) {
        lane.row = first + threadIdx.y;
        Streams<NS> H = write_streams<KIND, NS>(lane, write, shape.n);
        float square[1] = {0.0f};
#pragma unroll
        for (int i = 0; i < NS; i++) {
            if (i < shape.n) store_stream(lane, write.H, shape.n, i, H.pack[i]);
            Channels x = unpack(H.pack[i]);
            square[0] += dot(x, x);
        }
        if (write.rstd == nullptr) continue;
        lane.sum(square);
        if (threadIdx.x == 0 && lane.row < lane.N)
            write.rstd[lane.row] = rsqrtf(square[0] * lane.inv_C / static_cast<float>(shape.n) + write.rstd_eps);
    }
}

template <NormKind KIND, int NS>
__global__ void __launch_bounds__(STREAM_THREADS<NS>, 1) read_kernel(StreamRead read, StreamShape shape) {
    auto& shared = shared_as<StreamShared<NS>>();
    StreamLane lane(row_shape(shape), shared.row);
    InputRows input{read.z, read.z8};
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y; first < lane.N; first += gridDim.x * blockDim.y) {
        lane.row = first + threadIdx.y;
        Channels h = mix_read(load_streams<NS>(lane, read.H, shape.n), token_coefficients(lane, read.c),
                              read.c.stream_stride, shape.n);
        if (read.in.gain != nullptr) h = norm_forward<KIND>(lane, h, read.in, read.in.scale);
        input.store(lane, h);
    }
    input.finish(shared.row);
}

template <NormKind KIND>
constexpr int NORM_SUMS = KIND == NormKind::layer ? 2 : 1;

template <NormKind KIND, int NS>
__global__ void __launch_bounds__(STREAM_THREADS<NS>, 1)
    read_backward_kernel(StreamReadBackward read, StreamShape shape, float* partial) {
    auto& shared = shared_as<StreamShared<NS>>();
    StreamLane lane(row_shape(shape), shared.row);
    StreamSums<NORM_SUMS<KIND>> sums(shared.row);
    KeptStreams D = KeptStreams::behind(shared, sums);
    const int n = shape.n, step = read.c.stream_stride;
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y; first < lane.N; first += gridDim.x * blockDim.y) {
        lane.row = first + threadIdx.y;
        Streams<NS> H = load_streams<NS>(lane, read.H, n);
        if (read.D != nullptr) D.load<NS>(lane, read.D, n);
        Channels d = lane.load(read.dz);
        if (read.in.gain != nullptr) {
            Channels h = mix_read(H, token_coefficients(lane, read.c), step, n);
            d = norm_backward<KIND, 0>(lane, d, h, read.in, read.in.scale, sums);
        }
        lane.store(read.dh, d);
        if (read.dc == nullptr) continue;
        // Sum number i*(n+1)+q: q = 0 is <H_i,dh>, q = 1+j is <H_i,D_j>.
#pragma unroll 1
        for (int q = 0; q <= (read.D != nullptr ? n : 0); q++) {
            Channels x = q == 0 ? d : unpack(D[q - 1]);
            float values[NS];
#pragma unroll
            for (int i = 0; i < NS; i++) values[i] = dot(unpack(H.pack[i]), x);
            shared.put(values, q, n + 1, n);
        }
        __syncthreads();
        for (int k = static_cast<int>(threadIdx.x); k < n * (n + 1); k += blockDim.x) {
            int i = k / (n + 1), q = k % (n + 1);
            if (lane.row < lane.N && (q == 0 || read.D != nullptr))
                read.dc[lane.row * read.c.token_stride + i * step + q] = shared.total(k);
        }
        __syncthreads();
    }
    sums.write(lane, partial, nullptr);
}

template <NormKind KIND, bool OUT, int NS>
__global__ void __launch_bounds__(STREAM_THREADS<NS>, 1)
    write_backward_kernel(StreamWriteBackward seam, StreamShape shape, float* partial) {
    auto& shared = shared_as<StreamShared<NS>>();
    StreamLane lane(row_shape(shape), shared.row);
    constexpr int GROUP = NS < 4 ? NS : 4;  // streams whose loads are under way together
    StreamSums<OUT ? NORM_SUMS<KIND> : 0> sums(shared.row);
    KeptStreams D = KeptStreams::behind(shared, sums);
    const int n = shape.n;
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y; first < lane.N; first += gridDim.x * blockDim.y) {
        lane.row = first + threadIdx.y;
        if (!seam.last) D.load<NS>(lane, seam.D, n);
        Channels dh = lane.load(seam.dh), v = lane.load(seam.first ? nullptr : seam.u), dv = {};
        PackX u = pack_channels(v);
        if (!seam.first) v = write_input<KIND, OUT>(lane, v, seam.out, seam.scale);
        const float* read = token_coefficients(lane, seam.read);
        const float* write = token_coefficients(lane, seam.first ? seam.read : seam.write);
        float kappa = seam.dX != nullptr && lane.row < lane.N ? seam.kappa[lane.row] : 0.0f;
#pragma unroll 1
        for (int g = 0; g < n; g += GROUP) {
            float dwrite[GROUP];
#pragma unroll
            for (int k = 0; k < GROUP; k++) {
                int i = g + k;
                dwrite[k] = 0.0f;
                if (i >= n) continue;
                Channels dH = {};
                if (seam.dX != nullptr) {
                    dH = unpack(load_stream(lane, seam.dX, n, i));
                    add_scaled(dH, -kappa, unpack(load_stream(lane, seam.H, n, i)));
                }
                add_scaled(dH, read[i * seam.read.stream_stride], dh);
#pragma unroll 1
                for (int j = 0; j < (seam.last ? 0 : n); j++) add_scaled(dH, read[i * (n + 2) + 1 + j], unpack(D[j]));
                if (seam.first) {
                    if (i == 0 || !seam.only_stream_0) add_scaled(dv, 1.0f, dH);
                    continue;
                }
                PackX pack = pack_channels(dH);
                store_stream(lane, seam.D, n, i, pack);
                dH = unpack(pack);
                add_scaled(dv, write[i * (n + 2) + n + 1], dH);
                dwrite[k] = dot(dH, v);
            }
            if (!seam.first) shared.put(dwrite, g, 1, n - g);
        }
        if (seam.first) {
            lane.store(seam.dx0, dv);
            continue;
        }
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < n && lane.row < lane.N)
            seam.dwrite[(lane.row * n + threadIdx.x) * (n + 2) + n + 1] = shared.total(static_cast<int>(threadIdx.x));
        __syncthreads();
        if constexpr (OUT) {
            if (seam.out_scale != nullptr) row_scale(dv, *seam.out_scale);
            dv = norm_backward<KIND, 0>(lane, dv, unpack(u), seam.out, 1.0f, sums);
        }
        lane.store(seam.du, dv);
    }
    sums.write(lane, partial, nullptr);
}

}  // namespace

void stream_write(const StreamWrite& write, const StreamShape& shape, cudaStream_t stream) {
    RowGrid grid = stream_grid(shape, FORWARD_RESIDENT);
    if (shape.N == 0) return;
    with_streams(shape, [&](auto ns, auto kind) {
        constexpr int NS = decltype(ns)::value;
        MOVES("stream_write", {writes(write.rstd, shape.N)});
        write_moves(write, shape);
        launch(write_kernel<decltype(kind)::value, NS>, row_blocks(grid, shape.N), grid.block, sizeof(StreamShared<NS>),
               stream, write, shape);
    });
}

void stream_read(const StreamRead& read, const StreamShape& shape, cudaStream_t stream) {
    RowGrid grid = stream_grid(shape, FORWARD_RESIDENT);
    if (shape.N == 0) return;
    with_streams(shape, [&](auto ns, auto kind) {
        constexpr int NS = decltype(ns)::value;
        const int64_t count = shape.N * shape.C;
        MOVES("stream_read", {reads(read.H, shape.n * count)});
        input_moves(read.z, read.z8, count);
        coefficient_moves(read.c, shape, 1);
        norm_moves(read.in, row_shape(shape), false, true);
        launch(read_kernel<decltype(kind)::value, NS>, row_blocks(grid, shape.N), grid.block, sizeof(StreamShared<NS>),
               stream, read, shape);
    });
}

void stream_read_backward(const StreamReadBackward& read, const StreamShape& shape, float* scratch, cudaStream_t stream) {
    RowGrid grid = stream_grid(shape, BACKWARD_RESIDENT);
    if (shape.N == 0) return;
    int blocks = row_blocks(grid, shape.N);
    with_streams(shape, [&](auto ns, auto kind) {
        constexpr int NS = decltype(ns)::value;
        constexpr NormKind KIND = decltype(kind)::value;
        const int64_t count = shape.N * shape.C, n = shape.n;
        MOVES("stream_read_backward", {reads(read.H, n * count), reads(read.D, n * count), reads(read.dz, count),
                                       writes(read.dh, count), writes(read.dc, shape.N * n * (read.D ? n + 1 : 1)),
                                       writes(scratch, int64_t{blocks} * NORM_SUMS<KIND> * shape.C)});
        if (read.in.gain) coefficient_moves(read.c, shape, 1);
        norm_moves(read.in, row_shape(shape), true, false);
        launch(read_backward_kernel<KIND, NS>, blocks, grid.block,
               backward_shared_bytes<NS, NORM_SUMS<KIND>>(grid.block, shape.n), stream, read, shape, scratch);
        PartialTargets targets;
        norm_targets(targets, read.in, KIND, 0);
        if (read.in.gain != nullptr) add_partials(targets, scratch, blocks, NORM_SUMS<KIND>, shape.C, stream);
    });
}

void stream_write_backward(const StreamWriteBackward& write, const StreamShape& shape, float* scratch, cudaStream_t stream) {
    RowGrid grid = stream_grid(shape, BACKWARD_RESIDENT);
    if (shape.N == 0) return;
    int blocks = row_blocks(grid, shape.N);
    with_streams(shape, [&](auto ns, auto kind) {
        with_flag(write.out.gain != nullptr, [&](auto out) {
            constexpr int NS = decltype(ns)::value;
            constexpr NormKind KIND = decltype(kind)::value;
            constexpr int M = decltype(out)::value ? NORM_SUMS<KIND> : 0;
            const int64_t count = shape.N * shape.C, n = shape.n;
            floatX* D = write.D;
            MOVES("stream_write_backward",
                  {reads(write.dh, count), reads(write.last ? nullptr : D, n * count), reads(write.dX, n * count),
                   reads(write.dX ? write.H : nullptr, n * count), reads(write.dX ? write.kappa : nullptr, shape.N),
                   writes(scratch, int64_t{blocks} * M * shape.C)});
            coefficient_moves(write.read, shape, write.last ? 1 : shape.n + 1);
            if (write.first) {
                MOVES_MORE({writes(write.dx0, count)});
            } else {
                MOVES_MORE({reads(write.u, count), writes(D, n * count), writes(write.du, count),
                            writes(write.dwrite, n * shape.N)});
                coefficient_moves(write.write, shape, 1);
                norm_moves(write.out, row_shape(shape), true, true);
            }
            launch(write_backward_kernel<KIND, decltype(out)::value, NS>, blocks, grid.block,
                   backward_shared_bytes<NS, M>(grid.block, shape.n), stream, write, shape, scratch);
            PartialTargets targets;
            norm_targets(targets, write.out, KIND, 0);
            add_partials(targets, scratch, blocks, M, shape.C, stream);
        });
    });
}

size_t stream_scratch_bytes(int64_t N, int C, int n) {
    StreamShape shape{N, C, n, NormKind::layer, 0.0f};
    size_t blocks = stream_grid(shape, BACKWARD_RESIDENT).max_blocks, coefficients = static_cast<size_t>(n) * (n + 2);
    // hc: partial sums of channels and of coefficients, and the totals of both; mhc: a line per warp of tokens.
    size_t hc = blocks * (static_cast<size_t>(MAX_PARTIAL_SUMS) * C + 2 * coefficients) + (n + 2) * static_cast<size_t>(C) +
                2 * coefficients;
    size_t mhc = static_cast<size_t>(ceil_div(N, int64_t{WARP}) + 1) * (coefficients + 3);
    return sizeof(float) * (hc > mhc ? hc : mhc);
}
