// Learned scaling per sublayer, the form of modded-nanogpt 2025-26:
//
//     p = a*rho_k*x + pi_k*v + mu_l*x_0          the x_0 term with option x0=1, at the attention sublayer only
//     drho = a*<<dp,x>>,  dpi = <<dp,v>>,  dmu = <<dp,x_0>>,  dx = a*rho*dp,  dv = pi*dp,  dx_0 += mu*dp
//
//     resid_lambda  scalar, 1  (rho)   one per sublayer, no decay
//     post_lambda   scalar, 1  (pi)    one per sublayer, no decay
//     x0_lambda     scalar, 0  (mu)    one per layer, with x0=1
//
// Options: x0; x0_norm (x_0 and the stream start at RMS0(embedding)); freeze rho, pi or mu; preset modded: rho from
// sqrt(1.1) at 5 times the learning rate, betas (0.9, 0.95) for rho and pi. pi rides on the branch scale
// (branch_factor.h). The seam leaves dp; its factors a*rho and pi are applied where it is loaded again, by the next
// seam and by the GEMMs.
#include "residual/branch_factor.h"
#include "residual/row_kernel.cuh"
#include "residual/x0.h"

namespace {

struct LscaleSub : RowFunction {
    struct Args {
        float a;
        const float *rho, *mu;  // mu null: no x_0 term
        const floatX *x, *x0;   // (N,C) the stream before, for the backward pass; x_0
        float* dx0;             // (N,C) accumulated, or written when it is new
        bool new_dx0;
    };
    static constexpr int scalar_sums = 2;

    static void moves(const Args& args, int64_t N, int C, bool backward) {
        if (args.mu) MOVES_MORE({reads(args.x0, N * C)});
        if (backward) MOVES_MORE({reads(args.x, N * C)});
        if (backward && args.mu)
            MOVES_MORE({reads(args.new_dx0 ? nullptr : args.dx0, N * C), writes(args.dx0, N * C)});
    }

    template <class Lane, class Row = typename Lane::Row>
    static __device__ __forceinline__ Row combine(const Lane& lane, const Args& args, const Row& x, const Row& v) {
        float rho = args.a * *args.rho;
        Row p;
#pragma unroll
        for (int i = 0; i < p.size; i++) p[i] = rho * x[i] + v[i];
        if (args.mu != nullptr) {
            Row x0 = lane.load(args.x0);
            float mu = *args.mu;
#pragma unroll
            for (int i = 0; i < p.size; i++) p[i] += mu * x0[i];
        }
        return p;
    }

    template <class Lane, class Saved, class Sums, class Row = typename Lane::Row>
    static __device__ __forceinline__ void backward(const Lane& lane, const Args& args, const Row& dp, const Saved&,
                                                    Row& dx, Row& dv, Sums& sums) {
        Row x = lane.load(args.x);
        float drho = 0.0f;
#pragma unroll
        for (int i = 0; i < dp.size; i++) drho += dp[i] * x[i];
        sums.scalar[0] += args.a * drho;
        if (args.mu != nullptr) {
            Row x0 = lane.load(args.x0), dx0 = {};
            if (!args.new_dx0) dx0 = lane.load(args.dx0);
            float mu = *args.mu, dmu = 0.0f;
#pragma unroll
            for (int i = 0; i < dp.size; i++) {
                dmu += dp[i] * x0[i];
                dx0[i] += mu * dp[i];
            }
            sums.scalar[1] += dmu;
            lane.store(args.dx0, dx0);
        }
        dx = dv = dp;
    }
};

class LscaleSubRule : public BranchFactorRule {
  public:
    LscaleSubRule(const RuleShape& shape, RuleOptions& options)
        : BranchFactorRule(shape),
          has_x0_(options.flag("x0", false)),
          x0_stage_(has_x0_ && options.flag("x0_norm", false)) {
        std::vector<std::string> freezable = {"rho", "pi", "none"};
        if (has_x0_) freezable.push_back("mu");
        const std::string freeze = options.choice("freeze", freezable, "none");
        const bool modded = options.choice("preset", {"modded", "none"}, "none") == "modded";
        for (int k = 1; k <= shape.last(); k++) {
            RuleParameter rho{"resid_lambda", Place::sublayer, k, {1}, {1.0f}},
                pi{"post_lambda", Place::sublayer, k, {1}, {1.0f}};
            if (modded) {
                rho.initial = {std::sqrt(1.1f)};
                rho.lr_scale = 5;
                for (RuleParameter* p : {&rho, &pi}) p->beta1 = 0.9, p->beta2 = 0.95;
            }
            rho.frozen = freeze == "rho";
            pi.frozen = freeze == "pi";
            add(rho);
            add(pi);
        }
        if (!has_x0_) return;
        for (int l = 1; l <= shape.L; l++) {
            RuleParameter mu{"x0_lambda", Place::layer, l, {1}, {0.0f}};
            mu.frozen = freeze == "mu";
            add(mu);
        }
    }
    void plan(Planner& planner) override {
        BranchFactorRule::plan(planner);
        x0_stage_.plan(planner, shape_, has_x0_);
    }
    void ready(cudaStream_t stream) override {
        BranchFactorRule::ready(stream);
        x0_stage_.ready(shape_, stream);
    }
    void forward(const Pass& pass, int s) override {
        if (s > 0) return BranchFactorRule::forward(pass, s);
        x0_stage_.forward(shape_, post_norms[0], entry_, x_[0], pass);
        SeamForward seam = forward_seam(pass, 0);
        seam.x = x_[0];
        seam.post = {};
        vanilla_forward(seam, seam_shape(pass, 0), pass.stream);
    }
    void backward(const Pass& pass, int s) override {
        SeamBackward seam = backward_seam(s);
        if (s < shape_.last()) {
            seam.dx_new_factor = shape_.norms(s + 1).skip;
            seam.dx_new_scale = value(rho(s + 1));
        }
        if (s > 0) return seam_backward(seam, seam_shape(pass, s), pass, s);
        seam.post = {};
        vanilla_backward(seam, seam_shape(pass, 0), pass.scratch, pass.stream);
        x0_stage_.backward(shape_, post_norms[0], entry_, dx_, nullptr, nullptr, pass);
    }

  protected:
    bool separate_du(int s) const override { return shape_.out(s); }
    bool has_entry() const override { return x0_stage_.has_entry(shape_); }
    static int rho(int k) { return 2 * (k - 1); }
    int factor(int s) const override { return 2 * (s - 1) + 1; }
    int mu(int l) const { return 2 * shape_.last() + l - 1; }
    LscaleSub::Args args(int s) const {
        const bool x0_term = has_x0_ && s % 2 == 1;
        return {shape_.norms(s).skip,           value(rho(s)), x0_term ? value(mu(layer_of(s))) : nullptr,
                x_[static_cast<size_t>(s) - 1], x_[0],         x0_stage_.gradient(),
                s == shape_.last() - 1};
    }
    void seam_forward(const SeamForward& seam, const SeamShape& shape, const Pass& pass, int s) override {
        ::seam_forward<LscaleSub>(seam, shape, args(s), pass.stream);
    }
    void seam_backward(SeamBackward& seam, const SeamShape& shape, const Pass& pass, int s) override {
        RuleGradients gradients;
        gradients.scalars[0] = grad(rho(s));
        if (has_x0_ && s % 2 == 1) gradients.scalars[1] = grad(mu(layer_of(s)));
        ::seam_backward<LscaleSub>(seam, shape, args(s), gradients, pass.scratch, pass.stream);
    }
    bool has_x0_;
    X0 x0_stage_;
};

}  // namespace

extern const RuleEntry lscale_sub_rule = {"lscale_sub", "learned scaling: rho_k*x + pi_k*u (+ mu_l*x_0)", ALL_SCHEMES,
                                          make_rule<LscaleSubRule>};
