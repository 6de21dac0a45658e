// The MLP's nonlinearity between products in 8 bits: what kernels/activation.cuh and kernels/swiglu.cuh compute,
// rounded to floatX as there and then converted (kernels/fp8.cuh) in the same pass. The bits are those of two passes.
//
// H is F, or 2F with swiglu, whose gate and up lie side by side. N and F are multiples of 16; addresses of 16 bytes.
#pragma once
#include "kernels/activation.cuh"
#include "kernels/fp8.cuh"

// out (N,F) = fp8(act(pre (N,H)))
void fp8_activation_forward(e4m3* out, const floatX* pre, Activation act, const Fp8Slot& slot, int N, int F,
                            cudaStream_t stream);

// dpre (N,H) and dpre_t (H,N), its transpose, = fp8(dact (N,F) * act'(pre (N,H))), and act_t (F,N) = fp8(act(pre))^T.
// dbias (H) = SUM_n of dpre rounded to floatX, before fp8 (accumulate: += ...), where dbias is not null; scratch:
// fp8_bias_scratch_bytes(N, H). dslot is dpre's scaling, slot act's.
void fp8_activation_backward(e5m2* dpre, e5m2* dpre_t, e4m3* act_t, float* dbias, const floatX* dact, const floatX* pre,
                             Activation act, const Fp8Slot& dslot, const Fp8Slot& slot, float* scratch, int N, int F,
                             bool accumulate, cudaStream_t stream);
