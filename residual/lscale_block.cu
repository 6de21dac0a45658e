// Learned scaling, the form of MLS-Bench's llm-pretrain-residual: per layer, with x = x_{l-1}, m = x + u_att, v =
// u_mlp,
//
//     x_l = m + v + (lambda_l - 1)*x + mu_l*x_0
//     g = dx_l:   dlambda = <<g,x>>,  dmu = <<g,x_0>>,  dx_0 += mu*g,  dv = g,  dm = g + ...,  dx += (lambda - 1)*g
//
//     resid_lambda  scalar, 1     one per layer, no decay
//     x0_lambda     scalar, 0     one per layer, no decay        option freeze: lambda or mu
//
// The layer reads the unscaled x. x_0 is the embedding, its gradient is kept in fp32.
#include "residual/layer_end.h"
#include "residual/row_kernel.cuh"
#include "residual/x0.h"

namespace {

struct LscaleBlock : RowFunction {
    struct Args {
        const float *lambda, *mu;
        const floatX *x, *x0;  // (N,C) the stream before the layer, x_0
        float* dx0;            // (N,C) accumulated, or written when it is new
        bool new_dx0;
        const floatX* g_next;  // (N,C) gradient at the end of the next layer; null: there is none
        const float* lambda_next;
    };
    static constexpr int scalar_sums = 2;
    static constexpr bool allows_post = false;

    static void moves(const Args& args, int64_t N, int C, bool backward) {
        MOVES_MORE({reads(args.x, N * C), reads(args.x0, N * C)});
        if (backward)
            MOVES_MORE({reads(args.g_next, N * C), reads(args.new_dx0 ? nullptr : args.dx0, N * C),
                        writes(args.dx0, N * C)});
    }

    template <class Lane, class Row = typename Lane::Row>
    static __device__ __forceinline__ Row combine(const Lane& lane, const Args& args, const Row& m, const Row& v) {
        Row x = lane.load(args.x), x0 = lane.load(args.x0), p;
        float lambda = *args.lambda - 1.0f, mu = *args.mu;
#pragma unroll
        for (int i = 0; i < p.size; i++) p[i] = m[i] + v[i] + lambda * x[i] + mu * x0[i];
        return p;
    }

    template <class Lane, class Saved, class Sums, class Row = typename Lane::Row>
    static __device__ __forceinline__ void backward(const Lane& lane, const Args& args, const Row& dp, const Saved&,
                                                    Row& dm, Row& dv, Sums& sums) {
        Row g = dp;
        if (args.g_next != nullptr) {
            Row next = lane.load(args.g_next);
            float factor = *args.lambda_next - 1.0f;
#pragma unroll
            for (int i = 0; i < g.size; i++) g[i] += factor * next[i];
        }
        Row x = lane.load(args.x), x0 = lane.load(args.x0), dx0 = {};
        if (!args.new_dx0) dx0 = lane.load(args.dx0);
        float mu = *args.mu, dlambda = 0.0f, dmu = 0.0f;
#pragma unroll
        for (int i = 0; i < g.size; i++) {
            dlambda += g[i] * x[i];
            dmu += g[i] * x0[i];
            dx0[i] += mu * g[i];
        }
        sums.scalar[0] += dlambda;
        sums.scalar[1] += dmu;
        lane.store(args.dx0, dx0);
        dm = dv = g;
    }
};

class LscaleBlockRule : public LayerEndRule {
  public:
    LscaleBlockRule(const RuleShape& shape, RuleOptions& options) : LayerEndRule(shape) {
        const std::string freeze = options.choice("freeze", {"lambda", "mu", "none"}, "none");
        for (int l = 1; l <= shape.L; l++) {
            RuleParameter lambda{"resid_lambda", Place::layer, l, {1}, {1.0f}},
                mu{"x0_lambda", Place::layer, l, {1}, {0.0f}};
            lambda.frozen = freeze == "lambda";
            mu.frozen = freeze == "mu";
            add(lambda);
            add(mu);
        }
    }
    void plan(Planner& planner) override {
        LayerEndRule::plan(planner);
        x0_.plan(planner, shape_, true);
    }
    void forward(const Pass& pass, int s) override {
        if (s > 0) return LayerEndRule::forward(pass, s);
        x0_.forward(shape_, post_norms[0], entry_, x_[0], pass);
        SeamForward seam = forward_seam(pass, 0);
        seam.x = x_[0];
        seam.post = {};
        vanilla_forward(seam, seam_shape(pass, 0), pass.stream);
    }
    void backward(const Pass& pass, int s) override {
        SeamBackward seam = layer_end_seam(s);
        if (s > 0) return seam_backward(seam, seam_shape(pass, s), pass, s);
        seam.post = {};
        vanilla_backward(seam, seam_shape(pass, 0), pass.scratch, pass.stream);
        x0_.backward(shape_, post_norms[0], entry_, seam.dx, gradient_of_layer(1), value(lambda(1)), pass);
    }
    const floatX* d_embedding() override { return chain(1); }

  protected:
    static int lambda(int l) { return 2 * (l - 1); }
    static int mu(int l) { return 2 * (l - 1) + 1; }
    LscaleBlock::Args args(int s) const {
        const int l = layer_of(s);
        const bool next = l < shape_.L;
        return {value(lambda(l)),
                value(mu(l)),
                x_[static_cast<size_t>(s) - 2],
                x_[0],
                x0_.gradient(),
                !next,
                next ? gradient_of_layer(l + 1) : nullptr,
                next ? value(lambda(l + 1)) : nullptr};
    }
    void seam_forward(const SeamForward& seam, const SeamShape& shape, const Pass& pass, int s) override {
        if (s % 2 == 1) return LayerEndRule::seam_forward(seam, shape, pass, s);
        ::seam_forward<LscaleBlock>(seam, shape, args(s), pass.stream);
    }
    void seam_backward(SeamBackward& seam, const SeamShape& shape, const Pass& pass, int s) override {
        if (s % 2 == 1) return LayerEndRule::seam_backward(seam, shape, pass, s);
        RuleGradients gradients;
        gradients.scalars[0] = grad(lambda(layer_of(s)));
        gradients.scalars[1] = grad(mu(layer_of(s)));
        ::seam_backward<LscaleBlock>(seam, shape, args(s), gradients, pass.scratch, pass.stream);
    }
    X0 x0_{false};
};

}  // namespace

extern const RuleEntry lscale_block_rule = {"lscale_block",
                                            "learned scaling: m + v + (lambda_l-1)*x + mu_l*x_0 per layer", PRE_SCHEMES,
                                            make_rule<LscaleBlockRule>};
