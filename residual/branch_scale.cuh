// Scalar factors of a branch: x_new = a*x + beta*v with beta = alpha*s, alpha a schedule's value and s a parameter.
//
// The gradient ds = alpha*<<dp,v>> needs neither v nor another pass over the activations. v is the result of the
// branch's last linear map (v = h W^T + b, or v = gain*xh + bias with N_out), so with gradients that leave beta out,
//
//     ds = alpha * ( <dW_raw, W> + <db_raw, b> ),       dW = beta*dW_raw,   db = beta*db_raw
//
// over whole parameters, once per update, whatever the number of tokens; s = 0 is harmless.
#pragma once
#include "kernels/common.cuh"

// beta (count) = alpha (count) * *factor[i], a null factor counting as 1.
void branch_factors(float* beta, const float* alpha, const float* const* factor, int count, cudaStream_t stream);

size_t branch_dot_scratch_bytes();
// *total += *weight * <grad, value>, weight a device scalar or null (1); then grad *= *scale, if scale is given.
// Deterministic. value, grad (count).
template <class T>
void branch_dot(float* total, const float* weight, const T* value, float* grad, const float* scale, int64_t count,
                float* scratch, cudaStream_t stream);
