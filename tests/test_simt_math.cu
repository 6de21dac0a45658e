// The inline device mathematics of the CPU machine against double precision. On the GPU the same bounds hold for the
// toolkit's functions (CUDA C++ Programming Guide, mathematical functions appendix), so the test is not skipped there.
#include <cmath>
#include <cstring>
#include <limits>

#include "test.h"

namespace {

enum Function { EXP, EXP2, TANH, LOG, RSQRT };

__global__ void evaluate(float* out, const float* in, int n, Function f) {
    int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) return;
    float x = in[i];
    out[i] = f == EXP ? expf(x) : f == EXP2 ? exp2f(x) : f == TANH ? tanhf(x) : f == LOG ? logf(x) : rsqrtf(x);
}

std::vector<float> on_device(Function f, const std::vector<float>& in) {
    Device<float> x(in), y(in.size());
    y.poison();
    int n = static_cast<int>(in.size());
    launch(evaluate, ceil_div(n, 256), 256, 0, nullptr, y.data, x.data, n, f);
    return y.read();
}

double exact(Function f, double x) {
    switch (f) {
        case EXP:
            return std::exp(x);
        case EXP2:
            return std::exp2(x);
        case TANH:
            return std::tanh(x);
        case LOG:
            return std::log(x);
        case RSQRT:
            return 1 / std::sqrt(x);
    }
    return 0;
}

// The largest error in units in the last place of the exact result.
double worst_ulp(Function f, const std::vector<float>& in) {
    std::vector<float> out = on_device(f, in);
    double worst = 0;
    for (size_t i = 0; i < in.size(); i++) {
        double want = exact(f, static_cast<double>(in[i]));
        if (std::fabs(want) < 0x1p-126 || std::fabs(want) > 3.4e38) continue;  // flushed, or beyond the range
        int exponent = std::ilogb(want);
        double ulp = std::ldexp(1.0, exponent - 23);
        double error = std::fabs(static_cast<double>(out[i]) - want) / ulp;
        if (!(error <= worst)) worst = error;
    }
    return worst;
}

std::vector<float> spread(double low, double high, size_t n) {
    std::vector<float> out(n);
    for (size_t i = 0; i < n; i++)
        out[i] = static_cast<float>(low + (high - low) * static_cast<double>(i) / static_cast<double>(n - 1));
    return out;
}
// Magnitudes from 2^low to 2^high, both signs.
std::vector<float> logarithmic(double low, double high, size_t n, bool negative_too) {
    std::vector<float> out;
    for (float e : spread(low, high, n)) {
        out.push_back(std::exp2(e));
        if (negative_too) out.push_back(-std::exp2(e));
    }
    return out;
}

constexpr size_t MANY = 1 << 20;

}  // namespace

TEST_CASE("expf and exp2f are good to 2 ulp over their whole range", "[simt]") {
    CHECK(worst_ulp(EXP, spread(-87.3, 88.7, MANY)) < 2.0);
    CHECK(worst_ulp(EXP, logarithmic(-30, 6, MANY / 4, true)) < 2.0);
    CHECK(worst_ulp(EXP2, spread(-125.9, 127.99, MANY)) < 2.0);
    CHECK(worst_ulp(EXP2, logarithmic(-30, 6.9, MANY / 4, true)) < 2.0);
}

TEST_CASE("tanhf is good to 2 ulp, logf to 1, rsqrtf to 2", "[simt]") {
    CHECK(worst_ulp(TANH, spread(-10, 10, MANY)) < 2.0);
    CHECK(worst_ulp(TANH, logarithmic(-60, 5, MANY / 4, true)) < 2.0);
    CHECK(worst_ulp(LOG, logarithmic(-126, 127.9, MANY / 2, false)) < 1.0);
    CHECK(worst_ulp(LOG, spread(0.5, 2.0, MANY / 2)) < 1.0);
    CHECK(worst_ulp(RSQRT, logarithmic(-126, 127.9, MANY / 4, false)) < 2.0);
}

TEST_CASE("device mathematics at the ends of the range", "[simt]") {
    float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    auto one = [](Function f, float x) { return on_device(f, {x})[0]; };
    CHECK(one(EXP, -inf) == 0.0f);
    CHECK(one(EXP, -200.0f) == 0.0f);
    CHECK(one(EXP, 89.0f) == inf);
    CHECK(one(EXP, inf) == inf);
    CHECK(one(EXP, 0.0f) == 1.0f);
    CHECK(std::isnan(one(EXP, nan)));
    CHECK(one(EXP2, -inf) == 0.0f);
    CHECK(one(EXP2, -300.0f) == 0.0f);
    CHECK(one(EXP2, 128.0f) == inf);
    CHECK(one(EXP2, 10.0f) == 1024.0f);
    CHECK(std::isnan(one(EXP2, nan)));
    CHECK(one(TANH, inf) == 1.0f);
    CHECK(one(TANH, -inf) == -1.0f);
    CHECK(one(TANH, 30.0f) == 1.0f);
    CHECK(one(TANH, 0.0f) == 0.0f);
    CHECK(std::signbit(one(TANH, -0.0f)));
    CHECK(std::isnan(one(TANH, nan)));
    CHECK(one(LOG, 0.0f) == -inf);
    CHECK(one(LOG, 1.0f) == 0.0f);
    CHECK(one(LOG, inf) == inf);
    CHECK(std::isnan(one(LOG, -1.0f)));
    CHECK(std::isnan(one(LOG, nan)));
}

TEST_CASE("fp32 becomes bf16 by rounding to nearest even", "[simt]") {
    // Every upper half, with lower halves on both sides of the tie and on it.
    for (uint32_t high = 0; high < 0x10000; high++) {
        for (uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
            uint32_t bits = high << 16 | low;
            float x;
            memcpy(&x, &bits, 4);
            __nv_bfloat16 y = __float2bfloat16_rn(x);
            uint16_t got;
            memcpy(&got, &y, 2);
            if (std::isnan(x)) {
                REQUIRE(std::isnan(__bfloat162float(y)));
                continue;
            }
            uint32_t want = high + (low > 0x8000 || (low == 0x8000 && (high & 1)) ? 1 : 0);
            REQUIRE(got == want);
        }
    }
}

TEST_CASE("bf16 pairs keep their order", "[simt]") {
    __nv_bfloat162 pair = __floats2bfloat162_rn(1.5f, -3.0f);
    CHECK(__low2float(pair) == 1.5f);
    CHECK(__high2float(pair) == -3.0f);
    CHECK(__bfloat1622float2(pair).y == -3.0f);
    uint32_t bits;
    memcpy(&bits, &pair, 4);
    CHECK(bits == 0xc0403fc0u);
}
