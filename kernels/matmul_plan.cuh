// Products as cuBLASLt sees them: descriptors, layouts and algorithm, made once per shape. Private to matmul*.
//
// cuBLASLt is column-major. A row-major (R,S) matrix is the same memory as a column-major S x R one, so every product
// is written with its operands exchanged:  out (N,OC) = inp weight^T  becomes  out^T = weight inp^T, an OC x N matrix
// whose rows carry the bias.
#pragma once
#include <functional>
#include <map>
#include <unordered_map>

#include "kernels/cublas.h"
#include "kernels/matmul.cuh"

template <class T>
constexpr cudaDataType_t data_type() {
    return sizeof(T) == 2 ? CUDA_R_16BF : CUDA_R_32F;
}

// D (m x n) = alpha op(A) (m x k) op(B) (k x n) + C, column-major, densely packed.
struct Product {
    const char* name;  // for who counts
    int m, n, k;
    cublasOperation_t op_a, op_b;
    const void *a, *b;
    void* d;
    cudaDataType_t d_type = data_type<floatX>(), a_type = data_type<floatX>(), b_type = data_type<floatX>();
    const void* c = nullptr;  // (m x n) of D's type and leading dimension, may be d; null: nothing is added
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    const void* bias = nullptr;    // (m), of D's type. Gradients of a bias, which are stored: (m), with BGRADB (n)
    void* aux = nullptr;           // (m x n), the GELU's argument
    const float* alpha = nullptr;  // in device memory; null: 1
    int ld_a = 0, ld_d = 0;        // leading dimensions where a matrix is part of a wider one; 0: dense
    // Operands in 8 bits: what their numbers are multiplied by, in device memory; and whether partial sums may be kept
    // shorter than fp32.
    const float *a_scale = nullptr, *b_scale = nullptr;
    bool fast = false;
};

// What decides which algorithms can run. Whether C is added does not: beta is no part of a descriptor.
struct ProductKey {
    int m, n, k, op_a, op_b, a_type, b_type, d_type, epilogue, device_scalars, ld_a, ld_d, fast;
    uint32_t align_a, align_b, align_c, align_d, align_bias, align_aux;
    explicit ProductKey(const Product& p);
    bool operator==(const ProductKey&) const = default;
};
struct ProductKeyHash {
    size_t operator()(const ProductKey& key) const;
};

struct ProductPlan {
    std::string product;  // as MatmulChoice::product
    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;  // C has D's
    cublasLtMatmulAlgo_t algo = {};
    bool supported = false;
    bool fused = true;      // see MatmulChoice
    bool compared = false;  // fused was measured
    bool used = false;      // for more than a comparison
};

struct Matmul : CublasContext {
    std::unordered_map<ProductKey, ProductPlan, ProductKeyHash> plans;
    std::map<std::string, MatmulChoice> choices;  // by product: measured here, or given by matmul_use
    bool tuning = false, comparing = false;
};

// The product's plan, made when it is met for the first time: no more than a lookup after that.
ProductPlan& find_plan(Matmul* mm, const Product& p, cudaStream_t stream);
void drop_plans(Matmul* mm);
cublasStatus_t run_plan(Matmul* mm, const ProductPlan& plan, const cublasLtMatmulAlgo_t& algo, const Product& p,
                        cudaStream_t stream);
std::string describe(const ProductKey& key);
// Declares the launch and runs it. What fails ends the program, or the recording of a graph (CaptureFailed).
void run_product(Matmul* mm, const ProductPlan& plan, const Product& p, cudaStream_t stream);
// The same by the product's own plan, which the library must have.
void multiply(Matmul* mm, const Product& p, cudaStream_t stream);

// matmul_tune.cpp. The algorithms that the library proposes, its favourite first; none: it cannot do the product.
std::vector<cublasLtMatmulAlgo_t> propose(Matmul* mm, const ProductPlan& plan, const ProductKey& key, int wanted);
// Chooses plan.algo: the one given by matmul_use; or the fastest where the Matmul is tuning; or the library's first.
void choose_algorithm(Matmul* mm, ProductPlan& plan, const ProductKey& key, const Product& p, cudaStream_t stream);
// Measures whether the epilogue pays, once.
void compare_two_steps(Matmul* mm, ProductPlan& plan, const std::function<void()>& fused,
                       const std::function<void()>& two_steps, cudaStream_t stream);
