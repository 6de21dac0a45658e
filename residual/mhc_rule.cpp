// mHC, host side (DeepSeek, arXiv 2512.24880). Equations and kernels: mhc.cuh.
//
//     mhc_phi  [n^2+2n, nC], 0                             one per sublayer, decays with the run
//     mhc_a    [3], 0.01   (pre, post, res)                one per sublayer, no decay
//     mhc_b    [n^2+2n]: pre -1, and +1 at (k-1) mod n;    one per sublayer, no decay
//              post 0; res 0 on the diagonal, -8 off it
//     readout=head: mhc_head_phi [n,nC], 0; mhc_head_a [1], 0.01; mhc_head_b [n], 0       one per model
//
// Options: n (4), readout sum or head. Streams are kept at every R-th seam only, R about sqrt(n*2L/(n+2)); the backward
// pass replays the seams between from the outputs and coefficients, which are small: (paper, section 4.3, recomputing).
// At recompute level block R is even, so that no layer lies in two stretches of a replay.
#include "residual/mhc.cuh"
#include "residual/streams_rule.h"

#include <cmath>

namespace {

class MhcRule : public StreamsRule {
  public:
    MhcRule(const RuleShape& shape, RuleOptions& options)
        : StreamsRule(shape, options.integer("n", 4, 1, MAX_STREAMS)) {
        head_ = options.choice("readout", {"sum", "head"}, "sum") == "head";
        const int64_t n = n_, M = n * n + 2 * n, nC = n * shape.C;
        for (int k = 1; k <= shape.last(); k++) {
            RuleParameter phi{"mhc_phi", Place::sublayer, k, {M, nC}, {0.0f}};
            phi.decays = phi.product = true;
            std::vector<float> b(static_cast<size_t>(M), 0.0f);
            for (int64_t j = 0; j < n; j++) {
                b[static_cast<size_t>(j)] = j == (k - 1) % n ? 1.0f : -1.0f;
                for (int64_t i = 0; i < n; i++) b[static_cast<size_t>(2 * n + n * j + i)] = i == j ? 0.0f : -8.0f;
            }
            add(phi);
            add({"mhc_a", Place::sublayer, k, {3}, {0.01f}});
            add({"mhc_b", Place::sublayer, k, {M}, b});
        }
        if (!head_) return;
        RuleParameter phi{"mhc_head_phi", Place::model, 0, {n, nC}, {0.0f}};
        phi.decays = phi.product = true;
        add(phi);
        add({"mhc_head_a", Place::model, 0, {1}, {0.01f}});
        add({"mhc_head_b", Place::model, 0, {n}, {0.0f}});
    }
    void plan(Planner& planner) override {
        StreamsRule::plan(planner);
        const int64_t N = shape_.N, C = shape_.C, n = n_;
        const bool training = shape_.training;
        const size_t seams = static_cast<size_t>(shape_.last()) + 1;
        interval_ = std::max(1, static_cast<int>(std::lround(
                                    std::sqrt(n * static_cast<double>(shape_.last()) / static_cast<double>(n + 2)))));
        if (shape_.recompute == Recompute::block) interval_ += interval_ % 2;
        kept_.assign(seams, nullptr);
        replayed_.assign(static_cast<size_t>(interval_), nullptr);
        for (auto* list : {&c_, &m_, &r_}) list->assign(seams + 1, nullptr);
        planner.want("streams", N * n * C, running_);
        if (training) {
            want_seams(planner, "streams", N * n * C, kept_, true, 1, [&](int s) { return s % interval_ == 0; });
            want_seams(planner, "streams", N * n * C, replayed_, true, 1, [](int place) { return place > 0; });
        }
        auto has_module = [&](int k) { return k > 0 && (k <= shape_.last() || head_); };
        want_seams(planner, "mixing coefficients", N * n * (n + 2), c_, training, 2, has_module);
        want_seams(planner, "mixing coefficients", N * mhc_columns(n_, false), m_, training, 1, has_module);
        want_seams(planner, "mixing coefficients", N, r_, training, 1, has_module);
        planner.want("mixing coefficients", n, ones_);
        if (!training) return;
        planner.want("backward", N * n * (n + 2), dc_);
        planner.want("backward", N * mhc_columns(n_, false), rdm_);
        planner.want("backward", N, kappa_);
        planner.want("backward", N * n * C, dX_);
    }
    void ready(cudaStream_t stream) override {
        const std::vector<float> ones(static_cast<size_t>(n_), 1.0f);
        CUDA_CHECK(cudaMemcpyAsync(ones_, ones.data(), ones.size() * sizeof(float), cudaMemcpyHostToDevice, stream));
        CUDA_CHECK(cudaStreamSynchronize(stream));
    }
    void forward(const Pass& pass, int s) override {
        const size_t i = static_cast<size_t>(s);
        const int N = static_cast<int>(pass.N), nC = n_ * shape_.C;
        if (s == 0) entry_forward(pass);
        floatX* H = forward_streams(s);
        stream_write(write(s, s > 0 ? forward_streams(s - 1) : nullptr, H), streams(pass), pass.stream);
        if (has_module(s)) {
            const RuleTensor& phi = tensors[static_cast<size_t>(parameter(s + 1))];
            matmul_forward_fp32(pass.mm, m_[i + 1], H, phi.copy, N, nC, mhc_columns(n_, is_head(s)), pass.stream);
            mhc_coefficients(c_[i + 1], m_[i + 1], r_[i + 1], module(s), pass.N, n_, pass.stream);
        }
        stream_read({H, read_coefficients(s), input(s), in_norms[i], input8(pass, s)}, streams(pass), pass.stream);
    }
    void backward(const Pass& pass, int s) override {
        const size_t i = static_cast<size_t>(s);
        const int N = static_cast<int>(pass.N), nC = n_ * shape_.C;
        const bool last = s == shape_.last(), module_here = has_module(s);
        replay(pass, s);
        const floatX* H = backward_streams(s);
        StreamReadBackward read = {
            dz_, H, last ? nullptr : D_, read_coefficients(s), dz_, module_here ? dc_ : nullptr, in_norms[i]};
        stream_read_backward(read, streams(pass), pass.scratch, pass.stream);
        if (module_here) {
            const int p = parameter(s + 1), columns = mhc_columns(n_, is_head(s));
            mhc_coefficients_backward(rdm_, kappa_, {grad(p + 1), grad(p + 2)}, dc_, m_[i + 1], r_[i + 1], module(s),
                                      pass.N, n_, shape_.C, pass.scratch, pass.stream);
            matmul_backward_weight(pass.mm, grad(p), rdm_, H, N, nC, columns, true, pass.stream);
            matmul_backward_input(pass.mm, dX_, rdm_, tensors[static_cast<size_t>(p)].copy, N, nC, columns, false,
                                  pass.stream);
        }
        StreamWriteBackward write = {};
        write.dh = dz_;
        write.read = read_coefficients(s);
        write.D = D_;
        write.last = last;
        write.first = s == 0;
        write.dX = module_here ? dX_ : nullptr;
        write.H = H;
        write.kappa = kappa_;
        if (s == 0) {
            write.dx0 = du_;
        } else {
            write.write = mhc_strides(c_[i], n_, false);
            write.u = u_[i];
            write.du = du_;
            write.dwrite = dc_;
            write.out = out_norms[i];
            write.scale = seam_scale(s);
            write.out_scale = seam_out_scale(s);
        }
        stream_write_backward(write, streams(pass), pass.scratch, pass.stream);
        if (s == 0) entry_backward(pass);
    }
    void begin_backward(const Pass&) override { stretch_ = -1; }
    void input_again(const Pass& pass, int s) override {
        replay(pass, s);
        const size_t i = static_cast<size_t>(s);
        stream_read({backward_streams(s), read_coefficients(s), input(s), in_norms[i], input8(pass, s)}, streams(pass),
                    pass.stream);
    }
    const floatX* stream(int s) override { return forward_streams(s); }

  private:
    bool is_head(int s) const { return s == shape_.last(); }
    bool has_module(int s) const { return s < shape_.last() || head_; }  // behind seam s: sublayer s+1's, or the head's
    int parameter(int k) const { return 3 * (k - 1); }                   // the head's follow the sublayers'
    MhcModule module(int s) const { return {is_head(s), value(parameter(s + 1) + 1), value(parameter(s + 1) + 2)}; }
    Coefficients read_coefficients(int s) const {
        if (!has_module(s)) return Coefficients::read_fixed(ones_);
        return mhc_strides(c_[static_cast<size_t>(s) + 1], n_, is_head(s));
    }
    floatX* forward_streams(int s) const {
        floatX* kept = kept_[static_cast<size_t>(s)];
        return kept ? kept : running_;
    }
    floatX* backward_streams(int s) const {
        floatX* kept = kept_[static_cast<size_t>(s)];
        return kept ? kept : replayed_[static_cast<size_t>(s % interval_)];
    }
    StreamWrite write(int s, const floatX* before, floatX* H) {
        const size_t i = static_cast<size_t>(s);
        StreamWrite w = {};
        w.before = s == 0 ? x0_ : before;
        w.H = H;
        if (has_module(s)) w.rstd = r_[i + 1];
        w.rstd_eps = MHC_EPS_NORM;
        if (s == 0) return w;
        w.u = u_[i];
        w.c = mhc_strides(c_[i], n_, false);
        w.out = out_norms[i];
        w.scale = seam_scale(s);
        return w;
    }
    // The streams at seam s: all of its stretch, from a kept seam to the next, when the backward pass first comes there.
    void replay(const Pass& pass, int s) {
        const int kept = s - s % interval_, end = std::min(kept + interval_ - 1, shape_.last());
        if (s == kept || kept == stretch_) return;
        stretch_ = kept;
        for (int at = kept + 1; at <= end; at++)
            stream_write(write(at, backward_streams(at - 1), backward_streams(at)), streams(pass), pass.stream);
    }

    bool head_;
    int interval_ = 1;
    int stretch_ = -1;               // which is replayed, by its kept seam
    floatX* running_ = nullptr;      // (N,n,C)
    std::vector<floatX*> kept_;      // (2L+1) of (N,n,C), at every interval_-th seam
    std::vector<floatX*> replayed_;  // (interval_) of (N,n,C), by place behind a kept seam
    std::vector<float*> c_, m_, r_;  // (2L+2), by sublayer, the head last: (N,n,n+2), (N,Mp), (N)
    float* ones_ = nullptr;          // (n)
    float *dc_ = nullptr, *kappa_ = nullptr;
    floatX *rdm_ = nullptr, *dX_ = nullptr;
};

}  // namespace

extern const RuleEntry mhc_rule = {"mhc", "Hyper-Connections with doubly stochastic mixing (Sinkhorn)", PRE_SCHEMES,
                                   make_rule<MhcRule>};
