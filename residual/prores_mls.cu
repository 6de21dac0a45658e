// ProRes as MLS-Bench's llm-pretrain-residual has it, another function than prores: whole layers are blended in,
//
//     x_l = x + alpha*(m + v - x) = alpha*(m + v) + (1 - alpha)*x,      m = x + u_att (unscaled), v = u_mlp
//     g = dx_l:   dv = alpha*g,   dm = alpha*g + ...,   dx += (1 - alpha)*g
//     alpha(l,s) = min(s/(T*l), 1),  T = 1000;  s: training forward passes of this rank, the first is 1; evaluation: 1
//
// No parameters. The seam leaves g itself; alpha reaches dv in the GEMMs and dm where the next seam loads it.
#include "kernels/upload.cuh"
#include "residual/layer_end.h"
#include "residual/row_kernel.cuh"
#include "residual/x0.h"

namespace {

struct ProResMls : RowFunction {
    struct Args {
        const float* alpha;
        const floatX* x;       // (N,C) the stream before the layer
        const floatX* g_next;  // (N,C) gradient at the end of the next layer; null: there is none
        const float* alpha_next;
    };
    static constexpr bool allows_out = false, allows_post = false;

    static void moves(const Args& args, int64_t N, int C, bool backward) {
        MOVES_MORE({reads(backward ? args.g_next : args.x, N * C)});
    }

    template <class Lane, class Row = typename Lane::Row>
    static __device__ __forceinline__ Row combine(const Lane& lane, const Args& args, const Row& m, const Row& v) {
        Row x = lane.load(args.x), p;
        float alpha = *args.alpha;
#pragma unroll
        for (int i = 0; i < p.size; i++) p[i] = fmaf(alpha, m[i] + v[i], (1.0f - alpha) * x[i]);
        return p;
    }

    template <class Lane, class Saved, class Sums, class Row = typename Lane::Row>
    static __device__ __forceinline__ void backward(const Lane& lane, const Args& args, const Row& dp, const Saved&,
                                                    Row& dm, Row& dv, Sums&) {
        Row g = dp;
        if (args.g_next != nullptr) {
            Row next = lane.load(args.g_next);
            float factor = 1.0f - *args.alpha_next;
#pragma unroll
            for (int i = 0; i < g.size; i++) g[i] += factor * next[i];
        }
        dm = dv = g;
    }
};

class ProResMlsRule : public LayerEndRule {
  public:
    ProResMlsRule(const RuleShape& shape, RuleOptions&) : LayerEndRule(shape) {
        if (shape.prores)
            throw user_error(
                "--residual prores_mls+prores: prores_mls is a schedule already, +prores would be a second");
    }
    void plan(Planner& planner) override {
        LayerEndRule::plan(planner);
        planner.want("branch factors", shape_.L + 2, layer_alpha_);
    }
    void set_time(int64_t, int64_t passes, bool evaluation, cudaStream_t stream) override {
        std::vector<float> alpha(static_cast<size_t>(shape_.L) + 2, 0.0f);
        for (int l = 1; l <= shape_.L; l++)
            alpha[static_cast<size_t>(l)] =
                evaluation ? 1.0f : static_cast<float>(std::min(static_cast<double>(passes) / (T_ * l), 1.0));
        alpha.back() = 2.0f - alpha[1];  // the factor of the last step back to x_0: see backward(0)
        if (alpha == uploaded_) return;  // always, once the deepest layer is done
        uploaded_ = alpha;
        upload_values(layer_alpha_, alpha.data(), alpha.size() * sizeof(float), stream);
    }
    void backward(const Pass& pass, int s) override {
        SeamBackward seam = layer_end_seam(s);
        // Where g_l is the gradient of m rather than of x_l: on the way into layer l.
        if (s % 2 == 1) seam.dx_new_scale = layer_alpha_ + layer_of(s);
        if (s > 0) return seam_backward(seam, seam_shape(pass, s), pass, s);
        vanilla_backward(seam, seam_shape(pass, 0), pass.scratch, pass.stream);
        // dx_0 += (1 - alpha_1)*g_1, as (*factor - 1) * extra
        x0_.backward(shape_, post_norms[0], entry_, seam.dx, gradient_of_layer(1), layer_alpha_ + shape_.L + 1, pass);
    }
    const floatX* d_embedding() override { return chain(1); }
    const float* branch_scale(int s) const override { return s % 2 == 0 ? layer_alpha_ + layer_of(s) : nullptr; }

  protected:
    ProResMls::Args args(int s) const {
        const int l = layer_of(s);
        const bool next = l < shape_.L;
        return {layer_alpha_ + l, x_[static_cast<size_t>(s) - 2], next ? gradient_of_layer(l + 1) : nullptr,
                layer_alpha_ + l + 1};
    }
    void seam_forward(const SeamForward& seam, const SeamShape& shape, const Pass& pass, int s) override {
        if (s % 2 == 1) return LayerEndRule::seam_forward(seam, shape, pass, s);
        ::seam_forward<ProResMls>(seam, shape, args(s), pass.stream);
    }
    void seam_backward(SeamBackward& seam, const SeamShape& shape, const Pass& pass, int s) override {
        if (s % 2 == 1) return LayerEndRule::seam_backward(seam, shape, pass, s);
        ::seam_backward<ProResMls>(seam, shape, args(s), {}, pass.scratch, pass.stream);
    }
    static constexpr double T_ = 1000;
    float* layer_alpha_ = nullptr;  // (L+2) device, by l
    std::vector<float> uploaded_;   // what it holds
    X0 x0_{false};
};

}  // namespace

extern const RuleEntry prores_mls_rule = {"prores_mls", "x + alpha*(layer(x) - x), MLS-Bench's ProRes", "pre",
                                          make_rule<ProResMlsRule>};
