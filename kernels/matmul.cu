#include "kernels/matmul.cuh"

#include <cublasLt.h>

#include <cstring>
#include <unordered_map>

// cuBLASLt is column-major. A row-major (R,S) matrix is the same memory as a column-major S x R one, so every product
// is written with its operands exchanged:  out (N,OC) = inp weight^T  becomes  out^T = weight inp^T, an OC x N matrix
// whose rows carry the bias.

namespace {

constexpr size_t WORKSPACE_BYTES = size_t{32} << 20;

void cublas_check(cublasStatus_t status, const char* call, const char* file, int line) {
    if (status != CUBLAS_STATUS_SUCCESS) programming_error(call, cublasLtGetStatusString(status), file, line);
}
#define CUBLAS_CHECK(call) cublas_check((call), #call, __FILE__, __LINE__)

template <class T>
constexpr cudaDataType_t data_type() {
    return sizeof(T) == 2 ? CUDA_R_16BF : CUDA_R_32F;
}

// D (m x n) = alpha op(A) (m x k) op(B) (k x n), column-major, densely packed; accumulate: += .
struct Product {
    int m, n, k;
    cublasOperation_t op_a, op_b;
    const floatX *a, *b;
    void* d;
    cudaDataType_t d_type = data_type<floatX>();
    bool accumulate = false;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    const void* bias = nullptr;    // (m)
    void* aux = nullptr;           // (m x n), the GELU's argument
    const float* alpha = nullptr;  // in device memory; null: 1
    int ld_a = 0, ld_d = 0;        // leading dimensions where a matrix is part of a wider one; 0: dense
};

// The largest power of two up to 256 that divides the address: what the heuristic may count on.
uint32_t alignment(const void* p) {
    uintptr_t bits = reinterpret_cast<uintptr_t>(p) | 256;
    return static_cast<uint32_t>(bits & (~bits + 1));
}

// What decides which algorithm runs.
struct Key {
    int m, n, k, op_a, op_b, d_type, accumulate, epilogue, device_scalars, ld_a, ld_d;
    uint32_t align_a, align_b, align_d, align_bias, align_aux;
    explicit Key(const Product& p)
        : m(p.m),
          n(p.n),
          k(p.k),
          op_a(p.op_a),
          op_b(p.op_b),
          d_type(p.d_type),
          accumulate(p.accumulate),
          epilogue(p.epilogue),
          device_scalars(p.alpha != nullptr),
          ld_a(p.ld_a),
          ld_d(p.ld_d),
          align_a(alignment(p.a)),
          align_b(alignment(p.b)),
          align_d(alignment(p.d)),
          align_bias(alignment(p.bias)),
          align_aux(alignment(p.aux)) {}
    bool operator==(const Key&) const = default;
};
static_assert(sizeof(Key) == 16 * 4, "no padding: the hash reads its bytes");

struct KeyHash {
    size_t operator()(const Key& key) const {  // FNV-1a
        unsigned char bytes[sizeof(Key)];
        memcpy(bytes, &key, sizeof(Key));
        uint64_t hash = 14695981039346656037ull;
        for (unsigned char byte : bytes) hash = (hash ^ byte) * 1099511628211ull;
        return static_cast<size_t>(hash);
    }
};

struct Plan {
    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
    cublasLtMatmulAlgo_t algo = {};
    bool supported = false;
};

template <class T>
void set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, const T& value) {
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(desc, attribute, &value, sizeof value));
}
template <class T>
void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value));
}

void set_pointers(const Plan& plan, const Product& p) {
    if (p.bias) set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
    if (p.aux) set(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p.aux);
}

std::string describe(const Product& p) {
    return format("m=%d n=%d k=%d op_a=%d op_b=%d inputs %s, output %s, epilogue %d%s%s, alignments %u %u %u", p.m, p.n,
                  p.k, p.op_a, p.op_b, sizeof(floatX) == 2 ? "bf16" : "fp32", p.d_type == CUDA_R_16BF ? "bf16" : "fp32",
                  static_cast<int>(p.epilogue), p.accumulate ? ", accumulating" : "",
                  p.alpha ? ", alpha in device memory" : "", alignment(p.a), alignment(p.b), alignment(p.d));
}

Plan make_plan(cublasLtHandle_t handle, const Product& p) {
    Plan plan;
    // 32F is true fp32 for fp32 operands: TF32 would need the FAST_TF32 type.
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, p.op_a);
    set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSB, p.op_b);
    set(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, p.epilogue);
    if (p.alpha) set(plan.desc, CUBLASLT_MATMUL_DESC_POINTER_MODE, CUBLASLT_POINTER_MODE_DEVICE);
    if (p.bias) set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type<floatX>());
    if (p.aux) set(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, static_cast<int64_t>(p.m));
    set_pointers(plan, p);  // their alignment matters to the heuristic

    auto layout = [](cudaDataType_t type, int rows, int cols, int ld = 0) {
        cublasLtMatrixLayout_t made = nullptr;
        CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&made, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(cols),
                                                ld ? ld : rows));
        return made;
    };
    plan.a = p.op_a == CUBLAS_OP_N ? layout(data_type<floatX>(), p.m, p.k, p.ld_a)
                                   : layout(data_type<floatX>(), p.k, p.m, p.ld_a);
    plan.b = p.op_b == CUBLAS_OP_N ? layout(data_type<floatX>(), p.k, p.n) : layout(data_type<floatX>(), p.n, p.k);
    plan.d = layout(p.d_type, p.m, p.n, p.ld_d);

    cublasLtMatmulPreference_t preference = nullptr;
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE_BYTES);
    // Split-K only with fp32 partial sums that a second step adds in a fixed order: repeatable, and rounded once.
    set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(p.a));
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(p.b));
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(p.d));
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(p.d));

    cublasLtMatmulHeuristicResult_t result = {};
    int found = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, plan.desc, plan.a, plan.b, plan.d, plan.d,
                                                           preference, 1, &result, &found);
    CUBLAS_CHECK(cublasLtMatmulPreferenceDestroy(preference));
    if (status != CUBLAS_STATUS_SUCCESS && status != CUBLAS_STATUS_NOT_SUPPORTED) {
        programming_error("matmul: cublasLtMatmulAlgoGetHeuristic",
                          format("%s for %s", cublasLtGetStatusString(status), describe(p).c_str()).c_str(), __FILE__,
                          __LINE__);
    }
    plan.supported = status == CUBLAS_STATUS_SUCCESS && found > 0 && result.state == CUBLAS_STATUS_SUCCESS;
    plan.algo = result.algo;
    return plan;
}

void destroy_plan(const Plan& plan) {
    cublasLtMatrixLayoutDestroy(plan.a);
    cublasLtMatrixLayoutDestroy(plan.b);
    cublasLtMatrixLayoutDestroy(plan.d);
    cublasLtMatmulDescDestroy(plan.desc);
}

}  // namespace

// One workspace: the products of one Matmul must follow each other on one stream.
struct Matmul {
    cublasLtHandle_t handle = nullptr;
    void* workspace = nullptr;
    float* zero_one = nullptr;  // (2) in device memory: where alpha is there, beta must be as well
    std::unordered_map<Key, Plan, KeyHash> plans;
};

Matmul* matmul_create() {
    auto* mm = new Matmul;
    CUBLAS_CHECK(cublasLtCreate(&mm->handle));
    CUDA_CHECK(cudaMalloc(&mm->workspace, WORKSPACE_BYTES));
    const float zero_one[2] = {0.0f, 1.0f};
    CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&mm->zero_one), sizeof zero_one));
    CUDA_CHECK(cudaMemcpy(mm->zero_one, zero_one, sizeof zero_one, cudaMemcpyHostToDevice));
    return mm;
}

void matmul_destroy(Matmul* mm) {
    if (!mm) return;
    for (const auto& [key, plan] : mm->plans) destroy_plan(plan);
    CUDA_CHECK(cudaFree(mm->zero_one));
    CUDA_CHECK(cudaFree(mm->workspace));
    CUBLAS_CHECK(cublasLtDestroy(mm->handle));
    delete mm;
}

namespace {

// False, with nothing done, if the library has no algorithm.
bool try_multiply(Matmul* mm, const Product& p, cudaStream_t stream) {
    CHECK(p.m > 0 && p.n > 0 && p.k > 0);
    Key key(p);
    auto at = mm->plans.find(key);
    if (at == mm->plans.end()) at = mm->plans.emplace(key, make_plan(mm->handle, p)).first;
    const Plan& plan = at->second;
    if (!plan.supported) return false;

    set_pointers(plan, p);
    const float one = 1.0f, accumulated = p.accumulate ? 1.0f : 0.0f;
    const float* alpha = p.alpha ? p.alpha : &one;
    const float* beta = p.alpha ? mm->zero_one + (p.accumulate ? 1 : 0) : &accumulated;
    cublasStatus_t status = cublasLtMatmul(mm->handle, plan.desc, alpha, p.a, plan.a, p.b, plan.b, beta, p.d, plan.d,
                                           p.d, plan.d, &plan.algo, mm->workspace, WORKSPACE_BYTES, stream);
    if (status != CUBLAS_STATUS_SUCCESS) {
        programming_error("matmul: cublasLtMatmul",
                          format("%s for %s", cublasLtGetStatusString(status), describe(p).c_str()).c_str(), __FILE__,
                          __LINE__);
    }
    return true;
}

void multiply(Matmul* mm, const Product& p, cudaStream_t stream) {
    if (!try_multiply(mm, p, stream)) {
        programming_error("matmul: cuBLASLt has no algorithm for", describe(p).c_str(), __FILE__, __LINE__);
    }
}

// out^T (OC x N) = weight (OC,C) inp^T
Product forward_product(void* out, const floatX* inp, const floatX* weight, const floatX* bias, int N, int C, int OC) {
    Product p{.m = OC, .n = N, .k = C, .op_a = CUBLAS_OP_T, .op_b = CUBLAS_OP_N, .a = weight, .b = inp, .d = out};
    if (bias) p.epilogue = CUBLASLT_EPILOGUE_BIAS;
    p.bias = bias;
    return p;
}

// dinp^T (C x N) = weight^T (C x OC) dout^T
Product backward_input_product(floatX* dinp, const floatX* dout, const floatX* weight, int N, int C, int OC,
                               const float* alpha) {
    Product p{.m = C, .n = N, .k = OC, .op_a = CUBLAS_OP_N, .op_b = CUBLAS_OP_N, .a = weight, .b = dout, .d = dinp};
    p.alpha = alpha;
    return p;
}

// The library's GELU is the tanh form, and its auxiliary matrix needs a leading dimension divisible by 8.
bool may_fuse(Activation act, int rows) {
    return act == Activation::gelu_new && rows % 8 == 0;
}

}  // namespace

void matmul_forward(Matmul* mm, floatX* out, const floatX* inp, const floatX* weight, const floatX* bias, int N, int C,
                    int OC, cudaStream_t stream, int weight_stride) {
    Product p = forward_product(out, inp, weight, bias, N, C, OC);
    p.ld_a = weight_stride;
    multiply(mm, p, stream);
}

void matmul_forward_add(Matmul* mm, floatX* out, const floatX* inp, const floatX* weight, int N, int C, int OC,
                        cudaStream_t stream) {
    Product p = forward_product(out, inp, weight, nullptr, N, C, OC);
    p.accumulate = true;
    multiply(mm, p, stream);
}

void matmul_forward_fp32(Matmul* mm, float* out, const floatX* inp, const floatX* weight, int N, int C, int OC,
                         cudaStream_t stream) {
    Product p = forward_product(out, inp, weight, nullptr, N, C, OC);
    p.d_type = CUDA_R_32F;
    multiply(mm, p, stream);
}

void matmul_activation_forward(Matmul* mm, floatX* out, floatX* pre, const floatX* inp, const floatX* weight,
                               const floatX* bias, Activation act, int N, int C, int OC, cudaStream_t stream) {
    if (may_fuse(act, OC)) {
        Product p = forward_product(out, inp, weight, bias, N, C, OC);
        p.epilogue = bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
        p.aux = pre;
        if (try_multiply(mm, p, stream)) return;
    }
    matmul_forward(mm, pre, inp, weight, bias, N, C, OC, stream);
    activation_forward(out, pre, act, static_cast<int64_t>(N) * OC, stream);
}

void matmul_backward_input(Matmul* mm, floatX* dinp, const floatX* dout, const floatX* weight, int N, int C, int OC,
                           bool accumulate, cudaStream_t stream, const float* alpha, int weight_stride) {
    Product p = backward_input_product(dinp, dout, weight, N, C, OC, alpha);
    p.accumulate = accumulate;
    p.ld_a = weight_stride;
    multiply(mm, p, stream);
}

void matmul_activation_backward_input(Matmul* mm, floatX* dpre, const floatX* dout, const floatX* weight,
                                      const floatX* pre, Activation act, int N, int C, int OC, cudaStream_t stream,
                                      const float* alpha) {
    if (may_fuse(act, C)) {
        Product p = backward_input_product(dpre, dout, weight, N, C, OC, alpha);
        p.epilogue = CUBLASLT_EPILOGUE_DGELU;
        p.aux = const_cast<floatX*>(pre);  // read only: one attribute serves both directions
        if (try_multiply(mm, p, stream)) return;
    }
    matmul_backward_input(mm, dpre, dout, weight, N, C, OC, false, stream, alpha);
    activation_backward(dpre, dpre, pre, act, static_cast<int64_t>(N) * C, stream);
}

void matmul_backward_weight(Matmul* mm, float* dweight, const floatX* dout, const floatX* inp, int N, int C, int OC,
                            cudaStream_t stream, const float* alpha, int weight_stride) {
    // dweight^T (C x OC) = inp^T (C x N) dout
    multiply(mm,
             {.m = C,
              .n = OC,
              .k = N,
              .op_a = CUBLAS_OP_N,
              .op_b = CUBLAS_OP_T,
              .a = inp,
              .b = dout,
              .d = dweight,
              .d_type = CUDA_R_32F,
              .accumulate = true,
              .alpha = alpha,
              .ld_d = weight_stride},
             stream);
}
