// Causal self-attention, flash style (Dao et al. 2022, 2023): scores never reach memory; the log-sum-exp of each row
// is saved for the backward pass. softmax(q k^T / sqrt(HS)) v over keys 0..t.
//
// qkv is packed: row (b,t) holds NH query heads, then NKV key heads, then NKV value heads, HS channels each
// (GPT-2: NKV == NH, so (B,T,3C)). Query head h reads key and value head h / (NH / NKV).
// HS * sizeof(floatX) is a multiple of 16 bytes, HS <= 256; NH is a multiple of NKV; T >= 1, any.
#pragma once
#include "kernels/common.cuh"

// out (B,T,NH*HS); lse (B,NH,T) fp32: natural log of the row's sum of exponentials of scaled scores.
void attention_forward(floatX* out, float* lse, const floatX* qkv, int B, int T, int NH, int NKV, int HS,
                       cudaStream_t stream);

// Which kernels run in a bf16 build: `best` (the default) means Hopper's own on such a card for head sizes 64 and 128, and
// the portable ones elsewhere. The others are for tests and benchmarks: hopper for a head size that it has not, and
// anything in an fp32 build, changes nothing. Scratch must have been sized under the same choice.
enum class AttentionKernels { best, portable, hopper };
void attention_choose(AttentionKernels kernels);
bool attention_uses_hopper(int HS);  // under the present choice

// Bytes of scratch for attention_backward, 256-byte aligned.
size_t attention_scratch_bytes(int B, int T, int NH, int NKV, int HS);
// dqkv (B,T,(NH+2*NKV)*HS): every element is written. Deterministic: no atomics.
void attention_backward(floatX* dqkv, void* scratch, const floatX* dout, const floatX* qkv, const floatX* out,
                        const float* lse, int B, int T, int NH, int NKV, int HS, cudaStream_t stream);
