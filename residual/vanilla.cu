// Vanilla residual connection (He et al. 2016, arXiv 1512.03385), with the factor a of the norm scheme:
//
//     p = a*x + v             dx = a*dp,   dv = dp
//
// a is a constant: 1, or alpha of DeepNorm and KEEL. No parameters.
#include "residual/row_kernel.cuh"
#include "residual/stream_rule.h"

namespace {

struct Vanilla {
    struct Args {
        float a;
    };
    static constexpr int channel_sums = 0, scalar_sums = 0;
    static constexpr bool reads_v = false, reads_p = false, allows_out = true, allows_post = true,
                          allows_first = true;

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
};

}  // namespace

extern const RuleEntry vanilla_rule = {"vanilla", "x + u (He et al. 2016)", ALL_SCHEMES, make_rule<VanillaRule>};

void vanilla_forward(const SeamForward& seam, const SeamShape& shape, cudaStream_t stream) {
    seam_forward<Vanilla>(seam, shape, {shape.skip}, stream);
}

void vanilla_backward(const SeamBackward& seam, const SeamShape& shape, float* scratch, cudaStream_t stream) {
    seam_backward<Vanilla>(seam, shape, {shape.skip}, {}, scratch, stream);
}

size_t seam_scratch_bytes(int C) {
    return sizeof(float) * row_grid(C).max_blocks * (static_cast<size_t>(MAX_PARTIAL_SUMS) * C + MAX_SCALAR_SUMS);
}
