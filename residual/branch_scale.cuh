// Scalar factors of a branch: x_new = a*x + beta*v with beta = alpha*s, alpha a schedule's value and s a parameter.
//
// The gradient ds = alpha*<<dp,v>> needs neither v nor another pass over the activations. v is the result of the
// branch's last linear map (v = h W^T + b, or v = gain*xh + bias with N_out), so with gradients that leave beta out,
//
//     ds = alpha * ( <dW_raw, W> + <db_raw, b> ),       dW = beta*dW_raw,   db = beta*db_raw
//
// over whole parameters, once per update, whatever the number of tokens; s = 0 is harmless.
#pragma once
#include <vector>

#include "kernels/common.cuh"

// beta (count) = alpha (count) * *factor[i], a null factor counting as 1.
void branch_factors(float* beta, const float* alpha, const float* const* factor, int count, cudaStream_t stream);

// *total += *weight * <grad, value>, then grad *= *scale.
struct BranchDot {
    float* total;
    const float *weight, *scale;  // device scalars or null: 1
    const floatX* value;          // (count), or null:
    const float* exact_value;
    float* grad;  // (count)
    int64_t count;
};
size_t branch_dots_scratch_bytes(int count);
// All of a device table in two launches. Dots that share a total stand side by side; they are added in their order.
// Deterministic. Values and gradients are 16-byte aligned. host: the same table.
void branch_dots(const BranchDot* dots, const std::vector<BranchDot>& host, float* scratch, cudaStream_t stream);
