// Global gradient norm and clip factor, deterministic, without host synchronisation.
#pragma once
#include "optimizer/adamw.cuh"

size_t gradient_norm_scratch_bytes(int64_t num_chunks);
// Declares what gradient_norm of these tensors moves (kernels/traffic.h), in front of its call.
void gradient_norm_moves(const std::vector<AdamWTensor>& tensors);
// clip (2) fp32: [0] = G = ||grads||_2 over all tensors that are not frozen (a few squares at a time in fp32, then
// fp64), [1] = kappa = min(1, max_norm/(G+1e-6)), or 1 when max_norm is 0. tensors, chunks: AdamW's work list.
void gradient_norm(float* clip, const float* grads, const AdamWTensor* tensors, const AdamWChunk* chunks,
                   int num_chunks, float max_norm, void* scratch, cudaStream_t stream);
