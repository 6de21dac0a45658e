// Sums and maxima over a warp, a row of threads, or a block: the CPU machine's side. The contract stands in
// kernels/gpu/collectives.cuh, which has the same functions for the GPU; both add in the same order, so that both
// machines give the same bits for the same values.
//
// Here the lanes deposit their values, and the last one to arrive adds them up: one wait per lane.
#pragma once

#include <cuda_runtime.h>

// See kernels/gpu/collectives.cuh: a fiber costs more than a loop, so that rows longer than a warp's packs go wide.
constexpr bool WIDE_ROWS = true;

namespace simt {

struct Sum {
    static SIMT_INLINE float of(float a, float b) { return a + b; }
    static constexpr float neutral = 0.0f;
};
struct Max {
    static SIMT_INLINE float of(float a, float b) { return fmaxf(a, b); }
    static constexpr float neutral = -__builtin_inff();
};

// v[i] = v[i] op v[i + N/2], N halved until one is left: the order of a butterfly of shuffles.
template <class Op, unsigned N>
SIMT_INLINE float fold(const float* v) {
    float t[N / 2];
    for (unsigned i = 0; i < N / 2; i++) t[i] = Op::of(v[i], v[i + N / 2]);
    if constexpr (N == 2)
        return t[0];
    else
        return fold<Op, N / 2>(t);
}

SIMT_INLINE unsigned power_of_two_from(unsigned n) {
    return n <= 1 ? 1 : 1u << (32 - __builtin_clz(n - 1));
}

// Partial results of `count` warps, as the GPU's second step folds them.
template <class Op>
inline float fold_warps(const float* partial, unsigned count) {
    float t[kWarp];
    unsigned n = power_of_two_from(count);
    for (unsigned i = 0; i < n; i++) t[i] = i < count ? partial[i] : Op::neutral;
    for (n /= 2; n > 0; n /= 2)
        for (unsigned i = 0; i < n; i++) t[i] = Op::of(t[i], t[i + n]);
    return t[0];
}

template <class Op, int K>
SIMT_INLINE void warp_fold(const char* name, float (&v)[K]) {
    static_assert(K >= 1 && K <= static_cast<int>(kMaxValues), "too many values for one collective");
    Warp& warp = *self.warp;
    check_arrive(name, kFullMask);
    if (warp.alive != kFullMask) [[unlikely]]
        die("%s needs all 32 lanes of the warp", name);
    unsigned lane = self.lane;
    for (int k = 0; k < K; k++) warp.value[k][lane] = v[k];
    if (warp_arrive(warp, kFullMask)) {
        for (int k = 0; k < K; k++) warp.result[k] = fold<Op, kWarp>(warp.value[k]);
        warp_release(warp, kFullMask);
    } else {
        suspend();
    }
    for (int k = 0; k < K; k++) v[k] = warp.result[k];
}

// For the last lane: folds the deposits of each group of `group` warps into every warp's result.
template <class Op>
void fold_groups(Block& block, unsigned group, int values);
extern template void fold_groups<Sum>(Block&, unsigned, int);
extern template void fold_groups<Max>(Block&, unsigned, int);
void check_scratch(const char* name, void* scratch, size_t bytes);

template <class Op, int K>
SIMT_INLINE void group_fold(const char* name, float (&v)[K], unsigned group, float* scratch, size_t scratch_floats) {
    static_assert(K >= 1 && K <= static_cast<int>(kMaxValues), "too many values for one collective");
    Block& block = *self.block;
    Warp& warp = *self.warp;
    check_arrive(name, 0);
    unsigned lane = self.lane;
    for (int k = 0; k < K; k++) warp.value[k][lane] = v[k];
    if (block_meet(block)) {
        check_scratch(name, scratch, scratch_floats * sizeof(float));
        fold_groups<Op>(block, group, K);
        release_block(block);
    }
    for (int k = 0; k < K; k++) v[k] = warp.result[k];
}

template <class Op, int K>
SIMT_INLINE void row_fold(const char* name, float (&v)[K], float* scratch) {
    if (blockDim.x == kWarp)
        warp_fold<Op>(name, v);
    else
        group_fold<Op>(name, v, blockDim.x / kWarp, scratch, static_cast<size_t>(K) * kWarp * blockDim.y);
}

double block_sum_double(double value, double* scratch);

}  // namespace simt

SIMT_INLINE float warp_sum(float v) {
    float t[1] = {v};
    simt::warp_fold<simt::Sum>("warp_sum", t);
    return t[0];
}
SIMT_INLINE float warp_max(float v) {
    float t[1] = {v};
    simt::warp_fold<simt::Max>("warp_max", t);
    return t[0];
}
template <int K>
SIMT_INLINE void warp_sum(float (&v)[K]) {
    simt::warp_fold<simt::Sum>("warp_sum", v);
}
template <int K>
SIMT_INLINE void warp_max(float (&v)[K]) {
    simt::warp_fold<simt::Max>("warp_max", v);
}

template <int K>
SIMT_INLINE void row_sum(float (&v)[K], float* scratch) {
    simt::row_fold<simt::Sum>("row_sum", v, scratch);
}
template <int K>
SIMT_INLINE void row_max(float (&v)[K], float* scratch) {
    simt::row_fold<simt::Max>("row_max", v, scratch);
}
SIMT_INLINE float row_sum(float v, float* scratch) {
    float t[1] = {v};
    row_sum(t, scratch);
    return t[0];
}
SIMT_INLINE float row_max(float v, float* scratch) {
    float t[1] = {v};
    row_max(t, scratch);
    return t[0];
}

SIMT_INLINE float block_sum(float v, float* scratch) {
    float t[1] = {v};
    simt::group_fold<simt::Sum>("block_sum", t, simt::self.block->num_warps, scratch, 32);
    return t[0];
}
SIMT_INLINE float block_max(float v, float* scratch) {
    float t[1] = {v};
    simt::group_fold<simt::Max>("block_max", t, simt::self.block->num_warps, scratch, 32);
    return t[0];
}
SIMT_INLINE double block_sum(double v, double* scratch) {
    return simt::block_sum_double(v, scratch);
}
