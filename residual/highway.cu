// Highway gate, as the additive baseline of the Review Residuals code has it, and convex as published (Srivastava et
// al. 2015, arXiv 1505.00387):
//
//     r = sigma(x W^T + b), x not normalised;   additive (default) p = x + r*v     convex   p = (1-r)*x + r*v
//     dzeta = dp*v*r*(1-r)   (convex: dp*(v-x)*r*(1-r));   dW += dzeta^T x,  db += SUM_t dzeta
//     dv = r*dp,   dx = dp (convex: (1-r)*dp) + dzeta W
//
//     hw_w  [C,C], N(0, 0.02^2)       one per sublayer, decays with the run
//     hw_b  [C], 0 (convex: -2)       one per sublayer, no decay
//
// With ProRes, r*alpha*v is added.
#include "residual/gate.cuh"
#include "residual/stream_rule.h"

namespace {

struct Highway : RowFunction {
    struct Args {
        const floatX* zeta;  // (N,C) x W^T; forward
        const float* b;      // (C)
        BranchGate gate;
        floatX* dzeta;  // (N,C); backward
    };
    static constexpr int channel_sums = 1;
    static constexpr bool reads_v = true, allows_post = false;

    static void moves(const Args& args, int64_t N, int C, bool backward) {
        args.gate.moves(N, C, backward);
        if (backward)
            MOVES_MORE({writes(args.dzeta, N * C)});
        else
            MOVES_MORE({reads(args.zeta, N * C), reads(args.b, C)});
    }

    template <class Lane, class Row = typename Lane::Row>
    static __device__ __forceinline__ Row combine(const Lane& lane, const Args& args, const Row& x, const Row& v) {
        Row zeta = lane.load(args.zeta), b = lane.load_channels(args.b);
#pragma unroll
        for (int i = 0; i < zeta.size; i++) zeta[i] += b[i];
        return args.gate.combine(lane, zeta, x, v);
    }

    template <class Lane, class Saved, class Sums, class Row = typename Lane::Row>
    static __device__ __forceinline__ void backward(const Lane& lane, const Args& args, const Row& dp,
                                                    const Saved& saved, Row& dx, Row& dv, Sums& sums) {
        Row dzeta = args.gate.backward(lane, dp, saved.v, dx, dv);
        sums.add(0, dzeta);
        lane.store(args.dzeta, dzeta);
    }
};

class HighwayRule : public StreamRule {
  public:
    HighwayRule(const RuleShape& shape, RuleOptions& options) : StreamRule(shape) {
        convex_ = options.choice("form", {"additive", "convex"}, "additive") == "convex";
        for (int k = 1; k <= shape.last(); k++) {
            RuleParameter w{"hw_w", Place::sublayer, k, {shape.C, shape.C}, {0.0f}, 0.02f};
            w.decays = w.product = true;
            add(w);
            add({"hw_b", Place::sublayer, k, {shape.C}, {convex_ ? -2.0f : 0.0f}});
        }
    }
    void plan(Planner& planner) override {
        StreamRule::plan(planner);
        r_.assign(static_cast<size_t>(shape_.last()) + 1, nullptr);
        planner.want("highway", shape_.N * shape_.C, zeta_);
        if (shape_.training)
            want_inside(planner, "highway", shape_.N * shape_.C, r_, [](int s) { return s > 0; });
    }
    const float* branch_scale(int) const override { return nullptr; }  // the seam applies ProRes's factor itself

  protected:
    bool keeps_u(int) const override { return true; }
    bool end_again(int) const override { return true; }
    bool separate_du(int) const override { return true; }
    static int w(int s) { return 2 * (s - 1); }
    Highway::Args args(int s) const {
        const size_t i = static_cast<size_t>(s);
        return {zeta_, value(w(s) + 1), {r_[i], seam_scale(s), convex_, x_[i - 1]}, zeta_};
    }
    void seam_forward(const SeamForward& given, const SeamShape& shape, const Pass& pass, int s) override {
        SeamForward seam = given;
        seam.scale = nullptr;
        const int N = static_cast<int>(pass.N), C = shape_.C;
        matmul_forward(pass.mm, zeta_, seam.x, tensors[static_cast<size_t>(w(s))].copy, nullptr, N, C, C, pass.stream);
        ::seam_forward<Highway>(seam, shape, args(s), pass.stream);
    }
    void seam_backward(SeamBackward& seam, const SeamShape& shape, const Pass& pass, int s) override {
        seam.scale = seam.out_scale = nullptr;
        RuleGradients gradients;
        gradients.channels[0] = grad(w(s) + 1);
        ::seam_backward<Highway>(seam, shape, args(s), gradients, pass.scratch, pass.stream);
        const int N = static_cast<int>(pass.N), C = shape_.C;
        matmul_backward_weight(pass.mm, grad(w(s)), zeta_, x_[static_cast<size_t>(s) - 1], N, C, C, true, pass.stream);
        matmul_backward_input(pass.mm, seam.dx, zeta_, tensors[static_cast<size_t>(w(s))].copy, N, C, C, true,
                              pass.stream);
    }
    bool convex_;
    std::vector<floatX*> r_;  // (2L+1) of (N,C), by s
    floatX* zeta_ = nullptr;  // (N,C) the gate's product; backward: its gradient
};

}  // namespace

extern const RuleEntry highway_rule = {"highway", "x + r*u, r = sigma(W x + b)", PRE_SCHEMES, make_rule<HighwayRule>};
