// Matrix products of 8-bit operands, through cublasLtMatmul: the three of a linear map, as in kernels/matmul.cuh.
// Row-major; sums in fp32; deterministic. All of N, C, OC are multiples of 16, addresses of 16 bytes.
//
// The library multiplies only operands that both lie along the summed dimension (on Hopper), so that the backward
// products want transposed copies: fp8_quantize and fp8_transpose make them.
#pragma once
#include "kernels/fp8.cuh"
#include "kernels/matmul.cuh"

// A matrix in 8 bits and, in device memory, what its numbers are multiplied by (Fp8Slot::inverse).
template <class F>
struct Fp8Matrix {
    const F* data;
    const float* inverse;
};

// Whether this card and library have the three products (compute capability 8.9 and later).
bool matmul_fp8_supported(Matmul* mm);

// out (N,OC) = inp (N,C) weight (OC,C)^T + bias (OC) + add (N,OC); bias and add may be null. On tensor cores partial
// sums may be kept shorter than fp32 (CUBLASLT_MATMUL_DESC_FAST_ACCUM), which gradients are not.
void matmul_fp8_forward(Matmul* mm, floatX* out, Fp8Matrix<e4m3> inp, Fp8Matrix<e4m3> weight, const floatX* bias, int N,
                        int C, int OC, cudaStream_t stream, const floatX* add = nullptr);

// dinp (N,C) = alpha dout (N,OC) weight (OC,C), of weight_t (C,OC)
// alpha: a float in device memory, read when the product runs; null: 1.
void matmul_fp8_backward_input(Matmul* mm, floatX* dinp, Fp8Matrix<e5m2> dout, Fp8Matrix<e4m3> weight_t, int N, int C,
                               int OC, cudaStream_t stream, const float* alpha = nullptr);

// dweight (OC,C) fp32 = alpha dout (N,OC)^T inp (N,C), of dout_t (OC,N) and inp_t (C,N);  accumulate: dweight += ...
void matmul_fp8_backward_weight(Matmul* mm, float* dweight, Fp8Matrix<e5m2> dout_t, Fp8Matrix<e4m3> inp_t, int N, int C,
                                int OC, bool accumulate, cudaStream_t stream, const float* alpha = nullptr);
