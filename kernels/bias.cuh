// Gradient of a bias: a column sum, deterministic in two stages.
#pragma once
#include "kernels/common.cuh"

// Bytes of scratch that bias_backward needs for any N and this OC.
size_t bias_scratch_bytes(int OC);
// dbias (OC) fp32 = scale * SUM_n dout (N,OC); accumulate: += ... OC a multiple of 16 bytes, N >= 1. scale: one float in
// device memory; null: 1.
void bias_backward(float* dbias, const floatX* dout, float* scratch, int64_t N, int OC, bool accumulate,
                   cudaStream_t stream, const float* scale = nullptr);
// dbias (OC) = scale * sums (OC), which a product's epilogue has stored; accumulate: += ...
void bias_add(float* dbias, const float* sums, int OC, bool accumulate, cudaStream_t stream,
              const float* scale = nullptr);
