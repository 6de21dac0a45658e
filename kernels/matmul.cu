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

// A product with an epilogue that saves a kernel, and the same work in two steps: runs fused() if the library can do it
// and nobody has found two_steps() to be faster. False: two_steps() it should be.
template <class Fused, class TwoSteps>
bool run_fused(Matmul* mm, const Product& p, Fused fused, TwoSteps two_steps, cudaStream_t stream) {
    ProductPlan& plan = find_plan(mm, p, stream);
    if (!plan.supported) return false;
    if (mm->tuning && !plan.compared)
        compare_two_steps(
            mm, plan, [&] { fused(plan); }, two_steps, stream);
    if (plan.fused) fused(plan);
    return plan.fused;
}

// out^T (OC x N) = weight (OC,C) inp^T
Product forward_product(void* out, const floatX* inp, const floatX* weight, const floatX* bias, int N, int C, int OC) {
    Product p{.name = "matmul_forward",
              .m = OC,
              .n = N,
              .k = C,
              .op_a = CUBLAS_OP_T,
              .op_b = CUBLAS_OP_N,
              .a = weight,
              .b = inp,
              .d = out};
    if (bias) p.epilogue = CUBLASLT_EPILOGUE_BIAS;
    p.bias = bias;
    return p;
}

// dinp^T (C x N) = weight^T (C x OC) dout^T
Product backward_input_product(floatX* dinp, const floatX* dout, const floatX* weight, int N, int C, int OC,
                               const float* alpha) {
    Product p{.name = "matmul_backward_input",
              .m = C,
              .n = N,
              .k = OC,
              .op_a = CUBLAS_OP_N,
              .op_b = CUBLAS_OP_N,
              .a = weight,
              .b = dout,
              .d = dinp,
              .alpha = alpha};
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
        if (run_fused(
                mm, p, [&](const ProductPlan& plan) { run_product(mm, plan, p, stream); }, two_steps, stream))
            return;
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
        if (run_fused(
                mm, p, [&](const ProductPlan& plan) { run_product(mm, plan, p, stream); }, two_steps, stream))
            return;
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
        run_product(mm, plan, p, stream);
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
    return {.name = "matmul_backward_weight",
            .m = C,
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
        run_product(mm, plan, p, stream);
        if (aside) bias_add(dbias, scratch, OC, accumulate, stream, alpha);
    };
    const auto two_steps = [&] {
        matmul_backward_weight(mm, dweight, dout, inp, N, C, OC, accumulate, stream, alpha);
        bias_backward(dbias, dout, scratch, N, OC, accumulate, stream, alpha);
    };
    if (!run_fused(mm, p, fused, two_steps, stream)) two_steps();
}
