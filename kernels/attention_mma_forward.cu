// Attention forward in bf16 on tensor cores (mma.sync, sm_80 and later); used by bf16 builds. FlashAttention-2's
// scheme; the mathematics is in attention_impl.cuh, the pieces in attention_mma.cuh.
//
// A block of 4 warps computes BQ = 64*MB queries of one head; each warp owns 16*MB of them from scores to output, so
// the softmax needs no shared memory: a row's 4 lanes exchange maxima by shuffle, and sums only at the end. With MB = 2
// each fragment of K and V read from shared memory feeds two products: at one, ldmatrix would bind before the
// tensor cores. Exponentials are powers of 2, with scale * log2(e) folded into the one multiply-add before.
//
// Q, one tile of K, and one of V lie in shared memory. V's copy runs while S = Q K^T and the softmax are computed,
// the next K's while O += P V is; two barriers per tile. Several blocks per multiprocessor hide the rest.
// The mask is applied on tiles that touch the diagonal only, and a warp skips tiles that lie beyond its queries.
#include "kernels/attention_mma.cuh"

#if defined(PRECISION_BF16)

namespace {

constexpr int WARPS = 4, THREADS = WARPS * WARP;

template <int D_, int MB_, int BK_>
struct ForwardTile {
    static constexpr int D = D_, MB = MB_, BQ = WARPS * 16 * MB, BK = BK_;
    struct Shared {
        alignas(1024) __nv_bfloat16 q[BQ * D];
        alignas(1024) __nv_bfloat16 k[BK * D];
        alignas(1024) __nv_bfloat16 v[BK * D];
    };
};

// out (B,T,NH*HS), lse (B,NH,T), qkv (B,T,(NH+2*NKV)*HS)
template <class Tile>
__global__ void __launch_bounds__(THREADS)
    attention_forward_mma_kernel(__nv_bfloat16* out, float* lse, const __nv_bfloat16* qkv, AttentionShape s) {
    constexpr int D = Tile::D, MB = Tile::MB, BQ = Tile::BQ, BK = Tile::BK, NB = BK / 8;
    auto& shared = shared_as<typename Tile::Shared>();
    const uint32_t q_tile = shared_address(shared.q), k_tile = shared_address(shared.k),
                   v_tile = shared_address(shared.v);
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

    Accumulator<D, MB> o;
    o.clear();
    float maximum[MB][2], sum[MB][2];  // of rows lane/4 and lane/4 + 8; sum: this lane's share
#pragma unroll
    for (int m = 0; m < MB; m++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            maximum[m][r] = -INFINITY;
            sum[m][r] = 0.0f;
        }
    }
    load_tile<THREADS, BQ, D>(q_tile, qkv + s.query(b, h) + q0 * stride, stride, s.T - q0, s.HS);
    load_tile<THREADS, BK, D>(k_tile, keys, stride, s.T, s.HS);
    cp_async_commit();

    for (int k0 = 0; k0 < end; k0 += BK) {
        const bool active = k0 <= last && first < s.T;
        cp_async_wait<0>();
        __syncthreads();
        load_tile<THREADS, BK, D>(v_tile, values + k0 * stride, stride, s.T - k0, s.HS);
        cp_async_commit();
        uint32_t p[NB / 2][4 * MB];
        if (active) {
            float acc[MB][NB][4];
            multiply_rows<D, MB, NB>(acc, q_tile, row0, k_tile, 0, lane);
            if (k0 + BK - 1 > first) {
#pragma unroll
                for (int m = 0; m < MB; m++) {
#pragma unroll
                    for (int n = 0; n < NB; n++) {
#pragma unroll
                        for (int e = 0; e < 4; e++) {
                            const int key = k0 + 8 * n + lane % 4 * 2 + e % 2;
                            if (key > first + 16 * m + lane / 4 + e / 2 * 8) acc[m][n][e] = -INFINITY;
                        }
                    }
                }
            }
#pragma unroll
            for (int m = 0; m < MB; m++) {
                float factor[2];
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    float high = maximum[m][r];
#pragma unroll
                    for (int n = 0; n < NB; n++) high = fmaxf(high, fmaxf(acc[m][n][2 * r], acc[m][n][2 * r + 1]));
                    high = fmaxf(high, __shfl_xor_sync(FULL_WARP, high, 1));
                    high = fmaxf(high, __shfl_xor_sync(FULL_WARP, high, 2));
                    // Key 0 is visible to every query, so from the first tile on `high` is finite.
                    factor[r] = exp2_approx((maximum[m][r] - high) * factor2);
                    maximum[m][r] = high;
                    const float shift = high * factor2;
                    float total = 0.0f;
#pragma unroll
                    for (int n = 0; n < NB; n++) {
#pragma unroll
                        for (int e = 2 * r; e < 2 * r + 2; e++) {
                            acc[m][n][e] = exp2_approx(acc[m][n][e] * factor2 - shift);
                            total += acc[m][n][e];
                        }
                    }
                    sum[m][r] = sum[m][r] * factor[r] + total;
                }
                o.scale(m, factor[0], factor[1]);
            }
            to_left<MB, NB>(p, acc);
        }
        cp_async_wait<0>();
        __syncthreads();
        if (k0 + BK < end) load_tile<THREADS, BK, D>(k_tile, keys + (k0 + BK) * stride, stride, s.T - k0 - BK, s.HS);
        cp_async_commit();
        if (active) o.multiply_columns(p, v_tile, 0, lane);
    }

#pragma unroll
    for (int m = 0; m < MB; m++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            sum[m][r] += __shfl_xor_sync(FULL_WARP, sum[m][r], 1);
            sum[m][r] += __shfl_xor_sync(FULL_WARP, sum[m][r], 2);
            const int q = first + 16 * m + lane / 4 + 8 * r;
            if (lane % 4 == 0 && q < s.T) lse[s.row(b, h) + q] = maximum[m][r] * s.scale + logf(sum[m][r]);
        }
        o.scale(m, 1.0f / sum[m][0], 1.0f / sum[m][1]);
    }
    o.store(out + s.out(b, h) + first * s.out_stride(), s.out_stride(), s.T - first, s.HS, shared.q + row0 * D, lane);
}

template <class Tile>
void forward(__nv_bfloat16* out, float* lse, const __nv_bfloat16* qkv, AttentionShape s, cudaStream_t stream) {
    MOVES("attention_forward", {reads(qkv, s.qkv_count()), writes(out, s.out_count()), writes(lse, s.row_count())},
          2 * s.product_flops());
    launch(attention_forward_mma_kernel<Tile>, dim3(ceil_div(s.T, Tile::BQ) * s.B * s.NH), dim3(THREADS),
           sizeof(typename Tile::Shared), stream, out, lse, qkv, s);
}

}  // namespace

void attention_forward_tiles(__nv_bfloat16* out, float* lse, const __nv_bfloat16* qkv, AttentionShape s,
                             cudaStream_t stream) {
    if (s.HS <= 32)
        forward<ForwardTile<32, 2, 64>>(out, lse, qkv, s, stream);
    else if (s.HS <= 64)
        forward<ForwardTile<64, 2, 64>>(out, lse, qkv, s, stream);
    else if (s.HS <= 96)
        forward<ForwardTile<96, 2, 64>>(out, lse, qkv, s, stream);
    else if (s.HS <= 128)
        forward<ForwardTile<128, 2, 64>>(out, lse, qkv, s, stream);
    else
        forward<ForwardTile<256, 1, 64>>(out, lse, qkv, s, stream);
}

#endif
