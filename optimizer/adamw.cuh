// AdamW (Loshchilov & Hutter 2019, alg. 2) over all tensors in one launch.
//   m <- b1 m + (1-b1) g;  v <- b2 v + (1-b2) g^2;  p <- p - lr*( mh / (sqrt(vh) + eps) + wd*p ),  mh = m/(1-b1^n), ...
// All parameter-sized arrays share one element layout (the arena, model/registry.h): a tensor is [offset, offset+count).
#pragma once
#include <vector>

#include "kernels/common.cuh"

// One tensor's hyper-parameters for this update. lr already has the schedule and every multiplier in it.
struct AdamWTensor {
    int64_t offset, count;  // elements; both multiples of 64
    float lr, weight_decay;
    float beta1, beta2, eps;
    float correction1, correction2;  // 1 - beta^n, from the host in double: adamw_correction()
    int frozen;  // 1: left alone and not in the norm; its gradient is zeroed, its working copy rounded anew
    int stored = 0;  // 1: the next micro-step overwrites its gradient, so that nobody need zero it
};
// 1 - beta^n without cancellation. Pass the fp32 beta of the struct: corrections for the double 0.999 would be off by 1e-5
// from what the kernel accumulates with 0.999f.
double adamw_correction(double beta, int64_t n);

// The work list: tensors cut into chunks of equal size, one block each.
struct AdamWChunk {
    int tensor;
    int first;  // chunk number within the tensor
};
constexpr int ADAMW_CHUNK = 16384;  // elements
std::vector<AdamWChunk> adamw_chunks(const std::vector<AdamWTensor>& tensors);

// Declares what adamw_update of these tensors moves (kernels/traffic.h), in front of its call: it has them on the device.
void adamw_moves(const std::vector<AdamWTensor>& tensors, bool zero_grads);
// params (floatX, working copy), master (fp32; the same array as params in an fp32 build), grads (fp32), m, v (fp32).
// clip (2) on the device: [0] gradient norm, [1] factor kappa that gradients are multiplied by; if the norm is not
// finite nothing is updated (the gradients are still zeroed). grads are zeroed after use when zero_grads, but for
// `stored` tensors, whose gradients stay if they are finite: 0 * NaN is no zero, should a product ever multiply them.
// bf16 working copy: stochastic rounding with random bits from (seed, step, element index).
void adamw_update(floatX* params, float* master, float* grads, float* m, float* v, const AdamWTensor* tensors,
                  const AdamWChunk* chunks, int num_chunks, const float* clip, bool zero_grads, uint64_t seed,
                  uint64_t step, cudaStream_t stream);

// params (count) <- round(master (count)) with the same random bits as adamw_update at (seed, step): what a resumed run
// starts from. `first` is the arena index of element 0: the bits belong to the arena index. Nothing to do in fp32 builds
// when both are the same array; otherwise a copy.
void round_params(floatX* params, const float* master, int64_t first, int64_t count, uint64_t seed, uint64_t step,
                  cudaStream_t stream);
