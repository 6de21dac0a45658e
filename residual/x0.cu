#include "residual/x0.h"

namespace {

constexpr int THREADS = 256;

// dx += dx0 + (*factor - 1) * extra
__global__ void __launch_bounds__(THREADS)
    add_x0_kernel(floatX* dx, const float* dx0, const floatX* extra, const float* factor, int64_t count) {
    const float weight = extra != nullptr ? *factor - 1.0f : 0.0f;
    for (int64_t i = (static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x) * PackX::size; i < count;
         i += static_cast<int64_t>(gridDim.x) * THREADS * PackX::size) {
        PackX d = load_pack(dx + i), e = {};
        if (extra != nullptr) e = load_pack(extra + i);
#pragma unroll
        for (int h = 0; h < PackX::size / 4; h++) {
            Pack<float> x0 = {};
            if (dx0 != nullptr) x0 = load_pack(dx0 + i + h * 4);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float sum = to_float(d[h * 4 + j]) + x0[j] + weight * to_float(e[h * 4 + j]);
                d[h * 4 + j] = from_float<floatX>(sum);
            }
        }
        store_pack(dx + i, d);
    }
}

}  // namespace

void X0::plan(Planner& planner, const RuleShape& shape, bool gradient) {
    const int64_t N = shape.N, C = shape.C;
    if (rms0_ && shape.post(0)) planner.want("stream", N * C, normed_);
    if (rms0_) {
        planner.want("norm statistics", N, rms0_norm_.rstd);
        planner.want("norm statistics", C, ones_);
    }
    if (gradient && shape.training) planner.want("backward", N * C, gradient_);
}

void X0::ready(const RuleShape& shape, cudaStream_t stream) {
    if (!rms0_) return;
    std::vector<float> ones(static_cast<size_t>(shape.C), 1.0f);
    CUDA_CHECK(cudaMemcpyAsync(ones_, ones.data(), ones.size() * sizeof(float), cudaMemcpyHostToDevice, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
    rms0_norm_.gain = ones_;
}

void X0::forward(const RuleShape& shape, const SeamNorm& embed_norm, const floatX* entry, floatX* x0,
                 const Pass& pass) const {
    const SeamShape seam = {pass.N, shape.C, shape.kind, shape.eps};
    if (shape.post(0)) norm_rows_forward(entry, rms0_ ? normed_ : x0, embed_norm, seam, pass.stream);
    if (rms0_) norm_rows_forward(shape.post(0) ? normed_ : entry, x0, rms0_norm_, rms0_shape(shape, pass), pass.stream);
}

void X0::backward(const RuleShape& shape, const SeamNorm& embed_norm, const floatX* entry, floatX* dx,
                  const floatX* extra, const float* factor, const Pass& pass) const {
    const int64_t count = pass.N * shape.C;
    if (gradient_ || extra) {
        const int blocks = static_cast<int>(std::min(ceil_div(count, int64_t{THREADS * PackX::size}), int64_t{4096}));
        MOVES("add_x0", {updates(dx, count), reads(gradient_, count), reads(extra, count)});
        launch(add_x0_kernel, blocks, THREADS, 0, pass.stream, dx, gradient_, extra, factor, count);
    }
    const SeamShape seam = {pass.N, shape.C, shape.kind, shape.eps};
    if (rms0_)
        norm_rows_backward(dx, shape.post(0) ? normed_ : entry, rms0_norm_, rms0_shape(shape, pass), pass.scratch,
                           pass.stream);
    if (shape.post(0)) norm_rows_backward(dx, entry, embed_norm, seam, pass.scratch, pass.stream);
}
