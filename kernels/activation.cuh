// The MLP's pointwise nonlinearity.
//   gelu_new  0.5 h (1 + tanh(sqrt(2/pi) (h + 0.044715 h^3)))     GPT-2's (Hendrycks & Gimpel 2016, eq. for tanh)
//   gelu      0.5 h (1 + erf(h / sqrt 2))
// LLaMA's swiglu is the name of a choice; it takes two columns for one, and its kernels are in swiglu.cuh.
#pragma once
#include "kernels/common.cuh"

enum class Activation { gelu_new, gelu, swiglu };

// out (n) = act(pre (n)), act gelu_new or gelu; n a multiple of 16 bytes.
void activation_forward(floatX* out, const floatX* pre, Activation act, int64_t n, cudaStream_t stream);
// dpre (n) = dout (n) * act'(pre (n)); dpre may be dout.
void activation_backward(floatX* dpre, const floatX* dout, const floatX* pre, Activation act, int64_t n,
                         cudaStream_t stream);
