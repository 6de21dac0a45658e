// Gradient of a bias: a column sum, deterministic in two stages.
#pragma once
#include "kernels/common.cuh"

// Bytes of scratch that bias_backward needs for any N and this OC.
size_t bias_scratch_bytes(int OC);
// dbias (OC) fp32 += scale * SUM_n dout (N,OC). OC a multiple of 16 bytes. scale: one float in device memory; null: 1.
void bias_backward(float* dbias, const floatX* dout, float* scratch, int64_t N, int OC, cudaStream_t stream,
                   const float* scale = nullptr);
