// Matrix products, through cublasLtMatmul. Everything is row-major; weights are stored (OC,C), "out, in".
// fp32 builds compute in true fp32 (never TF32); bf16 builds multiply bf16 and accumulate in fp32.
// Deterministic: same shapes, same card, same library, same bits.
//
// alpha, where a product takes one: a float in device memory that multiplies it, read when the product runs, so that a
// learned coefficient costs neither a kernel nor a wait; null: 1.
// weight_stride, where a product takes one: the elements from a row of the weight to the next, when it is a block of
// columns of a wider matrix; 0: C.
#pragma once
#include "kernels/activation.cuh"
#include "kernels/common.cuh"

struct Matmul;  // handle, workspace, and the cache of descriptors and algorithms by shape and epilogue
Matmul* matmul_create();
void matmul_destroy(Matmul* mm);

// out (N,OC) = inp (N,C) weight (OC,C)^T + bias (OC); bias may be null.
void matmul_forward(Matmul* mm, floatX* out, const floatX* inp, const floatX* weight, const floatX* bias, int N, int C,
                    int OC, cudaStream_t stream, int weight_stride = 0);

// The same with accumulate: out += ...; no bias (the residual add through beta = 1, and dx of untied sums).
void matmul_forward_add(Matmul* mm, floatX* out, const floatX* inp, const floatX* weight, int N, int C, int OC,
                        cudaStream_t stream);

// out (N,OC) fp32 = inp (N,C) weight (OC,C)^T, not rounded to floatX: for small outputs that feed gates.
void matmul_forward_fp32(Matmul* mm, float* out, const floatX* inp, const floatX* weight, int N, int C, int OC,
                         cudaStream_t stream);

// pre (N,OC) = inp weight^T + bias;  out (N,OC) = act(pre). One cuBLASLt call with the GELU_AUX(_BIAS) epilogue where
// the library has it (gelu_new), otherwise a product and our own activation kernel.
void matmul_activation_forward(Matmul* mm, floatX* out, floatX* pre, const floatX* inp, const floatX* weight,
                               const floatX* bias, Activation act, int N, int C, int OC, cudaStream_t stream);

// dinp (N,C) = alpha dout (N,OC) weight (OC,C);  accumulate: dinp += ...
void matmul_backward_input(Matmul* mm, floatX* dinp, const floatX* dout, const floatX* weight, int N, int C, int OC,
                           bool accumulate, cudaStream_t stream, const float* alpha = nullptr, int weight_stride = 0);

// dpre (N,C) = alpha (dout (N,OC) weight (OC,C)) * act'(pre (N,C)). DGELU epilogue where the library has it.
void matmul_activation_backward_input(Matmul* mm, floatX* dpre, const floatX* dout, const floatX* weight,
                                      const floatX* pre, Activation act, int N, int C, int OC, cudaStream_t stream,
                                      const float* alpha = nullptr);

// dweight (OC,C) fp32 += alpha dout (N,OC)^T inp (N,C)
void matmul_backward_weight(Matmul* mm, float* dweight, const floatX* dout, const floatX* inp, int N, int C, int OC,
                            cudaStream_t stream, const float* alpha = nullptr, int weight_stride = 0);
