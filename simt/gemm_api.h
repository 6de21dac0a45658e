// The insides of cublasLt.h's opaque structs: shared by gemm_api.cpp, gemm_fp8.cpp and gemm_descriptors.cpp.
#pragma once

#include "cublasLt.h"

namespace simt::gemm {

struct Layout {
    uint64_t rows, cols;
    int64_t ld, stride;
    uint32_t type;
    int32_t order, batch;
};
struct Desc {
    int32_t compute, scale, pointer_mode, op_a, op_b;
    uint32_t epilogue;
    int32_t aux_type, bias_type;
    void *bias, *aux;
    int64_t bias_stride, aux_ld, aux_stride;
    void *a_scale, *b_scale, *c_scale, *d_scale, *amax_d;
    int8_t fast_accum;
};
struct Preference {
    uint64_t workspace;
    uint32_t reduction, align_a, align_b, align_c, align_d;
};
// How to sum over k, and what the algorithm was made for.
struct Algo {
    uint64_t problem;
    uint32_t align_a, align_b, align_c, align_d;
    int32_t splits;
};

// The library's opaque structs hold ours.
template <class T, class Opaque>
T& inside(Opaque* opaque) {
    static_assert(sizeof(T) <= sizeof(opaque->data) && alignof(T) <= alignof(Opaque));
    return *reinterpret_cast<T*>(opaque->data);
}
inline Layout& layout_of(cublasLtMatrixLayout_t layout) {
    return inside<Layout>(layout);
}
inline Desc& desc_of(cublasLtMatmulDesc_t desc) {
    return inside<Desc>(desc);
}

inline bool is_fp8(uint32_t type) {
    return type == CUDA_R_8F_E4M3 || type == CUDA_R_8F_E5M2;
}
// What fp8 operands need beyond the rest, and that nothing else is given scales (gemm_fp8.cpp).
cublasStatus_t check_fp8(const Desc& desc, const Layout& a, const Layout& b, const Layout& c, const Layout& d);
// The values of a type's 256 codes; null for a type that has more.
const float* fp8_values(uint32_t type);

// Gives `status` back. Why a call was refused goes to stderr if the library's own variable CUBLASLT_LOG_LEVEL is set.
cublasStatus_t refuse(cublasStatus_t status, const char* why);
#define REFUSE_IF(condition, status, why) \
    if (condition) return simt::gemm::refuse(CUBLAS_STATUS_##status, why)

}  // namespace simt::gemm
