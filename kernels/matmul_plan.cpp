#include "kernels/matmul_plan.cuh"

#include <cstring>

namespace {

// The largest power of two up to 256 that divides the address: what the heuristic may count on.
uint32_t alignment(const void* p) {
    uintptr_t bits = reinterpret_cast<uintptr_t>(p) | 256;
    return static_cast<uint32_t>(bits & (~bits + 1));
}

void set_pointers(const ProductPlan& plan, const Product& p) {
    if (p.bias) set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
    if (p.aux) set(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p.aux);
}

cublasLtMatrixLayout_t make_layout(cudaDataType_t type, int rows, int cols, int ld = 0) {
    cublasLtMatrixLayout_t made = nullptr;
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&made, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(cols),
                                            ld ? ld : rows));
    return made;
}

ProductPlan make_plan(const Product& p) {
    ProductPlan plan;
    // 32F is true fp32 for fp32 operands: TF32 would need the FAST_TF32 type.
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, p.op_a);
    set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSB, p.op_b);
    set(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, p.epilogue);
    if (p.alpha) set(plan.desc, CUBLASLT_MATMUL_DESC_POINTER_MODE, CUBLASLT_POINTER_MODE_DEVICE);
    if (p.bias) set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, p.d_type);
    if (p.aux) set(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, static_cast<int64_t>(p.m));
    set_pointers(plan, p);  // their alignment matters to the heuristic
    const cudaDataType_t in = data_type<floatX>();
    plan.a = p.op_a == CUBLAS_OP_N ? make_layout(in, p.m, p.k, p.ld_a) : make_layout(in, p.k, p.m, p.ld_a);
    plan.b = p.op_b == CUBLAS_OP_N ? make_layout(in, p.k, p.n) : make_layout(in, p.n, p.k);
    plan.d = make_layout(p.d_type, p.m, p.n, p.ld_d);
    return plan;
}

}  // namespace

ProductKey::ProductKey(const Product& p)
    : m(p.m),
      n(p.n),
      k(p.k),
      op_a(p.op_a),
      op_b(p.op_b),
      d_type(p.d_type),
      epilogue(p.epilogue),
      device_scalars(p.alpha != nullptr),
      ld_a(p.ld_a),
      ld_d(p.ld_d),
      align_a(alignment(p.a)),
      align_b(alignment(p.b)),
      align_c(alignment(p.c ? p.c : p.d)),
      align_d(alignment(p.d)),
      align_bias(alignment(p.bias)),
      align_aux(alignment(p.aux)) {}
static_assert(sizeof(ProductKey) == 16 * 4, "no padding: the hash reads its bytes");

size_t ProductKeyHash::operator()(const ProductKey& key) const {  // FNV-1a
    unsigned char bytes[sizeof(ProductKey)];
    memcpy(bytes, &key, sizeof bytes);
    uint64_t hash = 14695981039346656037ull;
    for (unsigned char byte : bytes) hash = (hash ^ byte) * 1099511628211ull;
    return static_cast<size_t>(hash);
}

std::string describe(const ProductKey& key) {
    auto type = [](bool half) { return half ? "bf16" : "fp32"; };
    return format("m=%d n=%d k=%d ops=%c%c %s->%s epilogue=%d%s ld=%d,%d align=%u,%u,%u,%u,%u,%u", key.m, key.n, key.k,
                  key.op_a == CUBLAS_OP_T ? 'T' : 'N', key.op_b == CUBLAS_OP_T ? 'T' : 'N', type(sizeof(floatX) == 2),
                  type(key.d_type == CUDA_R_16BF), key.epilogue, key.device_scalars ? " device-alpha" : "", key.ld_a,
                  key.ld_d, key.align_a, key.align_b, key.align_c, key.align_d, key.align_bias, key.align_aux);
}

ProductPlan& find_plan(Matmul* mm, const Product& p, cudaStream_t stream) {
    CHECK(p.m > 0 && p.n > 0 && p.k > 0);
    const ProductKey key(p);
    auto at = mm->plans.find(key);
    if (at == mm->plans.end()) {
        ProductPlan plan = make_plan(p);
        plan.product = describe(key);
        choose_algorithm(mm, plan, key, p, stream);
        at = mm->plans.emplace(key, std::move(plan)).first;
    }
    at->second.used |= !mm->comparing;
    return at->second;
}

void drop_plans(Matmul* mm) {
    for (const auto& [key, plan] : mm->plans) {
        for (cublasLtMatrixLayout_t layout : {plan.a, plan.b, plan.d})
            CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(layout));
        CUBLAS_CHECK(cublasLtMatmulDescDestroy(plan.desc));
    }
    mm->plans.clear();
}

cublasStatus_t run_plan(Matmul* mm, const ProductPlan& plan, const cublasLtMatmulAlgo_t& algo, const Product& p,
                        cudaStream_t stream) {
    set_pointers(plan, p);
    const float one = 1.0f, added = p.c ? 1.0f : 0.0f;
    const float* alpha = p.alpha ? p.alpha : &one;
    const float* beta = p.alpha ? mm->zero_one + (p.c ? 1 : 0) : &added;
    return cublasLtMatmul(mm->handle, plan.desc, alpha, p.a, plan.a, p.b, plan.b, beta, p.c ? p.c : p.d, plan.d, p.d,
                          plan.d, &algo, mm->workspace, MATMUL_WORKSPACE, stream);
}
