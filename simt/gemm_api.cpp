// cublasLt.h: what is refused, and the way from a call to simt::gemm::run.
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <optional>

#include "dry.h"
#include "gemm.h"
#include "gemm_api.h"
#include "runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

struct cublasLtContext {
    int unused;
};

using namespace simt::gemm;

namespace {

bool is_half(uint32_t type) {
    return type == CUDA_R_16BF;
}
int64_t size_of(uint32_t type) {
    return is_fp8(type) ? 1 : is_half(type) ? 2 : 4;
}

bool has_bias(uint32_t e) {
    return e == CUBLASLT_EPILOGUE_BIAS || e == CUBLASLT_EPILOGUE_GELU_BIAS || e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
}
bool stores_gradient(uint32_t e) {
    return e == CUBLASLT_EPILOGUE_DGELU_BGRAD || e == CUBLASLT_EPILOGUE_BGRADA || e == CUBLASLT_EPILOGUE_BGRADB;
}
bool is_dgelu(uint32_t e) {
    return e == CUBLASLT_EPILOGUE_DGELU || e == CUBLASLT_EPILOGUE_DGELU_BGRAD;
}
bool has_aux(uint32_t e) {
    return e == CUBLASLT_EPILOGUE_GELU_AUX || e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS || is_dgelu(e);
}
bool has_gelu(uint32_t e) {
    return e == CUBLASLT_EPILOGUE_GELU || e == CUBLASLT_EPILOGUE_GELU_BIAS || e == CUBLASLT_EPILOGUE_GELU_AUX ||
           e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
}
bool known(uint32_t e) {
    return e == CUBLASLT_EPILOGUE_DEFAULT || has_bias(e) || has_aux(e) || has_gelu(e) || stores_gradient(e);
}

cublasStatus_t check_layout(const Layout& l) {
    REFUSE_IF(l.rows == 0 || l.cols == 0 || l.batch < 1, INVALID_VALUE, "an empty matrix");
    REFUSE_IF(l.ld < 0 || static_cast<uint64_t>(l.ld) < l.rows, INVALID_VALUE, "leading dimension less than rows");
    REFUSE_IF(l.order != CUBLASLT_ORDER_COL, NOT_SUPPORTED, "only column-major matrices");
    REFUSE_IF(l.cols > INT_MAX || l.ld > INT_MAX, NOT_SUPPORTED, "dimensions beyond 2^31");
    REFUSE_IF(is_half(l.type) && (l.ld % 8 != 0 || (l.batch > 1 && l.stride % 8 != 0)), NOT_SUPPORTED,
              "bf16 columns and batches must begin at multiples of 16 bytes");
    return CUBLAS_STATUS_SUCCESS;
}

// Everything that does not need the operands' addresses.
cublasStatus_t check(const Desc& desc, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
    for (const Layout* l : {&a, &b, &c, &d}) {
        if (cublasStatus_t status = check_layout(*l); status != CUBLAS_STATUS_SUCCESS) return status;
    }
    REFUSE_IF(desc.compute != CUBLAS_COMPUTE_32F && desc.compute != CUBLAS_COMPUTE_32F_PEDANTIC, NOT_SUPPORTED,
              "only CUBLAS_COMPUTE_32F");
    REFUSE_IF(desc.scale != CUDA_R_32F, NOT_SUPPORTED, "only fp32 scaling");
    REFUSE_IF(desc.pointer_mode != CUBLASLT_POINTER_MODE_HOST && desc.pointer_mode != CUBLASLT_POINTER_MODE_DEVICE,
              NOT_SUPPORTED, "only scalar alpha and beta");
    REFUSE_IF((desc.op_a != CUBLAS_OP_N && desc.op_a != CUBLAS_OP_T) ||
                  (desc.op_b != CUBLAS_OP_N && desc.op_b != CUBLAS_OP_T),
              NOT_SUPPORTED, "only operations N and T");
    if (cublasStatus_t status = check_fp8(desc, a, b, c, d); status != CUBLAS_STATUS_SUCCESS) return status;
    const bool types = c.type == d.type && (is_fp8(a.type) || (a.type == b.type &&
                                                               (a.type == CUDA_R_32F || a.type == CUDA_R_16BF) &&
                                                               (d.type == CUDA_R_32F || d.type == a.type)));
    REFUSE_IF(!types, NOT_SUPPORTED, "types other than fp32 -> fp32, bf16 -> bf16, bf16 -> fp32, fp8 -> bf16, fp32");

    const bool trans_a = desc.op_a == CUBLAS_OP_T, trans_b = desc.op_b == CUBLAS_OP_T;
    const uint64_t m = trans_a ? a.cols : a.rows, k = trans_a ? a.rows : a.cols;
    const uint64_t k_b = trans_b ? b.cols : b.rows, n = trans_b ? b.rows : b.cols;
    REFUSE_IF(k != k_b || d.rows != m || d.cols != n || c.rows != m || c.cols != n, INVALID_VALUE,
              "shapes don't match");
    REFUSE_IF(a.batch != b.batch || a.batch != c.batch || a.batch != d.batch, INVALID_VALUE, "batch counts differ");

    const uint32_t e = desc.epilogue;
    REFUSE_IF(!known(e), NOT_SUPPORTED, "epilogue");
    if (has_bias(e) || stores_gradient(e)) {
        REFUSE_IF(desc.bias_type >= 0 && desc.bias_type != static_cast<int32_t>(d.type), NOT_SUPPORTED,
                  "bias of another type than D");
        REFUSE_IF(reinterpret_cast<uintptr_t>(desc.bias) % 16 != 0, NOT_SUPPORTED, "bias not 16-byte aligned");
    }
    if (has_aux(e)) {
        REFUSE_IF(desc.aux_type >= 0 && desc.aux_type != static_cast<int32_t>(d.type), NOT_SUPPORTED,
                  "auxiliary matrix of another type than D");
        REFUSE_IF(desc.aux_ld < static_cast<int64_t>(m), INVALID_VALUE,
                  "auxiliary leading dimension less than rows of D");
        REFUSE_IF(desc.aux_ld % 8 != 0 || (d.batch > 1 && desc.aux_stride % 8 != 0), NOT_SUPPORTED,
                  "auxiliary leading dimension or stride not divisible by 8");
        REFUSE_IF(reinterpret_cast<uintptr_t>(desc.aux) % 16 != 0, NOT_SUPPORTED,
                  "auxiliary matrix not 16-byte aligned");
    }
    return CUBLAS_STATUS_SUCCESS;
}

uint64_t hash(uint64_t seed, uint64_t value) {
    seed = (seed ^ value) * 0x9E3779B97F4A7C15ull;
    return seed ^ (seed >> 29);
}
uint64_t signature(const Desc& desc, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
    uint64_t h = hash(hash(hash(desc.epilogue, static_cast<uint64_t>(desc.op_a)), static_cast<uint64_t>(desc.op_b)),
                      static_cast<uint64_t>(desc.aux_ld));
    h = hash(hash(h, static_cast<uint64_t>(desc.pointer_mode)), static_cast<uint64_t>(desc.fast_accum));
    for (const Layout* l : {&a, &b, &c, &d}) {
        h = hash(hash(hash(h, l->rows), l->cols), static_cast<uint64_t>(l->ld));
        h = hash(hash(h, l->type), static_cast<uint64_t>(l->batch));
    }
    return h;
}

int64_t depth_of(const Desc& desc, const Layout& a) {
    return static_cast<int64_t>(desc.op_a == CUBLAS_OP_T ? a.rows : a.cols);
}
size_t workspace_of(int32_t splits, const Layout& d) {
    return splits > 1 ? static_cast<size_t>(splits) * d.rows * d.cols * sizeof(float) : 0;
}
// An algorithm that came from who knows where: for this problem?
cublasStatus_t check_algo(const Algo& algo, const Desc& desc, const Layout& a, const Layout& b, const Layout& c,
                          const Layout& d) {
    REFUSE_IF(algo.problem != signature(desc, a, b, c, d), NOT_SUPPORTED, "the algorithm was made for another problem");
    // Every part must have something to sum.
    const int64_t k = depth_of(desc, a), parts = algo.splits;
    REFUSE_IF(parts < 1 || (parts > 1 && (d.batch > 1 || (k + parts - 1) / parts * (parts - 1) >= k)), NOT_SUPPORTED,
              "k cannot be split so");
    return CUBLAS_STATUS_SUCCESS;
}
int proposals() {
    const char* wanted = getenv("SIMT_GEMM_ALGOS");
    return wanted && atoi(wanted) > 1 ? atoi(wanted) : 1;
}

bool aligned(const void* p, const Layout& l, uint32_t bytes) {
    const uint64_t stride = l.batch > 1 ? static_cast<uint64_t>(l.stride * size_of(l.type)) : 0;
    return (reinterpret_cast<uintptr_t>(p) % bytes) == 0 && stride % 16 == 0;
}
size_t extent(const Layout& l) {  // bytes from the first element to behind the last
    return static_cast<size_t>(
        ((static_cast<int64_t>(l.cols) - 1) * l.ld + static_cast<int64_t>(l.rows) + (l.batch - 1) * l.stride) *
        size_of(l.type));
}
bool overlap(const void* p, size_t p_bytes, const void* q, size_t q_bytes) {
    const char *a = static_cast<const char*>(p), *b = static_cast<const char*>(q);
    return a < b + q_bytes && b < a + p_bytes;
}
// OpenBLAS is not instrumented: under AddressSanitizer, look at the operands' memory here.
void check_memory([[maybe_unused]] const void* p, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    if (void* bad = __asan_region_is_poisoned(const_cast<void*>(p), bytes)) {
        fprintf(stderr, "cublasLtMatmul: an operand reaches into memory that is not its own\n");
        *static_cast<volatile char*>(bad) = 0;  // its report says where and whose
    }
#endif
}

// Nor does the checking mode see it: these are told what a product reads and writes, column by column:
// what lies between the columns is not touched.
template <class Note>
void note_columns([[maybe_unused]] Note&& note, [[maybe_unused]] const void* p, [[maybe_unused]] int64_t column_bytes,
                  [[maybe_unused]] int64_t stride_bytes, [[maybe_unused]] int64_t columns) {
#if defined(SIMT_CHECK)
    for (int64_t i = 0; p && i < columns; i++)
        note(static_cast<const char*>(p) + i * stride_bytes, static_cast<size_t>(column_bytes));
#endif
}
template <class Note>
void note_operand(Note&& note, const void* p, const Layout& l) {
    const int64_t size = size_of(l.type);
    for (int64_t batch = 0; batch < l.batch; batch++)
        note_columns(note, static_cast<const char*>(p) + batch * l.stride * size, static_cast<int64_t>(l.rows) * size,
                     l.ld * size, static_cast<int64_t>(l.cols));
}

// alpha or beta lie where the pointer mode says. The library would read host memory from the device, or the other way
// round, and crash.
// So too the scales of fp8 operands, which are always on the device.
cublasStatus_t check_scalar(const void* scalar, bool device) {
    cudaPointerAttributes attributes = {};
    cudaPointerGetAttributes(&attributes, scalar);
    const bool on_device = attributes.type == cudaMemoryTypeDevice;
    REFUSE_IF(on_device != device, INVALID_VALUE,
              "alpha, beta or a scale is not in the memory that it must be in (alpha, beta: see the pointer mode)");
    REFUSE_IF(reinterpret_cast<uintptr_t>(scalar) % sizeof(float) != 0, INVALID_VALUE,
              "alpha, beta or a scale not aligned");
    if (on_device) {
        check_memory(scalar, sizeof(float));
        note_columns(simt::note_read, scalar, sizeof(float), 0, 1);
    }
    return CUBLAS_STATUS_SUCCESS;
}

template <class T>
T* advance(T* p, int64_t bytes) {
    return p ? reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes)) : nullptr;
}

cublasLtContext the_context;

// The call as it is now, as a node of a graph: who calls may change or destroy descriptors, and scalars on the host.
struct Descriptors {
    cublasLtMatmulDescOpaque_t desc;
    cublasLtMatrixLayoutOpaque_t a, b, c, d;
};
cublasStatus_t record(cublasLtHandle_t handle, const Descriptors& descriptors, const void* alpha, const void* a,
                      const void* b, const void* beta, const void* c, void* d, const cublasLtMatmulAlgo_t* algo,
                      void* workspace, size_t workspace_bytes, cudaStream_t stream) {
    Descriptors kept = descriptors;
    const bool on_device = desc_of(&kept.desc).pointer_mode == CUBLASLT_POINTER_MODE_DEVICE;
    const float alpha_value = on_device ? 0.0f : *static_cast<const float*>(alpha);
    const float beta_value = on_device ? 0.0f : *static_cast<const float*>(beta);
    const std::optional<cublasLtMatmulAlgo_t> kept_algo = algo ? std::optional(*algo) : std::nullopt;
    const cudaError_t error = simt::enqueue(stream, [=]() mutable {
        const cublasStatus_t status =
            cublasLtMatmul(handle, &kept.desc, on_device ? alpha : &alpha_value, a, &kept.a, b, &kept.b,
                           on_device ? beta : &beta_value, c, &kept.c, d, &kept.d, kept_algo ? &*kept_algo : nullptr,
                           workspace, workspace_bytes, nullptr);
        return status == CUBLAS_STATUS_SUCCESS ? cudaSuccess : cudaErrorLaunchFailure;
    });
    return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INTERNAL_ERROR;
}

}  // namespace

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
    REFUSE_IF(!handle, INVALID_VALUE, "null handle");
    *handle = &the_context;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    return handle == &the_context ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_INITIALIZED;
}
size_t cublasLtGetVersion() {
    return 130000;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t results[], int* returned) {
    REFUSE_IF(handle != &the_context, NOT_INITIALIZED, "no handle");
    REFUSE_IF(!desc || !a || !b || !c || !d || !preference || requested < 1 || !results || !returned, INVALID_VALUE,
              "null argument");
    *returned = 0;
    cublasStatus_t status = check(desc_of(desc), layout_of(a), layout_of(b), layout_of(c), layout_of(d));
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    const Preference& p = inside<Preference>(preference);
    REFUSE_IF(p.align_a % 16 || p.align_b % 16 || p.align_c % 16 || p.align_d % 16, NOT_SUPPORTED,
              "operands not promised to be 16-byte aligned");
    const Layout& ld = layout_of(d);
    Algo algo = {signature(desc_of(desc), layout_of(a), layout_of(b), layout_of(c), ld),
                 p.align_a, p.align_b, p.align_c, p.align_d, 1};
    const int wanted = requested < proposals() ? requested : proposals();
    for (; *returned < wanted; algo.splits *= 2) {
        if (algo.splits > 1 && (ld.batch > 1 || depth_of(desc_of(desc), layout_of(a)) < 32 * algo.splits ||
                                workspace_of(algo.splits, ld) > p.workspace ||
                                !(p.reduction & CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)))
            break;
        cublasLtMatmulHeuristicResult_t& result = results[(*returned)++];
        result = {};
        inside<Algo>(&result.algo) = algo;
        result.workspaceSize = workspace_of(algo.splits, ld);
        result.state = CUBLAS_STATUS_SUCCESS;
        result.wavesCount = 1.0f;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                       cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t* algo, cublasLtMatmulHeuristicResult_t* result) {
    REFUSE_IF(handle != &the_context, NOT_INITIALIZED, "no handle");
    REFUSE_IF(!desc || !a || !b || !c || !d || !algo || !result, INVALID_VALUE, "null argument");
    const Layout &la = layout_of(a), &lb = layout_of(b), &lc = layout_of(c), &ld = layout_of(d);
    cublasStatus_t status = check(desc_of(desc), la, lb, lc, ld);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    const Algo& inside_algo = *reinterpret_cast<const Algo*>(algo->data);
    status = check_algo(inside_algo, desc_of(desc), la, lb, lc, ld);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    result->workspaceSize = workspace_of(inside_algo.splits, ld);
    result->state = CUBLAS_STATUS_SUCCESS;
    result->wavesCount = 1.0f;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc_opaque, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algo, void* workspace, size_t workspace_bytes,
                              cudaStream_t stream) {
    REFUSE_IF(handle != &the_context, NOT_INITIALIZED, "no handle");
    REFUSE_IF(!desc_opaque || !a_layout || !b_layout || !c_layout || !d_layout || !alpha || !beta || !a || !b || !d,
              INVALID_VALUE, "null argument");
    const Desc& desc = desc_of(desc_opaque);
    const Layout &la = layout_of(a_layout), &lb = layout_of(b_layout), &lc = layout_of(c_layout),
                 &ld = layout_of(d_layout);
    cublasStatus_t status = check(desc, la, lb, lc, ld);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (simt::is_capturing(stream))
        return record(handle, {*desc_opaque, *a_layout, *b_layout, *c_layout, *d_layout}, alpha, a, b, beta, c, d, algo,
                      workspace, workspace_bytes, stream);

    for (const void* scalar : {alpha, beta}) {
        status = check_scalar(scalar, desc.pointer_mode == CUBLASLT_POINTER_MODE_DEVICE);
        if (status != CUBLAS_STATUS_SUCCESS) return status;
    }
    float scales = 1.0f;
    for (const void* scale : {desc.a_scale, desc.b_scale}) {
        if (!scale) continue;
        if (status = check_scalar(scale, true); status != CUBLAS_STATUS_SUCCESS) return status;
        if (!simt::dry()) scales *= *static_cast<const float*>(scale);
    }
    if (simt::dry()) return CUBLAS_STATUS_SUCCESS;
    const float beta_value = *static_cast<const float*>(beta);
    const bool reads_c = beta_value != 0;
    // Who calls does not know a beta that is on the device: C must be there whatever it turns out to be.
    const bool may_read_c = reads_c || desc.pointer_mode == CUBLASLT_POINTER_MODE_DEVICE;
    Algo promised = {.problem = 0, .align_a = 16, .align_b = 16, .align_c = 16, .align_d = 16, .splits = 1};
    if (algo) {
        promised = *reinterpret_cast<const Algo*>(algo->data);
        if (status = check_algo(promised, desc, la, lb, lc, ld); status != CUBLAS_STATUS_SUCCESS) return status;
    }
    const size_t parts_bytes = workspace_of(promised.splits, ld);
    REFUSE_IF(parts_bytes > 0 && (!workspace || workspace_bytes < parts_bytes), INVALID_VALUE,
              "the algorithm needs more workspace");
    if (parts_bytes > 0) check_memory(workspace, parts_bytes);
    REFUSE_IF(!aligned(a, la, promised.align_a) || !aligned(b, lb, promised.align_b) ||
                  !aligned(d, ld, promised.align_d) || (may_read_c && !aligned(c, lc, promised.align_c)),
              NOT_SUPPORTED, "an operand is less aligned than promised");
    REFUSE_IF(may_read_c && !c, INVALID_VALUE, "beta without C");
    REFUSE_IF(may_read_c && c == d && (lc.ld != ld.ld || lc.stride != ld.stride), INVALID_VALUE,
              "C in place with another layout");
    REFUSE_IF(overlap(d, extent(ld), a, extent(la)) || overlap(d, extent(ld), b, extent(lb)), INVALID_VALUE,
              "D overlaps an operand");
    const uint32_t e = desc.epilogue;
    REFUSE_IF((has_bias(e) || stores_gradient(e)) && !desc.bias, INVALID_VALUE, "epilogue without bias pointer");
    REFUSE_IF(has_aux(e) && !desc.aux, INVALID_VALUE, "epilogue without auxiliary pointer");
    check_memory(a, extent(la));
    check_memory(b, extent(lb));
    check_memory(d, extent(ld));
    if (reads_c) check_memory(c, extent(lc));
    note_operand(simt::note_read, a, la);
    note_operand(simt::note_read, b, lb);
    if (reads_c) note_operand(simt::note_read, c, lc);

    Problem p = {};
    const bool trans_a = desc.op_a == CUBLAS_OP_T, trans_b = desc.op_b == CUBLAS_OP_T;
    p.m = static_cast<int64_t>(ld.rows);
    p.n = static_cast<int64_t>(ld.cols);
    p.k = depth_of(desc, la);
    p.splits = promised.splits;
    p.partial = static_cast<float*>(workspace);
    p.half_out = is_half(ld.type);
    p.alpha = *static_cast<const float*>(alpha) * scales;
    p.beta = beta_value;
    p.pointwise = has_gelu(e) ? Pointwise::gelu : is_dgelu(e) ? Pointwise::dgelu : Pointwise::none;
    p.ldc = lc.ld;
    p.ldd = ld.ld;
    p.ld_aux = desc.aux_ld;

    const int64_t out_size = size_of(ld.type);
    auto run_one = [&](int64_t batch) {
        Problem q = p;
        q.a = {advance(a, batch * la.stride * size_of(la.type)), is_half(la.type), trans_a, la.ld,
               fp8_values(la.type)};
        q.b = {advance(b, batch * lb.stride * size_of(lb.type)), is_half(lb.type), trans_b, lb.ld,
               fp8_values(lb.type)};
        q.c = advance(c, batch * lc.stride * out_size);
        q.d = advance(d, batch * ld.stride * out_size);
        void* bias = advance(desc.bias, batch * desc.bias_stride * out_size);
        if (has_bias(e)) q.bias = bias;
        if (has_aux(e)) q.aux = advance(desc.aux, batch * desc.aux_stride * out_size);
        if (e == CUBLASLT_EPILOGUE_DGELU_BGRAD) q.row_grad = bias;
        if (e == CUBLASLT_EPILOGUE_BGRADA) q.a_grad = bias;
        if (e == CUBLASLT_EPILOGUE_BGRADB) q.b_grad = bias;
        note_columns(simt::note_read, q.bias, q.m * out_size, 0, 1);
        if (is_dgelu(e)) note_columns(simt::note_read, q.aux, q.m * out_size, q.ld_aux * out_size, q.n);
        run(q);
        if (!is_dgelu(e)) note_columns(simt::note_written, q.aux, q.m * out_size, q.ld_aux * out_size, q.n);
        for (void* gradient : {q.row_grad, q.a_grad}) note_columns(simt::note_written, gradient, q.m * out_size, 0, 1);
        note_columns(simt::note_written, q.b_grad, q.n * out_size, 0, 1);
    };
    note_operand(simt::note_written, d, ld);
    if (ld.batch > 1 && p.m * p.n * p.k < 256 * 256 * 256) {  // many small products: one thread each
#pragma omp parallel for schedule(static)
        for (int64_t batch = 0; batch < ld.batch; batch++) run_one(batch);
    } else {  // not inside a parallel region, not even one of a single thread: OpenMP would start new threads in it
        for (int64_t batch = 0; batch < ld.batch; batch++) run_one(batch);
    }
    return CUBLAS_STATUS_SUCCESS;
}
