// Vanilla residual connection (He et al. 2016, arXiv 1512.03385), with the factor a of the norm scheme:
//
//     p = a*x + v             dx = a*dp,   dv = dp
//
// a is a constant: 1, or alpha of DeepNorm and KEEL. No parameters.
#include <algorithm>

#include "residual/row_kernel.cuh"
#include "residual/stream_rule.h"

namespace {

struct Vanilla : RowFunction {
    struct Args {
        float a;
    };
    static constexpr bool allows_first = true;

    template <class Lane, class Row = typename Lane::Row>
    static __device__ __forceinline__ Row combine(const Lane&, const Args& args, const Row& x, const Row& v) {
        Row p;
#pragma unroll
        for (int i = 0; i < p.size; i++) p[i] = args.a * x[i] + v[i];
        return p;
    }

    template <class Lane, class Saved, class Sums, class Row = typename Lane::Row>
    static __device__ __forceinline__ void backward(const Lane&, const Args& args, const Row& dp, const Saved&, Row& dx,
                                                    Row& dv, Sums&) {
#pragma unroll
        for (int i = 0; i < dp.size; i++) {
            dx[i] = args.a * dp[i];
            dv[i] = dp[i];
        }
    }
};

class VanillaRule : public StreamRule {
public:
    VanillaRule(const RuleShape& shape, RuleOptions&) : StreamRule(shape) {}

protected:
    bool adds_in_product(int s) const override {
        return !shape_.out(s) && !has_beta() && shape_.norms(s).skip == 1.0f;
    }
};

}  // namespace

extern const RuleEntry vanilla_rule = {"vanilla", "x + u (He et al. 2016)", ALL_SCHEMES, make_rule<VanillaRule>, true};

void vanilla_forward(const SeamForward& seam, const SeamShape& shape, cudaStream_t stream) {
    seam_forward<Vanilla>(seam, shape, {shape.skip}, stream);
}

void vanilla_backward(const SeamBackward& seam, const SeamShape& shape, float* scratch, cudaStream_t stream) {
    seam_backward<Vanilla>(seam, shape, {shape.skip}, {}, scratch, stream);
}

void norm_rows_forward(const floatX* x, floatX* y, const SeamNorm& norm, const SeamShape& shape, cudaStream_t stream) {
    SeamForward seam = {};
    seam.x = x;
    seam.x_new = y;
    seam.post = norm;
    vanilla_forward(seam, shape, stream);
}

void norm_rows_backward(floatX* d, const floatX* x, const SeamNorm& norm, const SeamShape& shape, float* scratch,
                        cudaStream_t stream) {
    SeamBackward seam = {};
    seam.dx_new = seam.dx = d;
    seam.p = x;
    seam.post = norm;
    seam.first = true;
    vanilla_backward(seam, shape, scratch, stream);
}

size_t seam_scratch_bytes(int C) {
    int blocks = row_grid(C, true).max_blocks;
    if (C <= max_rule_channels()) blocks = std::max(blocks, row_grid(C, false).max_blocks);
    return sizeof(float) * blocks * (static_cast<size_t>(MAX_PARTIAL_SUMS) * C + MAX_SCALAR_SUMS);
}

int max_seam_channels() { return MAX_ROW_CHANNELS; }
int max_rule_channels() { return MAX_ROW_THREADS * PackX::size * (WIDE_ROWS ? WIDE_PACKS : 1); }
