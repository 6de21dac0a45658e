// GELU in both forms and their derivatives against float64.
#include "kernels/activation.cuh"

#include "test.h"

namespace {

double value(Activation act, double h) {
    if (act == Activation::gelu_new) return 0.5 * h * (1 + std::tanh(0.7978845608028654 * (h + 0.044715 * h * h * h)));
    return 0.5 * h * std::erfc(-h * 0.7071067811865476);
}
double derivative(Activation act, double h) {
    if (act == Activation::gelu_new) {
        const double t = std::tanh(0.7978845608028654 * (h + 0.044715 * h * h * h));
        return 0.5 * (1 + t) + 0.5 * h * (1 - t * t) * 0.7978845608028654 * (1 + 3 * 0.044715 * h * h);
    }
    return 0.5 * std::erfc(-h * 0.7071067811865476) + h * 0.3989422804014327 * std::exp(-0.5 * h * h);
}

// Normal numbers, wide enough to reach both tails, and the special points.
std::vector<floatX> arguments(size_t n) {
    Random random(n);
    std::vector<floatX> out = random.normals<floatX>(n, 3);
    const float special[] = {0.0f, -0.0f, 1e-6f, -1e-6f, 12.0f, -12.0f, 40.0f, -40.0f, 1000.0f, -1000.0f};
    for (size_t i = 0; i < n && i < 10; i++) out[n - 1 - i] = from_float<floatX>(special[i]);
    return out;
}

// The formulas lose a few roundings of fp32: in the exponent 2u (|u| up to about 10 where it matters, so 10 units
// relative to the tail, whose values are small), the exponential, a division. Then one rounding to floatX.
constexpr double ATOL = 16 * 0x1p-24, RTOL = unit_roundoff + 8 * 0x1p-24;

}  // namespace

TEST_CASE("activation forward", "[activation]") {
    for (Activation act : {Activation::gelu_new, Activation::gelu}) {
        for (int n : {8, 24, 1128, 16 * 256, 16 * 256 * 3 + 8, 199 * 760}) {
            CAPTURE(static_cast<int>(act), n);
            const std::vector<floatX> pre = arguments(static_cast<size_t>(n));
            Device<floatX> h(pre), out(static_cast<size_t>(n) + 8);
            out.poison();
            activation_forward(out.data, h.data, act, n, nullptr);
            std::vector<double> want, got = to_double(out.read());
            for (size_t i = 0; i < 8; i++)
                CHECK(std::isnan(got[static_cast<size_t>(n) + i]));  // nothing behind the end
            got.resize(static_cast<size_t>(n));
            for (floatX x : pre) want.push_back(value(act, to_float(x)));
            CHECK(worst_error(got, want, ATOL, RTOL) <= 1);
        }
    }
}

TEST_CASE("activation backward, also in place", "[activation]") {
    for (Activation act : {Activation::gelu_new, Activation::gelu}) {
        for (int n : {8, 1128, 16 * 256 * 3 + 8, 199 * 760}) {
            for (bool in_place : {false, true}) {
                CAPTURE(static_cast<int>(act), n, in_place);
                Random random(static_cast<uint64_t>(n));
                const std::vector<floatX> pre = arguments(static_cast<size_t>(n)),
                                          dout = random.normals<floatX>(static_cast<size_t>(n));
                Device<floatX> h(pre), d(dout), dpre(static_cast<size_t>(n));
                dpre.poison();
                activation_backward(in_place ? d.data : dpre.data, d.data, h.data, act, n, nullptr);
                std::vector<double> want;
                for (size_t i = 0; i < pre.size(); i++)
                    want.push_back(to_float(dout[i]) * derivative(act, to_float(pre[i])));
                // dout is of size 1, up to 5.
                CHECK(worst_error(to_double((in_place ? d : dpre).read()), want, 5 * ATOL, RTOL) <= 1);
                if (!in_place) CHECK(to_double(d.read()) == to_double(dout));
            }
        }
    }
}

TEST_CASE("activation derivatives are those of the functions", "[activation]") {
    // The reference itself against central differences: a wrong formula copied twice would pass the tests above.
    for (Activation act : {Activation::gelu_new, Activation::gelu}) {
        for (double h = -6; h <= 6; h += 0.37) {
            const double difference = (value(act, h + 1e-5) - value(act, h - 1e-5)) / 2e-5;
            CHECK(std::fabs(difference - derivative(act, h)) < 1e-8);
        }
    }
    CHECK(value(Activation::gelu_new, 1.0) == Approx(0.8411919906));  // of the published definition
    CHECK(value(Activation::gelu, 1.0) == Approx(0.8413447461));
}
