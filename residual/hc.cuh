// Hyper-Connections, static and dynamic (Zhu et al. 2025, arXiv 2409.19606). n streams per token, H (n,C), all x_0 at the
// start; one module per sublayer. With q = 0..n the columns of A (n,n+1), column 0 the read weights:
//
//     static    A = As,  Bv = Bs                                                parameters
//     dynamic   xh_i = H_i*r_i,  r_i = 1/sqrt(mean(H_i^2) + eps)                each stream alone, over C
//               m[i,q] = <g*xh_i, Wa[:,q]>,   m[i,n+1] = <g*xh_i, wb>           g: gain of that norm
//               A = s_a*phi(m[:,0..n]) + As,  Bv = s_b*phi(m[:,n+1]) + Bs       phi: tanh or identity
//     z = SUM_i A[i,0] H_i        H_j <- SUM_i A[i,j] H_i + Bv_j u              j = 1..n
//
// Backward, with c = [A | Bv], W = [Wa | wb], s_q = s_a or s_b, and dc as in residual/streams.cuh:
//
//     dAs, dBs += SUM_t dc;   ds_q += SUM_t SUM dc*phi(m);   e = s_q*dc*phi'(m)
//     dH_i += r_i*(SUM_q e[i,q] g*W_q - xh_i*SUM_q e[i,q]*m[i,q]/C)             the mean of the norm's backward pass is
//     G_q = SUM_t,i e[i,q] xh_i;   dW_q += g*G_q;   dg += SUM_q W_q*G_q         known from m: no further reduction
//
// One kernel per seam in each direction. Forward: the write of sublayer s, the coefficients of s+1, its read, N_in.
// Backward: the same in reverse order; see streams.cuh for what D and the two sublayers' dc are.
#pragma once
#include "residual/streams.cuh"

// One sublayer's module. hc_prepare() makes base and folded from the parameters, after every change of these.
struct HcModule {
    bool dynamic = false, tanh = true;
    const float* alpha = nullptr;  // (n,n+1) As
    const float* beta = nullptr;   // (n) Bs
    const float* wa = nullptr;     // (C,n+1) dynamic only, like all below
    const float* wb = nullptr;     // (C)
    const float* sa = nullptr;     // (1)
    const float* sb = nullptr;     // (1)
    const float* gain = nullptr;   // (C)
    float* base = nullptr;         // (n,n+2) [As | Bs], the coefficients themselves if static
    float* folded = nullptr;       // (n+2,C) g*[Wa | wb]^T
};
void hc_prepare(const HcModule& parameters, int C, int n, cudaStream_t stream);

// Accumulated (+=).
struct HcGradients {
    float *alpha = nullptr, *beta = nullptr, *wa = nullptr, *wb = nullptr, *sa = nullptr, *sb = nullptr, *gain = nullptr;
};

// What a dynamic module computed at its seam, for its write and for the backward pass.
struct HcSaved {
    float* c = nullptr;     // (N,n,n+2)
    float* m = nullptr;     // (N,n,n+2) before phi; null in inference
    float* rstd = nullptr;  // (N,n) null in inference
};
// The coefficients of a module, for the seam behind its sublayer.
Coefficients hc_coefficients(const HcModule& parameters, const HcSaved& saved, int n);

struct HcForward {
    StreamWrite write;              // of sublayer s, with its rstd unused; write.H is stored
    const HcModule* next = nullptr; // of sublayer s+1; null: the last seam
    HcSaved saved;                  // of sublayer s+1, if dynamic
    const float* readout = nullptr; // (n) last seam: weights of the streams in the read-out, all 1, all 1/n, or e_0
    floatX* z;                      // (N,C)
    SeamNorm in;
    Fp8Input z8 = {};               // instead of z
};
void hc_forward(const HcForward& seam, const StreamShape& shape, cudaStream_t stream);

struct HcBackward {
    const floatX* dz;                // (N,C)
    const floatX* H;                 // (N,n,C) the streams this seam's forward pass stored
    floatX* D;                       // (N,n,C) in: dY of sublayer s+1 (unless last); out: dY of s (unless first)
    const HcModule* next = nullptr;  // of sublayer s+1; null: the last seam
    HcSaved saved;                   // of sublayer s+1, if dynamic
    HcGradients gradients;           // of sublayer s+1
    const float* readout = nullptr;  // (n) last seam
    float* dB;                       // (N,n) in: dBv of s+1; out: dBv of s
    bool first = false;
    Coefficients write;              // of sublayer s; unused at the first seam, like all below but dx_0
    const floatX* u = nullptr;       // (N,C)
    floatX* du = nullptr;            // (N,C) gradient of u / beta; may be dz
    floatX* dx0 = nullptr;           // (N,C) first seam; may be dz
    bool only_stream_0 = false;      // first seam
    SeamNorm out, in;
    const float* scale = nullptr;      // see residual/seam.cuh
    const float* out_scale = nullptr;
};
// scratch: stream_scratch_bytes().
void hc_backward(const HcBackward& seam, const StreamShape& shape, float* scratch, cudaStream_t stream);
