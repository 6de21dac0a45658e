// Sums and maxima of a few values of one thread: the CPU machine's side of kernels/gpu/fold.cuh, where the contract stands.
// The halves lie in vector registers.
#pragma once
#include <cuda_runtime.h>

namespace simt {

template <int N>
struct FoldVector {
    typedef float type __attribute__((vector_size(N * 4)));
};
template <>
struct FoldVector<1> {
    typedef float type;
};

template <class Op, int N>
SIMT_INLINE float fold_vector(typename FoldVector<N>::type v) {
    if constexpr (N == 1) {
        return v;
    } else {
        typename FoldVector<N / 2>::type low, high;
        __builtin_memcpy(&low, &v, sizeof(low));
        __builtin_memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof(low), sizeof(high));
        return fold_vector<Op, N / 2>(Op::of(low, high));
    }
}

struct FoldSum {
    template <class V>
    static SIMT_INLINE V of(V a, V b) {
        return a + b;
    }
};
struct FoldMax {
    template <class V>
    static SIMT_INLINE V of(V a, V b) {
        return a > b ? a : b;
    }
};

template <class Op, int N>
SIMT_INLINE float fold_array(const float (&v)[N]) {
    static_assert(N >= 1 && (N & (N - 1)) == 0, "a power of two");
    if constexpr (N > 16) {  // wider than any register
        float half[N / 2];
        for (int i = 0; i < N / 2; i++) half[i] = Op::of(v[i], v[i + N / 2]);
        return fold_array<Op>(half);
    } else {
        typename FoldVector<N>::type all;
        __builtin_memcpy(&all, v, sizeof(all));
        return fold_vector<Op, N>(all);
    }
}

}  // namespace simt

template <int N>
SIMT_INLINE float fold_sum(const float (&v)[N]) {
    return simt::fold_array<simt::FoldSum>(v);
}
template <int N>
SIMT_INLINE float fold_max(const float (&v)[N]) {
    return simt::fold_array<simt::FoldMax>(v);
}
