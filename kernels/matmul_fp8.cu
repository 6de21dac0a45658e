#include "kernels/matmul_fp8.cuh"

#include "kernels/matmul_plan.cuh"

// As in kernels/matmul.cu a row-major product is written with its operands exchanged. What comes out is always
// D (m x n) = A^T B, column-major, with A (k x m) e4m3 and B (k x n) of either format: one form of product for all
// three.

namespace {

template <class F>
Product fp8_product(const char* name, void* d, cudaDataType_t d_type, Fp8Matrix<e4m3> a, Fp8Matrix<F> b, int m, int n,
                    int k, const float* alpha) {
    CHECK(m % 16 == 0 && n % 16 == 0 && k % 16 == 0);
    return {.name = name,
            .m = m,
            .n = n,
            .k = k,
            .op_a = CUBLAS_OP_T,
            .op_b = CUBLAS_OP_N,
            .a = a.data,
            .b = b.data,
            .d = d,
            .d_type = d_type,
            .a_type = CUDA_R_8F_E4M3,
            .b_type = std::is_same_v<F, e4m3> ? CUDA_R_8F_E4M3 : CUDA_R_8F_E5M2,
            .alpha = alpha,
            .a_scale = a.inverse,
            .b_scale = b.inverse};
}

// out^T (OC x N) = weight (OC,C) inp^T
Product forward_product(floatX* out, Fp8Matrix<e4m3> inp, Fp8Matrix<e4m3> weight, const floatX* bias, int N, int C,
                        int OC) {
    Product p = fp8_product("matmul_forward", out, data_type<floatX>(), weight, inp, OC, N, C, nullptr);
    if (bias) p.epilogue = CUBLASLT_EPILOGUE_BIAS;
    p.bias = bias;
    p.fast = true;
    return p;
}
// dinp^T (C x N) = weight^T (C,OC) dout^T
Product input_product(floatX* dinp, Fp8Matrix<e5m2> dout, Fp8Matrix<e4m3> weight_t, int N, int C, int OC,
                      const float* alpha) {
    return fp8_product("matmul_backward_input", dinp, data_type<floatX>(), weight_t, dout, C, N, OC, alpha);
}
// dweight^T (C x OC) = inp^T (C,N) dout
Product weight_product(float* dweight, Fp8Matrix<e5m2> dout_t, Fp8Matrix<e4m3> inp_t, int N, int C, int OC,
                       const float* alpha) {
    return fp8_product("matmul_backward_weight", dweight, CUDA_R_32F, inp_t, dout_t, C, OC, N, alpha);
}

// out (rows of OC) = bias in every row, plus add (the same rows) if it is not null.
__global__ void __launch_bounds__(256)
    spread_bias_kernel(floatX* out, const floatX* bias, const floatX* add, int64_t packs, int row_packs) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= packs) return;
    PackX pack = load_pack(bias + i % row_packs * PackX::size);
    if (add) {
        const PackX more = load_pack(add + i * PackX::size);
#pragma unroll
        for (int j = 0; j < PackX::size; j++) pack[j] = from_float<floatX>(to_float(pack[j]) + to_float(more[j]));
    }
    store_pack(out + i * PackX::size, pack);
}

}  // namespace

bool matmul_fp8_supported(Matmul* mm) {
    // Shapes that no card finds awkward; the addresses are not looked at.
    const int size = 128;
    const float* scale = mm->zero_one + 1;
    const Fp8Matrix<e4m3> x{static_cast<const e4m3*>(mm->workspace), scale};
    const Fp8Matrix<e5m2> dx{static_cast<const e5m2*>(mm->workspace), scale};
    auto* out = static_cast<floatX*>(mm->workspace);
    const floatX* bias = sizeof(floatX) == 2 ? out : nullptr;
    auto* dweight = static_cast<float*>(mm->workspace);
    bool all = find_plan(mm, forward_product(out, x, x, bias, size, size, size), nullptr).supported;
    for (const float* alpha : {static_cast<const float*>(nullptr), scale})
        for (const Product& p : {input_product(out, dx, x, size, size, size, alpha),
                                 weight_product(dweight, dx, x, size, size, size, alpha)})
            all = all && find_plan(mm, p, nullptr).supported;
    return all;
}

void matmul_fp8_forward(Matmul* mm, floatX* out, Fp8Matrix<e4m3> inp, Fp8Matrix<e4m3> weight, const floatX* bias, int N,
                        int C, int OC, cudaStream_t stream, const floatX* add) {
    const bool spread = bias && sizeof(floatX) == 4;  // the library's bias would be bf16: put it there first, and add
    if (spread) {
        const int row_packs = OC / PackX::size;
        const int64_t packs = static_cast<int64_t>(N) * row_packs, n = packs * PackX::size;
        MOVES("spread_bias", {reads(bias, OC), reads(add, n), writes(out, n)});
        launch(spread_bias_kernel, dim3(static_cast<unsigned>(ceil_div(packs, int64_t{256}))), dim3(256), 0, stream,
               out, bias, add, packs, row_packs);
    }
    Product p = forward_product(out, inp, weight, spread ? nullptr : bias, N, C, OC);
    p.c = spread ? out : add;
    multiply(mm, p, stream);
}

void matmul_fp8_backward_input(Matmul* mm, floatX* dinp, Fp8Matrix<e5m2> dout, Fp8Matrix<e4m3> weight_t, int N, int C,
                               int OC, cudaStream_t stream, const float* alpha) {
    multiply(mm, input_product(dinp, dout, weight_t, N, C, OC, alpha), stream);
}

void matmul_fp8_backward_weight(Matmul* mm, float* dweight, Fp8Matrix<e5m2> dout_t, Fp8Matrix<e4m3> inp_t, int N, int C,
                                int OC, bool accumulate, cudaStream_t stream, const float* alpha) {
    Product p = weight_product(dweight, dout_t, inp_t, N, C, OC, alpha);
    if (accumulate) p.c = dweight;
    multiply(mm, p, stream);
}
