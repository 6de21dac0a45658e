// NAME (AUTHORS YEAR, arXiv NUMBER): what it does, in one sentence.
//
//     p = a*x + s_k*v                   dv = s_k*dp,   dx = a*dp,   ds_k = <<dp,v>>
//
//     my_scale  scalar, 1               one per sublayer, no decay
//
// A skeleton to copy: cp dev/rule_template.cu residual/my_rule.cu, put RULE(my_rule) in the list of residual/rules.cpp, and
// make. It works as it stands; put your mathematics in its place. README.md, "Add your own rule", is a worked example.
#include "residual/row_rule.h"

namespace {

// The mathematics, for one token. x is the stream, v the sublayer's output behind N_out and the branch factor; rows are
// fp32 in registers, each thread holding some of the channels. What the members mean: residual/row_kernel.cuh.
struct MyRow : RowFunction {
    struct Args {
        float a;         // the norm scheme's factor of the stream
        const float* s;  // (1) a parameter; of a vector (C): lane.load_channels(args.s)
    };
    static constexpr int scalar_sums = 1;  // parameter gradients that it sums: scalars; channel_sums: vectors (C)
    static constexpr bool reads_v = true;  // backward reads saved.v; reads_p: saved.p, the combined row as it was stored

    template <class Lane, class Row = typename Lane::Row>
    static __device__ __forceinline__ Row combine(const Lane&, const Args& args, const Row& x, const Row& v) {
        const float s = *args.s;
        Row p;
#pragma unroll
        for (int i = 0; i < p.size; i++) p[i] = args.a * x[i] + s * v[i];
        return p;
    }

    template <class Lane, class Saved, class Sums, class Row = typename Lane::Row>
    static __device__ __forceinline__ void backward(const Lane&, const Args& args, const Row& dp, const Saved& saved, Row& dx,
                                                    Row& dv, Sums& sums) {
        const float s = *args.s;
        float ds = 0.0f;  // of this thread's channels; the frame adds up threads and tokens
#pragma unroll
        for (int i = 0; i < dp.size; i++) {
            dx[i] = args.a * dp[i];
            dv[i] = s * dp[i];
            ds += dp[i] * saved.v[i];
        }
        sums.scalar[0] += ds;  // of a vector: sums.add(0, row)
    }
};

class MyRule : public RowRule<MyRow> {
public:
    MyRule(const RuleShape& shape, RuleOptions& options) : RowRule(shape) {
        const double start = options.number("start", 1.0, -10.0, 10.0);  // --residual-opt start=0.5
        for (int k = 1; k <= shape.last(); k++) add({"my_scale", Place::sublayer, k, {1}, {static_cast<float>(start)}});
    }

protected:
    // Parameters have the order in which they were added; gradients that of the functor's sums: vectors, then scalars.
    MyRow::Args args(int s) const override { return {shape_.norms(s).skip, value(s - 1)}; }
    RuleGradients gradients(int s) const override { return {{}, {grad(s - 1)}}; }
};

}  // namespace

extern const RuleEntry my_rule_rule = {"my_rule", "x + s*u: one line for --help", ALL_SCHEMES, make_rule<MyRule>};
