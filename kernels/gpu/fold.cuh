// Sums and maxima of a few values in one thread's registers, folded in halves: v[i] op v[i + N/2], and so on. The chain of
// dependent operations is log2(N) long instead of N. This is the GPU's side; simt/fold.cuh does the same in the same order in
// vector registers, which a compiler may not do by itself: it must not reorder a sum.
#pragma once
#include <cuda_runtime.h>

// N a power of two.
template <int N>
__device__ __forceinline__ float fold_sum(const float (&v)[N]) {
    static_assert(N >= 1 && (N & (N - 1)) == 0, "a power of two");
    if constexpr (N == 1) {
        return v[0];
    } else {
        float half[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; i++) half[i] = v[i] + v[i + N / 2];
        return fold_sum(half);
    }
}

// A NaN may get lost: it is for the sum to show.
template <int N>
__device__ __forceinline__ float fold_max(const float (&v)[N]) {
    static_assert(N >= 1 && (N & (N - 1)) == 0, "a power of two");
    if constexpr (N == 1) {
        return v[0];
    } else {
        float half[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; i++) half[i] = v[i] > v[i + N / 2] ? v[i] : v[i + N / 2];
        return fold_max(half);
    }
}
