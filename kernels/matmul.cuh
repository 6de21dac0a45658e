// Matrix products, through cublasLtMatmul. Everything is row-major; weights are stored (OC,C), "out, in".
// fp32 builds compute in true fp32 (never TF32); bf16 builds multiply bf16 and accumulate in fp32.
// Deterministic: same shapes, same card, same library, same bits.
//
// alpha, where a product takes one: a float in device memory that multiplies it, read when the product runs, so that a
// learned coefficient costs neither a kernel nor a wait; null: 1.
// weight_stride, where a product takes one: the elements from a row of the weight to the next, when it is a block of
// columns of a wider matrix; 0: C.
#pragma once
#include <vector>

#include "kernels/activation.cuh"
#include "kernels/common.cuh"
#include "kernels/matmul_choice.h"

struct Matmul;  // handle, workspace, and the cache of descriptors and algorithms by shape and epilogue
Matmul* matmul_create();
void matmul_destroy(Matmul* mm);

// out (N,OC) = inp (N,C) weight (OC,C)^T + bias (OC) + add (N,OC); bias and add may be null, add may be out.
void matmul_forward(Matmul* mm, floatX* out, const floatX* inp, const floatX* weight, const floatX* bias, int N, int C,
                    int OC, cudaStream_t stream, int weight_stride = 0, const floatX* add = nullptr);

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

// The same, and dbias (C) fp32 = SUM_n dpre; accumulate: dbias += ... One product (DGELU_BGRAD). False, with nothing
// done, where that is not to be had: the library lacks it, two steps are faster, or floatX is bf16, because the library
// would then round the bias's gradient to bf16 (it has dpre's type). scratch: bias_scratch_bytes(C).
bool matmul_activation_backward_bias(Matmul* mm, floatX* dpre, float* dbias, const floatX* dout, const floatX* weight,
                                     const floatX* pre, Activation act, float* scratch, int N, int C, int OC,
                                     bool accumulate, cudaStream_t stream, const float* alpha = nullptr);

// dweight (OC,C) fp32 = alpha dout (N,OC)^T inp (N,C);  accumulate: dweight += ...
void matmul_backward_weight(Matmul* mm, float* dweight, const floatX* dout, const floatX* inp, int N, int C, int OC,
                            bool accumulate, cudaStream_t stream, const float* alpha = nullptr, int weight_stride = 0);

// The same, and dbias (OC) fp32 = alpha SUM_n dout (N,OC);  accumulate: both += ... One product (BGRADB), or a product
// and bias_backward where that is faster. scratch: bias_scratch_bytes(OC).
void matmul_backward_weight_bias(Matmul* mm, float* dweight, float* dbias, const floatX* dout, const floatX* inp,
                                 float* scratch, int N, int C, int OC, bool accumulate, cudaStream_t stream,
                                 const float* alpha = nullptr);

// ---------------------------------------------------------------------------------------------------------------------
// Which algorithm a product runs (matmul_tune.cpp). One that was neither measured nor given runs what the library's
// heuristic names first, which is the same on every card of a kind with the same library.

// While on, every product that is met for the first time is measured with all algorithms the library proposes, and an
// epilogue against the same work in two steps: on its own operands, so that all outputs are worth nothing meanwhile.
// Turning it on forgets what was met before, but not what was chosen.
void matmul_tune(Matmul* mm, bool on);
// Whether this machine's library proposes more than one algorithm: if not, there is nothing to measure.
bool matmul_has_choice(Matmul* mm);
// What was measured or given of the products that ran so far, sorted by product.
std::vector<MatmulChoice> matmul_choices(const Matmul* mm);
// Gives choices that were made elsewhere. One that cannot run here counts as none.
void matmul_use(Matmul* mm, const std::vector<MatmulChoice>& choices);
