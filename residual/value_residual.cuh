// Value residual (Zhou et al. 2024, ResFormer, arXiv 2410.17897), inside attention of layers l >= 2:
//
//     vt_l = l1*v_1 + l2*v_l;      dv_l = l2*dvt,  dv_1 += l1*dvt,  dl1 = <<dvt,v_1>>,  dl2 = <<dvt,v_l>>
//
//     vr_lambda  [2] = (l1, l2), (0.5, 0.5)     one per layer l >= 2, no decay; common to all heads
//
// Values are the last KV columns of a packed qkv row of W columns. KV and W are multiples of 16 bytes.
#pragma once
#include "kernels/common.cuh"

// kept (N,KV) = the values of qkv (N,W).
void value_copy(floatX* kept, const floatX* qkv, int64_t N, int W, int KV, cudaStream_t stream);
// own (N,KV) = v_l, unless null; the values of qkv become l1*first + l2*v_l. first (N,KV), lambda (2) fp32.
void value_mix(floatX* qkv, floatX* own, const floatX* first, const float* lambda, int64_t N, int W, int KV,
               cudaStream_t stream);

size_t value_scratch_bytes();
// The values of dqkv (N,W): dvt becomes l2*dvt. dfirst (N,KV) fp32 += l1*dvt (or =, when it is new). dlambda (2) fp32
// +=.
void value_mix_backward(floatX* dqkv, float* dfirst, bool new_dfirst, float* dlambda, const floatX* own,
                        const floatX* first, const float* lambda, float* scratch, int64_t N, int W, int KV,
                        cudaStream_t stream);
// Layer 1: the values of dqkv += dfirst.
void value_first_backward(floatX* dqkv, const float* dfirst, int64_t N, int W, int KV, cudaStream_t stream);
