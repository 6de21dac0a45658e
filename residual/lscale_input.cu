// Learned scaling in front of each layer, the form of modded-nanogpt (November 2024) and nanochat: the stream is scaled
// and blended with x_0 before layer l, and the layer reads the result,
//
//     y = x_{l-1};   z = lambda_l*y + mu_l*x_0;   x_l = layer(z)
//     dlambda = <<dz,y>>,   dmu = <<dz,x_0>>,   dy = lambda*dz,   dx_0 += mu*dz
//
//     resid_lambda  scalar, 1     one per layer, no decay
//     x0_lambda     scalar, 0     one per layer, no decay
//
// x_0 = RMS0(embedding) (x0_norm=0: the embedding), and the stream starts there. Options: freeze lambda or mu; preset
// with initial values and private optimizer settings:
//     modded     lambda 1, mu 0; lr 0.02 for both
//     nanochat   lambda 1, mu 0.1; lr 0.005 and 0.5
//     nanochat2  lambda 1.15 - 0.10*i/(L-1), mu 0.20 - 0.15*i/(L-1), i = l-1;
//                lambda lr 0.005, betas (0.8, 0.95), decay 0.05;
//                mu lr 0.5, betas (0.96, 0.95), decay 0
// y is kept: to get <<dz,y>> back from z would divide by lambda.
#include "residual/row_kernel.cuh"
#include "residual/stream_rule.h"
#include "residual/x0.h"

namespace {

struct LscaleInput : RowFunction {
    struct Args {
        const float *lambda, *mu;
        floatX* y;         // (N,C) written forward, read backward; null in inference
        const floatX* x0;  // (N,C)
        float* dx0;        // (N,C) accumulated, or written when it is new
        bool new_dx0;
    };
    static constexpr int scalar_sums = 2;
    static constexpr bool allows_post = false;

    static void moves(const Args& args, int64_t N, int C, bool backward) {
        MOVES_MORE({reads(args.x0, N * C)});
        if (backward)
            MOVES_MORE({reads(args.y, N * C), reads(args.new_dx0 ? nullptr : args.dx0, N * C),
                        writes(args.dx0, N * C)});
        else
            MOVES_MORE({writes(args.y, N * C)});
    }

    template <class Lane, class Row = typename Lane::Row>
    static __device__ __forceinline__ Row combine(const Lane& lane, const Args& args, const Row& x, const Row& v) {
        Row y, x0 = lane.load(args.x0), p;
#pragma unroll
        for (int i = 0; i < y.size; i++) y[i] = x[i] + v[i];
        if (args.y != nullptr)
            lane.store(args.y, y);
        else
            lane.round(y);
        float lambda = *args.lambda, mu = *args.mu;
#pragma unroll
        for (int i = 0; i < p.size; i++) p[i] = fmaf(lambda, y[i], mu * x0[i]);
        return p;
    }

    template <class Lane, class Saved, class Sums, class Row = typename Lane::Row>
    static __device__ __forceinline__ void backward(const Lane& lane, const Args& args, const Row& dp, const Saved&,
                                                    Row& dx, Row& dv, Sums& sums) {
        Row y = lane.load(args.y), x0 = lane.load(args.x0), dx0 = {};
        if (!args.new_dx0) dx0 = lane.load(args.dx0);
        float lambda = *args.lambda, mu = *args.mu, dlambda = 0.0f, dmu = 0.0f;
#pragma unroll
        for (int i = 0; i < dp.size; i++) {
            dlambda += dp[i] * y[i];
            dmu += dp[i] * x0[i];
            dx0[i] += mu * dp[i];
            dx[i] = dv[i] = lambda * dp[i];
        }
        sums.scalar[0] += dlambda;
        sums.scalar[1] += dmu;
        lane.store(args.dx0, dx0);
    }
};

class LscaleInputRule : public StreamRule {
  public:
    LscaleInputRule(const RuleShape& shape, RuleOptions& options)
        : StreamRule(shape), x0_stage_(options.flag("x0_norm", true)) {
        const std::string freeze = options.choice("freeze", {"lambda", "mu", "none"}, "none");
        const std::string preset = options.choice("preset", {"modded", "nanochat", "nanochat2", "none"}, "none");
        for (int l = 1; l <= shape.L; l++) {
            RuleParameter lambda{"resid_lambda", Place::layer, l, {1}, {1.0f}},
                mu{"x0_lambda", Place::layer, l, {1}, {0.0f}};
            if (preset == "modded") lambda.own_lr = mu.own_lr = 0.02;
            if (preset == "nanochat" || preset == "nanochat2") {
                lambda.own_lr = 0.005;
                mu.own_lr = 0.5;
            }
            if (preset == "nanochat") mu.initial = {0.1f};
            if (preset == "nanochat2") {
                const double depth = shape.L > 1 ? static_cast<double>(l - 1) / (shape.L - 1) : 0.0;
                lambda.initial = {static_cast<float>(1.15 - 0.10 * depth)};
                mu.initial = {static_cast<float>(0.20 - 0.15 * depth)};
                lambda.beta1 = 0.8, lambda.beta2 = 0.95, lambda.own_decay = 0.05;
                mu.beta1 = 0.96, mu.beta2 = 0.95;
            }
            lambda.frozen = freeze == "lambda";
            mu.frozen = freeze == "mu";
            add(lambda);
            add(mu);
        }
    }
    void plan(Planner& planner) override {
        StreamRule::plan(planner);
        x0_stage_.plan(planner, shape_, true);
        planner.want("stream", shape_.N * shape_.C, x0_);
        y_.assign(static_cast<size_t>(shape_.L), nullptr);
        if (shape_.training)
            want_seams(planner, "stream", shape_.N * shape_.C, y_, true, 1, [](int l) { return l > 0; });
    }
    void ready(cudaStream_t stream) override { x0_stage_.ready(shape_, stream); }
    floatX* embedding() override { return x0_stage_.has_entry(shape_) ? entry_ : x0_; }

    void forward(const Pass& pass, int s) override {
        if (s > 0) return StreamRule::forward(pass, s);
        x0_stage_.forward(shape_, post_norms[0], entry_, x0_, pass);
        SeamForward seam = forward_seam(pass, 0);  // the stream so far is zero, and x_0 comes in as a branch
        seam.x = nullptr;
        seam.u = x0_;
        seam.post = {};
        ::seam_forward<LscaleInput>(seam, seam_shape(pass, 0), args(0), pass.stream);
    }
    void backward(const Pass& pass, int s) override {
        if (s > 0) return StreamRule::backward(pass, s);
        SeamBackward seam = backward_seam(0);
        seam.first = false;
        seam.du = nullptr;
        seam.post = {};
        seam_backward(seam, seam_shape(pass, 0), pass, 0);
        x0_stage_.backward(shape_, post_norms[0], entry_, dx_, nullptr, nullptr, pass);
    }

  protected:
    bool has_entry() const override { return x0_stage_.has_entry(shape_); }
    static int lambda(int l) { return 2 * (l - 1); }
    static int mu(int l) { return 2 * (l - 1) + 1; }
    bool scales(int s) const { return s % 2 == 0 && s < shape_.last(); }  // seams in front of a layer
    LscaleInput::Args args(int s) const {
        const int next = s / 2 + 1;  // the layer behind seam s
        return {value(lambda(next)),  value(mu(next)), y_[static_cast<size_t>(s / 2)], x0_,
                x0_stage_.gradient(), next == shape_.L};
    }
    void seam_forward(const SeamForward& seam, const SeamShape& shape, const Pass& pass, int s) override {
        if (!scales(s)) return StreamRule::seam_forward(seam, shape, pass, s);
        ::seam_forward<LscaleInput>(seam, shape, args(s), pass.stream);
    }
    void seam_backward(SeamBackward& seam, const SeamShape& shape, const Pass& pass, int s) override {
        if (!scales(s)) return StreamRule::seam_backward(seam, shape, pass, s);
        LscaleInput::Args a = args(s);
        if (s == 0) a.y = x0_;
        RuleGradients gradients;
        gradients.scalars[0] = grad(lambda(s / 2 + 1));
        gradients.scalars[1] = grad(mu(s / 2 + 1));
        ::seam_backward<LscaleInput>(seam, shape, a, gradients, pass.scratch, pass.stream);
    }
    X0 x0_stage_;
    floatX* x0_ = nullptr;    // (N,C)
    std::vector<floatX*> y_;  // (L) of (N,C): the stream in front of layer l+1, unscaled; y_[0] is x_0
};

}  // namespace

extern const RuleEntry lscale_input_rule = {"lscale_input", "learned scaling: the layer reads lambda_l*x + mu_l*x_0",
                                            PRE_SCHEMES, make_rule<LscaleInputRule>};
