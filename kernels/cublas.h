// What every user of cuBLASLt needs: checked calls, attributes by type, what a product may use. Private to matmul*.
#pragma once
#include <cublasLt.h>

#include "kernels/common.cuh"

constexpr size_t MATMUL_WORKSPACE = size_t{32} << 20;

inline void cublas_check(cublasStatus_t status, const char* call, const char* file, int line) {
    if (status != CUBLAS_STATUS_SUCCESS) programming_error(call, cublasLtGetStatusString(status), file, line);
}
#define CUBLAS_CHECK(call) cublas_check((call), #call, __FILE__, __LINE__)

template <class T>
void set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, const T& value) {
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(desc, attribute, &value, sizeof value));
}
template <class T>
void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value));
}

// Asks for algorithms within the workspace, for operands aligned to so many bytes; to be destroyed. Split-K only with
// fp32 partial sums that a second step adds in a fixed order: repeatable, and rounded once.
inline cublasLtMatmulPreference_t make_preference(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    cublasLtMatmulPreference_t preference = nullptr;
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, MATMUL_WORKSPACE);
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, b);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, d);
    return preference;
}

// One workspace: the products of one context must follow each other on one stream.
struct CublasContext {
    cublasLtHandle_t handle = nullptr;
    void* workspace = nullptr;
    float* zero_one = nullptr;  // (2) in device memory: where alpha is there, beta must be as well
    CublasContext() {
        CUBLAS_CHECK(cublasLtCreate(&handle));
        CUDA_CHECK(cudaMalloc(&workspace, MATMUL_WORKSPACE));
        const float values[2] = {0.0f, 1.0f};
        CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&zero_one), sizeof values));
        CUDA_CHECK(cudaMemcpy(zero_one, values, sizeof values, cudaMemcpyHostToDevice));
    }
    ~CublasContext() {
        cudaFree(zero_one);
        cudaFree(workspace);
        cublasLtDestroy(handle);
    }
    CublasContext(const CublasContext&) = delete;
    CublasContext& operator=(const CublasContext&) = delete;
};
