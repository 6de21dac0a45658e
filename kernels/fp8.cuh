// Tensors in 8 bits for products: conversion from floatX with a scale per tensor, transposed copies, and the scales.
//
// Formats (Micikevicius et al. 2022, arXiv 2209.05433): e4m3 for activations and weights, largest number 448; e5m2 for
// gradients, largest 57344. A tensor x is stored as q = fp8(scale x) and stands for q / scale.
//
// Delayed scaling, as in NVIDIA's Transformer Engine: the scale of an update comes from the largest |x| of the last
// FP8_HISTORY updates, so that a tensor is converted in the pass that produces it. Here a scale is a power of two, the
// largest with scale max|x| <= the format's largest number: multiplying by it rounds nothing, so that only the
// conversion does; the scale of a slowly moving tensor stands still; and on average half a binade is left for growth.
// What grows beyond that saturates until the next update. NaN stays NaN and infinity becomes NaN, with the rest of its
// aligned four in the row (one test for four numbers), so that the loss shows them; the largest numbers of an update
// that is skipped for them leave the history alone.
//
// Deterministic: a maximum is the same in every order.
#pragma once
#include <cuda_fp8.h>

#include "kernels/common.cuh"

using e4m3 = __nv_fp8_e4m3;
using e5m2 = __nv_fp8_e5m2;

constexpr int FP8_HISTORY = 16;

// One tensor's scaling, in device memory.
struct Fp8Slot {
    const float* scale;
    const float* inverse;  // 1 / scale: what a product's result is multiplied by
    unsigned* amax;        // the bits of the largest |x| since the last update of the scales, as fp32
};

// The scaling of n tensors, in device memory that begins as zeros. Tensor i has no scale until it has been through
// fp8_amax and fp8_update_scales once: so begins a run (a resumed one brings scale, inverse and history along).
struct Fp8Scales {
    float* scale;    // (n), a power of two
    float* inverse;  // (n)
    unsigned* amax;  // (n)
    float* history;  // (n,FP8_HISTORY), the newest first
    Fp8Slot operator[](int i) const { return {scale + i, inverse + i, amax + i}; }
};
// Bytes of n tensors' scaling, and its parts within `memory`.
size_t fp8_scales_bytes(int n);
Fp8Scales fp8_scales_in(void* memory, int n);

// The update of tensors first .. first+count-1, all of format F: amax enters the history and becomes zero again, the
// scale follows from the history's largest. A history of zeros leaves the scale as it is, or makes it 1.
// norm: in device memory, of the gradients of the update; if it is not finite, as when the update is skipped, amax becomes
// zero and nothing else changes. null: it is.
template <class F>
void fp8_update_scales(const Fp8Scales& scales, int first, int count, cudaStream_t stream,
                       const float* norm = nullptr);

// Of such tensors those whose history holds nothing yet: the scale follows from amax as it is now, which stays.
template <class F>
void fp8_first_scales(const Fp8Scales& scales, int first, int count, cudaStream_t stream);

// *amax = max(*amax, largest |x| of n values), n a multiple of 16 bytes. NaN does not count.
void fp8_amax(unsigned* amax, const floatX* x, int64_t n, cudaStream_t stream);

// out (R,S) = fp8(scale inp (R,S)), out_t (S,R) its transpose, and amax as above, in one pass. out or out_t may be
// null. R and S are multiples of 16; addresses of 16 bytes.
template <class F>
void fp8_quantize(F* out, F* out_t, const floatX* inp, const Fp8Slot& slot, int R, int S, cudaStream_t stream);

// As fp8_quantize, and dbias (S) = *scale * SUM_r inp (R,S) (accumulate: += ...) where dbias is not null. scale: a
// float in device memory; null: 1. scratch: fp8_bias_scratch_bytes(R, S).
template <class F>
void fp8_quantize_bias(F* out, F* out_t, float* dbias, const floatX* inp, const Fp8Slot& slot, float* scratch, int R,
                       int S, bool accumulate, cudaStream_t stream, const float* scale = nullptr);
size_t fp8_bias_scratch_bytes(int R, int S);

// fp8_quantize of several tensors of one shape (R,S) by one launch; jobs (count) in device memory, both copies wanted.
template <class F>
struct Fp8Job {
    F *out, *out_t;
    const floatX* inp;
    Fp8Slot slot;
};
template <class F>
void fp8_quantize_each(const Fp8Job<F>* jobs, int count, int R, int S, cudaStream_t stream);

// out_t (S,R) = inp (R,S)^T, for a tensor whose producer wrote rows only. R, S and addresses as above.
template <class F>
void fp8_transpose(F* out_t, const F* inp, int R, int S, cudaStream_t stream);
