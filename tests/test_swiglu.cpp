// SwiGLU and its gradient against float64.
#include "kernels/swiglu.cuh"

#include "test.h"

namespace {

double sigma(double g) {
    return 1 / (1 + std::exp(-g));
}
double silu(double g) {
    return g * sigma(g);
}
double silu_derivative(double g) {
    return sigma(g) * (1 + g * sigma(-g));
}

struct Shape {
    int N, F;
};
// One pack to a row, rows that end inside a thread's packs and inside a warp, LLaMA's 2752 (2736 padded).
const Shape SHAPES[] = {{1, 8}, {5, 8}, {3, 24}, {199, 72}, {7, 1408}, {33, 760}, {5, 2752}};

// gate_up (N,2F): gates wide enough for both tails, and special ones in the first row.
std::vector<floatX> inputs(Shape s, Random& random) {
    std::vector<floatX> x = random.normals<floatX>(static_cast<size_t>(s.N) * 2 * s.F);
    const float special[] = {0.0f, -0.0f, 20.0f, -20.0f, 88.0f, -88.0f, 1000.0f, -1000.0f};
    for (int n = 0; n < s.N; n++) {
        for (int f = 0; f < s.F; f++) {
            floatX& gate = x[static_cast<size_t>(n) * 2 * s.F + f];
            gate = n == 0 && f < 8 ? from_float<floatX>(special[f]) : from_float<floatX>(3 * to_float(gate));
        }
    }
    return x;
}

// An exponential, a division and two or three products in fp32: 8 roundings of numbers up to 12 * 5 * 5; the relative
// part is the rounding to floatX.
constexpr double ATOL = 8 * 0x1p-24, RTOL = unit_roundoff + 8 * 0x1p-24;

}  // namespace

TEST_CASE("swiglu forward", "[swiglu]") {
    for (Shape s : SHAPES) {
        CAPTURE(s.N, s.F);
        Random random(static_cast<uint64_t>(s.N * 1000 + s.F));
        const std::vector<floatX> x = inputs(s, random);
        const size_t count = static_cast<size_t>(s.N) * s.F;
        Device<floatX> gate_up(x), act(count + 8);
        act.poison();
        swiglu_forward(act.data, gate_up.data, s.N, s.F, nullptr);
        std::vector<double> want, got = to_double(act.read());
        for (size_t i = 0; i < 8; i++) CHECK(std::isnan(got[count + i]));  // nothing behind the end
        got.resize(count);
        for (int n = 0; n < s.N; n++) {
            const floatX* row = &x[static_cast<size_t>(n) * 2 * s.F];
            for (int f = 0; f < s.F; f++) want.push_back(silu(to_float(row[f])) * to_float(row[s.F + f]));
        }
        CHECK(worst_error(got, want, ATOL, RTOL) <= 1);
    }
}

TEST_CASE("swiglu backward, also in place", "[swiglu]") {
    for (Shape s : SHAPES) {
        for (bool in_place : {false, true}) {
            CAPTURE(s.N, s.F, in_place);
            Random random(static_cast<uint64_t>(s.N * 1000 + s.F + 1));
            const std::vector<floatX> x = inputs(s, random),
                                      dact = random.normals<floatX>(static_cast<size_t>(s.N) * s.F);
            Device<floatX> gate_up(x), d(dact), dgate_up(x.size());
            dgate_up.poison();
            swiglu_backward(in_place ? gate_up.data : dgate_up.data, d.data, gate_up.data, s.N, s.F, nullptr);
            std::vector<double> want(x.size());
            for (int n = 0; n < s.N; n++) {
                for (int f = 0; f < s.F; f++) {
                    const size_t g = static_cast<size_t>(n) * 2 * s.F + f, u = g + s.F;
                    const double da = to_float(dact[static_cast<size_t>(n) * s.F + f]);
                    want[g] = da * to_float(x[u]) * silu_derivative(to_float(x[g]));
                    want[u] = da * silu(to_float(x[g]));
                }
            }
            // silu' is of size 1 and goes through 0: its absolute error counts as often as dact * up is large.
            CHECK(worst_error(to_double((in_place ? gate_up : dgate_up).read()), want, 16 * ATOL, RTOL) <= 1);
            if (!in_place) CHECK(to_double(gate_up.read()) == to_double(x));
            CHECK(to_double(d.read()) == to_double(dact));
        }
    }
}

TEST_CASE("swiglu's derivative is that of the function", "[swiglu]") {
    for (double g = -6; g <= 6; g += 0.37)
        CHECK(std::fabs((silu(g + 1e-5) - silu(g - 1e-5)) / 2e-5 - silu_derivative(g)) < 1e-8);
    CHECK(silu(1.0) == Approx(0.7310585786));
}
