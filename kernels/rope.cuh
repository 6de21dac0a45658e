// Rotary position embedding (Su et al. 2021), "rotate-half" pairing as in LLaMA: channel i of a head pairs with channel
// i + HS/2, and at position m the pair (a, b) is turned by the angle w = m * theta^(-2i/HS):
//
//     a' = a cos w - b sin w        b' = b cos w + a sin w
//
// It works in place on the query and key heads of packed qkv (kernels/attention.cuh); values are left alone.
// HS * sizeof(floatX) is a multiple of 16 bytes (so HS is even).
#pragma once
#include "kernels/common.cuh"

// Floats in the table of T positions.
constexpr size_t rope_table_count(int T, int HS) {
    return static_cast<size_t>(T) * static_cast<size_t>(HS);
}
// table (T,2,HS/2) fp32 in device memory: of every position the cosines of its HS/2 angles, then the sines. Computed in
// double, so that an angle of a thousand turns is as exact as a small one. Once per model (synchronises).
void rope_table(float* table, int T, int HS, double theta, cudaStream_t stream);

// qkv (B,T,(NH+2*NKV)*HS): turns the NH query and NKV key heads of every row; table (>=T,2,HS/2).
void rope_forward(floatX* qkv, const float* table, int B, int T, int NH, int NKV, int HS, cudaStream_t stream);
// dqkv (B,T,(NH+2*NKV)*HS): the transpose of a rotation is the rotation by the negative angle.
void rope_backward(floatX* dqkv, const float* table, int B, int T, int NH, int NKV, int HS, cudaStream_t stream);
