// cublasLt.h: what is special about fp8 operands. The product itself is that of bf16 operands, widened through a table.
#include <cuda_fp8.h>

#include "gemm_api.h"

namespace simt::gemm {

cublasStatus_t check_fp8(const Desc& desc, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
    REFUSE_IF((desc.a_scale && !is_fp8(a.type)) || (desc.b_scale && !is_fp8(b.type)) ||
                  (desc.c_scale && !is_fp8(c.type)) || ((desc.d_scale || desc.amax_d) && !is_fp8(d.type)),
              INVALID_VALUE, "a scale or abs-max pointer for a matrix that is not fp8");
    REFUSE_IF(is_fp8(c.type) || is_fp8(d.type), NOT_SUPPORTED, "fp8 C or D: named, not here");
    if (!is_fp8(a.type) && !is_fp8(b.type)) return CUBLAS_STATUS_SUCCESS;

    REFUSE_IF(!is_fp8(a.type) || !is_fp8(b.type), NOT_SUPPORTED, "one operand in fp8, the other not");
    REFUSE_IF(a.type == CUDA_R_8F_E5M2 && b.type == CUDA_R_8F_E5M2, NOT_SUPPORTED, "e5m2 times e5m2");
    REFUSE_IF(d.type != CUDA_R_16BF && d.type != CUDA_R_32F, NOT_SUPPORTED, "fp8 into types other than bf16 and fp32");
    REFUSE_IF(desc.op_a != CUBLAS_OP_T || desc.op_b != CUBLAS_OP_N, NOT_SUPPORTED,
              "fp8 operands other than A transposed and B not");
    for (const Layout* l : {&a, &b, &c, &d}) {
        REFUSE_IF(l->rows % 16 != 0 || l->cols % 16 != 0 || l->ld % 16 != 0 || (l->batch > 1 && l->stride % 16 != 0),
                  NOT_SUPPORTED, "fp8: dimensions, leading dimensions and batch strides are multiples of 16");
    }
    REFUSE_IF(desc.epilogue != CUBLASLT_EPILOGUE_DEFAULT && desc.epilogue != CUBLASLT_EPILOGUE_BIAS, NOT_SUPPORTED,
              "fp8 with an epilogue other than DEFAULT and BIAS");
    REFUSE_IF(desc.epilogue == CUBLASLT_EPILOGUE_BIAS && d.type == CUDA_R_32F, NOT_SUPPORTED,
              "fp8 into fp32 with a bias, which would have to be bf16");
    REFUSE_IF(desc.fast_accum != 0 && desc.fast_accum != 1, INVALID_VALUE, "fast accumulation is 0 or 1");
    return CUBLAS_STATUS_SUCCESS;
}

const float* fp8_values(uint32_t type) {
    struct Table {
        float value[256];
        explicit Table(__nv_fp8_interpretation_t format) {
            for (unsigned code = 0; code < 256; code++)
                value[code] = fp8_value(static_cast<__nv_fp8_storage_t>(code), format);
        }
    };
    static const Table e4m3(__NV_E4M3), e5m2(__NV_E5M2);
    return type == CUDA_R_8F_E4M3 ? e4m3.value : type == CUDA_R_8F_E5M2 ? e5m2.value : nullptr;
}

}  // namespace simt::gemm
