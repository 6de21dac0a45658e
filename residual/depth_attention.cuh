// Depth attention: the primitive of the Attention Residuals (Kimi Team 2026, arXiv 2603.15031), under the rules attnres
// (full), attnres_block and attnres_mls. Query k attends, token by token, to the sources v_0..v_{m-1}, earlier outputs:
//
//     r_i = 1/sqrt(mean_c(v_i^2) + eps);  kh_i = v_i*r_i;  s_i = <q,kh_i>;  p = softmax_i(s);  h = SUM_i p_i*v_i
//
//     del = <dh,h>;  ds_i = p_i*(<dh,v_i> - del)
//     dv_i = SUM_k p_ki*dh_k + ds_ki*r_i*(q_k - kh_i*s_ki/C);      dq_k = SUM_t SUM_i ds_ki*r_i*v_i
//
// Forward, in two phases. Queries are parameters, so a group of them can attend to all sources that stand before the
// group at once (depth_attention_older): each source is read once per group instead of once per query. The seam of a
// query then adds the few sources that are younger than that: `near` ones, and the newest, which the seam itself makes:
//
//     s_new = x + beta*N_out(u)        x null: the sublayer's output is itself the source (full)
//     h     = DA(older, near, s_new) = x_new;   z = N_in(h)
//
// Backward, every source gathers from its queries; nothing is read, changed and written back. At the seam of query k
// the frame has dh_k; it is stored, with del_k, for the sources still to come. What is gathered there is the gradient of
// that seam's newest source, all of whose queries have been seen: the seam's own, from registers; `near` ones; and the
// sum over farther ones that depth_attention_later has made for a group of sources, reading each dh_k once.
//
// What a source has (by every query the same): its slot, its number among the sources. Query k's logits are scores
// (slots,N), so that slot i of every query stands at scores + i*N.
#pragma once
#include "residual/seam.cuh"

constexpr int DEPTH_GROUP = 4;               // queries of one depth_attention_older, sources of one _later
constexpr int DEPTH_NEAR = DEPTH_GROUP - 1;  // near sources (forward) or queries (backward) of a seam

// v = scale * rows.
struct DepthSource {
    const floatX* rows = nullptr;  // (N,C)
    const float* scale = nullptr;  // device scalar; null: 1
    float* r = nullptr;            // (N) fp32, written by the seam that makes the source
    int slot = 0;
};

struct DepthQuery {
    const float* q = nullptr;   // (C) fp32, of depth_queries
    float* scores = nullptr;    // (slots,N) fp32, logits
    float* lse = nullptr;       // (N) fp32, log SUM_i e^s_i
    floatX* dh = nullptr;       // (N,C) gradient of h; backward only, as are del and column
    float* del = nullptr;       // (N) fp32, <dh,h>
    int column = 0;             // in coef
};

// ---- the queries ----

struct DepthWeights {
    const float* w;               // (C)
    const float* gain = nullptr;  // (C), null: 1
    float* dw = nullptr;          // (C), accumulated
    float* dgain = nullptr;
};
// q (K,C) = w*gain for the K entries of a table in device memory.
void depth_queries(float* q, const DepthWeights* weights, int K, int C, cudaStream_t stream);
// dw += dq (K,C) * gain;  dgain += dq*w
void depth_queries_backward(const float* dq, const DepthWeights* weights, int K, int C, cudaStream_t stream);

// ---- a group against all that is older (forward), and all that is later (backward) ----

// For queries[0..count), count <= DEPTH_GROUP, over sources[0..m), m >= 1; both tables are in device memory.
// partial (count,N,C) = DA over these sources alone, partial_lse (count,N) fp32 its log SUM e^s; writes the queries'
// scores of these sources.
void depth_attention_older(floatX* partial, float* partial_lse, const DepthQuery* queries, int count,
                           const DepthSource* sources, int m, int64_t N, int C, cudaStream_t stream);

struct DepthLater {
    int sources = 0;  // <= DEPTH_GROUP
    DepthSource source[DEPTH_GROUP];
    floatX* dv[DEPTH_GROUP] = {};           // (N,C) = carry + SUM over the queries
    const floatX* carry[DEPTH_GROUP] = {};  // (N,C), null: zeros; may be dv
    floatX* coef[DEPTH_GROUP] = {};         // (N,coef_columns), see DepthBackward
    int coef_columns = 0;
};
// For queries[0..count) of a table in device memory, every one of which attends to all these sources.
void depth_attention_later(const DepthLater& later, const DepthQuery* queries, int count, int64_t N, int C,
                           cudaStream_t stream);

// ---- the seam ----

struct DepthForward {
    DepthQuery query;  // q null: none, h = s_new (the first seam of a network; its u is x_0, and x_new may be u)
    const floatX* partial = nullptr;  // (N,C), partial_lse (N): this query's of depth_attention_older; null: none is older
    const float* partial_lse = nullptr;
    int near = 0;  // <= DEPTH_NEAR
    DepthSource near_source[DEPTH_NEAR];
    floatX* store = nullptr;  // (N,C) s_new; null: not stored (then u, with its beta as scale, is the source)
    float* r = nullptr;       // (N) of s_new
    int slot = 0;             // of s_new
    float eps = 1e-6f;
};

struct DepthBackward {
    DepthQuery query;    // q null: none
    float* dq = nullptr;  // (C) fp32, accumulated: the newest source's part of dq_k
    DepthSource source;  // the newest source of this seam
    int near = 0;        // younger queries that attend to it, not among those of `later`
    DepthQuery near_query[DEPTH_NEAR];
    const floatX* carry = nullptr;  // (N,C) a gradient that comes to the source from elsewhere (a running sum's)
    const floatX* later = nullptr;  // (N,C) of depth_attention_later; carry and later may be the seam's dx
    // (N,coef_columns) floatX, one column per query, of this source: dq_k (C) = SUM over sources of coef[:,k]^T rows, so
    // that a product gives all queries' gradients at once. Written for near and later queries; other columns stay.
    floatX* coef = nullptr;
    int coef_columns = 0;
};

// The seam's dx and du are the gradient of s_new.
void depth_attention_forward(const SeamForward& seam, const SeamShape& shape, const DepthForward& args,
                             cudaStream_t stream);
void depth_attention_backward(const SeamBackward& seam, const SeamShape& shape, const DepthBackward& args,
                              float* scratch, cudaStream_t stream);
