// DenseFormer's depth-weighted average (Pagliardini et al. 2024, arXiv 2402.02622): behind layer i,
//
//     X_0 = Y_0 = x_0;   X_i = layer_i(Y_{i-1});   Y_i = SUM_{j<=i} alpha_ij * X_j;   the next layer and the head read Y
//     dalpha_ij = <<dY_i,X_j>>;   dX_j = SUM_{i>=j} alpha_ij * dY_i, gathered when layer j's turn comes
//
//     dwa_alpha  [i+1], one-hot on the last     one per layer i, no decay (option decay_alpha=1: the run's)
//
// Options dilation D: only j with D | i-j take part; period p: only when p | i, otherwise Y_i = X_i. The gradient of
// Y_i goes where Y_i was, which nobody reads any more. At seam 2j one kernel reads X_j once and every dY_i once, for
// dX_j and for all dalpha_ij of that j: their dot products per token are stored (N,I) and added up by a small kernel.
#include "residual/row_kernel.cuh"
#include "residual/stream_rule.h"
#include "residual/x0.h"

namespace {

constexpr int BATCH = 4;  // dot products per row reduction

// One of the other rows that take part: forward an X_j, backward a dY_i with the place of its dalpha.
struct Term {
    const floatX* rows;  // (N,C)
    const float* alpha;  // (1)
    float* dalpha;       // (1)
};

struct Dwa : RowFunction {
    struct Args {
        floatX* own;             // (N,C) X_l: written forward, read backward
        const float* own_alpha;  // alpha_ll; null: Y = X
        const Term* terms;       // (count) device table
        int count;
        floatX* dy;   // (N,C) where dY_l is kept; null: nobody asks for it
        float* dots;  // (N,count+1): <dY_i,X_l> per token, the layer's own last
    };
    static constexpr bool allows_post = false;

    static void moves(const Args& args, int64_t N, int C, bool backward) {
        const int64_t terms = args.count * N * C * static_cast<int64_t>(sizeof(floatX));
        if (backward)
            MOVES_MORE({reads(args.own, N * C), reads_bytes(terms), writes(args.dots, N * (args.count + 1)),
                        writes(args.dy, N * C)});
        else
            MOVES_MORE({writes(args.own, N * C), reads_bytes(terms)});
    }

    template <class Lane, class Row = typename Lane::Row>
    static __device__ __forceinline__ Row combine(const Lane& lane, const Args& args, const Row& x, const Row& v) {
        Row X, y;
#pragma unroll
        for (int i = 0; i < X.size; i++) X[i] = x[i] + v[i];
        lane.store(args.own, X);
        float own = args.own_alpha != nullptr ? *args.own_alpha : 1.0f;
#pragma unroll
        for (int i = 0; i < y.size; i++) y[i] = own * X[i];
        for (int t = 0; t < args.count; t++) {
            Row other = lane.load(args.terms[t].rows);
            float alpha = *args.terms[t].alpha;
#pragma unroll
            for (int i = 0; i < y.size; i++) y[i] += alpha * other[i];
        }
        return y;
    }

    template <class Lane, class Saved, class Sums, class Row = typename Lane::Row>
    static __device__ __forceinline__ void backward(const Lane& lane, const Args& args, const Row& dp, const Saved&,
                                                    Row& dx, Row& dv, Sums&) {
        Row X = lane.load(args.own), dX, dy = dp;
        float own = args.own_alpha != nullptr ? *args.own_alpha : 1.0f;
        bool writes = threadIdx.x == 0 && lane.row < lane.N;
        float* dots = args.dots + lane.row * (args.count + 1);
#pragma unroll
        for (int i = 0; i < dX.size; i++) dX[i] = own * dp[i];
        for (int first = 0; first <= args.count; first += BATCH) {
            float dot[BATCH];
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                dot[b] = 0.0f;
                int t = first + b;
                if (t > args.count) continue;
                Row other = dp;
                if (t < args.count) {
                    other = lane.load(args.terms[t].rows);
                    float alpha = *args.terms[t].alpha;
#pragma unroll
                    for (int i = 0; i < dX.size; i++) dX[i] += alpha * other[i];
                }
#pragma unroll
                for (int i = 0; i < dX.size; i++) dot[b] += other[i] * X[i];
            }
            lane.sum(dot);
            if (writes)
#pragma unroll
                for (int b = 0; b < BATCH; b++)
                    if (first + b <= args.count) dots[first + b] = dot[b];
        }
        if (args.dy != nullptr) lane.store(args.dy, dy);
        dx = dv = dX;
    }
};

struct SumShared {
    float scratch[WARP];
};

// *dalpha of term t += SUM_n dots (N,count)[n][t]; one block per term, a fixed order.
__global__ void __launch_bounds__(256) dwa_sum_kernel(const Term* terms, const float* dots, int64_t N, int count) {
    float* target = terms[blockIdx.x].dalpha;
    if (target == nullptr) return;
    float sum = 0.0f;
    for (int64_t n = threadIdx.x; n < N; n += blockDim.x) sum += dots[n * count + blockIdx.x];
    sum = block_sum(sum, shared_as<SumShared>().scratch);
    if (threadIdx.x == 0) *target += sum;
}

class DwaRule : public StreamRule {
  public:
    DwaRule(const RuleShape& shape, RuleOptions& options) : StreamRule(shape) {
        const bool decay = options.flag("decay_alpha", false);
        dilation_ = options.integer("dilation", 1, 1, 1 << 20);
        period_ = options.integer("period", 1, 1, 1 << 20);
        alpha_index_.assign(static_cast<size_t>(shape.L) + 1, -1);
        for (int i = 1; i <= shape.L; i++) {
            if (!mixes(i)) continue;
            RuleParameter alpha{
                "dwa_alpha", Place::layer, i, {i + 1}, std::vector<float>(static_cast<size_t>(i) + 1, 0.0f)};
            alpha.initial.back() = 1.0f;
            alpha.decays = decay;
            alpha_index_[static_cast<size_t>(i)] = add(alpha);
        }
    }
    void plan(Planner& planner) override {
        StreamRule::plan(planner);
        const int64_t L = shape_.L;
        X_.assign(static_cast<size_t>(L) + 1, nullptr);
        want_seams(planner, "sources", shape_.N * shape_.C, X_, true, 1,
                   [](int l) { return l > 0; });  // inference reads them too
        planner.want("sources", 2 * (L + 1) * (L + 1), terms_);
        if (shape_.training) planner.want("backward", shape_.N * (L + 1), dots_);
    }
    void ready(cudaStream_t stream) override {
        X_[0] = x_[0];
        std::vector<Term> table(static_cast<size_t>(2 * (shape_.L + 1) * (shape_.L + 1)));
        for (int l = 0; l <= shape_.L; l++) {
            Term* forward = table.data() + row(l, false);
            for (int j = 0; j < l && mixes(l); j++)
                if (takes_part(l, j)) *forward++ = {X_[static_cast<size_t>(j)], alpha(l, j), nullptr};
            Term* backward = table.data() + row(l, true);
            for (int i = l + 1; i <= shape_.L; i++)
                if (mixes(i) && takes_part(i, l))
                    *backward++ = {x_[static_cast<size_t>(2 * i)], alpha(i, l), dalpha(i, l)};
            if (l > 0 && mixes(l)) backward->dalpha = dalpha(l, l);  // its own, behind the others
        }
        CUDA_CHECK(cudaMemcpyAsync(terms_, table.data(), table.size() * sizeof(Term), cudaMemcpyHostToDevice, stream));
        CUDA_CHECK(cudaStreamSynchronize(stream));
    }
    void backward(const Pass& pass, int s) override {
        if (s > 0) return StreamRule::backward(pass, s);
        SeamBackward seam = backward_seam(0);  // x_0 is a source as well
        seam.first = false;
        seam.du = nullptr;
        seam.post = {};
        seam_backward(seam, seam_shape(pass, 0), pass, 0);
        entry_stage_.backward(shape_, post_norms[0], entry_, dx_, nullptr, nullptr, pass);
    }

  protected:
    bool mixes(int i) const { return i % period_ == 0; }
    bool takes_part(int i, int j) const { return (i - j) % dilation_ == 0; }
    int64_t row(int l, bool backward) const {
        return ((backward ? shape_.L + 1 : 0) + l) * static_cast<int64_t>(shape_.L + 1);
    }
    const float* alpha(int i, int j) const { return value(alpha_index_[static_cast<size_t>(i)]) + j; }
    float* dalpha(int i, int j) const {
        float* all = grad(alpha_index_[static_cast<size_t>(i)]);
        return all ? all + j : nullptr;
    }
    int count(int l, bool backward) const {
        int n = 0;
        if (backward) {
            for (int i = l + 1; i <= shape_.L; i++) n += mixes(i) && takes_part(i, l);
        } else {
            for (int j = 0; j < l && mixes(l); j++) n += takes_part(l, j);
        }
        return n;
    }
    Dwa::Args args(int s, bool backward) const {
        const int l = s / 2;
        const bool mixed = l > 0 && mixes(l);
        return {X_[static_cast<size_t>(l)],
                mixed ? alpha(l, l) : nullptr,
                terms_ + row(l, backward),
                count(l, backward),
                mixed ? x_[static_cast<size_t>(s)] : nullptr,
                dots_};
    }
    void seam_forward(const SeamForward& seam, const SeamShape& shape, const Pass& pass, int s) override {
        if (s % 2 == 1) return StreamRule::seam_forward(seam, shape, pass, s);
        ::seam_forward<Dwa>(seam, shape, args(s, false), pass.stream);
    }
    void seam_backward(SeamBackward& seam, const SeamShape& shape, const Pass& pass, int s) override {
        if (s % 2 == 1) return StreamRule::seam_backward(seam, shape, pass, s);
        const Dwa::Args a = args(s, true);
        ::seam_backward<Dwa>(seam, shape, a, {}, pass.scratch, pass.stream);
        MOVES("dwa_sum", {reads(dots_, pass.N * (a.count + (a.own_alpha != nullptr)))});
        launch(dwa_sum_kernel, a.count + 1, 256, sizeof(SumShared), pass.stream, a.terms, dots_, pass.N, a.count + 1);
    }
    int dilation_, period_;
    std::vector<int> alpha_index_;  // (L+1) parameter of layer i, or -1
    std::vector<floatX*> X_;        // (L+1) of (N,C)
    Term* terms_ = nullptr;         // (2, L+1, L+1) device: by layer, forward and backward
    float* dots_ = nullptr;         // (N,L+1)
    X0 entry_stage_{false};
};

}  // namespace

extern const RuleEntry dwa_rule = {"dwa", "DenseFormer: each layer's output averaged with all earlier ones",
                                   PRE_SCHEMES, make_rule<DwaRule>};
