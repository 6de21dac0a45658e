#include "kernels/bias.cuh"
#include "kernels/matmul_plan.cuh"

Matmul* matmul_create() {
    return new Matmul;
}

void matmul_destroy(Matmul* mm) {
    if (!mm) return;
    drop_plans(mm);
    delete mm;
}

namespace {

void declare_traffic(const Product& p) {
    const int64_t m = p.m, n = p.n, k = p.k, size = p.d_type == CUDA_R_32F ? 4 : 2;
    const char* name = p.op_a == CUBLAS_OP_T   ? "matmul_forward"
                       : p.op_b == CUBLAS_OP_T ? "matmul_backward_weight"
                                               : "matmul_backward_input";
    const bool gelu_backward = p.epilogue == CUBLASLT_EPILOGUE_DGELU || p.epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD;
    const bool bias_gradient = p.epilogue == CUBLASLT_EPILOGUE_BGRADB || p.epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD;
    const int64_t bias = p.bias == nullptr ? 0 : (p.epilogue == CUBLASLT_EPILOGUE_BGRADB ? n : m) * size;
    floatX* aux = static_cast<floatX*>(p.aux);
    traffic::declare_product(name,
                             {reads(p.a, m * k), reads(p.b, k * n), reads_bytes(p.c ? m * n * size : 0),
                              writes_bytes(m * n * size), bias_gradient ? writes_bytes(bias) : reads_bytes(bias),
                              reads(gelu_backward ? aux : nullptr, m * n),
                              writes(gelu_backward ? nullptr : aux, m * n)},
                             2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k));
}

void run(Matmul* mm, const ProductPlan& plan, const Product& p, cudaStream_t stream) {
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
    run(mm, plan, p, stream);
}

// A product with an epilogue that saves a kernel, and the same work in two steps: runs fused() if the library can do it
// and nobody has found two_steps() to be faster. False: two_steps() it should be.
template <class Fused, class TwoSteps>
bool run_fused(Matmul* mm, const Product& p, Fused fused, TwoSteps two_steps, cudaStream_t stream) {
    ProductPlan& plan = find_plan(mm, p, stream);
    if (!plan.supported) return false;
    if (mm->tuning && !plan.compared) compare_two_steps(mm, plan, [&] { fused(plan); }, two_steps, stream);
    if (plan.fused) fused(plan);
    return plan.fused;
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
                    int OC, cudaStream_t stream, int weight_stride, const floatX* add) {
    Product p = forward_product(out, inp, weight, bias, N, C, OC);
    p.ld_a = weight_stride;
    p.c = add;
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
    const auto two_steps = [&] {
        matmul_forward(mm, pre, inp, weight, bias, N, C, OC, stream);
        activation_forward(out, pre, act, static_cast<int64_t>(N) * OC, stream);
    };
    if (may_fuse(act, OC)) {
        Product p = forward_product(out, inp, weight, bias, N, C, OC);
        p.epilogue = bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
        p.aux = pre;
        if (run_fused(mm, p, [&](const ProductPlan& plan) { run(mm, plan, p, stream); }, two_steps, stream)) return;
    }
    two_steps();
}

void matmul_backward_input(Matmul* mm, floatX* dinp, const floatX* dout, const floatX* weight, int N, int C, int OC,
                           bool accumulate, cudaStream_t stream, const float* alpha, int weight_stride) {
    Product p = backward_input_product(dinp, dout, weight, N, C, OC, alpha);
    if (accumulate) p.c = dinp;
    p.ld_a = weight_stride;
    multiply(mm, p, stream);
}

void matmul_activation_backward_input(Matmul* mm, floatX* dpre, const floatX* dout, const floatX* weight,
                                      const floatX* pre, Activation act, int N, int C, int OC, cudaStream_t stream,
                                      const float* alpha) {
    const auto two_steps = [&] {
        matmul_backward_input(mm, dpre, dout, weight, N, C, OC, false, stream, alpha);
        activation_backward(dpre, dpre, pre, act, static_cast<int64_t>(N) * C, stream);
    };
    if (may_fuse(act, C)) {
        Product p = backward_input_product(dpre, dout, weight, N, C, OC, alpha);
        p.epilogue = CUBLASLT_EPILOGUE_DGELU;
        p.aux = const_cast<floatX*>(pre);  // read only: one attribute serves both directions
        if (run_fused(mm, p, [&](const ProductPlan& plan) { run(mm, plan, p, stream); }, two_steps, stream)) return;
    }
    two_steps();
}

bool matmul_activation_backward_bias(Matmul* mm, floatX* dpre, float* dbias, const floatX* dout, const floatX* weight,
                                     const floatX* pre, Activation act, float* scratch, int N, int C, int OC,
                                     bool accumulate, cudaStream_t stream, const float* alpha) {
    if (sizeof(floatX) < sizeof(float) || !may_fuse(act, C)) return false;
    Product p = backward_input_product(dpre, dout, weight, N, C, OC, alpha);
    p.epilogue = CUBLASLT_EPILOGUE_DGELU_BGRAD;
    p.aux = const_cast<floatX*>(pre);
    p.bias = accumulate ? scratch : dbias;
    const auto fused = [&](const ProductPlan& plan) {
        run(mm, plan, p, stream);
        if (accumulate) bias_add(dbias, scratch, C, true, stream);
    };
    const auto two_steps = [&] {
        matmul_activation_backward_input(mm, dpre, dout, weight, pre, act, N, C, OC, stream, alpha);
        bias_backward(dbias, dpre, scratch, N, C, accumulate, stream);
    };
    return run_fused(mm, p, fused, two_steps, stream);
}

// dweight^T (C x OC) = inp^T (C x N) dout
static Product weight_product(float* dweight, const floatX* dout, const floatX* inp, int N, int C, int OC,
                              bool accumulate, const float* alpha) {
    return {.m = C,
            .n = OC,
            .k = N,
            .op_a = CUBLAS_OP_N,
            .op_b = CUBLAS_OP_T,
            .a = inp,
            .b = dout,
            .d = dweight,
            .d_type = CUDA_R_32F,
            .c = accumulate ? dweight : nullptr,
            .alpha = alpha};
}

void matmul_backward_weight(Matmul* mm, float* dweight, const floatX* dout, const floatX* inp, int N, int C, int OC,
                            bool accumulate, cudaStream_t stream, const float* alpha, int weight_stride) {
    Product p = weight_product(dweight, dout, inp, N, C, OC, accumulate, alpha);
    p.ld_d = weight_stride;
    multiply(mm, p, stream);
}

void matmul_backward_weight_bias(Matmul* mm, float* dweight, float* dbias, const floatX* dout, const floatX* inp,
                                 float* scratch, int N, int C, int OC, bool accumulate, cudaStream_t stream,
                                 const float* alpha) {
    // The library stores the sums of dout, without alpha: straight into the gradient, or aside if more is to be done.
    const bool aside = accumulate || alpha;
    Product p = weight_product(dweight, dout, inp, N, C, OC, accumulate, alpha);
    p.epilogue = CUBLASLT_EPILOGUE_BGRADB;
    p.bias = aside ? scratch : dbias;
    const auto fused = [&](const ProductPlan& plan) {
        run(mm, plan, p, stream);
        if (aside) bias_add(dbias, scratch, OC, accumulate, stream, alpha);
    };
    const auto two_steps = [&] {
        matmul_backward_weight(mm, dweight, dout, inp, N, C, OC, accumulate, stream, alpha);
        bias_backward(dbias, dout, scratch, N, OC, accumulate, stream, alpha);
    };
    if (!run_fused(mm, p, fused, two_steps, stream)) two_steps();
}
