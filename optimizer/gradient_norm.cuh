// Global gradient norm and clip factor, deterministic, without host synchronisation.
#pragma once
#include "kernels/common.cuh"

size_t gradient_norm_scratch_bytes(int64_t count);
// clip (2) fp32: [0] = G = ||grads (count)||_2 (sum of squares in fp64 across blocks), [1] = kappa = min(1, max_norm/(G+1e-6)),
// or 1 when max_norm is 0. Elements of frozen tensors must be zero in grads (see zero_ranges).
void gradient_norm(float* clip, const float* grads, int64_t count, float max_norm, void* scratch, cudaStream_t stream);
