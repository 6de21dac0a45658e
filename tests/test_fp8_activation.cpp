// The fused kernels of kernels/fp8_activation.cuh against the passes that they replace, byte for byte.
#include "kernels/fp8_activation.cuh"

#include <limits>

#include "kernels/swiglu.cuh"
#include "test_fp8.h"

namespace {

constexpr float SCALE = 16.0f, DSCALE = 512.0f;
const std::vector<Activation> ACTIVATIONS = {Activation::gelu_new, Activation::gelu, Activation::swiglu};
size_t parts(Activation act) {
    return act == Activation::swiglu ? 2 : 1;
}

// The same tensors by unfused and fused kernels. 16 elements more than there are: nothing behind the end is written.
struct Passes {
    const Activation act;
    const int N, F, H;
    const size_t n, nh;  // elements of act and of pre
    Device<e4m3> out{n + 16}, act_t{n + 16};
    Device<e5m2> dpre{nh + 16}, dpre_t{nh + 16};
    Scaling scaling{SCALE}, dscaling{DSCALE};

    Passes(Activation a, int rows, int width)
        : act(a), N(rows), F(width), H(static_cast<int>(parts(a)) * width), n(area(N, F)), nh(area(N, H)) {
        out.poison();
        act_t.poison();
        dpre.poison();
        dpre_t.poison();
    }

    // Returns dpre in floatX.
    std::vector<floatX> unfused(const Device<floatX>& dact, const Device<floatX>& pre) {
        Device<floatX> value(n), dvalue(nh);
        if (act == Activation::swiglu) {
            swiglu_forward(value.data, pre.data, N, F, nullptr);
            swiglu_backward(dvalue.data, dact.data, pre.data, N, F, nullptr);
        } else {
            activation_forward(value.data, pre.data, act, static_cast<int64_t>(n), nullptr);
            activation_backward(dvalue.data, dact.data, pre.data, act, static_cast<int64_t>(n), nullptr);
        }
        fp8_quantize(out.data, act_t.data, value.data, scaling.scales[0], N, F, nullptr);
        fp8_quantize(dpre.data, dpre_t.data, dvalue.data, dscaling.scales[0], N, H, nullptr);
        return dvalue.read();
    }
    void backward(float* dbias, const Device<floatX>& dact, const Device<floatX>& pre, float* scratch,
                  bool accumulate) {
        fp8_activation_backward(dpre.data, dpre_t.data, act_t.data, dbias, dact.data, pre.data, act,
                                dscaling.scales[0], scaling.scales[0], scratch, N, F, accumulate, nullptr);
    }
    void check_forward(const Passes& want) const {
        CHECK((codes(out, n + 16) == codes(want.out, n + 16)));
        CHECK(scaling.amax() == want.scaling.amax());
    }
    void check_backward(const Passes& want) const {
        CHECK((codes(dpre, nh + 16) == codes(want.dpre, nh + 16)));
        CHECK((codes(dpre_t, nh + 16) == codes(want.dpre_t, nh + 16)));
        CHECK((codes(act_t, n + 16) == codes(want.act_t, n + 16)));
        CHECK(dscaling.amax() == want.dscaling.amax());
        CHECK(scaling.amax() == want.scaling.amax());
    }
};

struct Shape {
    int N, F;
};
const Shape SHAPES[] = {{16, 16}, {16, 400}, {400, 16}, {128, 128}, {144, 112}, {2064, 48}, {272, 1136}};

// Of every size that fp8 has, and some it has not.
std::vector<floatX> values(Random& random, size_t n, int exponent) {
    std::vector<floatX> x = random.normals<floatX>(n, 1.0, 0.3);
    for (floatX& v : x) v = from_float<floatX>(to_float(v) * std::exp2(exponent - random.below(12)));
    return x;
}

}  // namespace

TEST_CASE("fp8 activations are those of the passes apart", "[fp8]") {
    for (Activation act : ACTIVATIONS) {
        for (auto [N, F] : SHAPES) {
            CAPTURE(static_cast<int>(act), N, F);
            Random random(static_cast<uint64_t>(N + F));
            Passes want(act, N, F), forward(act, N, F);
            Device<floatX> dact(values(random, want.n, 2)), pre(values(random, want.nh, 3));
            const std::vector<floatX> dpre = want.unfused(dact, pre);
            fp8_activation_forward(forward.out.data, pre.data, act, forward.scaling.scales[0], N, F, nullptr);
            forward.check_forward(want);

            Passes without(act, N, F);
            without.backward(nullptr, dact, pre, nullptr, false);
            without.check_backward(want);

            const std::vector<float> zeros(static_cast<size_t>(want.H)), some = random.normals<float>(zeros.size());
            Device<float> scratch(fp8_bias_scratch_bytes(N, want.H) / sizeof(float));
            for (bool accumulate : {false, true}) {
                CAPTURE(accumulate);
                std::vector<float> first;
                for (int run = 0; run < 2; run++) {
                    Passes backward(act, N, F);
                    Device<float> dbias(some);
                    scratch.poison();
                    backward.backward(dbias.data, dact, pre, scratch.data, accumulate);
                    backward.check_backward(want);
                    check_column_sums(dbias, dpre, N, want.H, 1.0, accumulate ? some : zeros);
                    if (run == 0) first = dbias.read();
                    CHECK(dbias.read() == first);
                }
            }
        }
    }
}

TEST_CASE("fp8 activations: what is not finite shows", "[fp8]") {
    const int N = 32, F = 48;
    const float infinity = std::numeric_limits<float>::infinity();
    for (Activation act : ACTIVATIONS) {
        CAPTURE(static_cast<int>(act));
        Passes want(act, N, F), got(act, N, F);
        std::vector<floatX> dact(want.n, from_float<floatX>(1.0f)), pre(want.nh, from_float<floatX>(1.0f));
        const size_t H = static_cast<size_t>(want.H);
        dact[5] = from_float<floatX>(infinity);  // row 0
        dact[6] = from_float<floatX>(NAN);
        pre[H + 7] = from_float<floatX>(infinity);  // row 1
        pre[H + 8] = from_float<floatX>(NAN);
        Device<floatX> x(pre), d(dact);
        const std::vector<floatX> dpre = want.unfused(d, x);
        fp8_activation_forward(got.out.data, x.data, act, got.scaling.scales[0], N, F, nullptr);
        got.check_forward(want);
        Device<float> dbias(H), scratch(fp8_bias_scratch_bytes(N, want.H) / sizeof(float));
        got.backward(dbias.data, d, x, scratch.data, false);
        got.check_backward(want);
        check_column_sums(dbias, dpre, N, want.H, 1.0, std::vector<float>(H));
        const std::vector<int> out = codes(got.out, got.n), act_t = codes(got.act_t, got.n);
        const std::vector<int> rows = codes(got.dpre, got.nh), columns = codes(got.dpre_t, got.nh);
        for (size_t f : {7u, 8u}) {
            CHECK(out[static_cast<size_t>(F) + f] == 0x7f);
            CHECK(act_t[f * static_cast<size_t>(N) + 1] == 0x7f);
        }
        for (size_t h = 5; h < H; h += static_cast<size_t>(F)) {
            for (size_t column : {h, h + 1}) {
                CHECK(rows[column] == 0x7f);
                CHECK(columns[column * static_cast<size_t>(N)] == 0x7f);
                CHECK(!std::isfinite(dbias.read()[column]));
            }
        }
        CHECK(got.scaling.amax() == infinity);
        CHECK(got.dscaling.amax() == infinity);
    }
}
