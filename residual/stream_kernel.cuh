// What the kernels of several residual streams are made of (residual/streams.cuh), on top of row_kernel.cuh.
//
// A token's channels lie in one 16-byte pack per thread; blockDim.y tokens share a block. In registers streams stay
// packed, and become fp32 where they are used.
#pragma once
#include "residual/row_kernel.cuh"
#include "residual/streams.cuh"

// 8 streams need more than the 128 registers that 512 threads can have.
template <int NS>
constexpr int STREAM_THREADS = NS <= 4 ? MAX_ROW_THREADS : MAX_ROW_THREADS / 2;

using StreamLane = RowLane<1>;
using Channels = Row<1>;  // this thread's share of one stream

__device__ __forceinline__ Channels unpack(const PackX& pack) {
    Channels x;
#pragma unroll
    for (int i = 0; i < x.size; i++) x[i] = to_float(pack[i]);
    return x;
}
__device__ __forceinline__ PackX pack_channels(const Channels& x) {
    PackX pack;
#pragma unroll
    for (int i = 0; i < x.size; i++) pack[i] = from_float<floatX>(x[i]);
    return pack;
}
// y += a*x, as one operation everywhere, so that a replay gives the same bits.
__device__ __forceinline__ void add_scaled(Channels& y, float a, const Channels& x) {
#pragma unroll
    for (int i = 0; i < x.size; i++) y[i] = fmaf(a, x[i], y[i]);
}
__device__ __forceinline__ float dot(const Channels& x, const Channels& y) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < x.size; i++) sum += x[i] * y[i];
    return sum;
}

// A token's streams; zeros for streams from n on, for channels behind C and for rows behind N.
template <int NS>
struct Streams {
    PackX pack[NS];
};
__device__ __forceinline__ int64_t stream_offset(const StreamLane& lane, int n, int i) {
    return (lane.row * n + i) * lane.C + lane.channel(0);
}
__device__ __forceinline__ PackX load_stream(const StreamLane& lane, const floatX* H, int n, int i) {
    return lane.row < lane.N && lane.has(0) ? load_pack(H + stream_offset(lane, n, i)) : PackX{};
}
template <int NS>
__device__ __forceinline__ Streams<NS> load_streams(const StreamLane& lane, const floatX* H, int n) {
    Streams<NS> out;
#pragma unroll
    for (int i = 0; i < NS; i++) out.pack[i] = i < n ? load_stream(lane, H, n, i) : PackX{};
    return out;
}
__device__ __forceinline__ void store_stream(const StreamLane& lane, floatX* H, int n, int i, const PackX& pack) {
    if (lane.row < lane.N && lane.has(0)) store_pack(H + stream_offset(lane, n, i), pack);
}
// The current token's coefficients. A row behind N has the first token's: its streams are zeros.
__device__ __forceinline__ const float* token_coefficients(const StreamLane& lane, const Coefficients& c) {
    return c.data + (lane.row < lane.N ? lane.row : 0) * c.token_stride;
}

// SUM_i c[i,0] H_i
template <int NS>
__device__ __forceinline__ Channels mix_read(const Streams<NS>& H, const float* c, int stream_stride, int n) {
    Channels h = {};
#pragma unroll
    for (int i = 0; i < NS; i++)
        if (i < n) add_scaled(h, c[i * stream_stride], unpack(H.pack[i]));
    return h;
}
// Y_j = SUM_i c[i,1+j] H_i + c[j,n+1] v, rounded to floatX.
template <int NS>
__device__ __forceinline__ Streams<NS> mix_write(const Streams<NS>& H, const float* c, const Channels& v, int n) {
    Streams<NS> Y;
#pragma unroll
    for (int j = 0; j < NS; j++) {
        Channels y = {};
        if (j < n) {
            add_scaled(y, c[j * (n + 2) + n + 1], v);
#pragma unroll
            for (int i = 0; i < NS; i++)
                if (i < n) add_scaled(y, c[i * (n + 2) + 1 + j], unpack(H.pack[i]));
        }
        Y.pack[j] = pack_channels(y);
    }
    return Y;
}
// The streams after the write of a seam, in registers.
template <NormKind KIND, int NS>
__device__ __forceinline__ Streams<NS> write_streams(const StreamLane& lane, const StreamWrite& write, int n) {
    if (write.u == nullptr) {
        Streams<NS> H = {};
        PackX x0 = pack_channels(lane.load(write.before));
#pragma unroll
        for (int i = 0; i < NS; i++)
            if (i < n && (i == 0 || !write.only_stream_0)) H.pack[i] = x0;
        return H;
    }
    Streams<NS> H = load_streams<NS>(lane, write.before, n);
    Channels v = lane.load(write.u);
    if (write.out.gain != nullptr) v = norm_forward<KIND>(lane, v, write.out, 1.0f);
    if (write.scale != nullptr) row_scale(v, *write.scale);
    return mix_write(H, token_coefficients(lane, write.c), v, n);
}
// v of the write, again, in the backward pass.
template <NormKind KIND, bool OUT>
__device__ __forceinline__ Channels write_input(const StreamLane& lane, const Channels& u, const SeamNorm& out,
                                                const float* scale) {
    Channels v = u;
    if constexpr (OUT) {
        float rstd;
        v = norm_apply<KIND>(norm_input<KIND>(lane, u, out, rstd), lane.load_channels(out.gain),
                             lane.load_channels(out.bias, out.bias != nullptr), 1.0f);
    }
    if (scale != nullptr) row_scale(v, *scale);
    return v;
}

// Many sums over a token at once, which then one thread each goes on with, instead of all threads with all of them: each
// warp puts its partial sums in shared memory, and after a barrier total(k) adds the warps of the row in their order.
template <int NS>
struct alignas(16) StreamShared {
    static constexpr int sums = NS * (NS + 3);
    float partial[MAX_ROW_THREADS / WARP][sums];
    float a[MAX_BLOCK_ROWS][NS * (NS + 2)], b[MAX_BLOCK_ROWS][NS * (NS + 2)];  // what those threads tell the others
    RowShared row;  // last: TokenSums stands behind it

    // values[i] to sum number first + i*step, for i < n.
    template <int COUNT>
    __device__ __forceinline__ void put(float (&values)[COUNT], int first, int step, int n) {
        warp_sum(values);
        if (threadIdx.x % WARP != 0) return;
        float* mine = partial[(threadIdx.y * blockDim.x + threadIdx.x) / WARP];
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            if (i < n) mine[first + i * step] = values[i];
    }
    __device__ __forceinline__ float total(int k) const {
        int warps = static_cast<int>(blockDim.x) / WARP, first = static_cast<int>(threadIdx.y) * warps;
        float sum = 0.0f;
        for (int w = 0; w < warps; w++) sum += partial[first + w][k];
        return sum;
    }
};

// Sums over tokens, always in shared memory: registers are needed for streams. And behind them a thread's own copy of its
// share of n streams, read with an index known only at run time: loops over it stay loops.
template <int M>
using StreamSums = TokenSums<M, 0, 1, 0>;
struct KeptStreams {
    PackX* mine;
    int stride;
    template <int M, int NS>
    static __device__ __forceinline__ KeptStreams behind(StreamShared<NS>& shared, const StreamSums<M>&) {
        int threads = static_cast<int>(blockDim.x * blockDim.y);
        float* end = reinterpret_cast<float*>(&shared.row + 1) + M * PackX::size * threads;
        return {reinterpret_cast<PackX*>(end) + threadIdx.y * blockDim.x + threadIdx.x, threads};
    }
    __device__ __forceinline__ PackX& operator[](int i) const { return mine[i * stride]; }
    // Row by row; zeros for channels behind C and rows behind N.
    template <int NS>
    __device__ __forceinline__ void load(const StreamLane& lane, const floatX* streams, int n) const {
        Streams<NS> D = load_streams<NS>(lane, streams, n);
#pragma unroll
        for (int i = 0; i < NS; i++)
            if (i < n) (*this)[i] = D.pack[i];
    }
};
template <int NS, int M>
size_t backward_shared_bytes(dim3 block, int n) {
    return sizeof(StreamShared<NS>) + StreamSums<M>::shared_bytes(block) + sizeof(PackX) * n * block.x * block.y;
}

// ---------------------------------------------------------------------------------------------------------------------
// Launches

__host__ __device__ inline SeamShape row_shape(const StreamShape& shape) { return {shape.N, shape.C, shape.kind, shape.eps}; }

// Declarations of kernels of streams, added to. `columns` of every stream's coefficients are read:
inline void coefficient_moves(const Coefficients& c, const StreamShape& shape, int columns) {
    const int64_t tokens = c.token_stride ? shape.N : 1;
    MOVES_MORE({reads_bytes(tokens * shape.n * columns * static_cast<int64_t>(sizeof(float)))});
}
// What write_streams reads, and the streams that its kernel stores.
inline void write_moves(const StreamWrite& write, const StreamShape& shape) {
    const int64_t n = shape.N * shape.C;
    MOVES_MORE({writes(write.H, shape.n * n), reads(write.before, write.u ? shape.n * n : n), reads(write.u, n)});
    if (write.u) coefficient_moves(write.c, shape, shape.n + 1);  // all but the column that reads
    norm_moves(write.out, row_shape(shape), false, true);
}

// threads_resident: on a multiprocessor, by registers and shared memory; more blocks only mean more partial sums.
inline RowGrid stream_grid(const StreamShape& shape, int threads_resident) {
    int packs = shape.C / PackX::size, limit = shape.n <= 4 ? STREAM_THREADS<4> : STREAM_THREADS<8>;
    CHECK(shape.n >= 1 && shape.n <= MAX_STREAMS && shape.C > 0 && shape.C % PackX::size == 0);
    CHECK(packs <= limit);  // C is too large for this number of streams
    int threads = static_cast<int>(round_up(packs, WARP)), rows = threads < ROW_BLOCK_THREADS ? ROW_BLOCK_THREADS / threads : 1;
    int resident = threads_resident / (threads * rows);
    return {false, dim3(threads, rows), multiprocessors() * (resident > 1 ? resident : 1)};
}
constexpr int FORWARD_RESIDENT = 1024, BACKWARD_RESIDENT = 512;

// Calls f with NS and KIND as constants.
template <class F>
void with_streams(const StreamShape& shape, F&& f) {
    auto with_kind = [&](auto ns) {
        if (shape.kind == NormKind::layer) f(ns, std::integral_constant<NormKind, NormKind::layer>{});
        else f(ns, std::integral_constant<NormKind, NormKind::rms>{});
    };
    if (shape.n <= 2) with_kind(std::integral_constant<int, 2>{});
    else if (shape.n <= 4) with_kind(std::integral_constant<int, 4>{});
    else with_kind(std::integral_constant<int, 8>{});
}
template <class F>
void with_flag(bool flag, F&& f) {
    if (flag) f(std::true_type{});
    else f(std::false_type{});
}
// Adds a norm's partial sums to its gradients: sums first and, for layer norms, first+1.
inline void norm_targets(PartialTargets& targets, const SeamNorm& norm, NormKind kind, int first) {
    if (norm.gain == nullptr) return;
    targets.total[first] = norm.dgain;
    if (kind == NormKind::layer) targets.total[first + 1] = norm.dbias;
}
