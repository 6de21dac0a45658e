// A gate r in (0,1) per channel on the branch, as review and highway have it, once r = sigma(zeta) is known:
//
//     additive   p = x + alpha*r*v                         convex   p = (1-r)*x + alpha*r*v
//     dzeta = dp*(alpha*v - [convex] x)*r*(1-r),   dv = alpha*r*dp,   dx = dp, or (1-r)*dp
//
// alpha is ProRes's factor. r is rounded as it is stored, also where nothing stores it (inference).
#pragma once
#include "residual/row_kernel.cuh"

struct BranchGate {
    floatX* r;           // (N,C) written forward, read backward; null in inference
    const float* alpha;  // device scalar; null: 1
    bool convex;
    const floatX* x;  // (N,C) the stream before; backward

    void moves(int64_t N, int C, bool backward) const {
        if (backward)
            MOVES_MORE({reads(r, N * C), reads(convex ? x : nullptr, N * C)});
        else
            MOVES_MORE({writes(r, N * C)});
    }

    __device__ __forceinline__ float factor() const { return alpha != nullptr ? *alpha : 1.0f; }

    template <class Lane, class Row = typename Lane::Row>
    __device__ __forceinline__ Row combine(const Lane& lane, Row zeta, const Row& x_row, const Row& v) const {
        Row p;
#pragma unroll
        for (int i = 0; i < p.size; i++) zeta[i] = 1.0f / (1.0f + expf(-zeta[i]));
        if (r != nullptr)
            lane.store(r, zeta);
        else
            lane.round(zeta);
        const float a = factor();
#pragma unroll
        for (int i = 0; i < p.size; i++)
            p[i] = fmaf(a * zeta[i], v[i], convex ? (1.0f - zeta[i]) * x_row[i] : x_row[i]);
        return p;
    }

    // Returns dzeta.
    template <class Lane, class Row = typename Lane::Row>
    __device__ __forceinline__ Row backward(const Lane& lane, const Row& dp, const Row& v, Row& dx, Row& dv) const {
        Row gate = lane.load(r), x_row = {}, dzeta;
        if (convex) x_row = lane.load(x);
        const float a = factor();
#pragma unroll
        for (int i = 0; i < dp.size; i++) {
            dzeta[i] = dp[i] * (a * v[i] - x_row[i]) * gate[i] * (1.0f - gate[i]);
            dx[i] = convex ? (1.0f - gate[i]) * dp[i] : dp[i];
            dv[i] = a * gate[i] * dp[i];
        }
        return dzeta;
    }
};
