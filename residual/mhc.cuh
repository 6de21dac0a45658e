// mHC, manifold-constrained Hyper-Connections (DeepSeek, arXiv 2512.24880). n streams per token, X = vec(H) in R^{nC},
// stream-major. One module per sublayer; all coefficients in fp32; j = input stream, k = output stream:
//
//     r = 1/sqrt(mean(X^2) + eps_n);   m = r*(Phi X);   Z = a (.) m + b          a = (a_pre n times, a_post n, a_res n^2)
//     H_pre[j] = sigma(Z[j]) + eps_p;  H_post[k] = 2*sigma(Z[n+k]);  H_res = Sinkhorn(Zr),  Zr[k,j] = Z[2n + n*j + k]
//     z = SUM_j H_pre[j] H_j           H_k <- SUM_j H_res[k,j] H_j + H_post[k] u
//
// Sinkhorn: S = softmax of Zr along k;  M_0 = S + eps_s;  for v = 1..Q, Q = 2*rounds - 1, axes row (over j), column, row,
// ...:  q_v = SUM_axis M_{v-1} + eps_s;  M_v = M_{v-1}/q_v;  H_res = M_Q.
//
// Backward, with dc as in residual/streams.cuh:
//     sp = sigma(Z_pre): dZ = dH_pre*sp*(1-sp);   so = sigma(Z_post): dZ = dH_post*2*so*(1-so)
//     G = dH_res; for v = Q..1: G <- (G - SUM_axis(G*M_v))/q_v, M_{v-1} = M_v*q_v;   dZr = S*(G - SUM_k G*S)
//     db += SUM_t dZ;  da_group += SUM_t SUM_group dZ*m;  dm = a (.) dZ
//     dPhi += SUM_t (r dm) X^T;   dX = Phi^T (r dm) - kappa*X,  kappa = r^2/(nC)*<dm,m>
//
// Read-out head, the weights of one more read: w[j] = sigma(a*m[j] + b[j]) + eps_p with m = r*(Phi_h X), Phi_h (n,nC).
//
// The products with Phi are GEMMs that the caller runs between these kernels, with Phi in floatX and its rows padded with
// zeros to Mp = mhc_columns(). Order for one seam:
//
//     forward    stream_write (also r);   matmul_forward_fp32: m_raw = X Phi^T;   mhc_coefficients;   stream_read
//     backward   stream_read_backward;   mhc_coefficients_backward;   matmul_backward_weight: dPhi += rdm^T X;
//                matmul_backward_input: dX = rdm Phi;   stream_write_backward
#pragma once
#include "residual/streams.cuh"

constexpr int MHC_ROUNDS = 20;
constexpr float MHC_EPS_NORM = 1e-6f, MHC_EPS_READ = 1e-6f, MHC_EPS_SINKHORN = 1e-6f;

// Mp: n^2+2n, of the head n, rounded up to a multiple of 8.
constexpr int mhc_columns(int n, bool head) { return static_cast<int>(round_up(head ? n : n * (n + 2), 8)); }

struct MhcModule {
    bool head = false;         // a read-out: read weights alone
    const float* a = nullptr;  // (3) pre, post, res; head: (1)
    const float* b = nullptr;  // (n^2+2n) in the order of Z; head: (n)
};
// c of a module: (N,n,n+2), of the head (N,n).
Coefficients mhc_strides(const float* c, int n, bool head);

// c from m_raw (N,Mp) = X Phi^T and rstd (N) = r.
void mhc_coefficients(float* c, const float* m_raw, const float* rstd, const MhcModule& parameters, int64_t N, int n,
                      cudaStream_t stream);

struct MhcGradients {
    float *a = nullptr, *b = nullptr;  // as in the module, accumulated (+=)
};
// From dc, shaped like c: rdm (N,Mp) = r*dm, its padding zero, and kappa (N). scratch: stream_scratch_bytes().
void mhc_coefficients_backward(floatX* rdm, float* kappa, const MhcGradients& gradients, const float* dc,
                               const float* m_raw, const float* rstd, const MhcModule& parameters, int64_t N, int n, int C,
                               float* scratch, cudaStream_t stream);
