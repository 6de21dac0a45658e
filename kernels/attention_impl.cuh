// Inside of attention: what attention.cu hands to the implementation of this build's precision.
//
// Mathematics, per query head h, query q, key head kv = h / (NH/NKV), with scale = 1/sqrt(HS), keys k <= q (causal):
//
//     s[q,k]  = scale * sum_d Q[q,d] K[k,d]
//     lse[q]  = log sum_k exp(s[q,k])              P[q,k] = exp(s[q,k] - lse[q])
//     O[q,d]  = sum_k P[q,k] V[k,d]
//
// Forward, flash style: keys come in tiles; with m the row's maximum so far and l the sum of exp(s - m), a new tile's
// larger maximum m' rescales l and the unfinished O by exp(m - m'). At the end O /= l and lse = m + log l. No score
// reaches memory. (Dao et al., FlashAttention, 2022; Dao, FlashAttention-2, 2023.)
//
// Backward, scores recomputed from lse:
//
//     delta[q] = sum_d dO[q,d] O[q,d]              ( = sum_k P[q,k] dP[q,k], so no second pass over the keys )
//     dP[q,k]  = sum_d dO[q,d] V[k,d]
//     dS[q,k]  = scale * P[q,k] (dP[q,k] - delta[q])
//     dV[k,d]  = sum_h sum_q P[q,k] dO[q,d]        dK[k,d] = sum_h sum_q dS[q,k] Q[q,d]     (h: heads that share kv)
//     dQ[q,d]  = sum_k dS[q,k] K[k,d]
#pragma once
#include "kernels/common.cuh"

constexpr unsigned FULL_WARP = 0xffffffffu;
constexpr float LOG2E = 1.44269504088896341f;

struct AttentionShape {
    int B, T, NH, NKV, HS;
    float scale;  // 1/sqrt(HS)

    __host__ __device__ int group() const { return NH / NKV; }  // query heads per key head
    __host__ __device__ int64_t stride() const { return static_cast<int64_t>(NH + 2 * NKV) * HS; }  // of a qkv row
    // Where position 0 of batch row b's query, key or value head starts in qkv and dqkv (B,T,(NH+2*NKV)*HS).
    __host__ __device__ int64_t query(int b, int h) const { return b * T * stride() + static_cast<int64_t>(h) * HS; }
    __host__ __device__ int64_t key(int b, int kv) const { return query(b, NH + kv); }
    __host__ __device__ int64_t value(int b, int kv) const { return query(b, NH + NKV + kv); }
    // The same in out and dout (B,T,NH*HS), whose rows are out_stride() long, and in lse and delta (B,NH,T).
    __host__ __device__ int64_t out_stride() const { return static_cast<int64_t>(NH) * HS; }
    __host__ __device__ int64_t out(int b, int h) const { return b * T * out_stride() + static_cast<int64_t>(h) * HS; }
    __host__ __device__ int64_t row(int b, int h) const { return (static_cast<int64_t>(b) * NH + h) * T; }
    // Elements of qkv, of its keys (or values), of out, and of lse.
    int64_t qkv_count() const { return B * T * stride(); }
    int64_t key_count() const { return static_cast<int64_t>(B) * T * NKV * HS; }
    int64_t out_count() const { return B * T * out_stride(); }
    int64_t row_count() const { return row(B, 0); }
    // Of one product over all pairs of a query and a key that it sees: S, P V, dP, ...
    double product_flops() const { return 2.0 * HS * static_cast<double>(row_count()) * (T + 1) / 2; }
};

// What a block works on: blocks are numbered tile first, then head, then batch row, in one grid dimension (the others
// end at 65535), so that the blocks that run together share keys and values in L2.
struct AttentionBlock {
    int tile, h, b;
};
__device__ __forceinline__ AttentionBlock attention_block(int tiles, int heads) {
    const int block = static_cast<int>(blockIdx.x);
    return {block % tiles, block / tiles % heads, block / tiles / heads};
}

// out (B,T,NH*HS), lse (B,NH,T), qkv (B,T,(NH+2*NKV)*HS)
void attention_forward_tiles(floatX* out, float* lse, const floatX* qkv, AttentionShape s, cudaStream_t stream);
// dqkv (B,T,(NH+2*NKV)*HS), dout (B,T,NH*HS), lse (B,NH,T), delta (B,NH,T)
void attention_backward_tiles(floatX* dqkv, const floatX* dout, const floatX* qkv, const float* lse, const float* delta,
                              AttentionShape s, cudaStream_t stream);

// The same for Hopper cards: bf16, head sizes 64 and 128. scratch: 256-byte aligned. compiled: whether the code that the
// present card runs has them; only code for sm_90a does, and a Hopper card can be given code for others.
bool attention_sm90_compiled();
void attention_forward_sm90(floatX* out, float* lse, const floatX* qkv, AttentionShape s, cudaStream_t stream);
size_t attention_sm90_scratch_bytes(const AttentionShape& s);
void attention_backward_sm90(floatX* dqkv, void* scratch, const floatX* dout, const floatX* qkv, const float* lse,
                             const float* delta, AttentionShape s, cudaStream_t stream);
