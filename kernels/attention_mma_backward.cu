// Attention backward in bf16 on tensor cores (mma.sync, sm_80 and later); used by bf16 builds. The mathematics is in
// attention_impl.cuh, the pieces in attention_mma.cuh.
//
// dK and dV: a block owns a tile of keys of one key head and walks over the query heads of its group and their query
// tiles from the diagonal on. Scores are computed transposed, S^T = K Q^T, each warp for keys of its own, so that P^T
// and dS^T are left matrices of dV += P^T dO and dK += dS^T Q without leaving the registers. dQ: a block owns a tile of
// queries and walks over the keys, as forward does. All sums run in a fixed order.
//
// Why dQ has a kernel of its own. Fused into the first it would save two of seven products, but its sum runs across
// blocks. Without atomics that means either fp32 partial sums, one per key tile (per 128 keys 4 bytes written and 4
// read for each element of dQ against 5*2*128 = 1280 flops: at 4.8 TB/s that alone takes as long as 770 TFLOP/s, a
// fifth to a quarter of the whole, and T/128 times dQ's size in scratch: 1.6 GB for B=64, T=1024, C=768), or blocks
// that wait for each other in a fixed order, where the diagonal makes half of them idle. Computing S and dP twice costs
// 7/5 of the products, no scratch and no waiting.
//
// Q, dO (or K, V) arrive in two buffers in turn: the next tile's copy runs during this tile's products; one barrier
// each.
#include "kernels/attention_mma.cuh"

#if defined(PRECISION_BF16)

namespace {

constexpr int WARPS = 4, THREADS = WARPS * WARP;

// ---------------------------------------------------------------------------------------------------------------------
// dK and dV

// BK keys per block, 16*MB per warp; BQ queries per step, of which 8*NB at a time are in registers. DV, DK: which of
// the two to compute; the largest heads have registers for one at a time only.
template <int D_, int MB_, int BQ_, int NB_, bool DV_, bool DK_>
struct KeyTile {
    static constexpr int D = D_, MB = MB_, BK = WARPS * 16 * MB, BQ = BQ_, NB = NB_;
    static constexpr bool DV = DV_, DK = DK_;
    static_assert(BQ % (8 * NB) == 0 && NB % 2 == 0 && BQ <= THREADS);
    struct Shared {
        alignas(1024) __nv_bfloat16 k[BK * D];
        alignas(1024) __nv_bfloat16 v[BK * D];
        alignas(1024) __nv_bfloat16 q[2][BQ * D];
        alignas(1024) __nv_bfloat16 dout[2][BQ * D];
        float lse[2][BQ];
        float delta[2][BQ];
    };
};

// Starts the copies of queries q0.. of head h: Q, dO, lse and delta. Zeros beyond T: there P = 1, but dO = 0 and dS =
// 0.
template <class Tile>
__device__ __forceinline__ void load_queries(typename Tile::Shared& shared, int stage, const __nv_bfloat16* dout,
                                             const __nv_bfloat16* qkv, const float* lse, const float* delta, int b,
                                             int h, int q0, const AttentionShape& s) {
    constexpr int D = Tile::D, BQ = Tile::BQ;
    const int left = s.T - q0, t = static_cast<int>(threadIdx.x);
    load_tile<THREADS, BQ, D>(shared_address(shared.q[stage]), qkv + s.query(b, h) + q0 * s.stride(), s.stride(), left,
                              s.HS);
    load_tile<THREADS, BQ, D>(shared_address(shared.dout[stage]), dout + s.out(b, h) + q0 * s.out_stride(),
                              s.out_stride(), left, s.HS);
    if (t < BQ) {
        const int64_t at = s.row(b, h) + q0 + (t < left ? t : 0);
        cp_async_4(shared_address(&shared.lse[stage][t]), lse + at, t < left ? 4 : 0);
        cp_async_4(shared_address(&shared.delta[stage][t]), delta + at, t < left ? 4 : 0);
    }
}

// dqkv (B,T,(NH+2*NKV)*HS), dout (B,T,NH*HS), qkv as dqkv, lse and delta (B,NH,T)
template <class Tile>
__global__ void __launch_bounds__(THREADS)
    attention_key_gradient_mma_kernel(__nv_bfloat16* dqkv, const __nv_bfloat16* dout, const __nv_bfloat16* qkv,
                                      const float* lse, const float* delta, AttentionShape s) {
    constexpr int D = Tile::D, MB = Tile::MB, BK = Tile::BK, BQ = Tile::BQ, NB = Tile::NB;
    auto& shared = shared_as<typename Tile::Shared>();
    const uint32_t k_tile = shared_address(shared.k), v_tile = shared_address(shared.v);
    const int lane = static_cast<int>(threadIdx.x) % WARP, row0 = static_cast<int>(threadIdx.x) / WARP * 16 * MB;
    const auto [tile, kv, b] = attention_block(ceil_div(s.T, BK), s.NKV);
    const int k0 = tile * BK;  // the first keys are seen by the most queries: they start first
    const int64_t stride = s.stride();
    const int first = k0 + row0;  // of the warp's keys
    const float factor2 = s.scale * LOG2E;

    // Step i: query tile first_tile + i % tiles of head kv*group + i / tiles.
    const int first_tile = k0 / BQ, tiles = ceil_div(s.T, BQ) - first_tile, steps = tiles * s.group();

    Accumulator<D, MB> dk, dv;
    if (Tile::DK) dk.clear();
    if (Tile::DV) dv.clear();
    load_tile<THREADS, BK, D>(k_tile, qkv + s.key(b, kv) + k0 * stride, stride, s.T - k0, s.HS);
    if (Tile::DK) load_tile<THREADS, BK, D>(v_tile, qkv + s.value(b, kv) + k0 * stride, stride, s.T - k0, s.HS);
    load_queries<Tile>(shared, 0, dout, qkv, lse, delta, b, kv * s.group(), first_tile * BQ, s);
    cp_async_commit();

    for (int step = 0; step < steps; step++) {
        cp_async_wait<0>();
        __syncthreads();
        if (step + 1 < steps)
            load_queries<Tile>(shared, (step + 1) % 2, dout, qkv, lse, delta, b, kv * s.group() + (step + 1) / tiles,
                               (first_tile + (step + 1) % tiles) * BQ, s);
        cp_async_commit();
        const int stage = step % 2, tile_q0 = (first_tile + step % tiles) * BQ;
        const uint32_t q_tile = shared_address(shared.q[stage]), dout_tile = shared_address(shared.dout[stage]);
#pragma unroll 1
        for (int part = 0; part < BQ; part += 8 * NB) {
            const int q0 = tile_q0 + part;
            if (q0 + 8 * NB - 1 < first || q0 >= s.T || first >= s.T) continue;
            float p[MB][NB][4];
            uint32_t left[NB / 2][4 * MB];
            multiply_rows<D, MB, NB>(p, k_tile, row0, q_tile, part, lane);
#pragma unroll
            for (int n = 0; n < NB; n++) {
                const int column = part + 8 * n + lane % 4 * 2;
                const float2 l = *reinterpret_cast<const float2*>(&shared.lse[stage][column]);
                const float shift[2] = {l.x * LOG2E, l.y * LOG2E};
#pragma unroll
                for (int m = 0; m < MB; m++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) p[m][n][e] = exp2_approx(p[m][n][e] * factor2 - shift[e % 2]);
                }
            }
            if (q0 < first + 16 * MB - 1) {
#pragma unroll
                for (int m = 0; m < MB; m++) {
#pragma unroll
                    for (int n = 0; n < NB; n++) {
#pragma unroll
                        for (int e = 0; e < 4; e++) {
                            const int q = q0 + 8 * n + lane % 4 * 2 + e % 2;
                            if (first + 16 * m + lane / 4 + e / 2 * 8 > q) p[m][n][e] = 0.0f;
                        }
                    }
                }
            }
            if (Tile::DV) {
                to_left<MB, NB>(left, p);
                dv.multiply_columns(left, dout_tile, part, lane);
            }
            if (Tile::DK) {
                float dp[MB][NB][4];
                multiply_rows<D, MB, NB>(dp, v_tile, row0, dout_tile, part, lane);
#pragma unroll
                for (int n = 0; n < NB; n++) {
                    const int column = part + 8 * n + lane % 4 * 2;
                    const float2 d = *reinterpret_cast<const float2*>(&shared.delta[stage][column]);
#pragma unroll
                    for (int m = 0; m < MB; m++) {
#pragma unroll
                        for (int e = 0; e < 4; e++) dp[m][n][e] = p[m][n][e] * (dp[m][n][e] - (e % 2 ? d.y : d.x));
                    }
                }
                to_left<MB, NB>(left, dp);
                dk.multiply_columns(left, q_tile, part, lane);
            }
        }
    }
    // The warp's own rows of K and V have been read by itself alone.
    if (Tile::DV)
        dv.store(dqkv + s.value(b, kv) + first * stride, stride, s.T - first, s.HS, shared.v + row0 * D, lane);
    if (Tile::DK) {
#pragma unroll
        for (int m = 0; m < MB; m++) dk.scale(m, s.scale, s.scale);
        dk.store(dqkv + s.key(b, kv) + first * stride, stride, s.T - first, s.HS, shared.k + row0 * D, lane);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// dQ

template <int D_, int MB_, int BK_>
struct QueryTile {
    static constexpr int D = D_, MB = MB_, BQ = WARPS * 16 * MB, BK = BK_;
    struct Shared {
        alignas(1024) __nv_bfloat16 q[BQ * D];
        alignas(1024) __nv_bfloat16 dout[BQ * D];
        alignas(1024) __nv_bfloat16 k[2][BK * D];
        alignas(1024) __nv_bfloat16 v[2][BK * D];
    };
};

// The arrays are those of the kernel above.
template <class Tile>
__global__ void __launch_bounds__(THREADS)
    attention_query_gradient_mma_kernel(__nv_bfloat16* dqkv, const __nv_bfloat16* dout, const __nv_bfloat16* qkv,
                                        const float* lse, const float* delta, AttentionShape s) {
    constexpr int D = Tile::D, MB = Tile::MB, BQ = Tile::BQ, BK = Tile::BK, NB = BK / 8;
    auto& shared = shared_as<typename Tile::Shared>();
    const uint32_t q_tile = shared_address(shared.q), dout_tile = shared_address(shared.dout);
    const int lane = static_cast<int>(threadIdx.x) % WARP, row0 = static_cast<int>(threadIdx.x) / WARP * 16 * MB;
    const int tiles = ceil_div(s.T, BQ);
    const auto [tile, h, b] = attention_block(tiles, s.NH);
    const int q0 = (tiles - 1 - tile) * BQ;  // the last queries have the most keys: they start first
    const int64_t stride = s.stride();
    const __nv_bfloat16* keys = qkv + s.key(b, h / s.group());
    const __nv_bfloat16* values = qkv + s.value(b, h / s.group());
    const int end = q0 + BQ < s.T ? q0 + BQ : s.T;            // of the keys that this block needs
    const int first = q0 + row0, last = first + 16 * MB - 1;  // the warp's queries
    const float factor2 = s.scale * LOG2E;

    float shift[MB][2], dsum[MB][2];  // lse in powers of 2, and delta, of rows lane/4 and lane/4 + 8
#pragma unroll
    for (int m = 0; m < MB; m++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int q = first + 16 * m + lane / 4 + 8 * r;
            shift[m][r] = q < s.T ? lse[s.row(b, h) + q] * LOG2E : 0.0f;
            dsum[m][r] = q < s.T ? delta[s.row(b, h) + q] : 0.0f;
        }
    }
    Accumulator<D, MB> dq;
    dq.clear();
    load_tile<THREADS, BQ, D>(q_tile, qkv + s.query(b, h) + q0 * stride, stride, s.T - q0, s.HS);
    load_tile<THREADS, BQ, D>(dout_tile, dout + s.out(b, h) + q0 * s.out_stride(), s.out_stride(), s.T - q0, s.HS);
    load_tile<THREADS, BK, D>(shared_address(shared.k[0]), keys, stride, s.T, s.HS);
    load_tile<THREADS, BK, D>(shared_address(shared.v[0]), values, stride, s.T, s.HS);
    cp_async_commit();

    for (int k0 = 0, stage = 0; k0 < end; k0 += BK, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();
        if (k0 + BK < end) {
            const int64_t next = (k0 + BK) * stride;
            load_tile<THREADS, BK, D>(shared_address(shared.k[stage ^ 1]), keys + next, stride, s.T - k0 - BK, s.HS);
            load_tile<THREADS, BK, D>(shared_address(shared.v[stage ^ 1]), values + next, stride, s.T - k0 - BK, s.HS);
        }
        cp_async_commit();
        if (k0 > last || first >= s.T) continue;
        const uint32_t k_tile = shared_address(shared.k[stage]), v_tile = shared_address(shared.v[stage]);
        float p[MB][NB][4], dp[MB][NB][4];
        multiply_rows<D, MB, NB>(p, q_tile, row0, k_tile, 0, lane);
#pragma unroll
        for (int m = 0; m < MB; m++) {
#pragma unroll
            for (int n = 0; n < NB; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) p[m][n][e] = exp2_approx(p[m][n][e] * factor2 - shift[m][e / 2]);
            }
        }
        if (k0 + BK - 1 > first) {
#pragma unroll
            for (int m = 0; m < MB; m++) {
#pragma unroll
                for (int n = 0; n < NB; n++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const int key = k0 + 8 * n + lane % 4 * 2 + e % 2;
                        if (key > first + 16 * m + lane / 4 + e / 2 * 8) p[m][n][e] = 0.0f;
                    }
                }
            }
        }
        multiply_rows<D, MB, NB>(dp, dout_tile, row0, v_tile, 0, lane);
#pragma unroll
        for (int m = 0; m < MB; m++) {
#pragma unroll
            for (int n = 0; n < NB; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) dp[m][n][e] = p[m][n][e] * (dp[m][n][e] - dsum[m][e / 2]);
            }
        }
        uint32_t left[NB / 2][4 * MB];
        to_left<MB, NB>(left, dp);
        dq.multiply_columns(left, k_tile, 0, lane);
    }
#pragma unroll
    for (int m = 0; m < MB; m++) dq.scale(m, s.scale, s.scale);
    dq.store(dqkv + s.query(b, h) + first * stride, stride, s.T - first, s.HS, shared.q + row0 * D, lane);
}

// ---------------------------------------------------------------------------------------------------------------------

struct Arguments {
    __nv_bfloat16* dqkv;
    const __nv_bfloat16 *dout, *qkv;
    const float *lse, *delta;
};

template <class Tile>
void key_gradient(const Arguments& a, AttentionShape s, cudaStream_t stream) {
    const int64_t qkv_read = s.qkv_count() - (Tile::DK ? 0 : s.key_count());  // without dK it needs no values
    MOVES("attention_key_gradient",
          {reads(a.qkv, qkv_read), reads(a.dout, s.out_count()), reads(a.lse, s.row_count()),
           reads(a.delta, s.row_count()),
           writes(a.dqkv, (Tile::DV + Tile::DK) * s.key_count())},
          (1 + Tile::DV + 2 * Tile::DK) * s.product_flops());
    launch(attention_key_gradient_mma_kernel<Tile>, dim3(ceil_div(s.T, Tile::BK) * s.B * s.NKV), dim3(THREADS),
           sizeof(typename Tile::Shared), stream, a.dqkv, a.dout, a.qkv, a.lse, a.delta, s);
}
template <class Tile>
void query_gradient(const Arguments& a, AttentionShape s, cudaStream_t stream) {
    MOVES("attention_query_gradient",
          {reads(a.qkv, s.qkv_count()), reads(a.dout, s.out_count()), reads(a.lse, s.row_count()),
           reads(a.delta, s.row_count()),
           writes(a.dqkv, s.out_count())},
          3 * s.product_flops());
    launch(attention_query_gradient_mma_kernel<Tile>, dim3(ceil_div(s.T, Tile::BQ) * s.B * s.NH), dim3(THREADS),
           sizeof(typename Tile::Shared), stream, a.dqkv, a.dout, a.qkv, a.lse, a.delta, s);
}

}  // namespace

void attention_backward_tiles(__nv_bfloat16* dqkv, const __nv_bfloat16* dout, const __nv_bfloat16* qkv,
                              const float* lse, const float* delta, AttentionShape s, cudaStream_t stream) {
    const Arguments a{dqkv, dout, qkv, lse, delta};
    if (s.HS <= 32) {
        key_gradient<KeyTile<32, 2, 64, 4, true, true>>(a, s, stream);
        query_gradient<QueryTile<32, 2, 64>>(a, s, stream);
    } else if (s.HS <= 64) {
        key_gradient<KeyTile<64, 2, 64, 4, true, true>>(a, s, stream);
        query_gradient<QueryTile<64, 2, 48>>(a, s, stream);
    } else if (s.HS <= 96) {
        key_gradient<KeyTile<96, 1, 64, 8, true, true>>(a, s, stream);
        query_gradient<QueryTile<96, 2, 32>>(a, s, stream);
    } else if (s.HS <= 128) {
        key_gradient<KeyTile<128, 1, 64, 8, true, true>>(a, s, stream);
        query_gradient<QueryTile<128, 2, 32>>(a, s, stream);
    } else {
        key_gradient<KeyTile<256, 1, 16, 2, true, false>>(a, s, stream);
        key_gradient<KeyTile<256, 1, 16, 2, false, true>>(a, s, stream);
        query_gradient<QueryTile<256, 1, 16>>(a, s, stream);
    }
}

#endif
