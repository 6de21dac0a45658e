// GPAS, Gradient-Preserving Activation Scaling (Chen et al. 2025, arXiv 2506.22049): a gate shrinks the stream, and a
// stop-gradient sg(.) keeps the gradient from shrinking with it. g = Act(alpha_l), Act = silu by default:
//
//     behind the add (pre, sandwich, lns, ...)     x' = a*x + v;             x_new = x' - g*sg(x')
//         dx' = dx_new                             dalpha += -Act'(alpha) * <<dx_new, x'>>
//     on the skip (post, deepnorm, post layers of mix)   p = a*(x - g*sg(x)) + v;   x_new = N(p)
//         dx = a*dp,  dv = dp                      dalpha += -Act'(alpha) * a * <<dp, x>>
//
//     gpas_gate  scalar, 0        one per layer, at both of its sublayers; no decay; option gate_clip: a joint clip
//
// x' is not kept: <<dx_new, x'>> = <<dx_new, x_new>>/(1-g). In floating point 1-g keeps all its digits unless it is
// exactly zero, so the factor is held one unit of rounding away from zero, which moves the forward pass less than
// rounding does.
//
// Ablations of the paper, for schemes without N_post: sg=0 (plain scaling), and place = before_sublayer (the stream in
// front of each sublayer, with that sublayer's gate), after_norm (z - g*sg(z)), branch_output (v - g*sg(v)). The last
// two have <<dz,z>> and <<dv,v>> from the gradients of the map in front of the gate (branch_scale.cuh), without a
// kernel of their own.
#include "residual/branch_factor.h"
#include "residual/row_kernel.cuh"

namespace {

enum class Act { silu, identity, relu, leaky_relu, tanh, silu_8 };
const std::vector<std::string> act_names = {"silu", "identity", "relu", "leaky_relu", "tanh", "silu_8"};
enum class Where { after_sublayer, before_sublayer, after_norm, branch_output };
const std::vector<std::string> where_names = {"after_sublayer", "before_sublayer", "after_norm", "branch_output"};

struct Gate {
    float keep;   // 1 - g, never zero
    float slope;  // Act'(alpha)
};

__device__ __forceinline__ Gate open_gate(float alpha, Act act) {
    float g = alpha, slope = 1.0f;
    if (act == Act::silu || act == Act::silu_8) {
        float k = act == Act::silu ? 1.0f : 8.0f, sigma = 1.0f / (1.0f + expf(-k * alpha));
        g = alpha * sigma;
        slope = sigma * (1.0f + k * alpha * (1.0f - sigma));
    } else if (act == Act::relu || act == Act::leaky_relu) {  // PyTorch's derivative at 0 is the left one
        float left = act == Act::relu ? 0.0f : 0.01f;
        g = alpha > 0.0f ? alpha : left * alpha;
        slope = alpha > 0.0f ? 1.0f : left;
    } else if (act == Act::tanh) {
        g = tanhf(alpha);
        slope = 1.0f - g * g;
    }
    float keep = 1.0f - g;
    return {keep != 0.0f ? keep : 0x1p-24f, slope};
}

struct Gpas : RowFunction {
    struct Args {
        const float* alpha;  // (1); null: no gate at this seam
        Act act;
        bool stop_gradient;
        bool on_skip;
        float a;
        const floatX* x;  // (N,C) the stream before, for on_skip's backward pass
    };
    static constexpr int scalar_sums = 1;
    static constexpr bool reads_p = true;

    static void moves(const Args& args, int64_t N, int C, bool backward) {
        if (backward && args.on_skip) MOVES_MORE({reads(args.x, N * C)});
    }

    template <class Lane, class Row = typename Lane::Row>
    static __device__ __forceinline__ Row combine(const Lane&, const Args& args, const Row& x, const Row& v) {
        float keep = args.alpha != nullptr ? open_gate(*args.alpha, args.act).keep : 1.0f;
        float of_x = args.a * keep, of_v = args.on_skip ? 1.0f : keep;
        Row p;
#pragma unroll
        for (int i = 0; i < p.size; i++) p[i] = fmaf(of_x, x[i], of_v * v[i]);
        return p;
    }

    template <class Lane, class Saved, class Sums, class Row = typename Lane::Row>
    static __device__ __forceinline__ void backward(const Lane& lane, const Args& args, const Row& dp,
                                                    const Saved& saved, Row& dx, Row& dv, Sums& sums) {
        Gate gate = {1.0f, 0.0f};
        if (args.alpha != nullptr) gate = open_gate(*args.alpha, args.act);
        float pass = args.stop_gradient ? 1.0f : gate.keep;
        float dot[1] = {0.0f};
        if (args.on_skip) {
            Row x = lane.load(args.x);
#pragma unroll
            for (int i = 0; i < dp.size; i++) dot[0] += dp[i] * x[i];
        } else {
#pragma unroll
            for (int i = 0; i < dp.size; i++) dot[0] += dp[i] * saved.p[i];
        }
        // Every thread adds what its own channels give: the sum over the row is part of the sum over tokens.
        sums.scalar[0] -= gate.slope * dot[0] * (args.on_skip ? args.a : 1.0f / gate.keep);
#pragma unroll
        for (int i = 0; i < dp.size; i++) {
            dx[i] = args.a * pass * dp[i];
            dv[i] = args.on_skip ? dp[i] : pass * dp[i];
        }
    }
};

// keep[i] = alpha[i] * (1 - g(gate i)); for the ablations that use GEMM factors.
__global__ void gate_factors_kernel(float* keep, const float* alpha, const float* const* gates, Act act, int count) {
    int i = threadIdx.x;
    if (i < count)
        keep[i] = (alpha != nullptr ? alpha[i] : 1.0f) * (gates[i] != nullptr ? open_gate(*gates[i], act).keep : 1.0f);
}
// A thread per layer, which adds what the dots of its two sublayers give; sublayer k's are dot[k - before].
__global__ void gate_gradients_kernel(float* const* dgate, const float* dot, const float* const* gates, Act act, int L,
                                      int before, bool dot_is_scaled) {
    const int l = blockIdx.x * blockDim.x + threadIdx.x;
    if (l >= L) return;
    for (int k = 2 * l + 1; k <= 2 * l + 2; k++) {
        Gate open = open_gate(*gates[k - before], act);
        *dgate[l] -= open.slope * dot[k - before] / (dot_is_scaled ? open.keep : 1.0f);
    }
}

class GpasRule : public StreamRule {
  public:
    GpasRule(const RuleShape& shape, RuleOptions& options) : StreamRule(shape) {
        auto index = [](const std::vector<std::string>& names, const std::string& name) {
            return static_cast<int>(std::find(names.begin(), names.end(), name) - names.begin());
        };
        act_ = static_cast<Act>(index(act_names, options.choice("act", act_names, "silu")));
        bool any_post = false;
        for (const SublayerNorms& norms : shape.scheme.sublayers) any_post |= norms.post;
        stop_gradient_ = options.flag("sg", true);
        where_ = any_post
                     ? Where::after_sublayer
                     : static_cast<Where>(index(where_names, options.choice("place", where_names, "after_sublayer")));
        if (where_ == Where::after_norm && shape.scheme.name == "outnorm")
            throw user_error("--residual-opt place=after_norm: scheme outnorm has no norm in front of its sublayers");
        gate_clip = options.number("gate_clip", 0, 0, 1e9);
        const bool frozen = options.choice("freeze", {"gate", "none"}, "none") == "gate";
        for (int l = 1; l <= shape.L; l++) {
            RuleParameter gate{"gpas_gate", Place::layer, l, {1}, {0.0f}};
            gate.frozen = frozen;
            gate.clipped_gate = true;
            add(gate);
        }
    }
    void plan(Planner& planner) override {
        StreamRule::plan(planner);
        planner.want("branch factors", shape_.last() + 1, gates_);
        planner.want("branch factors", shape_.last() + 1, keep_);
        planner.want("branch factors", shape_.last() + 1, dot_);
        planner.want("branch factors", shape_.L, dgates_);
        if (shape_.training) dots_.plan(planner, shape_);
    }
    void ready(cudaStream_t stream) override {
        StreamRule::ready(stream);
        // Slot s: the gate of sublayer s for branch_output, of the sublayer behind seam s for after_norm.
        std::vector<const float*> table(static_cast<size_t>(shape_.last()) + 1, nullptr);
        for (int s = 0; s <= shape_.last(); s++) {
            const int k = where_ == Where::after_norm ? s + 1 : s;
            if (k >= 1 && k <= shape_.last()) table[static_cast<size_t>(s)] = gate(k);
        }
        CUDA_CHECK(
            cudaMemcpyAsync(gates_, table.data(), table.size() * sizeof(table[0]), cudaMemcpyHostToDevice, stream));
        CUDA_CHECK(cudaStreamSynchronize(stream));
        if (shape_.training && by_dots()) plan_dots(stream);
        if (where_ == Where::after_norm)
            for (int s = 0; s < shape_.last(); s++) {
                in_norms[static_cast<size_t>(s)].factor = keep_ + s;
                in_norms[static_cast<size_t>(s)].factor_backward = !stop_gradient_;
            }
    }
    void begin(const Pass& pass) override {
        if (!by_dots()) return;
        const int count = shape_.last() + 1;
        MOVES("gate_factors", {reads(gates_, count), writes(keep_, count)});
        launch(gate_factors_kernel, 1, static_cast<int>(round_up(count, WARP)), 0, pass.stream, keep_,
               where_ == Where::branch_output && prores() ? alpha_ : nullptr, gates_, act_, count);
    }
    void forward(const Pass& pass, int s) override {
        if (s > 0 || where_ != Where::before_sublayer) return StreamRule::forward(pass, s);
        SeamForward seam = entry_seam(pass);
        ::seam_forward<Gpas>(seam, seam_shape(pass, 0), args(0), pass.stream);
    }
    void backward(const Pass& pass, int s) override {
        if (s > 0 || where_ != Where::before_sublayer) return StreamRule::backward(pass, s);
        SeamBackward seam = backward_seam(0);
        seam.first = false;
        seam.du = nullptr;
        seam.post = {};
        run_backward(seam, pass, 0);
        if (shape_.post(0))
            norm_rows_backward(dx_, entry_, post_norms[0], seam_shape(pass, 0), pass.scratch, pass.stream);
    }
    void finish_gradients(const Pass& pass) override {
        if (!by_dots()) return;
        set_zero(dot_, static_cast<size_t>(shape_.last() + 1) * sizeof(float), pass.stream);
        dots_.run(pass);
        MOVES("gate_gradients", {reads(dot_, shape_.last()), reads(gates_, shape_.last()), reads(dgates_, shape_.L),
                                 reads_bytes(int64_t{2} * shape_.L * static_cast<int64_t>(sizeof(float))),
                                 writes_bytes(shape_.L * static_cast<int64_t>(sizeof(float)))});
        launch(gate_gradients_kernel, ceil_div(shape_.L, WARP), WARP, 0, pass.stream, dgates_, dot_, gates_, act_,
               shape_.L, where_ == Where::after_norm ? 1 : 0, !stop_gradient_);
    }
    floatX* embedding() override { return where_ == Where::before_sublayer ? entry_ : StreamRule::embedding(); }
    const float* branch_scale(int s) const override {
        if (where_ == Where::branch_output && !stop_gradient_ && !shape_.out(s)) return keep_ + s;
        return StreamRule::branch_scale(s);
    }
    size_t scratch_bytes() const override {
        return std::max(StreamRule::scratch_bytes(), LastMapDots::scratch_bytes(shape_));
    }

  protected:
    bool has_entry() const override { return where_ == Where::before_sublayer || StreamRule::has_entry(); }
    const float* gate(int k) const { return value(layer_of(k) - 1); }
    // The gates' gradients follow from the last maps'.
    bool by_dots() const { return where_ == Where::after_norm || where_ == Where::branch_output; }
    void plan_dots(cudaStream_t stream) {
        std::vector<float*> dgates;
        for (int l = 0; l < shape_.L; l++) dgates.push_back(grad(l));
        CUDA_CHECK(
            cudaMemcpyAsync(dgates_, dgates.data(), dgates.size() * sizeof(float*), cudaMemcpyHostToDevice, stream));
        const int before = where_ == Where::after_norm ? 1 : 0;
        for (int k = 1; k <= shape_.last(); k++) {
            const size_t i = static_cast<size_t>(k - before);
            dots_.add(dot_ + i, nullptr, nullptr, last_maps[i], before ? in_norms[i] : out_norms[i], shape_.C);
        }
        dots_.ready(stream);
    }
    bool separate_du(int s) const override {
        return StreamRule::separate_du(s) || (shape_.norms(s).post && !stop_gradient_);
    }
    // The gate that seam s applies: its sublayer's, or for before_sublayer the next one's.
    int gated(int s) const { return where_ == Where::before_sublayer ? s + 1 : s; }
    bool has_gate(int s) const {
        return (where_ == Where::after_sublayer || where_ == Where::before_sublayer) && gated(s) <= shape_.last();
    }
    Gpas::Args args(int s) const {
        const bool on_skip = s > 0 && shape_.norms(s).post;
        return {has_gate(s) ? gate(gated(s)) : nullptr,
                act_,
                stop_gradient_,
                on_skip,
                s > 0 ? shape_.norms(s).skip : 1.0f,
                s > 0 ? x_[static_cast<size_t>(s) - 1] : nullptr};
    }
    // x_0 through the first gate: the frame with a stream of zeros, and the embedding as the branch.
    SeamForward entry_seam(const Pass& pass) {
        // N_emb in place of its own memory would lose its input: it goes by way of x_0.
        if (shape_.post(0)) norm_rows_forward(entry_, x_[0], post_norms[0], seam_shape(pass, 0), pass.stream);
        SeamForward seam = forward_seam(pass, 0);
        seam.x = nullptr;
        seam.u = shape_.post(0) ? x_[0] : entry_;
        seam.post = {};
        return seam;
    }
    void run_backward(const SeamBackward& seam, const Pass& pass, int s) {
        RuleGradients gradients;
        if (has_gate(s)) gradients.scalars[0] = grad(layer_of(gated(s)) - 1);
        ::seam_backward<Gpas>(seam, seam_shape(pass, s), args(s), gradients, pass.scratch, pass.stream);
    }
    // The branch's own factor: ProRes's, and for branch_output the gate's.
    const float* forward_factor(int s) const { return where_ == Where::branch_output ? keep_ + s : seam_scale(s); }
    void seam_forward(const SeamForward& given, const SeamShape& shape, const Pass& pass, int s) override {
        SeamForward seam = given;
        seam.scale = forward_factor(s);
        if (!has_gate(s)) return StreamRule::seam_forward(seam, shape, pass, s);
        ::seam_forward<Gpas>(seam, shape, args(s), pass.stream);
    }
    void seam_backward(SeamBackward& seam, const SeamShape& shape, const Pass& pass, int s) override {
        if (where_ == Where::branch_output && !stop_gradient_ && shape_.out(s)) seam.out_scale = keep_ + s;
        if (!has_gate(s)) return StreamRule::seam_backward(seam, shape, pass, s);
        run_backward(seam, pass, s);
    }

    Act act_;
    Where where_;
    bool stop_gradient_;
    const float** gates_ = nullptr;  // (2L+1) device table
    float* keep_ = nullptr;          // (2L+1) alpha*(1-g)
    float* dot_ = nullptr;           // (2L+1)
    float** dgates_ = nullptr;       // (L) device table
    LastMapDots dots_;
};

}  // namespace

extern const RuleEntry gpas_rule = {"gpas", "(1-g)*(x+u), g = silu(alpha_l), with a stop-gradient",
                                    "pre post sandwich peri deepnorm mix lns outnorm", make_rule<GpasRule>};
