// Attention backward in fp32; used by fp32 builds. The mathematics is in attention_impl.cuh.
//
// Two ways to the same sums, both deterministic:
//   fused  a block owns one key head of one batch row. For each key tile it walks over the query heads of the group and
//          the query tiles below the diagonal; dK and dV collect in registers, dQ in global memory, which no other
//          block touches. Five products per pair of tiles. Needs B*NKV blocks to fill the machine.
//   split  a block per key tile for dK and dV (four products), then a block per query tile for dQ (three): S and dP are
//          computed twice, but there are as many blocks as tiles. For a GPU with few heads.
// dK and dV of a key head that several query heads share are summed in the order of the heads, then of the queries.
//
// One pair of tiles, in three steps between barriers: load Q and dO; S, P, dP, dS on register tiles -> shared memory;
// dV += P^T dO, dK += dS^T Q, dQ += dS K on register tiles.
#include "kernels/attention_fp32_tile.cuh"

#if defined(PRECISION_FP32)

namespace {

template <int D_, int BQ_, int BK_, int THREADS_>
struct BackwardTile {
    static constexpr int D = D_, BQ = BQ_, BK = BK_, THREADS = THREADS_;
    static constexpr int QS = D + 4, PS = BK + 4;  // row lengths, padded against bank conflicts
    static constexpr int SCORE_TILES = BQ / TILE_ROWS * (BK / TILE_COLS);
    static constexpr int KEY_TILES = BK / TILE_ROWS * (D / TILE_COLS);    // of dV, and again of dK
    static constexpr int QUERY_TILES = BQ / TILE_ROWS * (D / TILE_COLS);  // of dQ
    static constexpr int KEY_PER_THREAD = (2 * KEY_TILES + THREADS - 1) / THREADS;
    static_assert(SCORE_TILES <= THREADS && QUERY_TILES <= THREADS, "one register tile of each per thread");

    struct Shared {
        alignas(16) float q[BQ * QS];
        alignas(16) float dout[BQ * QS];
        alignas(16) float kt[D * BK];
        alignas(16) float vt[D * BK];
        alignas(16) float k[BK * D];
        alignas(16) float p[BQ * PS];
        alignas(16) float ds[BQ * PS];
    };
};

// P and dS of queries q0.. (rows of them) and keys k0.. into shared memory; zero where the mask hides a key. Register
// tiles that are hidden altogether stay unwritten: nobody reads them.
// lse, dsum (T): the head's log-sum-exp and delta.
template <class Tile>
__device__ __forceinline__ void scores(typename Tile::Shared& shared, const float* lse, const float* delta, int q0,
                                       int rows, int k0, AttentionShape s) {
    constexpr int BK = Tile::BK, QS = Tile::QS, PS = Tile::PS;
    const int t = static_cast<int>(threadIdx.x);
    const int r = t / (BK / TILE_COLS) * TILE_ROWS, c = t % (BK / TILE_COLS) * TILE_COLS;
    if (r >= rows || k0 + c > q0 + r + TILE_ROWS - 1) return;
    Wide acc[TILE_ROWS];
    float x[TILE_COLS], p[TILE_COLS];
    clear(acc);
    multiply(acc, shared.q + r * QS, QS, shared.kt + c, BK, s.HS);
#pragma unroll
    for (int i = 0; i < TILE_ROWS; i++) {
        const int visible = r + i < rows ? q0 + r + i - k0 - c + 1 : 0;  // keys of these 16 that the row may see
        const float l = r + i < rows ? lse[q0 + r + i] : 0.0f;
        wide_to_array(x, acc[i]);
#pragma unroll
        for (int e = 0; e < TILE_COLS; e++) {
            x[e] = expf(x[e] * s.scale - l);
            x[e] = e < visible ? x[e] : 0.0f;
        }
        wide_store(shared.p + (r + i) * PS + c, wide_from_array(x));
    }
    clear(acc);
    multiply(acc, shared.dout + r * QS, QS, shared.vt + c, BK, s.HS);
#pragma unroll
    for (int i = 0; i < TILE_ROWS; i++) {
        const float d = r + i < rows ? delta[q0 + r + i] : 0.0f;
        wide_to_array(x, acc[i]);
        wide_to_array(p, wide_load(shared.p + (r + i) * PS + c));
#pragma unroll
        for (int e = 0; e < TILE_COLS; e++) x[e] = p[e] * (x[e] - d) * s.scale;
        wide_store(shared.ds + (r + i) * PS + c, wide_from_array(x));
    }
}

// dq (T,stride) rows q0.. += dS K; `fresh`: = instead of +=.
template <class Tile>
__device__ __forceinline__ void add_to_query_gradient(float* dq, const typename Tile::Shared& shared, int q0, int rows,
                                                      int k0, bool fresh, AttentionShape s) {
    constexpr int D = Tile::D, BK = Tile::BK, PS = Tile::PS;
    const int t = static_cast<int>(threadIdx.x);
    const int r = t / (D / TILE_COLS) * TILE_ROWS, c = t % (D / TILE_COLS) * TILE_COLS;
    const int visible = q0 + r + TILE_ROWS - k0;  // a multiple of 4
    if (r >= rows || c >= s.HS || visible <= 0) return;
    Wide acc[TILE_ROWS];
#pragma unroll
    for (int i = 0; i < TILE_ROWS; i++) {
        float x[TILE_COLS];
        load_sixteen(x, dq + (q0 + r + i) * s.stride() + c, !fresh && r + i < rows ? s.HS - c : 0);
        acc[i] = wide_from_array(x);
    }
    multiply(acc, shared.ds + r * PS, PS, shared.k + c, D, visible < BK ? visible : BK);
#pragma unroll
    for (int i = 0; i < TILE_ROWS; i++) {
        if (r + i < rows) store_row(dq + (q0 + r + i) * s.stride(), acc[i], c, s.HS);
    }
}

// dK and dV; with FUSED, dQ too. Grid: (1 if FUSED, else key tiles) * B*NKV.
// dqkv (B,T,(NH+2*NKV)*HS), dout (B,T,NH*HS), qkv as dqkv, lse and delta (B,NH,T)
template <class Tile, bool FUSED>
__global__ void __launch_bounds__(Tile::THREADS)
    attention_backward_fp32_kernel(float* dqkv, const float* dout, const float* qkv, const float* lse,
                                   const float* delta, AttentionShape s) {
    constexpr int THREADS = Tile::THREADS, D = Tile::D, BQ = Tile::BQ, BK = Tile::BK, QS = Tile::QS, PS = Tile::PS;
    auto& shared = shared_as<typename Tile::Shared>();
    const int t = static_cast<int>(threadIdx.x);
    const int tiles = FUSED ? 1 : ceil_div(s.T, BK);
    const auto [tile, kv, b] = attention_block(tiles, s.NKV);
    const int64_t stride = s.stride();
    const int step = tiles * BK;

    for (int k0 = tile * BK; k0 < s.T; k0 += step) {
        const int keys = s.T - k0 < BK ? s.T - k0 : BK;
        load_transposed<THREADS, BK, D>(shared.kt, qkv + s.key(b, kv) + k0 * stride, stride, keys, s.HS);
        load_transposed<THREADS, BK, D>(shared.vt, qkv + s.value(b, kv) + k0 * stride, stride, keys, s.HS);
        if (FUSED) load_rows<THREADS, BK, D, D>(shared.k, qkv + s.key(b, kv) + k0 * stride, stride, keys, s.HS);
        Wide acc[Tile::KEY_PER_THREAD][TILE_ROWS];  // register tiles 0..KEY_TILES-1 are dV's, the others dK's
#pragma unroll
        for (int u = 0; u < Tile::KEY_PER_THREAD; u++) clear(acc[u]);

        for (int h = kv * s.group(); h < (kv + 1) * s.group(); h++) {
            for (int q0 = k0 / BQ * BQ; q0 < s.T; q0 += BQ) {
                const int rows = s.T - q0 < BQ ? s.T - q0 : BQ;
                load_rows<THREADS, BQ, D, QS>(shared.q, qkv + s.query(b, h) + q0 * stride, stride, rows, s.HS);
                load_rows<THREADS, BQ, D, QS>(shared.dout, dout + s.out(b, h) + q0 * s.out_stride(), s.out_stride(),
                                              rows, s.HS);
                __syncthreads();
                scores<Tile>(shared, lse + s.row(b, h), delta + s.row(b, h), q0, rows, k0, s);
                __syncthreads();
#pragma unroll
                for (int u = 0; u < Tile::KEY_PER_THREAD; u++) {
                    int i = t + u * THREADS;
                    const bool of_key = i >= Tile::KEY_TILES;
                    i -= of_key ? Tile::KEY_TILES : 0;
                    const int r = i / (D / TILE_COLS) * TILE_ROWS, c = i % (D / TILE_COLS) * TILE_COLS;
                    const int first = k0 + r - q0;  // the first query that sees key k0 + r
                    if (r < keys && c < s.HS)
                        multiply_transposed(acc[u], (of_key ? shared.ds : shared.p) + r, PS,
                                            (of_key ? shared.q : shared.dout) + c, QS, first > 0 ? first : 0, rows);
                }
                if (FUSED) add_to_query_gradient<Tile>(dqkv + s.query(b, h), shared, q0, rows, k0, k0 == 0, s);
                // The next tile is loaded over this one. (Of a fused block the last key tile's last pair is the last.)
                const bool last = h == (kv + 1) * s.group() - 1 && q0 + BQ >= s.T && k0 + step >= s.T;
                if (!last) __syncthreads();
            }
        }
#pragma unroll
        for (int u = 0; u < Tile::KEY_PER_THREAD; u++) {
            int i = t + u * THREADS;
            const bool of_key = i >= Tile::KEY_TILES;
            i -= of_key ? Tile::KEY_TILES : 0;
            const int r = i / (D / TILE_COLS) * TILE_ROWS, c = i % (D / TILE_COLS) * TILE_COLS;
            float* to = dqkv + (of_key ? s.key(b, kv) : s.value(b, kv));
#pragma unroll
            for (int j = 0; j < TILE_ROWS; j++) {
                if (r + j < keys && c < s.HS) store_row(to + (k0 + r + j) * stride, acc[u][j], c, s.HS);
            }
        }
    }
}

// dQ by itself. Grid: query tiles * B*NH. The arrays are those of the kernel above.
template <class Tile>
__global__ void __launch_bounds__(Tile::THREADS)
    attention_query_gradient_fp32_kernel(float* dqkv, const float* dout, const float* qkv, const float* lse,
                                         const float* delta, AttentionShape s) {
    constexpr int THREADS = Tile::THREADS, D = Tile::D, BQ = Tile::BQ, BK = Tile::BK, QS = Tile::QS, PS = Tile::PS;
    auto& shared = shared_as<typename Tile::Shared>();
    const int t = static_cast<int>(threadIdx.x);
    const int tiles = ceil_div(s.T, BQ);
    const auto [tile, h, b] = attention_block(tiles, s.NH);
    const int q0 = (tiles - 1 - tile) * BQ, kv = h / s.group();  // those with the most keys start first
    const int64_t stride = s.stride();
    const int rows = s.T - q0 < BQ ? s.T - q0 : BQ;
    load_rows<THREADS, BQ, D, QS>(shared.q, qkv + s.query(b, h) + q0 * stride, stride, rows, s.HS);
    load_rows<THREADS, BQ, D, QS>(shared.dout, dout + s.out(b, h) + q0 * s.out_stride(), s.out_stride(), rows, s.HS);
    const int r = t / (D / TILE_COLS) * TILE_ROWS, c = t % (D / TILE_COLS) * TILE_COLS;
    Wide acc[TILE_ROWS];
    clear(acc);
    for (int k0 = 0; k0 < q0 + rows; k0 += BK) {
        const int keys = s.T - k0 < BK ? s.T - k0 : BK;
        load_transposed<THREADS, BK, D>(shared.kt, qkv + s.key(b, kv) + k0 * stride, stride, keys, s.HS);
        load_transposed<THREADS, BK, D>(shared.vt, qkv + s.value(b, kv) + k0 * stride, stride, keys, s.HS);
        load_rows<THREADS, BK, D, D>(shared.k, qkv + s.key(b, kv) + k0 * stride, stride, keys, s.HS);
        __syncthreads();
        scores<Tile>(shared, lse + s.row(b, h), delta + s.row(b, h), q0, rows, k0, s);
        __syncthreads();
        const int visible = q0 + r + TILE_ROWS - k0;  // a multiple of 4
        if (r < rows && c < s.HS && visible > 0)
            multiply(acc, shared.ds + r * PS, PS, shared.k + c, D, visible < BK ? visible : BK);
        if (k0 + BK < q0 + rows) __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < TILE_ROWS; i++) {
        if (r + i < rows && c < s.HS) store_row(dqkv + s.query(b, h) + (q0 + r + i) * stride, acc[i], c, s.HS);
    }
}

template <class Tile>
void backward(float* dqkv, const float* dout, const float* qkv, const float* lse, const float* delta, AttentionShape s,
              cudaStream_t stream) {
    constexpr size_t bytes = sizeof(typename Tile::Shared);
    const int key_tiles = ceil_div(s.T, Tile::BK), query_tiles = ceil_div(s.T, Tile::BQ);
    if (key_tiles == 1 || s.B * s.NKV >= 2 * multiprocessors()) {
        MOVES("attention_backward",
              {reads(qkv, s.qkv_count()), reads(dout, s.out_count()), reads(lse, s.row_count()),
               reads(delta, s.row_count()), writes(dqkv, s.qkv_count())},
              5 * s.product_flops());
        launch(attention_backward_fp32_kernel<Tile, true>, dim3(s.B * s.NKV), dim3(Tile::THREADS), bytes, stream, dqkv,
               dout, qkv, lse, delta, s);
        return;
    }
    MOVES("attention_key_gradient",
          {reads(qkv, s.qkv_count()), reads(dout, s.out_count()), reads(lse, s.row_count()),
           reads(delta, s.row_count()), writes(dqkv, 2 * s.key_count())},
          4 * s.product_flops());
    launch(attention_backward_fp32_kernel<Tile, false>, dim3(key_tiles * s.B * s.NKV), dim3(Tile::THREADS), bytes,
           stream, dqkv, dout, qkv, lse, delta, s);
    MOVES("attention_query_gradient",
          {reads(qkv, s.qkv_count()), reads(dout, s.out_count()), reads(lse, s.row_count()),
           reads(delta, s.row_count()), writes(dqkv, s.out_count())},
          3 * s.product_flops());
    launch(attention_query_gradient_fp32_kernel<Tile>, dim3(query_tiles * s.B * s.NH), dim3(Tile::THREADS), bytes,
           stream, dqkv, dout, qkv, lse, delta, s);
}

}  // namespace

void attention_backward_tiles(float* dqkv, const float* dout, const float* qkv, const float* lse, const float* delta,
                              AttentionShape s, cudaStream_t stream) {
    if (s.HS <= 32)
        backward<BackwardTile<32, 64, 64, 64>>(dqkv, dout, qkv, lse, delta, s, stream);
    else if (s.HS <= 64)
        backward<BackwardTile<64, 64, 32, 64>>(dqkv, dout, qkv, lse, delta, s, stream);
    else if (s.HS <= 128)
        backward<BackwardTile<128, 32, 32, 128>>(dqkv, dout, qkv, lse, delta, s, stream);
    else
        backward<BackwardTile<256, 16, 16, 128>>(dqkv, dout, qkv, lse, delta, s, stream);
}

#endif
