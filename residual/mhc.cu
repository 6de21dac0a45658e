// The coefficients of mHC, one thread per token: equations in mhc.cuh. M[j][k] and G[j][k] stand in registers, input
// stream first, as in memory; entries with j or k from n on stay zero. The divisors q_v are all the backward pass keeps.
#include "residual/mhc.cuh"

#include "residual/stream_kernel.cuh"

namespace {

constexpr int STEPS = 2 * MHC_ROUNDS - 1;

// The divisors of one token, in shared memory: (STEPS, NS, threads).
template <int NS>
constexpr int MHC_THREADS = NS <= 4 ? 64 : 32;

__device__ __forceinline__ float sigma(float x) { return 1.0f / (1.0f + expf(-x)); }

template <int NS>
struct Square {
    float v[NS][NS];
};

// S[j] = softmax of Zr along k, for each j.
template <int NS>
__device__ __forceinline__ Square<NS> softmax(const float* m_raw, float r, const MhcModule& parameters, int n) {
    Square<NS> S;
    float a = parameters.a[2];
#pragma unroll
    for (int j = 0; j < NS; j++) {
        float peak = -INFINITY, sum = 0.0f;
#pragma unroll
        for (int k = 0; k < NS; k++) {
            int at = 2 * n + n * j + k;
            S.v[j][k] = j < n && k < n ? a * (r * m_raw[at]) + parameters.b[at] : -INFINITY;
            peak = fmaxf(peak, S.v[j][k]);
        }
#pragma unroll
        for (int k = 0; k < NS; k++) {
            S.v[j][k] = j < n && k < n ? expf(S.v[j][k] - peak) : 0.0f;
            sum += S.v[j][k];
        }
        float scale = j < n ? 1.0f / sum : 0.0f;
#pragma unroll
        for (int k = 0; k < NS; k++) S.v[j][k] *= scale;
    }
    return S;
}

// One division: ROW: row k over its sum over j; else column j over its sum over k. The divisors go to q[i*q_stride].
template <bool ROW, int NS>
__device__ __forceinline__ void divide(Square<NS>& M, int n, float* q, int q_stride) {
#pragma unroll
    for (int i = 0; i < NS; i++) {
        float sum = 0.0f;
#pragma unroll
        for (int o = 0; o < NS; o++) sum += ROW ? M.v[o][i] : M.v[i][o];
        sum += i < n ? MHC_EPS_SINKHORN : 1.0f;  // a row of zeros, from n on, stays one
        if (q != nullptr) q[i * q_stride] = sum;
        float inverse = 1.0f / sum;
#pragma unroll
        for (int o = 0; o < NS; o++) (ROW ? M.v[o][i] : M.v[i][o]) *= inverse;
    }
}
// G through that division, and M back to what it was before.
template <bool ROW, int NS>
__device__ __forceinline__ void divide_backward(Square<NS>& M, Square<NS>& G, const float* q, int q_stride) {
#pragma unroll
    for (int i = 0; i < NS; i++) {
        float divisor = q[i * q_stride], inverse = 1.0f / divisor, along = 0.0f;
#pragma unroll
        for (int o = 0; o < NS; o++) along += ROW ? G.v[o][i] * M.v[o][i] : G.v[i][o] * M.v[i][o];
#pragma unroll
        for (int o = 0; o < NS; o++) {
            float &g = ROW ? G.v[o][i] : G.v[i][o], &m = ROW ? M.v[o][i] : M.v[i][o];
            g = (g - along) * inverse;
            m *= divisor;
        }
    }
}

// H_res from S. q (STEPS,NS) with stride q_stride between entries; null: the divisors are not kept.
template <int NS>
__device__ __forceinline__ Square<NS> sinkhorn(Square<NS> M, int n, float* q, int q_stride) {
#pragma unroll
    for (int j = 0; j < NS; j++)
#pragma unroll
        for (int k = 0; k < NS; k++)
            if (j < n && k < n) M.v[j][k] += MHC_EPS_SINKHORN;
    divide<true>(M, n, q, q_stride);
#pragma unroll 1
    for (int v = 1; v < STEPS; v += 2) {
        divide<false>(M, n, q == nullptr ? nullptr : q + v * NS * q_stride, q_stride);
        divide<true>(M, n, q == nullptr ? nullptr : q + (v + 1) * NS * q_stride, q_stride);
    }
    return M;
}

template <bool HEAD, int NS>
__global__ void __launch_bounds__(MHC_THREADS<NS>)
    coefficients_kernel(float* c, const float* m_raw, const float* rstd, MhcModule parameters, int64_t N, int n, int Mp) {
    int64_t t = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (t >= N) return;
    const int width = HEAD ? 1 : n + 2;
    c += t * n * width;
    m_raw += t * Mp;
    float r = rstd[t];
#pragma unroll
    for (int j = 0; j < NS; j++) {
        if (j >= n) continue;
        c[j * width] = sigma(parameters.a[0] * (r * m_raw[j]) + parameters.b[j]) + MHC_EPS_READ;
        if (!HEAD) c[j * width + n + 1] = 2.0f * sigma(parameters.a[1] * (r * m_raw[n + j]) + parameters.b[n + j]);
    }
    if constexpr (!HEAD) {
        Square<NS> M = sinkhorn<NS>(softmax<NS>(m_raw, r, parameters, n), n, nullptr, 0);
#pragma unroll
        for (int j = 0; j < NS; j++)
#pragma unroll
            for (int k = 0; k < NS; k++)
                if (j < n && k < n) c[j * width + 1 + k] = M.v[j][k];
    }
}

struct Divisors {
    float q[1];
};

// Each warp also adds up its 32 tokens: lines (warps, K) of dZ and (warps, 3 or 1) of the sums of dZ*m.
template <bool HEAD, int NS>
__global__ void __launch_bounds__(MHC_THREADS<NS>)
    coefficients_backward_kernel(floatX* rdm, float* kappa, const float* dc, const float* m_raw, const float* rstd,
                                 MhcModule parameters, int64_t N, int n, int C, int Mp, float* db_partial, float* da_partial) {
    const int64_t t = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, line = t / WARP;
    const bool real = t < N, leader = threadIdx.x % WARP == 0;
    const int width = HEAD ? 1 : n + 2, K = n * width;
    const int64_t token = real ? t : 0;  // threads behind the end take part in the sums, with zeros
    dc += token * K;
    m_raw += token * Mp;
    rdm += token * Mp;
    db_partial += line * K;
    const float r = rstd[token];
    float da[3] = {};

    // One group of NS entries of Z, from `first` on, with gradients dZ.
    auto finish = [&](float (&dZ)[NS], int first, int group) {
#pragma unroll
        for (int i = 0; i < NS; i++) {
            if (!real || i >= n) dZ[i] = 0.0f;
            if (i >= n) continue;
            da[group] += dZ[i] * (r * m_raw[first + i]);
            if (real) rdm[first + i] = from_float<floatX>(r * (parameters.a[group] * dZ[i]));
        }
        warp_sum(dZ);
#pragma unroll
        for (int i = 0; i < NS; i++)
            if (leader && i < n) db_partial[first + i] = dZ[i];
    };
    float dZ[NS];
#pragma unroll
    for (int j = 0; j < NS; j++) {
        float s = j < n ? sigma(parameters.a[0] * (r * m_raw[j]) + parameters.b[j]) : 0.0f;
        dZ[j] = j < n ? dc[j * width] * s * (1.0f - s) : 0.0f;
    }
    finish(dZ, 0, 0);
    if constexpr (!HEAD) {
#pragma unroll
        for (int k = 0; k < NS; k++) {
            float s = k < n ? sigma(parameters.a[1] * (r * m_raw[n + k]) + parameters.b[n + k]) : 0.0f;
            dZ[k] = k < n ? dc[k * width + n + 1] * 2.0f * s * (1.0f - s) : 0.0f;
        }
        finish(dZ, n, 1);

        float* q = shared_as<Divisors>().q + threadIdx.x;
        const int q_stride = static_cast<int>(blockDim.x);
        Square<NS> M = sinkhorn<NS>(softmax<NS>(m_raw, r, parameters, n), n, q, q_stride), G;
#pragma unroll
        for (int j = 0; j < NS; j++)
#pragma unroll
            for (int k = 0; k < NS; k++) G.v[j][k] = j < n && k < n ? dc[j * width + 1 + k] : 0.0f;
#pragma unroll 1
        for (int v = STEPS - 1; v > 0; v -= 2) {
            divide_backward<true>(M, G, q + v * NS * q_stride, q_stride);
            divide_backward<false>(M, G, q + (v - 1) * NS * q_stride, q_stride);
        }
        divide_backward<true>(M, G, q, q_stride);
        // S again, rather than M - eps: it may be far smaller than eps.
        Square<NS> S = softmax<NS>(m_raw, r, parameters, n);
#pragma unroll
        for (int j = 0; j < NS; j++) {
            float along = 0.0f;
#pragma unroll
            for (int k = 0; k < NS; k++) along += G.v[j][k] * S.v[j][k];
#pragma unroll
            for (int k = 0; k < NS; k++) dZ[k] = S.v[j][k] * (G.v[j][k] - along);
            if (j < n) finish(dZ, 2 * n + n * j, 2);
        }
    }
    // <dm,m> = SUM a*dZ*m
    float along = parameters.a[0] * da[0];
    if (!HEAD) along += parameters.a[1] * da[1] + parameters.a[2] * da[2];
    if (real) {
        kappa[t] = r * r / (static_cast<float>(n) * static_cast<float>(C)) * along;
        for (int i = K; i < Mp; i++) rdm[i] = from_float<floatX>(0.0f);
    }
    warp_sum(da);
    constexpr int groups = HEAD ? 1 : 3;
#pragma unroll
    for (int i = 0; i < groups; i++)
        if (leader) da_partial[line * groups + i] = da[i];
}

template <class F>
void with_module(int n, bool head, F&& f) {
    CHECK(n >= 1 && n <= MAX_STREAMS);
    with_flag(head, [&](auto is_head) {
        if (n <= 2) f(is_head, std::integral_constant<int, 2>{});
        else if (n <= 4) f(is_head, std::integral_constant<int, 4>{});
        else f(is_head, std::integral_constant<int, 8>{});
    });
}

}  // namespace

Coefficients mhc_strides(const float* c, int n, bool head) {
    return head ? Coefficients::read_per_token(c, n) : Coefficients::per_token(c, n);
}

void mhc_coefficients(float* c, const float* m_raw, const float* rstd, const MhcModule& parameters, int64_t N, int n,
                      cudaStream_t stream) {
    if (N == 0) return;
    with_module(n, parameters.head, [&](auto head, auto ns) {
        constexpr int NS = decltype(ns)::value;
        const int64_t K = parameters.head ? n : n * (n + 2);
        MOVES("mhc_coefficients", {reads(m_raw, N * K), reads(rstd, N), reads(parameters.b, K), writes(c, N * K)});
        launch(coefficients_kernel<decltype(head)::value, NS>, ceil_div(N, int64_t{MHC_THREADS<NS>}), MHC_THREADS<NS>, 0,
               stream, c, m_raw, rstd, parameters, N, n, mhc_columns(n, parameters.head));
    });
}

void mhc_coefficients_backward(floatX* rdm, float* kappa, const MhcGradients& gradients, const float* dc,
                               const float* m_raw, const float* rstd, const MhcModule& parameters, int64_t N, int n, int C,
                               float* scratch, cudaStream_t stream) {
    if (N == 0) return;
    const int K = parameters.head ? n : n * (n + 2), groups = parameters.head ? 1 : 3;
    with_module(n, parameters.head, [&](auto head, auto ns) {
        constexpr int NS = decltype(ns)::value, threads = MHC_THREADS<NS>;
        constexpr bool HEAD = decltype(head)::value;
        const int blocks = static_cast<int>(ceil_div(N, int64_t{threads})), lines = blocks * (threads / WARP);
        float* da_partial = scratch + static_cast<size_t>(lines) * K;
        MOVES("mhc_coefficients_backward",
              {reads(dc, N * K), reads(m_raw, N * K), reads(rstd, N), reads(parameters.b, K),
               writes(rdm, N * mhc_columns(n, parameters.head)), writes(kappa, N),
               writes(scratch, static_cast<int64_t>(lines) * (K + groups))});
        launch(coefficients_backward_kernel<HEAD, NS>, blocks, threads, HEAD ? 0 : sizeof(float) * STEPS * NS * threads,
               stream, rdm, kappa, dc, m_raw, rstd, parameters, N, n, C, mhc_columns(n, parameters.head), scratch, da_partial);
        PartialTargets db, da;
        db.total[0] = gradients.b;
        da.total[0] = gradients.a;
        add_partials(db, scratch, lines, 1, K, stream);
        add_partials(da, da_partial, lines, 1, groups, stream);
    });
}
