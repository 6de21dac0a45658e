// Attention forward in fp32, flash style; used by fp32 builds. The mathematics is in attention_impl.cuh.
//
// A block computes BQ queries of one head and walks over the keys in tiles of BK. Per tile:
//     load    K transposed and V into shared memory
//     scores  S = Q K^T, register tiles of 4x16                                    -> shared memory
//     softmax one thread per row: running maximum and sum, P = exp(S - maximum)    -> shared memory
//     output  O = O * exp(old maximum - new maximum) + P V, register tiles of 4x16 that live as long as the block
// One thread per row in the softmax: no shuffles, and a row of 64 is as much work as a 4x16 tile.
// Parts of a tile that the causal mask hides are skipped: whole register tiles of S, and the ends of sums over keys.
#include "kernels/attention_fp32_tile.cuh"

#if defined(PRECISION_FP32)

namespace {

constexpr int THREADS = 64;

// Tiles by head size: shared memory stays below the 99 KB of the smaller cards, accumulators below 128 registers.
template <int D_, int BQ_, int BK_>
struct ForwardTile {
    static constexpr int D = D_, BQ = BQ_, BK = BK_;
    static constexpr int QS = D + 4, PS = BK + 4;  // row lengths of q and p, padded against bank conflicts
    static constexpr int SCORE_TILES = BQ / TILE_ROWS * (BK / TILE_COLS);
    static constexpr int OUT_TILES = BQ / TILE_ROWS * (D / TILE_COLS);
    static constexpr int OUT_PER_THREAD = (OUT_TILES + THREADS - 1) / THREADS;
    static_assert(BQ <= THREADS, "one thread per row in the softmax");
    static_assert(SCORE_TILES <= THREADS, "one register tile of scores per thread");

    struct Shared {
        alignas(16) float q[BQ * QS];
        alignas(16) float kt[D * BK];
        alignas(16) float v[BK * D];
        alignas(16) float p[BQ * PS];
        float factor[BQ];   // by what a row's unfinished output is to be multiplied
        float inverse[BQ];  // 1 / the row's sum so far
    };
};

// v[0] op v[1] op ... in a tree: neighbours half the length apart first.
template <bool MAXIMUM, int N>
__device__ __forceinline__ float fold(float (&v)[TILE_COLS]) {
    if constexpr (N == 1) {
        return v[0];
    } else {
#pragma unroll
        for (int e = 0; e < N / 2; e++) {
            const float w = v[e + N / 2];
            if (MAXIMUM)
                v[e] = v[e] > w ? v[e] : w;
            else
                v[e] += w;
        }
        return fold<MAXIMUM, N / 2>(v);
    }
}

// One row of scores p[0..n) becomes p = exp(scale*p - maximum), zero up to the next multiple of 16. Returns by what the
// row's earlier sums must be multiplied.
__device__ __forceinline__ float softmax_row(float* p, int n, float scale, float& maximum, float& sum) {
    float high[TILE_COLS], total[TILE_COLS], x[TILE_COLS];
#pragma unroll
    for (int e = 0; e < TILE_COLS; e++) {
        high[e] = -INFINITY;
        total[e] = 0.0f;
    }
#pragma unroll 1
    for (int k = 0; k < n; k += TILE_COLS) {
        wide_to_array(x, wide_load(p + k));
#pragma unroll
        for (int e = 0; e < TILE_COLS; e++) {
            x[e] = k + e < n ? x[e] * scale : -INFINITY;
            high[e] = x[e] > high[e] ? x[e] : high[e];
        }
        wide_store(p + k, wide_from_array(x));
    }
    const float tile_maximum = fold<true, TILE_COLS>(high);
    const float now = tile_maximum > maximum ? tile_maximum : maximum;
#pragma unroll 1
    for (int k = 0; k < n; k += TILE_COLS) {
        wide_to_array(x, wide_load(p + k));
#pragma unroll
        for (int e = 0; e < TILE_COLS; e++) {
            x[e] = expf(x[e] - now);
            total[e] += x[e];
        }
        wide_store(p + k, wide_from_array(x));
    }
    const float factor = expf(maximum - now);  // exp(-inf) = 0 on a row's first tile
    sum = sum * factor + fold<false, TILE_COLS>(total);
    maximum = now;
    return factor;
}

// out (B,T,NH*HS), lse (B,NH,T), qkv (B,T,(NH+2*NKV)*HS)
template <class Tile>
__global__ void __launch_bounds__(THREADS)
    attention_forward_fp32_kernel(float* out, float* lse, const float* qkv, AttentionShape s) {
    constexpr int D = Tile::D, BQ = Tile::BQ, BK = Tile::BK, QS = Tile::QS, PS = Tile::PS;
    auto& shared = shared_as<typename Tile::Shared>();
    const int t = static_cast<int>(threadIdx.x);
    const int tiles = ceil_div(s.T, BQ);
    const auto [tile, h, b] = attention_block(tiles, s.NH);
    const int q0 = (tiles - 1 - tile) * BQ;  // the last queries have the most keys: they start first
    const int64_t stride = s.stride();
    const float* keys = qkv + s.key(b, h / s.group());
    const float* values = qkv + s.value(b, h / s.group());
    const int rows = s.T - q0 < BQ ? s.T - q0 : BQ;  // queries of this tile that exist

    load_rows<THREADS, BQ, D, QS>(shared.q, qkv + s.query(b, h) + q0 * stride, stride, rows, s.HS);
    Wide o[Tile::OUT_PER_THREAD][TILE_ROWS];
#pragma unroll
    for (int u = 0; u < Tile::OUT_PER_THREAD; u++) clear(o[u]);
    float maximum = -INFINITY, sum = 0.0f;  // of row t

    for (int k0 = 0; k0 < q0 + rows; k0 += BK) {
        load_transposed<THREADS, BK, D>(shared.kt, keys + k0 * stride, stride, s.T - k0, s.HS);
        load_rows<THREADS, BK, D, D>(shared.v, values + k0 * stride, stride, s.T - k0, s.HS);
        __syncthreads();
        {
            const int r = t / (BK / TILE_COLS) * TILE_ROWS, c = t % (BK / TILE_COLS) * TILE_COLS;
            if (r < rows && k0 + c <= q0 + r + TILE_ROWS - 1) {
                Wide acc[TILE_ROWS];
                clear(acc);
                multiply(acc, shared.q + r * QS, QS, shared.kt + c, BK, s.HS);
#pragma unroll
                for (int i = 0; i < TILE_ROWS; i++) wide_store(shared.p + (r + i) * PS + c, acc[i]);
            }
        }
        __syncthreads();
        if (t < (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS) {
            const int visible = q0 + t - k0 + 1;  // keys of this tile that row t may see
            float factor = 1.0f;
            if (visible > 0)
                factor = softmax_row(shared.p + t * PS, visible < BK ? visible : BK, s.scale, maximum, sum);
            shared.factor[t] = factor;
            shared.inverse[t] = 1.0f / sum;
        }
        __syncthreads();
#pragma unroll
        for (int u = 0; u < Tile::OUT_PER_THREAD; u++) {
            const int i = t + u * THREADS;
            const int r = i / (D / TILE_COLS) * TILE_ROWS, c = i % (D / TILE_COLS) * TILE_COLS;
            const int visible = q0 + r + TILE_ROWS - k0;  // to the last of the tile's rows; a multiple of 4
            if (r < rows && c < s.HS && visible > 0) {
#pragma unroll
                for (int j = 0; j < TILE_ROWS; j++) wide_scale(o[u][j], shared.factor[r + j]);
                multiply(o[u], shared.p + r * PS, PS, shared.v + c, D, visible < BK ? visible : BK);
            }
        }
        if (k0 + BK < q0 + rows) __syncthreads();  // the next tile is loaded over this one
    }

    if (t < rows) lse[s.row(b, h) + q0 + t] = maximum + logf(sum);
#pragma unroll
    for (int u = 0; u < Tile::OUT_PER_THREAD; u++) {
        const int i = t + u * THREADS;
        const int r = i / (D / TILE_COLS) * TILE_ROWS, c = i % (D / TILE_COLS) * TILE_COLS;
#pragma unroll
        for (int j = 0; j < TILE_ROWS; j++) {
            if (r + j < rows && c < s.HS) {
                wide_scale(o[u][j], shared.inverse[r + j]);
                store_row(out + s.out(b, h) + (q0 + r + j) * s.out_stride(), o[u][j], c, s.HS);
            }
        }
    }
}

template <class Tile>
void forward(float* out, float* lse, const float* qkv, AttentionShape s, cudaStream_t stream) {
    MOVES("attention_forward", {reads(qkv, s.qkv_count()), writes(out, s.out_count()), writes(lse, s.row_count())},
          2 * s.product_flops());
    launch(attention_forward_fp32_kernel<Tile>, dim3(ceil_div(s.T, Tile::BQ) * s.B * s.NH), dim3(THREADS),
           sizeof(typename Tile::Shared), stream, out, lse, qkv, s);
}

}  // namespace

void attention_forward_tiles(float* out, float* lse, const float* qkv, AttentionShape s, cudaStream_t stream) {
    if (s.HS <= 32)
        forward<ForwardTile<32, 64, 64>>(out, lse, qkv, s, stream);
    else if (s.HS <= 64)
        forward<ForwardTile<64, 64, 64>>(out, lse, qkv, s, stream);
    else if (s.HS <= 128)
        forward<ForwardTile<128, 64, 32>>(out, lse, qkv, s, stream);
    else
        forward<ForwardTile<256, 32, 16>>(out, lse, qkv, s, stream);
}

#endif
