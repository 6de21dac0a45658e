// The gate of LLaMA's MLP (Shazeer 2020): act = silu(gate) * up, silu(g) = g sigma(g). The two linear maps in front of
// it are one product, so gate and up lie side by side: gate_up (N,2F), columns [0,F) gate, [F,2F) up.
#pragma once
#include "kernels/common.cuh"

// act (N,F) = silu(gate) * up; F a multiple of 16 bytes.
void swiglu_forward(floatX* act, const floatX* gate_up, int64_t N, int F, cudaStream_t stream);
// dgate_up (N,2F) from dact (N,F) and the saved gate_up (N,2F); dgate_up may be gate_up.
//     dgate = dact up sigma(gate) (1 + gate (1 - sigma(gate)))        dup = dact silu(gate)
void swiglu_backward(floatX* dgate_up, const floatX* dact, const floatX* gate_up, int64_t N, int F,
                     cudaStream_t stream);
