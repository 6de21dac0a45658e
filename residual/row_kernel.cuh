// The frame of every seam kernel (residual/seam.cuh). It owns the 16-byte loads and stores, the row reductions, both
// norms with their statistics, and the sums of parameter gradients over tokens; a rule adds its few lines in between.
//
// A row of C channels lies in the registers of blockDim.x threads, PACKS packs of 16 bytes each; blockDim.y rows share
// a block; a persistent grid walks over all rows. Threads behind the end of a row hold zeros. Norms, with g gain,
// b bias, c the fixed scale, eps inside the root (Ba et al. 2016; Zhang & Sennrich 2019):
//
//     layer   mu = mean(x);  r = 1/sqrt(mean((x-mu)^2) + eps);  xh = (x-mu)*r;  y = c*(g*xh + b)
//             a = c*g*dy;    dx = r*(a - mean(a) - xh*mean(a*xh));   dg += SUM c*dy*xh;   db += SUM c*dy
//     rms     r = 1/sqrt(mean(x^2) + eps);  xh = x*r;  y = c*g*xh
//             a = c*g*dy;    dx = r*(a - xh*mean(a*xh));             dg += SUM c*dy*xh
//
// A norm reads what is stored: x_new and p are rounded to floatX first, so that the backward pass recomputes the same xh.
//
// A rule is a struct with
//     Args                    kernel arguments: factors, device pointers to its parameters and further rows (N,C)
//     channel_sums            how many (C) parameter gradients it sums over tokens
//     scalar_sums             how many scalar ones
//     reads_v, reads_p        its backward pass needs v = beta*N_out(u), which the frame then recomputes; or p, as stored
//     allows_out, allows_post, allows_first   which seams it stands in: others are not compiled
//     combine(lane, args, x, v) -> p
//     backward(lane, args, dp, Saved{v, p}, dx, dv, sums)    sets dx and dv; sums.add(i, row), sums.scalar[i] += ...
// Rows it needs besides (x in the backward pass, x_0, earlier outputs) it fetches with lane.load(pointer); reductions
// over the row are lane.sum(values); it may lane.store() rows of its own. Rules with several streams have their own
// kernel, made of the same pieces.
#pragma once
#include "kernels/partials.cuh"
#include "residual/seam.cuh"

constexpr int MAX_ROW_THREADS = 512;   // threads that share one row
constexpr int ROW_BLOCK_THREADS = 256;  // a block takes several rows up to this
constexpr int MAX_BLOCK_ROWS = ROW_BLOCK_THREADS / WARP;
constexpr int WIDE_PACKS = 16 / PackX::size;  // packs per thread where one is too few: see row_grid
constexpr int MAX_ROW_CHANNELS = MAX_ROW_THREADS * WIDE_PACKS * PackX::size;
constexpr int MAX_ROW_SUMS = 8;      // values that one lane.sum() can add
constexpr int MAX_SCALAR_SUMS = 4;  // scalar parameters of a rule
constexpr int REGISTER_SUMS = 32;   // partial sums a thread keeps in registers; with more, all are in shared memory

// Which parts a seam has. rule: there is a u (all but the first seam).
template <bool RULE, bool OUT, bool POST, bool IN, NormKind KIND>
struct Seam {
    static constexpr bool rule = RULE, out = OUT, post = POST, in = IN;
    static constexpr NormKind kind = KIND;
};

// ---------------------------------------------------------------------------------------------------------------------
// A thread's share of a row

template <int PACKS>
struct Row {
    static constexpr int size = PACKS * PackX::size;
    float v[size];
    __device__ __forceinline__ float& operator[](int i) { return v[i]; }
    __device__ __forceinline__ const float& operator[](int i) const { return v[i]; }
};

template <int PACKS>
__device__ __forceinline__ void row_scale(Row<PACKS>& x, float factor) {
#pragma unroll
    for (int i = 0; i < x.size; i++) x[i] *= factor;
}

// What a rule's backward pass asked for with reads_v and reads_p.
template <int PACKS>
struct Saved {
    Row<PACKS> v, p;
};

struct RowShared {
    float scratch[MAX_ROW_SUMS * WARP * MAX_BLOCK_ROWS];  // of the collectives; token sums follow behind
};

template <int PACKS_>
struct RowLane {
    static constexpr int PACKS = PACKS_;
    using Row = ::Row<PACKS>;
    int64_t N, row;
    int C;
    float inv_C, eps;
    RowShared& shared;

    __device__ __forceinline__ RowLane(const SeamShape& shape, RowShared& shared_)
        : N(shape.N), row(0), C(shape.C), inv_C(1.0f / static_cast<float>(shape.C)), eps(shape.eps), shared(shared_) {}

    // The first channel of this thread's pack: neighbouring threads hold neighbouring packs.
    __device__ __forceinline__ int channel(int pack) const { return (pack * blockDim.x + threadIdx.x) * PackX::size; }
    __device__ __forceinline__ bool has(int pack) const { return channel(pack) < C; }

    // This lane's channels of one vector (C), of floatX or float; zeros behind its end.
    template <class T>
    __device__ __forceinline__ Row load_channels(const T* vector, bool wanted = true) const {
        Row out;
        constexpr int size = Pack<T>::size;
#pragma unroll
        for (int i = 0; i < Row::size; i += size) {
            Pack<T> pack = {};
            if (wanted && has(i / PackX::size)) pack = load_pack(vector + channel(i / PackX::size) + i % PackX::size);
#pragma unroll
            for (int j = 0; j < size; j++) out[i + j] = to_float(pack[j]);
        }
        return out;
    }
    // The current row of an (N,C) array; zeros if there is none.
    template <class T>
    __device__ __forceinline__ Row load(const T* rows) const {
        return load_channels(rows + row * C, rows != nullptr && row < N);
    }
    // Stores x rounded to T, and leaves the rounded values in x.
    template <class T>
    __device__ __forceinline__ void store(T* rows, Row& x) const {
        constexpr int size = Pack<T>::size;
#pragma unroll
        for (int i = 0; i < Row::size; i += size) {
            Pack<T> pack;
#pragma unroll
            for (int j = 0; j < size; j++) {
                pack[j] = from_float<T>(x[i + j]);
                x[i + j] = to_float(pack[j]);
            }
            if (row < N && has(i / PackX::size))
                store_pack(rows + row * C + channel(i / PackX::size) + i % PackX::size, pack);
        }
    }
    // Sums over the row; every thread of it gets the totals. All threads of the block call it together.
    template <int K>
    __device__ __forceinline__ void sum(float (&values)[K]) const {
        static_assert(K <= MAX_ROW_SUMS, "raise MAX_ROW_SUMS");
        row_sum(values, shared.scratch);
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// Sums over tokens: M vectors (C) and K scalars. Each thread adds up its own channels over the rows its block handles.

template <int M_, int K_, int PACKS, int KEPT = REGISTER_SUMS>
struct TokenSums {
    static constexpr int M = M_, K = K_, size = Row<PACKS>::size;
    static constexpr bool in_registers = M * size <= KEPT;
    float scalar[K > 0 ? K : 1];
    float kept[in_registers && M > 0 ? M * size : 1];
    float* shared;  // in packs of 4: (M or 1, size/4, threads, 4)

    // Shared memory it needs behind RowShared.
    static size_t shared_bytes(dim3 block) {
        int sums = in_registers ? (block.y > 1 && M > 0 ? 1 : 0) : M;
        return sizeof(float) * sums * size * block.x * block.y;
    }
    __device__ __forceinline__ float* slot(int m, int quarter, int y) const {
        int thread = y * blockDim.x + threadIdx.x;
        return shared + (((in_registers ? 0 : m) * (size / 4) + quarter) * blockDim.x * blockDim.y + thread) * 4;
    }
    __device__ __forceinline__ explicit TokenSums(RowShared& row_shared)
        : shared(reinterpret_cast<float*>(&row_shared + 1)) {
        for (int k = 0; k < K; k++) scalar[k] = 0.0f;
        if constexpr (in_registers) {
#pragma unroll
            for (int i = 0; i < M * size; i++) kept[i] = 0.0f;
        } else {  // a thread only ever touches its own slots before the end: no barrier
            for (int m = 0; m < M; m++)
                for (int q = 0; q < size / 4; q++) store_pack(slot(m, q, threadIdx.y), Pack<float>{});
        }
    }
    __device__ __forceinline__ void add(int m, const Row<PACKS>& x) {
        if constexpr (in_registers) {
#pragma unroll
            for (int i = 0; i < size; i++) kept[m * size + i] += x[i];
        } else {
#pragma unroll
            for (int q = 0; q < size / 4; q++) {
                Pack<float> sum = load_pack(slot(m, q, threadIdx.y));
#pragma unroll
                for (int j = 0; j < 4; j++) sum[j] += x[q * 4 + j];
                store_pack(slot(m, q, threadIdx.y), sum);
            }
        }
    }
    // Adds up the block's rows and writes its line of partial (grid, M, C) and scalars (grid, K).
    __device__ __forceinline__ void write(const RowLane<PACKS>& lane, float* partial, float* scalars) {
        bool several = blockDim.y > 1;
#pragma unroll
        for (int m = 0; m < M; m++) {
            Row<PACKS> x;
            if constexpr (in_registers) {
#pragma unroll
                for (int i = 0; i < size; i++) x[i] = kept[m * size + i];
                if (several && m > 0) __syncthreads();
                if (several) put(m, x);
            }
            if (several && (in_registers || m == 0)) __syncthreads();
            if (threadIdx.y > 0) continue;
            if constexpr (!in_registers) {
#pragma unroll
                for (int i = 0; i < size; i++) x[i] = slot(m, i / 4, 0)[i % 4];
            }
            for (int y = 1; y < static_cast<int>(blockDim.y); y++) {
#pragma unroll
                for (int q = 0; q < size / 4; q++) {
                    Pack<float> other = load_pack(slot(m, q, y));
#pragma unroll
                    for (int j = 0; j < 4; j++) x[q * 4 + j] += other[j];
                }
            }
            float* line = partial + (static_cast<int64_t>(blockIdx.x) * M + m) * lane.C;
#pragma unroll
            for (int q = 0; q < size / 4; q++) {
                int p = q * 4 / PackX::size;
                Pack<float> out = {x[q * 4], x[q * 4 + 1], x[q * 4 + 2], x[q * 4 + 3]};
                if (lane.has(p)) store_pack(line + lane.channel(p) + q * 4 % PackX::size, out);
            }
        }
        for (int k = 0; k < K; k++) {
            __syncthreads();
            float sum = block_sum(scalar[k], lane.shared.scratch);
            if (threadIdx.x == 0 && threadIdx.y == 0) scalars[blockIdx.x * K + k] = sum;
        }
    }
    __device__ __forceinline__ void put(int m, const Row<PACKS>& x) {
#pragma unroll
        for (int q = 0; q < size / 4; q++)
            store_pack(slot(m, q, threadIdx.y), Pack<float>{x[q * 4], x[q * 4 + 1], x[q * 4 + 2], x[q * 4 + 3]});
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// Norms

template <NormKind KIND, int PACKS>
__device__ __forceinline__ Row<PACKS> norm_apply(const Row<PACKS>& xh, const Row<PACKS>& gain, const Row<PACKS>& bias,
                                                 float scale) {
    Row<PACKS> y;
#pragma unroll
    for (int i = 0; i < y.size; i++)
        y[i] = scale * (KIND == NormKind::layer ? gain[i] * xh[i] + bias[i] : gain[i] * xh[i]);
    return y;
}

// y = N(x). Writes the row's statistics.
template <NormKind KIND, int PACKS>
__device__ __forceinline__ Row<PACKS> norm_forward(const RowLane<PACKS>& lane, Row<PACKS> x, const SeamNorm& norm,
                                                   float scale) {
    Row<PACKS> gain = lane.load_channels(norm.gain);
    Row<PACKS> bias = lane.load_channels(norm.bias, norm.bias != nullptr);
    float mean = 0.0f;
    if constexpr (KIND == NormKind::layer) {
        float sum[1] = {0.0f};
#pragma unroll
        for (int i = 0; i < x.size; i++) sum[0] += x[i];
        lane.sum(sum);
        mean = sum[0] * lane.inv_C;
#pragma unroll
        for (int i = 0; i < x.size; i++) x[i] = lane.has(i / PackX::size) ? x[i] - mean : 0.0f;
    }
    float square[1] = {0.0f};  // of the centred row: no cancellation, however large the mean
#pragma unroll
    for (int i = 0; i < x.size; i++) square[0] += x[i] * x[i];
    lane.sum(square);
    float rstd = rsqrtf(square[0] * lane.inv_C + lane.eps);
    if (threadIdx.x == 0 && lane.row < lane.N) {
        if (KIND == NormKind::layer) norm.mean[lane.row] = mean;
        norm.rstd[lane.row] = rstd;
    }
#pragma unroll
    for (int i = 0; i < x.size; i++) x[i] *= rstd;
    return norm_apply<KIND>(x, gain, bias, scale);
}

// xh from the saved input x and the saved statistics.
template <NormKind KIND, int PACKS>
__device__ __forceinline__ Row<PACKS> norm_input(const RowLane<PACKS>& lane, const Row<PACKS>& x, const SeamNorm& norm,
                                                 float& rstd) {
    bool real = lane.row < lane.N;
    float mean = KIND == NormKind::layer && real ? norm.mean[lane.row] : 0.0f;
    rstd = real ? norm.rstd[lane.row] : 0.0f;
    Row<PACKS> xh;
#pragma unroll
    for (int i = 0; i < x.size; i++) xh[i] = (x[i] - mean) * rstd;
    return xh;
}

// dx = N^T(dy); adds the gradients of gain and bias to sums FIRST and FIRST+1.
template <NormKind KIND, int FIRST, int PACKS, class Sums>
__device__ __forceinline__ Row<PACKS> norm_backward(const RowLane<PACKS>& lane, const Row<PACKS>& dy, const Row<PACKS>& x,
                                                    const SeamNorm& norm, float scale, Sums& sums) {
    Row<PACKS> a = lane.load_channels(norm.gain);
    float rstd;
    Row<PACKS> xh = norm_input<KIND>(lane, x, norm, rstd), term;
#pragma unroll
    for (int i = 0; i < dy.size; i++) {
        float cdy = scale * dy[i];
        a[i] *= cdy;
        term[i] = cdy * xh[i];
    }
    sums.add(FIRST, term);
    float mean_a = 0.0f, mean_axh;
    if constexpr (KIND == NormKind::layer) {
#pragma unroll
        for (int i = 0; i < dy.size; i++) term[i] = scale * dy[i];
        sums.add(FIRST + 1, term);
        float means[2] = {0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i < dy.size; i++) {
            means[0] += a[i];
            means[1] += a[i] * xh[i];
        }
        lane.sum(means);
        mean_a = means[0] * lane.inv_C;
        mean_axh = means[1] * lane.inv_C;
    } else {
        float means[1] = {0.0f};
#pragma unroll
        for (int i = 0; i < dy.size; i++) means[0] += a[i] * xh[i];
        lane.sum(means);
        mean_axh = means[0] * lane.inv_C;
    }
#pragma unroll
    for (int i = 0; i < dy.size; i++) a[i] = rstd * (a[i] - mean_a - xh[i] * mean_axh);
    return a;
}

// ---------------------------------------------------------------------------------------------------------------------
// The two kernels

template <class Rule, class S, int PACKS>
__global__ void __launch_bounds__(MAX_ROW_THREADS)
    seam_forward_kernel(SeamForward seam, SeamShape shape, typename Rule::Args args) {
    RowLane<PACKS> lane(shape, shared_as<RowShared>());
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y; first < lane.N; first += gridDim.x * blockDim.y) {
        lane.row = first + threadIdx.y;
        Row<PACKS> x = lane.load(seam.x);
        if constexpr (S::rule) {
            Row<PACKS> v = lane.load(seam.u);
            if constexpr (S::out) v = norm_forward<S::kind>(lane, v, seam.out, 1.0f);
            if (seam.scale != nullptr) row_scale(v, *seam.scale);
            x = Rule::combine(lane, args, x, v);
            if constexpr (S::post) lane.store(seam.p, x);
        }
        if constexpr (S::post) x = norm_forward<S::kind>(lane, x, seam.post, 1.0f);
        if constexpr (S::rule || S::post) lane.store(seam.x_new, x);
        if constexpr (S::in) {
            float scale = seam.in.factor != nullptr ? seam.in.scale * *seam.in.factor : seam.in.scale;
            Row<PACKS> z = norm_forward<S::kind>(lane, x, seam.in, scale);
            lane.store(seam.z, z);
        }
    }
}

// Where the sums of each part stand: the rule's first, then N_out's, N_post's, N_in's (gain, bias).
template <class Rule, class S>
struct SumIndex {
    static constexpr int per_norm = S::kind == NormKind::layer ? 2 : 1;
    static constexpr int out = S::rule ? Rule::channel_sums : 0;
    static constexpr int post = out + (S::out ? per_norm : 0);
    static constexpr int in = post + (S::post ? per_norm : 0);
    static constexpr int channels = in + (S::in ? per_norm : 0);
    static constexpr int scalars = S::rule ? Rule::scalar_sums : 0;
    static_assert(channels <= MAX_PARTIAL_SUMS && scalars <= MAX_SCALAR_SUMS, "too many parameters in one seam");
};

template <class Rule, class S, int PACKS>
__global__ void __launch_bounds__(MAX_ROW_THREADS)
    seam_backward_kernel(SeamBackward seam, SeamShape shape, typename Rule::Args args, float* partial, float* scalars) {
    using Index = SumIndex<Rule, S>;
    RowShared& shared = shared_as<RowShared>();
    RowLane<PACKS> lane(shape, shared);
    TokenSums<Index::channels, Index::scalars, PACKS> sums(shared);
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y; first < lane.N; first += gridDim.x * blockDim.y) {
        lane.row = first + threadIdx.y;
        Row<PACKS> d = lane.load(seam.dx_new);
        row_scale(d, seam.dx_new_scale != nullptr ? seam.dx_new_factor * *seam.dx_new_scale : seam.dx_new_factor);
        Saved<PACKS> saved = {};
        if constexpr (S::in) {
            Row<PACKS> x_new = lane.load(seam.x_new);
            float scale = seam.in.scale;
            if (seam.in.factor != nullptr && seam.in.factor_backward) scale *= *seam.in.factor;
            Row<PACKS> dx = norm_backward<S::kind, Index::in>(lane, lane.load(seam.dz), x_new, seam.in, scale, sums);
#pragma unroll
            for (int i = 0; i < d.size; i++) d[i] += dx[i];
            if constexpr (S::rule && !S::post && Rule::reads_p) saved.p = x_new;
        } else {
            Row<PACKS> dz = lane.load(seam.dz);
#pragma unroll
            for (int i = 0; i < d.size; i++) d[i] += dz[i];
            if constexpr (S::rule && !S::post && Rule::reads_p) saved.p = lane.load(seam.x_new);
        }
        if constexpr (S::post) {
            Row<PACKS> p = lane.load(seam.p);
            d = norm_backward<S::kind, Index::post>(lane, d, p, seam.post, 1.0f, sums);
            if constexpr (S::rule && Rule::reads_p) saved.p = p;
        }
        if constexpr (!S::rule) {
            lane.store(seam.dx, d);
        } else {
            Row<PACKS> u = {}, dx, dv;
            if constexpr (S::out || Rule::reads_v) u = saved.v = lane.load(seam.u);
            if constexpr (S::out && Rule::reads_v) {
                float rstd;
                saved.v = norm_apply<S::kind>(norm_input<S::kind>(lane, u, seam.out, rstd),
                                              lane.load_channels(seam.out.gain),
                                              lane.load_channels(seam.out.bias, seam.out.bias != nullptr), 1.0f);
            }
            if constexpr (Rule::reads_v)
                if (seam.scale != nullptr) row_scale(saved.v, *seam.scale);
            Rule::backward(lane, args, d, saved, dx, dv, sums);
            lane.store(seam.dx, dx);
            if constexpr (S::out) {
                if (seam.out_scale != nullptr) row_scale(dv, *seam.out_scale);
                dv = norm_backward<S::kind, Index::out>(lane, dv, u, seam.out, 1.0f, sums);
            }
            if (seam.du != nullptr && seam.du != seam.dx) lane.store(seam.du, dv);
        }
    }
    sums.write(lane, partial, scalars);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launches

struct RowGrid {
    bool wide;  // WIDE_PACKS packs per thread rather than one
    dim3 block;
    int max_blocks;
};
// One pack per thread keeps most threads busy and spills nowhere. Several are needed when a row is longer than
// MAX_ROW_THREADS packs; and they pay where a multiprocessor holds no more than one block's worth of threads, so that a
// reduction costs time for each thread in it instead of being hidden behind other blocks.
inline RowGrid row_grid(int C) {
    static const bool few_threads = [] {
        int device = 0, resident = 0;
        CUDA_CHECK(cudaGetDevice(&device));
        CUDA_CHECK(cudaDeviceGetAttribute(&resident, cudaDevAttrMaxThreadsPerMultiProcessor, device));
        return resident <= 1024;
    }();
    CHECK(C > 0 && C % PackX::size == 0 && C <= MAX_ROW_CHANNELS);
    RowGrid grid;
    int packs = C / PackX::size;
    grid.wide = packs > MAX_ROW_THREADS || (few_threads && packs > WARP);
    int threads = static_cast<int>(round_up(ceil_div(packs, grid.wide ? WIDE_PACKS : 1), WARP));
    int rows = threads < ROW_BLOCK_THREADS ? ROW_BLOCK_THREADS / threads : 1;
    grid.block = dim3(threads, rows);
    // About 1024 threads on a multiprocessor keep enough loads in flight; more blocks mean more partial sums.
    grid.max_blocks = multiprocessors() * (1024 / (threads * rows));
    return grid;
}
inline int row_blocks(const RowGrid& grid, int64_t N) {
    int64_t needed = ceil_div(N, static_cast<int64_t>(grid.block.y));
    return static_cast<int>(needed < grid.max_blocks ? needed : grid.max_blocks);
}

// Calls f(Seam<...>{}) for the seam these parts make. A seam without norms is the same for both kinds. No scheme has
// N_out and N_post at once; what a rule does not allow is not compiled.
template <class Rule, bool RULE, class F>
void with_seam(bool out, bool post, bool in, NormKind kind, F&& f) {
    constexpr bool OUT = RULE && Rule::allows_out, POST = !RULE || Rule::allows_post;
    CHECK(!(out && post) && (OUT || !out) && (POST || !post));
    auto with_kind = [&](auto kind_constant) {
        constexpr NormKind KIND = decltype(kind_constant)::value;
        if (out && in) { if constexpr (OUT) f(Seam<RULE, true, false, true, KIND>{}); }
        else if (out) { if constexpr (OUT) f(Seam<RULE, true, false, false, KIND>{}); }
        else if (post && in) { if constexpr (POST) f(Seam<RULE, false, true, true, KIND>{}); }
        else if (post) { if constexpr (POST) f(Seam<RULE, false, true, false, KIND>{}); }
        else if (in) f(Seam<RULE, false, false, true, KIND>{});
    };
    if (!out && !post && !in) f(Seam<RULE, false, false, false, NormKind::rms>{});
    else if (kind == NormKind::layer) with_kind(std::integral_constant<NormKind, NormKind::layer>{});
    else with_kind(std::integral_constant<NormKind, NormKind::rms>{});
}

// Runs the seam with the rule, or, without a u, the first seam of a network: norms alone.
template <class Rule>
void seam_forward(const SeamForward& seam, const SeamShape& shape, const typename Rule::Args& args, cudaStream_t stream) {
    RowGrid grid = row_grid(shape.C);
    if (shape.N == 0 || (seam.u == nullptr && !seam.post.gain && !seam.in.gain)) return;
    CHECK(seam.u != nullptr || (Rule::allows_first && seam.out.gain == nullptr));
    auto run = [&](auto parts) {
        using S = decltype(parts);
        auto kernel = grid.wide ? seam_forward_kernel<Rule, S, WIDE_PACKS> : seam_forward_kernel<Rule, S, 1>;
        launch(kernel, row_blocks(grid, shape.N), grid.block, sizeof(RowShared), stream, seam, shape, args);
    };
    if (seam.u) with_seam<Rule, true>(seam.out.gain, seam.post.gain, seam.in.gain, shape.kind, run);
    else if constexpr (Rule::allows_first) with_seam<Rule, false>(false, seam.post.gain, seam.in.gain, shape.kind, run);
}

// Gradients of the rule's own parameters, accumulated (+=), in the order of its sums; null: not wanted.
struct RuleGradients {
    float* channels[MAX_PARTIAL_SUMS] = {};  // (C) each
    float* scalars[MAX_SCALAR_SUMS] = {};    // (1) each
};

template <class Rule>
void seam_backward(const SeamBackward& seam, const SeamShape& shape, const typename Rule::Args& args,
                   const RuleGradients& gradients, float* scratch, cudaStream_t stream) {
    RowGrid grid = row_grid(shape.C);
    if (shape.N == 0) return;
    CHECK(!seam.first || (Rule::allows_first && seam.out.gain == nullptr));
    int blocks = row_blocks(grid, shape.N);
    auto run = [&](auto parts) {
        using S = decltype(parts);
        using Index = SumIndex<Rule, S>;
        auto kernel = grid.wide ? seam_backward_kernel<Rule, S, WIDE_PACKS> : seam_backward_kernel<Rule, S, 1>;
        size_t sums_bytes = grid.wide ? TokenSums<Index::channels, Index::scalars, WIDE_PACKS>::shared_bytes(grid.block)
                                      : TokenSums<Index::channels, Index::scalars, 1>::shared_bytes(grid.block);
        float* scalars = scratch + static_cast<size_t>(blocks) * Index::channels * shape.C;
        launch(kernel, blocks, grid.block, sizeof(RowShared) + sums_bytes, stream, seam, shape, args, scratch, scalars);

        PartialTargets target, scalar_target;
        auto norm = [&](const SeamNorm& n, int first) {
            target.total[first] = n.dgain;
            if (S::kind == NormKind::layer) target.total[first + 1] = n.dbias;
        };
        for (int i = 0; i < Index::out; i++) target.total[i] = gradients.channels[i];
        if (S::out) norm(seam.out, Index::out);
        if (S::post) norm(seam.post, Index::post);
        if (S::in) norm(seam.in, Index::in);
        add_partials(target, scratch, blocks, Index::channels, shape.C, stream);
        for (int i = 0; i < Index::scalars; i++) scalar_target.total[i] = gradients.scalars[i];
        add_partials(scalar_target, scalars, blocks, Index::scalars, 1, stream);
    };
    if (!seam.first) with_seam<Rule, true>(seam.out.gain, seam.post.gain, seam.in.gain, shape.kind, run);
    else if constexpr (Rule::allows_first) with_seam<Rule, false>(false, seam.post.gain, seam.in.gain, shape.kind, run);
}
