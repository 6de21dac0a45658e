// Review Residuals (2026, arXiv 2606.31859): each branch is reviewed by a gate that sees the stream and the branch,
//
//     hh = RMS0(x), uu = RMS0(v), eps 1e-5;   zeta = hh Wh^T + uu Wu^T + b;   r = sigma(zeta)        [C] per token
//     additive (default)   p = x + r*v                     convex   p = (1-r)*x + r*v
//
//     dzeta = dp*v*r*(1-r)   (convex: dp*(v-x)*r*(1-r));    dWh += dzeta^T hh,  dWu += dzeta^T uu,  db += SUM_t dzeta
//     dv = r*dp + RMS0^T(v; dzeta Wu),   dx = dp (convex: (1-r)*dp) + RMS0^T(x; dzeta Wh)
//
//     rv_w  [C,2C] = [Wh | Wu], 0     one per sublayer, decays with the run
//     rv_b  [C], 0                    one per sublayer, no decay; option bias=0: none
//
// RMS0 divides a whole row, so the GEMMs take x and v as they are, and the row kernel multiplies their rows by the two
// reciprocals, which it finds from the x and v it needs anyway. With ProRes the gate sees v, and r*alpha*v is added.
#include "residual/gate.cuh"
#include "residual/stream_rule.h"

namespace {

constexpr float EPS = 1e-5f;

struct Review : RowFunction {
    struct Args {
        const floatX *zh, *zu;  // (N,C) x Wh^T, v Wu^T; forward
        const float* b;         // (C) or null
        BranchGate gate;
        float *rx, *rv;     // (N) reciprocal root mean squares of x and v, written forward, read backward; or null
        floatX *dzh, *dzu;  // (N,C) dzeta*rx, dzeta*rv; backward
    };
    static constexpr int channel_sums = 1;
    static constexpr bool reads_v = true, allows_out = false;

    static void moves(const Args& args, int64_t N, int C, bool backward) {
        args.gate.moves(N, C, backward);
        if (backward)
            MOVES_MORE({reads(args.rx, N), reads(args.rv, N), writes(args.dzh, N * C), writes(args.dzu, N * C)});
        else
            MOVES_MORE({reads(args.zh, N * C), reads(args.zu, N * C), reads(args.b, C), writes(args.rx, N),
                        writes(args.rv, N)});
    }

    template <class Lane, class Row = typename Lane::Row>
    static __device__ __forceinline__ Row combine(const Lane& lane, const Args& args, const Row& x, const Row& v) {
        float square[2] = {0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i < x.size; i++) {
            square[0] += x[i] * x[i];
            square[1] += v[i] * v[i];
        }
        lane.sum(square);
        float rx = rsqrtf(square[0] * lane.inv_C + EPS), rv = rsqrtf(square[1] * lane.inv_C + EPS);
        if (threadIdx.x == 0 && lane.row < lane.N && args.rx != nullptr) {
            args.rx[lane.row] = rx;
            args.rv[lane.row] = rv;
        }
        Row zh = lane.load(args.zh), zu = lane.load(args.zu), b = lane.load_channels(args.b, args.b != nullptr), zeta;
#pragma unroll
        for (int i = 0; i < zeta.size; i++) zeta[i] = fmaf(rx, zh[i], rv * zu[i]) + b[i];
        return args.gate.combine(lane, zeta, x, v);
    }

    template <class Lane, class Saved, class Sums, class Row = typename Lane::Row>
    static __device__ __forceinline__ void backward(const Lane& lane, const Args& args, const Row& dp,
                                                    const Saved& saved, Row& dx, Row& dv, Sums& sums) {
        Row dzh = args.gate.backward(lane, dp, saved.v, dx, dv), dzu = dzh;
        sums.add(0, dzh);
        bool real = lane.row < lane.N;
        row_scale(dzh, real ? args.rx[lane.row] : 0.0f);
        row_scale(dzu, real ? args.rv[lane.row] : 0.0f);
        lane.store(args.dzh, dzh);
        lane.store(args.dzu, dzu);
    }
};

// dx += RMS0^T(x; eh/rx), dv += RMS0^T(v; eu/rv), where eh = (dzeta*rx) Wh and eu = (dzeta*rv) Wu hold the reciprocals
// already: RMS0^T(x; d) = r*(d - xh*mean(d*xh)) = e - xh*mean(e*xh), xh = x*r.
template <int PACKS>
__global__ void __launch_bounds__(MAX_ROW_THREADS, 1)
    review_inputs_backward_kernel(floatX* dx, floatX* dv, const floatX* eh, const floatX* eu, const floatX* x,
                                  const floatX* v, const float* rx, const float* rv, SeamShape shape) {
    RowLane<PACKS> lane(shape, shared_as<RowShared>());
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y; first < lane.N;
         first += gridDim.x * blockDim.y) {
        lane.row = first + threadIdx.y;
        bool real = lane.row < lane.N;
        float scale_x = real ? rx[lane.row] : 0.0f, scale_v = real ? rv[lane.row] : 0.0f;
        Row<PACKS> e[2] = {lane.load(eh), lane.load(eu)}, xh[2] = {lane.load(x), lane.load(v)};
        row_scale(xh[0], scale_x);
        row_scale(xh[1], scale_v);
        float dot[2] = {0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i < Row<PACKS>::size; i++) {
            dot[0] += e[0][i] * xh[0][i];
            dot[1] += e[1][i] * xh[1][i];
        }
        lane.sum(dot);
        Row<PACKS> d[2] = {lane.load(dx), lane.load(dv)};
#pragma unroll
        for (int k = 0; k < 2; k++)
#pragma unroll
            for (int i = 0; i < Row<PACKS>::size; i++) d[k][i] += e[k][i] - xh[k][i] * (dot[k] * lane.inv_C);
        lane.store(dx, d[0]);
        lane.store(dv, d[1]);
    }
}

class ReviewRule : public StreamRule {
  public:
    ReviewRule(const RuleShape& shape, RuleOptions& options) : StreamRule(shape) {
        bool post = false;
        for (const SublayerNorms& norms : shape.scheme.sublayers) post |= norms.post;
        convex_ = options.choice("form", {"additive", "convex"}, "additive") == "convex";
        if (convex_ && post)
            throw user_error(
                "--residual review with form=convex and --norm %s: this pair is not defined; the convex form works "
                "with " PRE_SCHEMES,
                shape.scheme.name.c_str());
        bias_ = options.flag("bias", true);
        for (int k = 1; k <= shape.last(); k++) {
            RuleParameter w{"rv_w", Place::sublayer, k, {shape.C, 2 * shape.C}, {0.0f}};
            w.decays = w.product = true;
            add(w);
            if (bias_) add({"rv_b", Place::sublayer, k, {shape.C}, {0.0f}});
        }
    }
    void plan(Planner& planner) override {
        StreamRule::plan(planner);
        const int64_t N = shape_.N, C = shape_.C;
        const size_t seams = static_cast<size_t>(shape_.last()) + 1;
        normed_.assign(seams, nullptr);
        r_.assign(seams, nullptr);
        rx_.assign(seams, nullptr);
        rv_.assign(seams, nullptr);
        want_inside(planner, "review", N * C, normed_, [&](int s) { return shape_.out(s); });
        planner.want("review", N * C, zh_);
        planner.want("review", N * C, zu_);
        if (!shape_.training) return;
        want_inside(planner, "review", N * C, r_, [](int s) { return s > 0; });
        want_seams(planner, "review", N, rx_, true, 1, [](int s) { return s > 0; });
        want_seams(planner, "review", N, rv_, true, 1, [](int s) { return s > 0; });
    }
    const float* branch_scale(int) const override { return nullptr; }  // the seam applies ProRes's factor itself

  protected:
    bool keeps_u(int) const override { return true; }
    bool end_again(int) const override { return true; }
    bool separate_du(int) const override { return true; }
    int w(int s) const { return (s - 1) * (bias_ ? 2 : 1); }
    const floatX* v(int s) const {
        return shape_.out(s) ? normed_[static_cast<size_t>(s)] : u_[static_cast<size_t>(s)];
    }
    Review::Args args(int s) const {
        const size_t i = static_cast<size_t>(s);
        return {zh_, zu_, bias_ ? value(w(s) + 1) : nullptr, {r_[i], seam_scale(s), convex_, x_[i - 1]}, rx_[i], rv_[i],
                zh_, zu_};
    }
    void seam_forward(const SeamForward& given, const SeamShape& shape, const Pass& pass, int s) override {
        const int N = static_cast<int>(pass.N), C = shape_.C;
        SeamForward seam = given;
        seam.scale = nullptr;
        if (shape_.out(s)) {  // the gate's product needs v itself
            seam.u = normed_[static_cast<size_t>(s)];
            norm_rows_forward(given.u, normed_[static_cast<size_t>(s)], given.out, shape, pass.stream);
            seam.out = {};
        }
        const floatX* weight = tensors[static_cast<size_t>(w(s))].copy;
        matmul_forward(pass.mm, zh_, seam.x, weight, nullptr, N, C, C, pass.stream, 2 * C);
        matmul_forward(pass.mm, zu_, seam.u, weight + C, nullptr, N, C, C, pass.stream, 2 * C);
        ::seam_forward<Review>(seam, shape, args(s), pass.stream);
    }
    void seam_backward(SeamBackward& seam, const SeamShape& shape, const Pass& pass, int s) override {
        const int N = static_cast<int>(pass.N), C = shape_.C;
        const size_t i = static_cast<size_t>(s);
        const SeamNorm out = seam.out;
        seam.out = {};
        seam.u = v(s);
        seam.scale = seam.out_scale = nullptr;
        RuleGradients gradients;
        if (bias_) gradients.channels[0] = grad(w(s) + 1);
        ::seam_backward<Review>(seam, shape, args(s), gradients, pass.scratch, pass.stream);

        const floatX *x = x_[i - 1], *weight = tensors[static_cast<size_t>(w(s))].copy;
        float* dweight = grad(w(s));
        matmul_backward_weight(pass.mm, dweight, zh_, x, N, C, C, true, pass.stream, nullptr, 2 * C);
        matmul_backward_weight(pass.mm, dweight + C, zu_, v(s), N, C, C, true, pass.stream, nullptr, 2 * C);
        // Back to x and v, in buffers that are free here: the sublayer input's gradient is used up.
        matmul_backward_input(pass.mm, dz_, zh_, weight, N, C, C, false, pass.stream, nullptr, 2 * C);
        matmul_backward_input(pass.mm, zh_, zu_, weight + C, N, C, C, false, pass.stream, nullptr, 2 * C);
        RowGrid grid = row_grid(C, false);
        auto kernel = review_inputs_backward_kernel<1>;
        if constexpr (WIDE_ROWS) kernel = grid.wide ? review_inputs_backward_kernel<WIDE_PACKS> : kernel;
        const int64_t count = pass.N * C;
        MOVES("review_inputs_backward",
              {updates(seam.dx, count), updates(du_, count), reads(dz_, count), reads(zh_, count), reads(x, count),
               reads(v(s), count), reads(rx_[i], pass.N), reads(rv_[i], pass.N)});
        launch(kernel, row_blocks(grid, pass.N), grid.block, sizeof(RowShared), pass.stream, seam.dx, du_, dz_, zh_, x,
               v(s), rx_[i], rv_[i], shape);
        if (out.gain) norm_rows_backward(du_, u_[i], out, shape, pass.scratch, pass.stream);
    }
    bool convex_, bias_;
    std::vector<floatX*> normed_;           // (2L+1) of (N,C), by s: v where the scheme has N_out
    std::vector<floatX*> r_;                // (2L+1) of (N,C), by s
    std::vector<float*> rx_, rv_;           // (2L+1) of (N), by s
    floatX *zh_ = nullptr, *zu_ = nullptr;  // (N,C) the gate's products; backward: their gradients
};

}  // namespace

extern const RuleEntry review_rule = {"review", "x + r*u, r = sigma(W [RMS(x), RMS(u)] + b)",
                                      "pre post sandwich peri mix lns outnorm", make_rule<ReviewRule>};
