// LayerScale (Touvron et al. 2021, CaiT, arXiv 2103.17239): a learned factor for each channel of each branch.
//
//     p = a*x + gamma (.) v       dx = a*dp,   dv = gamma (.) dp,   dgamma[c] = SUM_t dp[c]*v[c]
//
//     ls_gamma  [C]               one per sublayer, no decay; 0.1 up to 18 layers, 1e-5 up to 24, 1e-6 deeper
//
// u is kept for the backward pass: gamma may pass through zero, so v cannot be had from p.
#include "residual/row_kernel.cuh"
#include "residual/stream_rule.h"

namespace {

struct LayerScale {
    struct Args {
        float a;
        const float* gamma;  // (C)
    };
    static constexpr int channel_sums = 1, scalar_sums = 0;
    static constexpr bool reads_v = true, reads_p = false, allows_out = true, allows_post = true, allows_first = false;

    template <class Lane, class Row = typename Lane::Row>
    static __device__ __forceinline__ Row combine(const Lane& lane, const Args& args, const Row& x, const Row& v) {
        Row gamma = lane.load_channels(args.gamma), p;
#pragma unroll
        for (int i = 0; i < p.size; i++) p[i] = args.a * x[i] + gamma[i] * v[i];
        return p;
    }

    template <class Lane, class Saved, class Sums, class Row = typename Lane::Row>
    static __device__ __forceinline__ void backward(const Lane& lane, const Args& args, const Row& dp, const Saved& saved,
                                                    Row& dx, Row& dv, Sums& sums) {
        Row gamma = lane.load_channels(args.gamma), dgamma;
#pragma unroll
        for (int i = 0; i < dp.size; i++) {
            dx[i] = args.a * dp[i];
            dv[i] = gamma[i] * dp[i];
            dgamma[i] = dp[i] * saved.v[i];
        }
        sums.add(0, dgamma);
    }
};

class LayerScaleRule : public StreamRule {
public:
    LayerScaleRule(const RuleShape& shape, RuleOptions&) : StreamRule(shape) {
        const float start = shape.L <= 18 ? 0.1f : shape.L <= 24 ? 1e-5f : 1e-6f;
        for (int k = 1; k <= shape.last(); k++) add({"ls_gamma", Place::sublayer, k, {shape.C}, {start}});
    }

protected:
    bool keeps_u(int) const override { return true; }
    bool separate_du(int) const override { return true; }
    void seam_forward(const SeamForward& seam, const SeamShape& shape, const Pass& pass, int s) override {
        ::seam_forward<LayerScale>(seam, shape, {shape.skip, value(s - 1)}, pass.stream);
    }
    void seam_backward(SeamBackward& seam, const SeamShape& shape, const Pass& pass, int s) override {
        RuleGradients gradients;
        gradients.channels[0] = grad(s - 1);
        ::seam_backward<LayerScale>(seam, shape, {shape.skip, value(s - 1)}, gradients, pass.scratch, pass.stream);
    }
};

}  // namespace

extern const RuleEntry layerscale_rule = {"layerscale", "x + gamma*u, one gamma per channel and sublayer", ALL_SCHEMES,
                                          make_rule<LayerScaleRule>};
