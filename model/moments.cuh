// Mean square and mean of many activations: what the layer statistics of a run report.
#pragma once
#include "kernels/common.cuh"

size_t moments_scratch_bytes();
// sums (2) fp32 = SUM x, SUM x^2 over x (count); deterministic. count a multiple of 16 bytes.
void moments(float* sums, const floatX* x, int64_t count, float* scratch, cudaStream_t stream);
