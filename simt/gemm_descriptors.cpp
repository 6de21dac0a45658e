// cublasLt.h: names of statuses, and the descriptors with their attributes.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "gemm_api.h"

using namespace simt::gemm;

namespace simt::gemm {

cublasStatus_t refuse(cublasStatus_t status, const char* why) {
    static const bool loud = [] {
        const char* level = getenv("CUBLASLT_LOG_LEVEL");
        return level && atoi(level) > 0;
    }();
    if (loud) fprintf(stderr, "cublasLt: %s: %s\n", cublasLtGetStatusName(status), why);
    return status;
}

}  // namespace simt::gemm

namespace {

struct Field {
    void* data;
    size_t bytes;
};
template <class T>
Field field(T& member) {
    return {&member, sizeof(T)};
}
Field field(Layout& l, cublasLtMatrixLayoutAttribute_t attribute) {
    switch (attribute) {
        case CUBLASLT_MATRIX_LAYOUT_TYPE:
            return field(l.type);
        case CUBLASLT_MATRIX_LAYOUT_ORDER:
            return field(l.order);
        case CUBLASLT_MATRIX_LAYOUT_ROWS:
            return field(l.rows);
        case CUBLASLT_MATRIX_LAYOUT_COLS:
            return field(l.cols);
        case CUBLASLT_MATRIX_LAYOUT_LD:
            return field(l.ld);
        case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
            return field(l.batch);
        case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
            return field(l.stride);
    }
    return {};
}
Field field(Desc& d, cublasLtMatmulDescAttributes_t attribute) {
    switch (attribute) {
        case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
            return field(d.compute);
        case CUBLASLT_MATMUL_DESC_SCALE_TYPE:
            return field(d.scale);
        case CUBLASLT_MATMUL_DESC_POINTER_MODE:
            return field(d.pointer_mode);
        case CUBLASLT_MATMUL_DESC_TRANSA:
            return field(d.op_a);
        case CUBLASLT_MATMUL_DESC_TRANSB:
            return field(d.op_b);
        case CUBLASLT_MATMUL_DESC_EPILOGUE:
            return field(d.epilogue);
        case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
            return field(d.bias);
        case CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE:
            return field(d.bias_stride);
        case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
            return field(d.aux);
        case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
            return field(d.aux_ld);
        case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE:
            return field(d.aux_stride);
        case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER:
            return field(d.a_scale);
        case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER:
            return field(d.b_scale);
        case CUBLASLT_MATMUL_DESC_C_SCALE_POINTER:
            return field(d.c_scale);
        case CUBLASLT_MATMUL_DESC_D_SCALE_POINTER:
            return field(d.d_scale);
        case CUBLASLT_MATMUL_DESC_AMAX_D_POINTER:
            return field(d.amax_d);
        case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE:
            return field(d.aux_type);
        case CUBLASLT_MATMUL_DESC_FAST_ACCUM:
            return field(d.fast_accum);
        case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
            return field(d.bias_type);
    }
    return {};
}
Field field(Preference& p, cublasLtMatmulPreferenceAttributes_t attribute) {
    switch (attribute) {
        case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
            return field(p.workspace);
        case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
            return field(p.reduction);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
            return field(p.align_a);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
            return field(p.align_b);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
            return field(p.align_c);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
            return field(p.align_d);
    }
    return {};
}
cublasStatus_t set_field(Field field, const void* value, size_t bytes) {
    REFUSE_IF(!value || !field.data || field.bytes != bytes, INVALID_VALUE, "attribute unknown or of another size");
    memcpy(field.data, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t get_field(Field field, void* value, size_t bytes, size_t* written) {
    REFUSE_IF(!field.data || (bytes == 0 && !written) || (bytes != 0 && (!value || field.bytes != bytes)),
              INVALID_VALUE, "attribute unknown or of another size");
    if (written) *written = field.bytes;
    if (bytes) memcpy(value, field.data, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

const char* cublasLtGetStatusName(cublasStatus_t status) {
    switch (status) {
        case CUBLAS_STATUS_SUCCESS:
            return "CUBLAS_STATUS_SUCCESS";
        case CUBLAS_STATUS_NOT_INITIALIZED:
            return "CUBLAS_STATUS_NOT_INITIALIZED";
        case CUBLAS_STATUS_ALLOC_FAILED:
            return "CUBLAS_STATUS_ALLOC_FAILED";
        case CUBLAS_STATUS_INVALID_VALUE:
            return "CUBLAS_STATUS_INVALID_VALUE";
        case CUBLAS_STATUS_ARCH_MISMATCH:
            return "CUBLAS_STATUS_ARCH_MISMATCH";
        case CUBLAS_STATUS_MAPPING_ERROR:
            return "CUBLAS_STATUS_MAPPING_ERROR";
        case CUBLAS_STATUS_EXECUTION_FAILED:
            return "CUBLAS_STATUS_EXECUTION_FAILED";
        case CUBLAS_STATUS_INTERNAL_ERROR:
            return "CUBLAS_STATUS_INTERNAL_ERROR";
        case CUBLAS_STATUS_NOT_SUPPORTED:
            return "CUBLAS_STATUS_NOT_SUPPORTED";
        case CUBLAS_STATUS_LICENSE_ERROR:
            return "CUBLAS_STATUS_LICENSE_ERROR";
    }
    return "unknown cuBLAS status";
}
const char* cublasLtGetStatusString(cublasStatus_t status) {
    switch (status) {
        case CUBLAS_STATUS_SUCCESS:
            return "success";
        case CUBLAS_STATUS_NOT_INITIALIZED:
            return "the library was not initialized";
        case CUBLAS_STATUS_INVALID_VALUE:
            return "an unsupported value or parameter was passed to the function";
        case CUBLAS_STATUS_NOT_SUPPORTED:
            return "the functionality requested is not supported";
        default:
            return cublasLtGetStatusName(status);
    }
}

cublasStatus_t cublasLtMatrixLayoutInit(cublasLtMatrixLayout_t layout, cudaDataType type, uint64_t rows, uint64_t cols,
                                        int64_t ld) {
    REFUSE_IF(!layout, INVALID_VALUE, "null layout");
    layout_of(layout) = {.rows = rows,
                         .cols = cols,
                         .ld = ld,
                         .stride = 0,
                         .type = static_cast<uint32_t>(type),
                         .order = CUBLASLT_ORDER_COL,
                         .batch = 1};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, uint64_t rows,
                                          uint64_t cols, int64_t ld) {
    REFUSE_IF(!layout, INVALID_VALUE, "null layout");
    *layout = new cublasLtMatrixLayoutOpaque_t{};
    return cublasLtMatrixLayoutInit(*layout, type, rows, cols, ld);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    delete layout;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void* value,
                                                size_t bytes) {
    REFUSE_IF(!layout, INVALID_VALUE, "null layout");
    return set_field(field(layout_of(layout), attribute), value, bytes);
}
cublasStatus_t cublasLtMatrixLayoutGetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, void* value, size_t bytes,
                                                size_t* written) {
    REFUSE_IF(!layout, INVALID_VALUE, "null layout");
    return get_field(field(layout_of(layout), attribute), value, bytes, written);
}

cublasStatus_t cublasLtMatmulDescInit(cublasLtMatmulDesc_t desc, cublasComputeType_t compute, cudaDataType_t scale) {
    REFUSE_IF(!desc, INVALID_VALUE, "null descriptor");
    Desc fresh = {};
    fresh.compute = compute;
    fresh.scale = scale;
    fresh.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    fresh.aux_type = fresh.bias_type = -1;
    desc_of(desc) = fresh;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute, cudaDataType_t scale) {
    REFUSE_IF(!desc, INVALID_VALUE, "null descriptor");
    *desc = new cublasLtMatmulDescOpaque_t{};
    return cublasLtMatmulDescInit(*desc, compute, scale);
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
    delete desc;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
    REFUSE_IF(!desc, INVALID_VALUE, "null descriptor");
    return set_field(field(desc_of(desc), attribute), value, bytes);
}
cublasStatus_t cublasLtMatmulDescGetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                                              void* value, size_t bytes, size_t* written) {
    REFUSE_IF(!desc, INVALID_VALUE, "null descriptor");
    return get_field(field(desc_of(desc), attribute), value, bytes, written);
}

cublasStatus_t cublasLtMatmulPreferenceInit(cublasLtMatmulPreference_t preference) {
    REFUSE_IF(!preference, INVALID_VALUE, "null preference");
    inside<Preference>(preference) = {.workspace = 0,
                                      .reduction = CUBLASLT_REDUCTION_SCHEME_MASK,
                                      .align_a = 256,
                                      .align_b = 256,
                                      .align_c = 256,
                                      .align_d = 256};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
    REFUSE_IF(!preference, INVALID_VALUE, "null preference");
    *preference = new cublasLtMatmulPreferenceOpaque_t{};
    return cublasLtMatmulPreferenceInit(*preference);
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    delete preference;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    size_t bytes) {
    REFUSE_IF(!preference, INVALID_VALUE, "null preference");
    return set_field(field(inside<Preference>(preference), attribute), value, bytes);
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute, void* value,
                                                    size_t bytes, size_t* written) {
    REFUSE_IF(!algo, INVALID_VALUE, "null algorithm");
    Algo copy = *reinterpret_cast<const Algo*>(algo->data);
    int32_t id = 0;
    uint32_t scheme = copy.splits > 1 ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : CUBLASLT_REDUCTION_SCHEME_NONE;
    return get_field(attribute == CUBLASLT_ALGO_CONFIG_ID                 ? field(id)
                     : attribute == CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME ? field(scheme)
                     : attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM       ? field(copy.splits)
                                                                          : Field{},
                     value, bytes, written);
}
cublasStatus_t cublasLtMatmulAlgoConfigSetAttribute(cublasLtMatmulAlgo_t* algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute, const void* value,
                                                    size_t bytes) {
    REFUSE_IF(!algo, INVALID_VALUE, "null algorithm");
    return set_field(attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM ? field(inside<Algo>(algo).splits) : Field{}, value,
                     bytes);
}
