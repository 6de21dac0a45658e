// The CPU machine's fp8 products: every 8-bit number is a bf16 number as well, so that the product of the same numbers
// as bf16 must have the same bits.
#include <cublasLt.h>
#include <cuda_fp8.h>

#include <cstring>

#include "test.h"

namespace {

// k (K) random codes that are numbers, as they are and as bf16.
struct Operand {
    std::vector<unsigned char> codes;
    std::vector<__nv_bfloat16> wide;
    Operand(Random& random, size_t count, __nv_fp8_interpretation_t format) {
        for (size_t i = 0; i < count; i++) {
            float value = NAN;
            unsigned char code = 0;
            while (!std::isfinite(value)) {
                code = static_cast<unsigned char>(random.below(256));
                __nv_fp8_e4m3 e4m3;
                __nv_fp8_e5m2 e5m2;
                e4m3.__x = e5m2.__x = code;
                value = format == __NV_E4M3 ? static_cast<float>(e4m3) : static_cast<float>(e5m2);
            }
            codes.push_back(code);
            wide.push_back(from_float<__nv_bfloat16>(value));
        }
    }
};

template <class T>
void multiply(cublasLtMatmulDesc_t desc, float alpha, cudaDataType_t a_type, const std::vector<T>& a,
              cudaDataType_t b_type, const std::vector<T>& b, cudaDataType_t d_type, void* d, int m, int n, int k) {
    cublasLtHandle_t handle = nullptr;
    cublasLtMatrixLayout_t la = nullptr, lb = nullptr, ld = nullptr;
    cublasLtCreate(&handle);
    cublasLtMatrixLayoutCreate(&la, a_type, static_cast<uint64_t>(k), static_cast<uint64_t>(m), k);
    cublasLtMatrixLayoutCreate(&lb, b_type, static_cast<uint64_t>(k), static_cast<uint64_t>(n), k);
    cublasLtMatrixLayoutCreate(&ld, d_type, static_cast<uint64_t>(m), static_cast<uint64_t>(n), m);
    Device<T> device_a(a), device_b(b);
    const float beta = 0.5f;
    REQUIRE(cublasLtMatmul(handle, desc, &alpha, device_a.data, la, device_b.data, lb, &beta, d, ld, d, ld, nullptr,
                           nullptr, 0, nullptr) == CUBLAS_STATUS_SUCCESS);
    for (auto layout : {la, lb, ld}) cublasLtMatrixLayoutDestroy(layout);
}

template <class Out>
void check(__nv_fp8_interpretation_t format_a, __nv_fp8_interpretation_t format_b) {
    const int m = 48, n = 32, k = 1040;  // more than one tile of the product
    Random random(21);
    Operand a(random, static_cast<size_t>(m * k), format_a), b(random, static_cast<size_t>(n * k), format_b);
    const std::vector<Out> before = random.normals<Out>(static_cast<size_t>(m * n));
    Device<Out> narrow(before), wide(before);
    Device<float> scales(std::vector<float>{0.25f, 0.37f});
    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
    const cudaDataType_t out = sizeof(Out) == 2 ? CUDA_R_16BF : CUDA_R_32F;
    multiply(desc, 3.0f * (0.25f * 0.37f), CUDA_R_16BF, a.wide, CUDA_R_16BF, b.wide, out, wide.data, m, n, k);
    const float *scale_a = scales.data, *scale_b = scales.data + 1;
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &scale_a, sizeof scale_a);
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &scale_b, sizeof scale_b);
    auto type = [](__nv_fp8_interpretation_t format) { return format == __NV_E4M3 ? CUDA_R_8F_E4M3 : CUDA_R_8F_E5M2; };
    multiply(desc, 3.0f, type(format_a), a.codes, type(format_b), b.codes, out, narrow.data, m, n, k);
    cublasLtMatmulDescDestroy(desc);
    CHECK(memcmp(narrow.read().data(), wide.read().data(), before.size() * sizeof(Out)) == 0);
    CHECK(memcmp(narrow.read().data(), before.data(), before.size() * sizeof(Out)) != 0);
}

}  // namespace

TEST_CASE("cublasLt stand-in: an fp8 product is the bf16 product of the same numbers", "[simt][cublaslt][fp8]") {
    for (auto [a, b] :
         {std::pair(__NV_E4M3, __NV_E4M3), std::pair(__NV_E4M3, __NV_E5M2), std::pair(__NV_E5M2, __NV_E4M3)}) {
        CAPTURE(static_cast<int>(a), static_cast<int>(b));
        check<float>(a, b);
        check<__nv_bfloat16>(a, b);
    }
}
