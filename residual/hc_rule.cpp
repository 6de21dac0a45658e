// Hyper-Connections, host side (Zhu et al. 2025, arXiv 2409.19606). Equations and kernels: hc.cuh.
//
//     hc_alpha  [n,n+1], [e_q | I], q = (k-1) mod n    one per sublayer, no decay
//     hc_beta   [n], 1                                 one per sublayer, no decay
//     dynamic:  hc_wa [C,n+1], 0; hc_wb [C], 0         decay with the run
//               hc_sa, hc_sb  scalars, 0.01; hc_norm [C], 1         no decay
//
// Options: n (4), dynamic (1), tanh (1), readout sum or mean, hc_out_init (1, rsqrt_n, sqrt_n: factor of the output
// projections' initial spread). preset hc_e0: static, stream 0 = x_0 and the others 0, [e_0 | I], e_0, read-out stream
// 0.
#include "residual/hc.cuh"
#include "residual/streams_rule.h"

#include <cmath>

namespace {

class HcRule : public StreamsRule {
  public:
    HcRule(const RuleShape& shape, RuleOptions& options) : StreamsRule(shape, options.integer("n", 4, 1, MAX_STREAMS)) {
        only_stream_0_ = options.choice("preset", {"hc_e0", "none"}, "none") == "hc_e0";
        dynamic_ = only_stream_0_ ? options.choice("dynamic", {"0"}, "0") == "1" : options.flag("dynamic", true);
        tanh_ = dynamic_ && options.flag("tanh", true);
        if (!only_stream_0_) mean_ = options.choice("readout", {"sum", "mean"}, "sum") == "mean";
        const std::string out = options.choice("hc_out_init", {"1", "rsqrt_n", "sqrt_n"}, "1");
        const float root = std::sqrt(static_cast<float>(n_));
        output_init_scale = out == "1" ? 1.0f : out == "rsqrt_n" ? 1.0f / root : root;

        const int64_t C = shape.C, n = n_;
        for (int k = 1; k <= shape.last(); k++) {
            const int q = only_stream_0_ ? 0 : (k - 1) % n_;
            std::vector<float> alpha(static_cast<size_t>(n * (n + 1)), 0.0f),
                beta(static_cast<size_t>(n), only_stream_0_ ? 0.0f : 1.0f);
            alpha[static_cast<size_t>(q * (n + 1))] = 1.0f;
            for (int64_t i = 0; i < n; i++) alpha[static_cast<size_t>(i * (n + 1) + 1 + i)] = 1.0f;
            if (only_stream_0_) beta[0] = 1.0f;
            add({"hc_alpha", Place::sublayer, k, {n, n + 1}, alpha});
            add({"hc_beta", Place::sublayer, k, {n}, beta});
            if (!dynamic_) continue;
            RuleParameter wa{"hc_wa", Place::sublayer, k, {C, n + 1}, {0.0f}},
                wb{"hc_wb", Place::sublayer, k, {C}, {0.0f}};
            wa.decays = wb.decays = true;
            add(wa);
            add(wb);
            add({"hc_sa", Place::sublayer, k, {1}, {0.01f}});
            add({"hc_sb", Place::sublayer, k, {1}, {0.01f}});
            add({"hc_norm", Place::sublayer, k, {C}, {1.0f}});
        }
    }
    void plan(Planner& planner) override {
        StreamsRule::plan(planner);
        const int64_t N = shape_.N, C = shape_.C, n = n_;
        const bool training = shape_.training;
        const size_t seams = static_cast<size_t>(shape_.last()) + 1;
        for (auto* list : {&c_, &m_, &rstd_, &base_, &folded_}) list->assign(seams, nullptr);
        H_.assign(seams, nullptr);
        want_state(planner, "streams", N * n * C, H_, 1, [](int) { return true; });
        auto sublayer = [](int k) { return k > 0; };
        want_seams(planner, "mixing coefficients", n * (n + 2), base_, true, 1, sublayer);
        if (dynamic_) {
            want_seams(planner, "mixing coefficients", (n + 2) * C, folded_, true, 1, sublayer);
            want_seams(planner, "mixing coefficients", N * n * (n + 2), c_, training, 2,
                       sublayer);  // this write's, the next read's
            if (training) {
                want_seams(planner, "mixing coefficients", N * n * (n + 2), m_, true, 1, sublayer);
                want_seams(planner, "mixing coefficients", N * n, rstd_, true, 1, sublayer);
            }
        }
        planner.want("mixing coefficients", n, readout_);
        if (training) planner.want("backward", N * n, dB_);
    }
    void ready(cudaStream_t stream) override {
        std::vector<float> readout(static_cast<size_t>(n_), mean_ ? 1.0f / static_cast<float>(n_) : 1.0f);
        for (size_t i = 1; i < readout.size() && only_stream_0_; i++) readout[i] = 0.0f;
        CUDA_CHECK(
            cudaMemcpyAsync(readout_, readout.data(), readout.size() * sizeof(float), cudaMemcpyHostToDevice, stream));
        CUDA_CHECK(cudaStreamSynchronize(stream));
        modules_.resize(static_cast<size_t>(shape_.last()) + 1);
        gradients_.resize(modules_.size());
        for (int k = 1; k <= shape_.last(); k++) {
            const size_t i = static_cast<size_t>(k);
            const int p = (k - 1) * (dynamic_ ? 7 : 2);
            HcModule& module = modules_[i];
            module.dynamic = dynamic_;
            module.tanh = tanh_;
            module.alpha = value(p), module.beta = value(p + 1);
            module.base = base_[i], module.folded = folded_[i];
            gradients_[i].alpha = grad(p), gradients_[i].beta = grad(p + 1);
            if (!dynamic_) continue;
            module.wa = value(p + 2), module.wb = value(p + 3), module.sa = value(p + 4), module.sb = value(p + 5),
            module.gain = value(p + 6);
            gradients_[i].wa = grad(p + 2), gradients_[i].wb = grad(p + 3), gradients_[i].sa = grad(p + 4);
            gradients_[i].sb = grad(p + 5), gradients_[i].gain = grad(p + 6);
        }
    }
    void begin(const Pass& pass) override {
        for (int k = 1; k <= shape_.last(); k++)
            hc_prepare(modules_[static_cast<size_t>(k)], shape_.C, n_, pass.stream);
    }
    void forward(const Pass& pass, int s) override {
        const size_t i = static_cast<size_t>(s);
        if (s == 0) entry_forward(pass);
        HcForward seam = {};
        seam.write.before = s == 0 ? x0_ : H_[i - 1];
        seam.write.H = H_[i];
        seam.write.only_stream_0 = only_stream_0_;
        if (s > 0) {
            seam.write.u = u_[i];
            seam.write.c = hc_coefficients(modules_[i], saved(s), n_);
            seam.write.out = out_norms[i];
            seam.write.scale = seam_scale(s);
        }
        if (s < shape_.last()) {
            seam.next = &modules_[i + 1];
            seam.saved = saved(s + 1);
        }
        seam.readout = readout_;
        seam.z = input(s);
        seam.z8 = input8(pass, s);
        seam.in = in_norms[i];
        hc_forward(seam, streams(pass), pass.stream);
    }
    void backward(const Pass& pass, int s) override {
        const size_t i = static_cast<size_t>(s);
        HcBackward seam = {};
        seam.dz = dz_;
        seam.H = H_[i];
        seam.D = D_;
        seam.dB = dB_;
        seam.readout = readout_;
        seam.in = in_norms[i];
        if (s < shape_.last()) {
            seam.next = &modules_[i + 1];
            seam.saved = saved(s + 1);
            seam.gradients = gradients_[i + 1];
        }
        if (s == 0) {
            seam.first = true;
            seam.dx0 = du_;
            seam.only_stream_0 = only_stream_0_;
        } else {
            seam.write = hc_coefficients(modules_[i], saved(s), n_);
            seam.u = u_[i];
            seam.du = du_;
            seam.out = out_norms[i];
            seam.scale = seam_scale(s);
            seam.out_scale = seam_out_scale(s);
        }
        hc_backward(seam, streams(pass), pass.scratch, pass.stream);
        if (s == 0) entry_backward(pass);
    }
    void input_again(const Pass& pass, int s) override {
        const size_t i = static_cast<size_t>(s);
        stream_read({H_[i], hc_coefficients(modules_[i + 1], saved(s + 1), n_), input(s), in_norms[i],
                     input8(pass, s)},
                    streams(pass), pass.stream);
    }
    const floatX* stream(int s) override { return H_[static_cast<size_t>(s)]; }

  protected:
    bool can_drop_inside() const override { return true; }

  private:
    HcSaved saved(int k) const {
        const size_t i = static_cast<size_t>(k);
        return {c_[i], m_[i], rstd_[i]};
    }
    bool only_stream_0_, dynamic_, tanh_, mean_ = false;
    std::vector<floatX*> H_;                            // (2L+1) of (N,n,C), by s
    std::vector<float*> c_, m_, rstd_, base_, folded_;  // (2L+1), by sublayer: (N,n,n+2) twice, (N,n), (n,n+2), (n+2,C)
    std::vector<HcModule> modules_;                     // (2L+1), by sublayer
    std::vector<HcGradients> gradients_;
    float* readout_ = nullptr;  // (n)
    float* dB_ = nullptr;       // (N,n)
};

}  // namespace

extern const RuleEntry hc_rule = {"hc", "Hyper-Connections: n streams, learned and input-dependent mixing", PRE_SCHEMES,
                                  make_rule<HcRule>};
