// Sixteen floats side by side: the row of a register tile. The CPU machine's side of kernels/gpu/wide.cuh, where the
// contract stands: here they lie in as few vector registers as the processor needs.
#pragma once
#include <cuda_runtime.h>

namespace simt {
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kVectorBytes)));
typedef float VectorInMemory __attribute__((vector_size(kVectorBytes), aligned(16), may_alias));
}  // namespace simt

struct Wide {
    static constexpr int size = 16;
    static constexpr int lanes = simt::kVectorBytes / 4, parts = size / lanes;
    simt::Vector v[parts];
};

SIMT_INLINE Wide wide_zero() {
    return Wide{};
}

SIMT_INLINE Wide wide_load(const float* p) {
    Wide w;
    for (int i = 0; i < Wide::parts; i++) w.v[i] = *reinterpret_cast<const simt::VectorInMemory*>(p + i * Wide::lanes);
    return w;
}
SIMT_INLINE void wide_store(float* p, const Wide& w) {
    for (int i = 0; i < Wide::parts; i++) *reinterpret_cast<simt::VectorInMemory*>(p + i * Wide::lanes) = w.v[i];
}

SIMT_INLINE void wide_fma(Wide& acc, float x, const Wide& b) {
    for (int i = 0; i < Wide::parts; i++) acc.v[i] += x * b.v[i];  // contracted: -ffp-contract=fast
}
SIMT_INLINE void wide_scale(Wide& acc, float x) {
    for (int i = 0; i < Wide::parts; i++) acc.v[i] *= x;
}

SIMT_INLINE void wide_to_array(float (&a)[Wide::size], const Wide& w) {
    __builtin_memcpy(a, w.v, sizeof(a));
}
SIMT_INLINE Wide wide_from_array(const float (&a)[Wide::size]) {
    Wide w;
    __builtin_memcpy(w.v, a, sizeof(a));
    return w;
}
