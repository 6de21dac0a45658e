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
    if (p.a_scale) set(plan.desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, p.a_scale);
    if (p.b_scale) set(plan.desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, p.b_scale);
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
    if (p.fast) set(plan.desc, CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t{1});
    set_pointers(plan, p);  // their alignment matters to the heuristic
    plan.a = p.op_a == CUBLAS_OP_N ? make_layout(p.a_type, p.m, p.k, p.ld_a) : make_layout(p.a_type, p.k, p.m, p.ld_a);
    plan.b = p.op_b == CUBLAS_OP_N ? make_layout(p.b_type, p.k, p.n) : make_layout(p.b_type, p.n, p.k);
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
      a_type(p.a_type),
      b_type(p.b_type),
      d_type(p.d_type),
      epilogue(p.epilogue),
      device_scalars(p.alpha != nullptr),
      ld_a(p.ld_a),
      ld_d(p.ld_d),
      fast(p.fast),
      align_a(alignment(p.a)),
      align_b(alignment(p.b)),
      align_c(alignment(p.c ? p.c : p.d)),
      align_d(alignment(p.d)),
      align_bias(alignment(p.bias)),
      align_aux(alignment(p.aux)) {}
static_assert(sizeof(ProductKey) == 19 * 4, "no padding: the hash reads its bytes");

size_t ProductKeyHash::operator()(const ProductKey& key) const {  // FNV-1a
    unsigned char bytes[sizeof(ProductKey)];
    memcpy(bytes, &key, sizeof bytes);
    uint64_t hash = 14695981039346656037ull;
    for (unsigned char byte : bytes) hash = (hash ^ byte) * 1099511628211ull;
    return static_cast<size_t>(hash);
}

static const char* type_name(int type) {
    switch (type) {
        case CUDA_R_8F_E4M3:
            return "e4m3";
        case CUDA_R_8F_E5M2:
            return "e5m2";
        case CUDA_R_16BF:
            return "bf16";
        default:
            return "fp32";
    }
}

std::string describe(const ProductKey& key) {
    // Operands of one type are named once.
    const std::string inputs =
        std::string(type_name(key.a_type)) + (key.a_type == key.b_type ? "" : std::string("*") + type_name(key.b_type));
    return format("m=%d n=%d k=%d ops=%c%c %s->%s%s epilogue=%d%s ld=%d,%d align=%u,%u,%u,%u,%u,%u", key.m, key.n,
                  key.k, key.op_a == CUBLAS_OP_T ? 'T' : 'N', key.op_b == CUBLAS_OP_T ? 'T' : 'N', inputs.c_str(),
                  type_name(key.d_type), key.fast ? " fast" : "", key.epilogue,
                  key.device_scalars ? " device-alpha" : "", key.ld_a, key.ld_d, key.align_a, key.align_b, key.align_c,
                  key.align_d, key.align_bias, key.align_aux);
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

static int64_t bytes_of(cudaDataType_t type) {
    return type == CUDA_R_32F ? 4 : type == CUDA_R_16BF ? 2 : 1;
}

static void declare_traffic(const Product& p) {
    const int64_t m = p.m, n = p.n, k = p.k, size = bytes_of(p.d_type);
    const bool gelu_backward = p.epilogue == CUBLASLT_EPILOGUE_DGELU || p.epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD;
    const bool bias_gradient = p.epilogue == CUBLASLT_EPILOGUE_BGRADB || p.epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD;
    const int64_t bias = p.bias == nullptr ? 0 : (p.epilogue == CUBLASLT_EPILOGUE_BGRADB ? n : m) * size;
    floatX* aux = static_cast<floatX*>(p.aux);
    traffic::declare_product(p.name,
                             {{p.a, m * k * bytes_of(p.a_type), true, false},
                              {p.b, k * n * bytes_of(p.b_type), true, false},
                              reads_bytes(p.c ? m * n * size : 0),
                              writes_bytes(m * n * size),
                              bias_gradient ? writes_bytes(bias) : reads_bytes(bias),
                              reads(gelu_backward ? aux : nullptr, m * n),
                              writes(gelu_backward ? nullptr : aux, m * n)},
                             2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k));
}

void run_product(Matmul* mm, const ProductPlan& plan, const Product& p, cudaStream_t stream) {
    if (traffic::counting) declare_traffic(p);
    const traffic::Launch counted(stream);
    const cublasStatus_t status = run_plan(mm, plan, plan.algo, p, stream);
    if (status == CUBLAS_STATUS_SUCCESS) return;
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(stream, &capture) == cudaSuccess && capture != cudaStreamCaptureStatusNone)
        throw CaptureFailed(format("cublasLtMatmul: %s for %s", cublasLtGetStatusString(status), plan.product.c_str()));
    programming_error("matmul: cublasLtMatmul",
                      format("%s for %s", cublasLtGetStatusString(status), plan.product.c_str()).c_str(), __FILE__,
                      __LINE__);
}

void multiply(Matmul* mm, const Product& p, cudaStream_t stream) {
    const ProductPlan& plan = find_plan(mm, p, stream);
    if (!plan.supported)
        programming_error("matmul: cuBLASLt has no algorithm for", plan.product.c_str(), __FILE__, __LINE__);
    run_product(mm, plan, p, stream);
}
