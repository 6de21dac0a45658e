#include "kernels/matmul_fp8.cuh"

#include <map>
#include <tuple>

#include "kernels/cublas.h"

// As in kernels/matmul.cu a row-major product is written with its operands exchanged. What comes out is always
// D (m x n) = A^T B, column-major, with A (k x m) e4m3 and B (k x n) of either format: one shape of product for all
// three.

namespace {

constexpr cudaDataType_t FLOATX = sizeof(floatX) == 2 ? CUDA_R_16BF : CUDA_R_32F;

struct Product {
    int m, n, k;
    const e4m3* a;
    const void* b;
    cudaDataType_t b_type;
    void* d;
    cudaDataType_t d_type;
    const float *a_scale, *b_scale;
    bool accumulate = false, fast = false;
    const floatX* bias = nullptr;  // (m)
    const float* alpha = nullptr;  // in device memory; null: 1
};

// What decides which algorithm runs; addresses are all 16-byte aligned, and no more is promised.
using Key = std::tuple<int, int, int, int, int, bool, bool, bool, bool>;
Key key_of(const Product& p) {
    return {p.m, p.n, p.k, p.b_type, p.d_type, p.accumulate, p.fast, p.bias != nullptr, p.alpha != nullptr};
}

struct Plan {
    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
    cublasLtMatmulAlgo_t algo = {};
    bool supported = false;
};

void set_pointers(const Plan& plan, const Product& p) {
    set(plan.desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, p.a_scale);
    set(plan.desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, p.b_scale);
    if (p.bias) set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
}

std::string describe(const Product& p) {
    return format("m=%d n=%d k=%d, e4m3 times %s into %s%s%s%s", p.m, p.n, p.k,
                  p.b_type == CUDA_R_8F_E4M3 ? "e4m3" : "e5m2", p.d_type == CUDA_R_16BF ? "bf16" : "fp32",
                  p.bias ? ", bias" : "", p.accumulate ? ", accumulating" : "",
                  p.alpha ? ", alpha in device memory" : "");
}

Plan make_plan(cublasLtHandle_t handle, const Product& p) {
    Plan plan;
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
    set(plan.desc, CUBLASLT_MATMUL_DESC_FAST_ACCUM, static_cast<int8_t>(p.fast));
    if (p.bias) set(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    if (p.bias) set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, FLOATX);
    if (p.alpha) set(plan.desc, CUBLASLT_MATMUL_DESC_POINTER_MODE, CUBLASLT_POINTER_MODE_DEVICE);
    set_pointers(plan, p);

    auto layout = [](cudaDataType_t type, int rows, int cols) {
        cublasLtMatrixLayout_t made = nullptr;
        CUBLAS_CHECK(
            cublasLtMatrixLayoutCreate(&made, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(cols), rows));
        return made;
    };
    plan.a = layout(CUDA_R_8F_E4M3, p.k, p.m);
    plan.b = layout(p.b_type, p.k, p.n);
    plan.d = layout(p.d_type, p.m, p.n);

    const cublasLtMatmulPreference_t preference = make_preference(16, 16, 16, 16);
    cublasLtMatmulHeuristicResult_t result = {};
    int found = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, plan.desc, plan.a, plan.b, plan.d, plan.d,
                                                           preference, 1, &result, &found);
    CUBLAS_CHECK(cublasLtMatmulPreferenceDestroy(preference));
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) cublas_check(status, describe(p).c_str(), __FILE__, __LINE__);
    plan.supported = status == CUBLAS_STATUS_SUCCESS && found > 0 && result.state == CUBLAS_STATUS_SUCCESS;
    plan.algo = result.algo;
    return plan;
}

// out (rows of OC) = bias in every row.
__global__ void __launch_bounds__(256)
    spread_bias_kernel(floatX* out, const floatX* bias, int64_t packs, int row_packs) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < packs) store_pack(out + i * PackX::size, load_pack(bias + i % row_packs * PackX::size));
}

}  // namespace

struct MatmulFp8 : CublasContext {
    std::map<Key, Plan> plans;
};

namespace {

const Plan& plan_of(MatmulFp8* mm, const Product& p) {
    CHECK(p.m > 0 && p.n > 0 && p.k > 0 && p.m % 16 == 0 && p.n % 16 == 0 && p.k % 16 == 0);
    auto at = mm->plans.find(key_of(p));
    if (at == mm->plans.end()) at = mm->plans.emplace(key_of(p), make_plan(mm->handle, p)).first;
    return at->second;
}

void multiply(MatmulFp8* mm, const Product& p, cudaStream_t stream) {
    const Plan& plan = plan_of(mm, p);
    if (!plan.supported)
        programming_error("matmul_fp8: cuBLASLt has no algorithm for", describe(p).c_str(), __FILE__, __LINE__);
    set_pointers(plan, p);
    const float one = 1.0f, accumulated = p.accumulate ? 1.0f : 0.0f;
    const float* alpha = p.alpha ? p.alpha : &one;
    const float* beta = p.alpha ? mm->zero_one + (p.accumulate ? 1 : 0) : &accumulated;
    cublasStatus_t status = cublasLtMatmul(mm->handle, plan.desc, alpha, p.a, plan.a, p.b, plan.b, beta, p.d, plan.d,
                                           p.d, plan.d, &plan.algo, mm->workspace, MATMUL_WORKSPACE, stream);
    cublas_check(status, describe(p).c_str(), __FILE__, __LINE__);
}

// out^T (OC x N) = weight (OC,C) inp^T
Product forward_product(floatX* out, Fp8Matrix<e4m3> inp, Fp8Matrix<e4m3> weight, const floatX* bias, int N, int C,
                        int OC) {
    return {.m = OC,
            .n = N,
            .k = C,
            .a = weight.data,
            .b = inp.data,
            .b_type = CUDA_R_8F_E4M3,
            .d = out,
            .d_type = FLOATX,
            .a_scale = weight.inverse,
            .b_scale = inp.inverse,
            .fast = true,
            .bias = bias};
}

// D^T (C x rows) = right (C,k) left (rows,k)^T: both backward products.
Product backward_product(void* d, cudaDataType_t d_type, Fp8Matrix<e5m2> left, Fp8Matrix<e4m3> right, int rows, int C,
                         int k, bool accumulate, const float* alpha) {
    return {.m = C,
            .n = rows,
            .k = k,
            .a = right.data,
            .b = left.data,
            .b_type = CUDA_R_8F_E5M2,
            .d = d,
            .d_type = d_type,
            .a_scale = right.inverse,
            .b_scale = left.inverse,
            .accumulate = accumulate,
            .alpha = alpha};
}

}  // namespace

MatmulFp8* matmul_fp8_create() {
    return new MatmulFp8;
}

void matmul_fp8_destroy(MatmulFp8* mm) {
    if (!mm) return;
    for (const auto& [key, plan] : mm->plans) {
        for (cublasLtMatrixLayout_t layout : {plan.a, plan.b, plan.d}) cublasLtMatrixLayoutDestroy(layout);
        cublasLtMatmulDescDestroy(plan.desc);
    }
    delete mm;
}

bool matmul_fp8_supported(MatmulFp8* mm) {
    // Shapes that no card finds awkward; the addresses are not looked at.
    const float* scale = mm->zero_one + 1;
    const Fp8Matrix<e4m3> x{static_cast<const e4m3*>(mm->workspace), scale};
    const Fp8Matrix<e5m2> dx{static_cast<const e5m2*>(mm->workspace), scale};
    auto* out = static_cast<floatX*>(mm->workspace);
    return plan_of(mm, forward_product(out, x, x, FLOATX == CUDA_R_16BF ? out : nullptr, 128, 128, 128)).supported &&
           plan_of(mm, backward_product(out, FLOATX, dx, x, 128, 128, 128, false, nullptr)).supported &&
           plan_of(mm, backward_product(out, CUDA_R_32F, dx, x, 128, 128, 128, true, nullptr)).supported;
}

void matmul_fp8_forward(MatmulFp8* mm, floatX* out, Fp8Matrix<e4m3> inp, Fp8Matrix<e4m3> weight, const floatX* bias,
                        int N, int C, int OC, cudaStream_t stream) {
    const bool spread = bias && FLOATX == CUDA_R_32F;  // the library's bias would be bf16: put it there first, and add
    if (spread) {
        const int row_packs = OC / PackX::size;
        const int64_t packs = static_cast<int64_t>(N) * row_packs;
        launch(spread_bias_kernel, dim3(static_cast<unsigned>(ceil_div(packs, int64_t{256}))), dim3(256), 0, stream,
               out, bias, packs, row_packs);
    }
    Product p = forward_product(out, inp, weight, spread ? nullptr : bias, N, C, OC);
    p.accumulate = spread;
    multiply(mm, p, stream);
}

void matmul_fp8_backward_input(MatmulFp8* mm, floatX* dinp, Fp8Matrix<e5m2> dout, Fp8Matrix<e4m3> weight_t, int N,
                               int C, int OC, bool accumulate, cudaStream_t stream, const float* alpha) {
    multiply(mm, backward_product(dinp, FLOATX, dout, weight_t, N, C, OC, accumulate, alpha), stream);
}

void matmul_fp8_backward_weight(MatmulFp8* mm, float* dweight, Fp8Matrix<e5m2> dout_t, Fp8Matrix<e4m3> inp_t, int N,
                                int C, int OC, cudaStream_t stream, const float* alpha) {
    multiply(mm, backward_product(dweight, CUDA_R_32F, dout_t, inp_t, OC, C, N, true, alpha), stream);
}
