// GPAS's second clip (its authors' code, arXiv 2506.22049): behind the global clip, all gate gradients together are
// clipped as one vector, s = min(1, limit/(||g||_2 + 1e-6)).
#pragma once
#include <vector>

#include "kernels/common.cuh"

// grads: the arena; gates: offsets of scalar gates in it; clip (2) device: [1] is the global clip's factor, which the
// optimizer will apply to all gradients, so that limit holds for gradients times that factor.
void clip_gates(float* grads, const std::vector<int64_t>& gates, const float* clip, float limit, cudaStream_t stream);
