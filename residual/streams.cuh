// n residual streams: the state of a token is H (n,C), and a sublayer reads a mixture of the streams and writes to all of
// them. What Hyper-Connections (residual/hc.cuh) and mHC (residual/mhc.cuh) share. For a sublayer with coefficients c,
// i and j from 0 to n-1:
//
//     z   = SUM_i c[i,0] H_i                             what it reads
//     Y_j = SUM_i c[i,1+j] H_i + c[j,n+1] v              what it writes, v = beta*N_out(u)
//
//     dH_i = c[i,0] dz + SUM_j c[i,1+j] dY_j             dc[i,0] = <H_i,dz>;  dc[i,1+j] = <H_i,dY_j>
//     dv   = SUM_j c[j,n+1] dY_j                         dc[j,n+1] = <dY_j,v>
//
// Row i of c belongs to stream i. HC: c[i,0..n] = A[i,0..n], c[i,n+1] = Bv[i]. mHC: c[i,0] = H_pre[i],
// c[i,1+k] = H_res[k,i], c[i,n+1] = H_post[i].
//
// A seam stands between sublayer s, which writes, and sublayer s+1, which reads (at the last seam: the head, and N_f).
// Its backward pass finds in D the gradient dY of what s+1 wrote, and leaves there the gradient dY of what s wrote; the
// earlier seam's pass takes it from there. So dc of s+1 is complete here, except dc[.,n+1], which the later seam gave.
//
// Streams are stored stream-major, H (N,n,C).
#pragma once
#include "residual/seam.cuh"

constexpr int MAX_STREAMS = 8;

struct StreamShape {
    int64_t N;  // tokens
    int C, n;   // channels, a multiple of 16 bytes; streams, at most MAX_STREAMS
    NormKind kind;
    float eps;
};

// Coefficients c (N,n,n+2), or (n,n+2) for all tokens alike, or read weights alone: (N,n), or (n) for all tokens.
struct Coefficients {
    const float* data = nullptr;
    int token_stride = 0, stream_stride = 0;
    static Coefficients per_token(const float* c, int n) { return {c, n * (n + 2), n + 2}; }
    static Coefficients fixed(const float* c, int n) { return {c, 0, n + 2}; }
    static Coefficients read_per_token(const float* w, int n) { return {w, n, 1}; }
    static Coefficients read_fixed(const float* w) { return {w, 0, 1}; }
};

// ---------------------------------------------------------------------------------------------------------------------
// The plain kernels (residual/streams.cu)

// H (N,n,C) = the write of sublayer s. First seam (u null): n copies of x_0, or x_0 in stream 0 and zeros in the others.
// With the coefficients it has saved it replays a forward pass, bit for bit.
struct StreamWrite {
    const floatX* before;     // (N,n,C) the streams before; at the first seam x_0 (N,C)
    const floatX* u;          // (N,C) null: the first seam
    Coefficients c;           // of sublayer s
    floatX* H;                // (N,n,C) may be before, but not at the first seam
    float* rstd = nullptr;    // (N) 1/sqrt(mean over n*C of H^2 + rstd_eps), where wanted
    float rstd_eps = 0.0f;
    bool only_stream_0 = false;  // first seam
    SeamNorm out;
    const float* scale = nullptr;  // beta, see residual/seam.cuh
};
void stream_write(const StreamWrite& write, const StreamShape& shape, cudaStream_t stream);

// z (N,C) = N_in(SUM_i c[i,0] H_i); without N_in the sum itself.
struct StreamRead {
    const floatX* H;  // (N,n,C)
    Coefficients c;   // of sublayer s+1, or read weights
    floatX* z;        // (N,C)
    SeamNorm in;
    Fp8Input z8 = {};  // instead of z
};
void stream_read(const StreamRead& read, const StreamShape& shape, cudaStream_t stream);

// dh = N_in^T(dz) and the gradients of the coefficients that meet H.
struct StreamReadBackward {
    const floatX* dz;  // (N,C)
    const floatX* H;   // (N,n,C)
    const floatX* D;   // (N,n,C) dY of sublayer s+1; null at the last seam
    Coefficients c;
    floatX* dh;        // (N,C) may be dz
    float* dc;         // strides of c, one for each token: writes dc[i,0] and, with D, dc[i,1..n]; null: not wanted
    SeamNorm in;
};
void stream_read_backward(const StreamReadBackward& read, const StreamShape& shape, float* scratch, cudaStream_t stream);

// D (N,n,C) <- dH, complete, and through the write of sublayer s: du, and dc[.,n+1] of s. First seam: dx_0 instead.
struct StreamWriteBackward {
    const floatX* dh;        // (N,C)
    Coefficients read;       // of sublayer s+1, or read weights at the last seam
    floatX* D;               // (N,n,C) in: dY of s+1, unless last; out: dH = dY of s, unless first
    bool last, first;
    const floatX* dX;        // (N,n,C) further gradient of H; null: none
    const floatX* H;         // (N,n,C) with dX: dH_i also gets -kappa*H_i
    const float* kappa;      // (N)
    Coefficients write;      // of sublayer s; unused at the first seam, like all below but dx_0
    const floatX* u;         // (N,C)
    floatX* du;              // (N,C) gradient of u / beta
    float* dwrite;           // (N,n,n+2): writes dwrite[i,n+1] of sublayer s
    floatX* dx0 = nullptr;   // (N,C) first seam
    bool only_stream_0 = false;
    SeamNorm out;
    const float* scale = nullptr;
    const float* out_scale = nullptr;
};
void stream_write_backward(const StreamWriteBackward& write, const StreamShape& shape, float* scratch, cudaStream_t stream);

// Bytes of scratch that any of the backward kernels of hc, mhc and streams needs.
size_t stream_scratch_bytes(int64_t N, int C, int n);
