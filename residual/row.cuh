// Rows in registers: the pieces of which seam kernels are made. A row of C channels lies in the registers of blockDim.x
// threads, PACKS packs of 16 bytes each; blockDim.y rows share a block; a persistent grid walks over all rows. Threads
// behind the end of a row hold zeros. Norms, with g gain, b bias, c the fixed scale, eps inside the root (Ba et al.
// 2016; Zhang & Sennrich 2019):
//
//     layer   mu = mean(x);  r = 1/sqrt(mean((x-mu)^2) + eps);  xh = (x-mu)*r;  y = c*(g*xh + b)
//             a = c*g*dy;    dx = r*(a - mean(a) - xh*mean(a*xh));   dg += SUM c*dy*xh;   db += SUM c*dy
//     rms     r = 1/sqrt(mean(x^2) + eps);  xh = x*r;  y = c*g*xh
//             a = c*g*dy;    dx = r*(a - xh*mean(a*xh));             dg += SUM c*dy*xh
#pragma once
#include "kernels/fp8_device.cuh"
#include "kernels/partials.cuh"
#include "residual/seam.cuh"

constexpr int MAX_ROW_THREADS = 512;    // threads that share one row
constexpr int ROW_BLOCK_THREADS = 256;  // a block takes several rows up to this
constexpr int MAX_BLOCK_ROWS = ROW_BLOCK_THREADS / WARP;
constexpr int WIDE_PACKS = 16 / PackX::size;  // packs per thread where one is too few: see row_grid
constexpr int MAX_ROW_CHANNELS = MAX_ROW_THREADS * WIDE_PACKS * PackX::size;
constexpr int MAX_ROW_SUMS = 8;     // values that one lane.sum() can add
constexpr int MAX_SCALAR_SUMS = 4;  // scalar parameters of a rule
constexpr int REGISTER_SUMS = 32;   // partial sums a thread keeps in registers; with more, all are in shared memory

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
    // Rounds x as storing it would: what training goes on with, inference must too.
    __device__ __forceinline__ void round(Row& x) const {
#pragma unroll
        for (int i = 0; i < Row::size; i++) x[i] = to_float(from_float<floatX>(x[i]));
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

// How a kernel stores what a sublayer reads: in floatX or, where z8 is set, rounded to floatX and then in 8 bits.
struct InputRows {
    floatX* z;
    Fp8Input z8;
    float amax = 0.0f;  // of this thread's share of all rows

    template <int PACKS>
    __device__ __forceinline__ void store(const RowLane<PACKS>& lane, Row<PACKS>& x) {
        if (z8.data == nullptr) return lane.store(z, x);
        lane.round(x);
        Fp8Writer<e4m3> writer(z8.slot);
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            if (lane.row >= lane.N || !lane.has(p)) continue;
            float part[PackX::size];
#pragma unroll
            for (int i = 0; i < PackX::size; i++) part[i] = x[p * PackX::size + i];
            store_fp8(z8.data + lane.row * lane.C + lane.channel(p), writer.convert(part));
        }
        amax = fmaxf(amax, writer.amax);
    }
    // Behind the last row, by all threads of the block together.
    __device__ __forceinline__ void finish(RowShared& shared) const {
        if (z8.data == nullptr) return;
        Fp8Writer<e4m3> writer(z8.slot);
        writer.amax = amax;
        writer.finish(z8.slot, shared.scratch);
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// Sums over tokens: M vectors (C) and K scalars. Each thread adds up its own channels over the rows its block handles.

template <int M_, int K_, int PACKS, int KEPT = REGISTER_SUMS>
struct TokenSums {
    static constexpr int M = M_, K = K_, size = Row<PACKS>::size;
    static constexpr bool in_registers = M * size <= KEPT;
    float scalar[K > 0 ? K : 1];
    float kept[in_registers && M > 0 ? M* size : 1];
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

// gain*xh + bias as one operation everywhere, so that a norm computed again gives the same bits.
template <NormKind KIND, int PACKS>
__device__ __forceinline__ Row<PACKS> norm_apply(const Row<PACKS>& xh, const Row<PACKS>& gain, const Row<PACKS>& bias,
                                                 float scale) {
    Row<PACKS> y;
#pragma unroll
    for (int i = 0; i < y.size; i++)
        y[i] = scale * (KIND == NormKind::layer ? fmaf(gain[i], xh[i], bias[i]) : gain[i] * xh[i]);
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
__device__ __forceinline__ Row<PACKS> norm_backward(const RowLane<PACKS>& lane, const Row<PACKS>& dy,
                                                    const Row<PACKS>& x, const SeamNorm& norm, float scale,
                                                    Sums& sums) {
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
// Launches

struct RowGrid {
    bool wide;  // WIDE_PACKS packs per thread rather than one
    dim3 block;
    int max_blocks;
};
// One pack per thread keeps most threads busy and spills nowhere. Several are needed when a row is longer than
// MAX_ROW_THREADS packs; and they pay where a multiprocessor holds no more than one block's worth of threads, so that a
// reduction costs time for each thread in it instead of being hidden behind other blocks.
//
// The vanilla seam, which every model can fall back on, is compiled for both widths everywhere; other rules wide only
// where WIDE_ROWS says so, which halves the number of kernels on a GPU.
inline RowGrid row_grid(int C, bool both_widths) {
    RowGrid grid;
    int packs = C / PackX::size;
    grid.wide = (WIDE_ROWS && packs > WARP) || packs > MAX_ROW_THREADS;
    CHECK(C > 0 && C % PackX::size == 0 && packs <= MAX_ROW_THREADS * (both_widths || WIDE_ROWS ? WIDE_PACKS : 1));
    int threads = static_cast<int>(round_up(ceil_div(packs, grid.wide ? WIDE_PACKS : 1), WARP));
    int rows = threads < ROW_BLOCK_THREADS ? ROW_BLOCK_THREADS / threads : 1;
    grid.block = dim3(threads, rows);
    // About 1024 threads on a multiprocessor keep enough loads in flight; more blocks mean more partial sums.
    grid.max_blocks = multiprocessors() * (1024 / (threads * rows));
    return grid;
}
// What a norm moves, added to its kernel's declaration. output: bias too, where the backward pass computes y again.
inline void norm_moves(const SeamNorm& norm, const SeamShape& shape, bool backward, bool output) {
    if (norm.gain == nullptr) return;
    float* mean = shape.kind == NormKind::layer ? norm.mean : nullptr;
    MOVES_MORE({reads(norm.gain, shape.C), reads(output ? norm.bias : nullptr, shape.C)});
    if (backward)
        MOVES_MORE({reads(mean, shape.N), reads(norm.rstd, shape.N)});
    else
        MOVES_MORE({writes(mean, shape.N), writes(norm.rstd, shape.N)});
}
// What InputRows stores, added to its kernel's declaration.
inline void input_moves(const floatX* z, const Fp8Input& z8, int64_t count) {
    MOVES_MORE({writes(z8.data ? nullptr : z, count), writes(z8.data, count)});
}
inline int row_blocks(const RowGrid& grid, int64_t N) {
    int64_t needed = ceil_div(N, static_cast<int64_t>(grid.block.y));
    return static_cast<int>(needed < grid.max_blocks ? needed : grid.max_blocks);
}
// No more blocks than run at a time with this kernel's registers: some that come behind the others would work alone.
template <class Kernel>
int row_blocks(const RowGrid& grid, int64_t N, Kernel kernel, size_t shared_bytes) {
    int resident = 0;
    CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
        &resident, kernel, static_cast<int>(grid.block.x * grid.block.y), shared_bytes));
    RowGrid fitting = grid;
    if (resident > 0 && resident * multiprocessors() < grid.max_blocks) fitting.max_blocks = resident * multiprocessors();
    return row_blocks(fitting, N);
}
