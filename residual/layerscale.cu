// LayerScale (Touvron et al. 2021, CaiT, arXiv 2103.17239): a learned factor for each channel of each branch.
//
//     p = a*x + gamma (.) v       dx = a*dp,   dv = gamma (.) dp,   dgamma[c] = SUM_t dp[c]*v[c]
//
//     ls_gamma  [C]               one per sublayer, no decay; 0.1 up to 18 layers, 1e-5 up to 24, 1e-6 deeper
//
// u is kept for the backward pass: gamma may pass through zero, so v cannot be had from p.
#include "residual/row_rule.h"

namespace {

struct LayerScale : RowFunction {
    struct Args {
        float a;
        const float* gamma;  // (C)
    };
    static constexpr int channel_sums = 1;
    static constexpr bool reads_v = true;

    static void moves(const Args& args, int64_t, int C, bool) { MOVES_MORE({reads(args.gamma, C)}); }

    template <class Lane, class Row = typename Lane::Row>
    static __device__ __forceinline__ Row combine(const Lane& lane, const Args& args, const Row& x, const Row& v) {
        Row gamma = lane.load_channels(args.gamma), p;
#pragma unroll
        for (int i = 0; i < p.size; i++) p[i] = fmaf(args.a, x[i], gamma[i] * v[i]);
        return p;
    }

    template <class Lane, class Saved, class Sums, class Row = typename Lane::Row>
    static __device__ __forceinline__ void backward(const Lane& lane, const Args& args, const Row& dp,
                                                    const Saved& saved, Row& dx, Row& dv, Sums& sums) {
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

class LayerScaleRule : public RowRule<LayerScale> {
  public:
    LayerScaleRule(const RuleShape& shape, RuleOptions&) : RowRule(shape) {
        const float start = shape.L <= 18 ? 0.1f : shape.L <= 24 ? 1e-5f : 1e-6f;
        for (int k = 1; k <= shape.last(); k++) add({"ls_gamma", Place::sublayer, k, {shape.C}, {start}});
    }

  protected:
    LayerScale::Args args(int s) const override { return {shape_.norms(s).skip, value(s - 1)}; }
    RuleGradients gradients(int s) const override { return {{grad(s - 1)}, {}}; }
};

}  // namespace

extern const RuleEntry layerscale_rule = {"layerscale", "x + gamma*u, one gamma per channel and sublayer", ALL_SCHEMES,
                                          make_rule<LayerScaleRule>};
