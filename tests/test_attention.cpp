// Attention forward and backward against float64, at awkward shapes.
//
// Tolerances. Inputs are exact on both sides (the reference starts from the rounded values), so errors come from the
// kernels alone. fp32: sums of up to T*HS products, each rounded with u = 2^-24; sums of n terms of random sign err
// by about sqrt(n)*u relative to their typical size, and exp turns an absolute error of a score (|s| <= 30 here) into a
// relative one: a few times 1e-6 of the norm, ten times that for a single gradient element. bf16 (u = 2^-8): P and dS
// are rounded once on their way into the second product, and O, dQ, dK, dV once on their way out; delta is made from
// the rounded O. Each is a relative error of at most u, about u/3 on average, with random signs: 0.75 u of the norm for
// O, and 2.5 u for gradients, where dS = P (dP - delta) cancels (most at T = 2, where nothing averages). A single
// element may be off by its own rounding plus a few u of the array's largest.
#include "test_sm90.h"

#include <algorithm>
#include <cstring>

#include "kernels/attention.cuh"

namespace {

constexpr bool BF16 = sizeof(floatX) == 2;

struct Shape {
    int B, T, NH, NKV, HS;
};

struct Reference {
    std::vector<double> out, lse, dqkv;
};

// Straight from the definition, a row of scores at a time.
Reference reference(const Shape& s, const std::vector<double>& qkv, const std::vector<double>& dout) {
    const size_t T = static_cast<size_t>(s.T), HS = static_cast<size_t>(s.HS);
    const size_t NH = static_cast<size_t>(s.NH), NKV = static_cast<size_t>(s.NKV), B = static_cast<size_t>(s.B);
    const size_t row = (NH + 2 * NKV) * HS;
    const double scale = 1.0 / std::sqrt(static_cast<double>(s.HS));
    Reference r{std::vector<double>(B * T * NH * HS), std::vector<double>(B * NH * T), std::vector<double>(qkv.size())};
    std::vector<double> p(T), dp(T);
    for (size_t b = 0; b < B; b++) {
        for (size_t h = 0; h < NH; h++) {
            const size_t kv = h / (NH / NKV);
            auto query = [&](size_t t) { return (b * T + t) * row + h * HS; };
            auto key = [&](size_t t) { return (b * T + t) * row + (NH + kv) * HS; };
            auto value = [&](size_t t) { return (b * T + t) * row + (NH + NKV + kv) * HS; };
            for (size_t q = 0; q < T; q++) {
                double maximum = -INFINITY, sum = 0;
                for (size_t k = 0; k <= q; k++) {
                    p[k] = 0;
                    for (size_t d = 0; d < HS; d++) p[k] += scale * qkv[query(q) + d] * qkv[key(k) + d];
                    maximum = std::max(maximum, p[k]);
                }
                for (size_t k = 0; k <= q; k++) sum += p[k] = std::exp(p[k] - maximum);
                r.lse[(b * NH + h) * T + q] = maximum + std::log(sum);
                const size_t o = ((b * T + q) * NH + h) * HS;
                double delta = 0;
                for (size_t k = 0; k <= q; k++) {
                    p[k] /= sum;
                    dp[k] = 0;
                    for (size_t d = 0; d < HS; d++) {
                        r.out[o + d] += p[k] * qkv[value(k) + d];
                        dp[k] += dout[o + d] * qkv[value(k) + d];
                    }
                    delta += p[k] * dp[k];
                }
                for (size_t k = 0; k <= q; k++) {
                    const double ds = scale * p[k] * (dp[k] - delta);
                    for (size_t d = 0; d < HS; d++) {
                        r.dqkv[query(q) + d] += ds * qkv[key(k) + d];
                        r.dqkv[key(k) + d] += ds * qkv[query(q) + d];
                        r.dqkv[value(k) + d] += p[k] * dout[o + d];
                    }
                }
            }
        }
    }
    return r;
}

// The channels of dqkv (rows,(NH+2*NKV)*HS) from head `first`, `heads` of them.
std::vector<double> heads_of(const std::vector<double>& dqkv, const Shape& s, int first, int heads) {
    const size_t row = static_cast<size_t>((s.NH + 2 * s.NKV) * s.HS);
    const size_t begin = static_cast<size_t>(first * s.HS), width = static_cast<size_t>(heads * s.HS);
    std::vector<double> part;
    for (size_t n = 0; n < dqkv.size(); n += row)
        part.insert(part.end(), dqkv.begin() + static_cast<long>(n + begin),
                    dqkv.begin() + static_cast<long>(n + begin + width));
    return part;
}

double largest(const std::vector<double>& v) {
    double most = 0;
    for (double x : v) most = std::max(most, std::fabs(x));
    return most;
}

struct Run {
    std::vector<floatX> out, dqkv;
    std::vector<float> lse;
};

Run run(const Shape& s, const std::vector<floatX>& qkv, const std::vector<floatX>& dout) {
    Device<floatX> qkv_d(qkv), dout_d(dout), out(dout.size()), dqkv(qkv.size());
    Device<float> lse(static_cast<size_t>(s.B * s.NH * s.T));
    Device<unsigned char> scratch(attention_scratch_bytes(s.B, s.T, s.NH, s.NKV, s.HS));
    out.poison();
    dqkv.poison();
    lse.poison();
    scratch.poison();
    attention_forward(out.data, lse.data, qkv_d.data, s.B, s.T, s.NH, s.NKV, s.HS, nullptr);
    attention_backward(dqkv.data, scratch.data, dout_d.data, qkv_d.data, out.data, lse.data, s.B, s.T, s.NH, s.NKV,
                       s.HS, nullptr);
    return {out.read(), dqkv.read(), lse.read()};
}

void check(const char* name, const std::vector<double>& got, const std::vector<double>& want, double norm, double atol,
           double rtol) {
    INFO(name);
    CHECK(relative_error(got, want) <= norm);
    CHECK(worst_error(got, want, atol * largest(want), rtol) <= 1.0);
}

void compare(const Shape& s, double scale, uint64_t seed) {
    CAPTURE(s.B, s.T, s.NH, s.NKV, s.HS, scale);
    Random random(seed);
    const size_t N = static_cast<size_t>(s.B * s.T);
    const std::vector<floatX> qkv = random.normals<floatX>(N * static_cast<size_t>((s.NH + 2 * s.NKV) * s.HS), scale);
    const std::vector<floatX> dout = random.normals<floatX>(N * static_cast<size_t>(s.NH * s.HS));
    const Reference want = reference(s, to_double(qkv), to_double(dout));
    const Run got = run(s, qkv, dout);
    const double u = unit_roundoff;
    // Scores grow with the square of the inputs, and with them the rounding that exp magnifies.
    const double grow = std::max(1.0, scale * scale);
    const double exact = 2e-6 * grow;
    check("lse", to_double(got.lse), want.lse, exact, exact, exact);
    check("out", to_double(got.out), want.out, BF16 ? 0.75 * u : exact, BF16 ? u : 2 * exact, BF16 ? u : 2 * exact);
    const std::vector<double> dqkv = to_double(got.dqkv);
    const double norm = BF16 ? 2.5 * u * grow : 2 * exact, worst = BF16 ? 3 * u * grow : 10 * exact;
    const struct {
        const char* name;
        int first, heads;
    } parts[] = {{"dq", 0, s.NH}, {"dk", s.NH, s.NKV}, {"dv", s.NH + s.NKV, s.NKV}};
    for (const auto& part : parts) {
        // With one key, P = 1 and dS = 0: then dQ and dK are rounding of delta, small beside dV, not beside themselves.
        std::vector<double> mine = heads_of(dqkv, s, part.first, part.heads);
        const std::vector<double> right = heads_of(want.dqkv, s, part.first, part.heads);
        if (s.T == 1 && part.first < s.NH + s.NKV) {
            CHECK(largest(right) < 1e-12);
            for (double& x : mine) CHECK(std::fabs(x) <= (BF16 ? 8 * u : 1e-5) * scale * scale * s.HS);
            continue;
        }
        check(part.name, mine, right, norm, worst, BF16 ? u : worst);
    }
}

}  // namespace

TEST_CASE("attention: every length class, head sizes 32 and 64", "[attention]") {
    const int lengths[] = {1, 2, 5, 17, 63, 64, 65, 127, 130, 199};
    uint64_t seed = 1;
    for (int T : lengths) {
        compare({2, T, 2, 2, 64}, 1.0, seed++);
        compare({1, T, 4, 2, 32}, 1.0, seed++);
    }
}

TEST_CASE("attention: every head size class", "[attention]") {
    uint64_t seed = 100;
    if (!BF16) compare({2, 37, 2, 1, 4}, 1.0, seed++);
    for (int HS : {8, 16, 24, 40, 80, 96, 104, 128, 192, 256}) {
        compare({1, 70, 3, 1, HS}, 1.0, seed++);
        compare({1, 33, 2, 2, HS}, 1.0, seed++);
    }
}

TEST_CASE("attention: lengths across the tiles of the larger heads", "[attention]") {
    compare({1, 199, 1, 1, 128}, 1.0, 200);
    compare({1, 150, 2, 1, 256}, 1.0, 201);
    compare({1, 161, 1, 1, 96}, 1.0, 202);
}

TEST_CASE("attention: many heads on few keys, several batch rows", "[attention]") {
    compare({3, 50, 6, 3, 16}, 1.0, 300);
    compare({2, 129, 6, 1, 32}, 1.0, 301);
    compare({3, 64, 4, 4, 32}, 1.0, 302);
    compare({1, 260, 1, 1, 64}, 1.0, 303);  // few heads and several tiles: dQ comes from a kernel of its own
    compare({1, 140, 2, 1, 128}, 1.0, 304);
}

// Inputs of 3 give scores of +-30 and more: their exponentials overflow unless the maximum is taken out first.
TEST_CASE("attention: large scores stay finite and right", "[attention]") {
    compare({1, 100, 2, 2, 64}, 3.0, 400);
    compare({1, 130, 2, 1, 32}, 2.5, 401);
    // One key's score towers above the others, by more than the range of exp.
    const Shape s{1, 66, 1, 1, 64};
    std::vector<floatX> qkv(static_cast<size_t>(s.T * 3 * s.HS), from_float<floatX>(0.0f));
    for (int t = 0; t < s.T; t++) {
        for (int d = 0; d < s.HS; d++) {
            const size_t at = static_cast<size_t>(t * 3 * s.HS + d), HS = static_cast<size_t>(s.HS);
            qkv[at] = from_float<floatX>(16.0f);
            qkv[at + HS] = from_float<floatX>(t == 40 ? 16.0f : -16.0f);
            qkv[at + 2 * HS] = from_float<floatX>(static_cast<float>(t));
        }
    }
    const std::vector<floatX> dout(static_cast<size_t>(s.T * s.HS), from_float<floatX>(1.0f));
    const Run got = run(s, qkv, dout);
    for (int t = 0; t < s.T; t++) {
        const float want = t < 40 ? static_cast<float>(t) / 2 : 40.0f;  // the mean of 0..t, then row 40 alone
        CHECK(to_float(got.out[static_cast<size_t>(t * s.HS)]) ==
              Approx(want).epsilon(BF16 ? 4 * unit_roundoff : 1e-5));
        CHECK(got.lse[static_cast<size_t>(t)] == Approx(t < 40 ? -2048 + std::log(t + 1.0) : 2048.0).epsilon(1e-6));
    }
    for (floatX x : got.dqkv) CHECK(std::isfinite(to_float(x)));
}

static void check_repeats(const std::vector<Shape>& shapes) {
    for (const Shape& s : shapes) {
        Random random(500);
        const size_t N = static_cast<size_t>(s.B * s.T);
        const auto qkv = random.normals<floatX>(N * static_cast<size_t>((s.NH + 2 * s.NKV) * s.HS));
        const auto dout = random.normals<floatX>(N * static_cast<size_t>(s.NH * s.HS));
        const Run a = run(s, qkv, dout), b = run(s, qkv, dout);
        CHECK(memcmp(a.out.data(), b.out.data(), a.out.size() * sizeof(floatX)) == 0);
        CHECK(memcmp(a.dqkv.data(), b.dqkv.data(), a.dqkv.size() * sizeof(floatX)) == 0);
        CHECK(memcmp(a.lse.data(), b.lse.data(), a.lse.size() * sizeof(float)) == 0);
    }
}
TEST_CASE("attention: the same inputs give the same bits", "[attention]") {
    check_repeats({{2, 130, 4, 2, 64}, {1, 200, 1, 1, 32}, {1, 70, 2, 1, 128}});
}

// A later token must not reach an earlier one: changing the last position leaves all others' bits alone.
TEST_CASE("attention: causal to the bit", "[attention]") {
    const Shape s{1, 131, 2, 2, 64};
    Random random(600);
    auto qkv = random.normals<floatX>(static_cast<size_t>(s.T * 3 * s.NH * s.HS));
    const auto dout = random.normals<floatX>(static_cast<size_t>(s.T * s.NH * s.HS));
    const Run a = run(s, qkv, dout);
    for (size_t i = qkv.size() - static_cast<size_t>(3 * s.NH * s.HS); i < qkv.size(); i++)
        qkv[i] = from_float<floatX>(1e4f);
    const Run b = run(s, qkv, dout);
    const size_t before = static_cast<size_t>((s.T - 1) * s.NH * s.HS);
    CHECK(memcmp(a.out.data(), b.out.data(), before * sizeof(floatX)) == 0);
}

// Hopper's kernels, on the CPU machine through the twins of its instructions. Lengths across the tiles (128 keys, 128
// or 192 queries, tails), both head sizes, shared key heads, several batch rows; T from 2048 on takes another tile.
TEST_CASE("attention on Hopper: against float64", "[attention][sm90]") {
    if (!BF16) SKIP_TEST("attention on Hopper: bf16 only");
    if (!has_hopper()) SKIP_TEST(NO_HOPPER);
    attention_choose(AttentionKernels::hopper);
    uint64_t seed = 700;
    for (int T : {1, 2, 63, 64, 65, 127, 128, 129, 200, 257, 300}) compare({1, T, 2, 2, 64}, 1.0, seed++);
    for (int T : {1, 64, 65, 128, 130, 260}) compare({1, T, 2, 1, 128}, 1.0, seed++);
    compare({2, 140, 4, 2, 64}, 1.0, seed++);
    compare({3, 70, 3, 3, 128}, 1.0, seed++);
    compare({2, 150, 6, 1, 64}, 1.0, seed++);
    compare({1, 100, 2, 2, 64}, 3.0, seed++);
    compare({1, 2060, 1, 1, 64}, 1.0, seed++);
    check_repeats({{2, 300, 4, 2, 64}, {1, 260, 2, 2, 128}});
    attention_choose(AttentionKernels::best);
}

// Random shapes, and on a card some with several pieces of work for every block, where barriers, turns and flags go on from
// piece to piece. Both round P and the results to bf16 once: half an ulp of difference each, so twice the tolerance above.
TEST_CASE("attention on Hopper: beside the portable kernels", "[attention][sm90]") {
    if (!BF16) SKIP_TEST("attention on Hopper: bf16 only");
    if (!has_hopper()) SKIP_TEST(NO_HOPPER);
    const bool card = on_gpu();
    std::vector<Shape> shapes;
    Random random(800);
    for (int i = 0; i < (card ? 100 : 6); i++) {
        const int HS = random.below(2) ? 64 : 128, group = 1 + random.below(3), NKV = 1 + random.below(3);
        shapes.push_back({1 + random.below(3), 1 + random.below(card ? 3000 : 300), NKV * group, NKV, HS});
    }
    if (card) shapes.insert(shapes.end(), {{8, 1024, 12, 12, 64}, {4, 2048, 12, 12, 64}, {2, 4096, 16, 4, 128}});
    for (const Shape& s : shapes) {
        CAPTURE(s.B, s.T, s.NH, s.NKV, s.HS);
        const size_t N = static_cast<size_t>(s.B * s.T);
        const auto qkv = random.normals<floatX>(N * static_cast<size_t>((s.NH + 2 * s.NKV) * s.HS));
        const auto dout = random.normals<floatX>(N * static_cast<size_t>(s.NH * s.HS));
        attention_choose(AttentionKernels::portable);
        const Run want = run(s, qkv, dout);
        attention_choose(AttentionKernels::hopper);
        const Run got = run(s, qkv, dout);
        CHECK(relative_error(to_double(got.out), to_double(want.out)) <= 1.5 * unit_roundoff);
        CHECK(relative_error(to_double(got.dqkv), to_double(want.dqkv)) <= 5 * unit_roundoff);
        CHECK(relative_error(to_double(got.lse), to_double(want.lse)) <= 4e-6);
        for (int repeat = 0; card && repeat < 3; repeat++) {
            const Run again = run(s, qkv, dout);
            CHECK(memcmp(again.dqkv.data(), got.dqkv.data(), got.dqkv.size() * sizeof(floatX)) == 0);
        }
    }
    attention_choose(AttentionKernels::best);
}
