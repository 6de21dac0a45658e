// Attention of one new query over a cache against float64, at awkward shapes, and the cache's layout.
//
// Tolerances as in test_attention.cpp: inputs are exact on both sides. fp32: a few times 1e-6 of the norm, from sums of
// random sign and the rounding of scores that exp magnifies. bf16: here P stays in fp32, so there is one rounding more,
// of the output: at most u = 2^-8 of an element, u/sqrt(3) or less of the norm.
#include "test.h"

#include <algorithm>
#include <cstring>

#include "kernels/attention_decode.cuh"

namespace {

struct Shape {
    int B, length, NH, NKV, HS;
    size_t width() const { return static_cast<size_t>((NH + 2 * NKV) * HS); }
};

// The new token is the last of qkv (B,length,width).
std::vector<double> reference(const Shape& s, const std::vector<double>& qkv) {
    const size_t T = static_cast<size_t>(s.length), HS = static_cast<size_t>(s.HS), NH = static_cast<size_t>(s.NH);
    std::vector<double> out, p(T);
    for (size_t b = 0; b < static_cast<size_t>(s.B); b++)
        for (size_t h = 0; h < NH; h++) {
            const size_t kv = h / static_cast<size_t>(s.NH / s.NKV);
            auto row = [&](size_t t, size_t head) { return qkv.data() + (b * T + t) * s.width() + head * HS; };
            double maximum = -INFINITY, sum = 0;
            for (size_t k = 0; k < T; k++) {
                p[k] = 0;
                for (size_t d = 0; d < HS; d++) p[k] += row(T - 1, h)[d] * row(k, NH + kv)[d] / std::sqrt(s.HS);
                maximum = std::max(maximum, p[k]);
            }
            for (size_t k = 0; k < T; k++) sum += p[k] = std::exp(p[k] - maximum);
            for (size_t d = 0; d < HS; d++) {
                double o = 0;
                for (size_t k = 0; k < T; k++)
                    o += p[k] / sum * row(k, NH + static_cast<size_t>(s.NKV) + kv)[d];
                out.push_back(o);
            }
        }
    return out;
}

// Token t of every sequence of qkv (B,length,width).
std::vector<floatX> tokens_at(const Shape& s, const std::vector<floatX>& qkv, int first, int count) {
    std::vector<floatX> out;
    for (int b = 0; b < s.B; b++) {
        const auto from = qkv.begin() + static_cast<int64_t>(b * s.length + first) * static_cast<int64_t>(s.width());
        out.insert(out.end(), from, from + count * static_cast<int64_t>(s.width()));
    }
    return out;
}

// All but the last token go into the cache in one piece, the last one behind them.
std::vector<floatX> run(const Shape& s, const std::vector<floatX>& qkv, int spare = 3) {
    const int capacity = s.length + spare;
    Device<floatX> cache(static_cast<size_t>(attention_cache_count(s.B, s.NKV, capacity, s.HS)));
    Device<floatX> out(static_cast<size_t>(s.B * s.NH * s.HS));
    Device<unsigned char> scratch(attention_decode_scratch_bytes(s.B, s.length, s.NH, s.NKV, s.HS));
    cache.poison();
    out.poison();
    scratch.poison();
    if (s.length > 1) {
        Device<floatX> before(tokens_at(s, qkv, 0, s.length - 1));
        attention_cache_write(cache.data, 0, s.B, 0, capacity, before.data, s.B, s.length - 1, s.NH, s.NKV, s.HS,
                              nullptr);
        CUDA_CHECK(cudaDeviceSynchronize());
    }
    Device<floatX> now(tokens_at(s, qkv, s.length - 1, 1));
    attention_cache_write(cache.data, 0, s.B, s.length - 1, capacity, now.data, s.B, 1, s.NH, s.NKV, s.HS, nullptr);
    attention_decode(out.data, scratch.data, now.data, cache.data, s.B, s.length, capacity, s.NH, s.NKV, s.HS, nullptr);
    return out.read();
}

void compare(const Shape& s, uint64_t seed, double scale = 1.0) {
    CAPTURE(s.B, s.length, s.NH, s.NKV, s.HS, scale);
    Random random(seed);
    const auto qkv = random.normals<floatX>(static_cast<size_t>(s.B * s.length) * s.width(), scale);
    const std::vector<double> want = reference(s, to_double(qkv)), got = to_double(run(s, qkv));
    const double exact = 2e-6 * std::max(1.0, scale * scale), rounded = sizeof(floatX) == 2 ? unit_roundoff : 0;
    double largest = 0;
    for (double x : want) largest = std::max(largest, std::fabs(x));
    CHECK(relative_error(got, want) <= exact + 0.75 * rounded);
    CHECK(worst_error(got, want, 2 * exact * largest, exact + rounded) <= 1.0);
}

}  // namespace

TEST_CASE("attention over a cache: lengths around the splits", "[attention]") {
    uint64_t seed = 1;
    for (int length : {1, 2, 17, 31, 64, 65, 127, 128, 129, 300}) {
        compare({2, length, 2, 2, 64}, seed++);
        compare({1, length, 4, 2, 16}, seed++);
    }
    compare({1, 1000, 2, 1, 64}, seed++);
    compare({3, 1000, 2, 2, 8}, seed++);
}

TEST_CASE("attention over a cache: head sizes and groups", "[attention]") {
    uint64_t seed = 100;
    for (int HS : {8, 16, 24, 40, 64, 80, 104, 128, 256}) {
        compare({1, 37, 2, 2, HS}, seed++);
        compare({2, 150, 3, 1, HS}, seed++);
    }
    for (int group : {2, 4, 5, 8, 9, 12}) compare({2, 70, 2 * group, 2, 32}, seed++);
}

TEST_CASE("attention over a cache: large scores stay finite and right", "[attention]") {
    compare({1, 200, 2, 1, 64}, 200, 3.0);
    compare({2, 300, 2, 2, 32}, 201, 2.5);
}

TEST_CASE("attention over a cache: a sequence gets the same bits alone and among others", "[attention]") {
    for (const Shape& s : {Shape{3, 200, 4, 2, 64}, Shape{3, 20, 2, 2, 24}}) {
        Random random(300);
        const auto qkv = random.normals<floatX>(static_cast<size_t>(s.B * s.length) * s.width());
        const std::vector<floatX> together = run(s, qkv), again = run(s, qkv, 50);  // another capacity, the same bits
        CHECK(memcmp(together.data(), again.data(), again.size() * sizeof(floatX)) == 0);
        const size_t row = static_cast<size_t>(s.length) * s.width(), out = static_cast<size_t>(s.NH * s.HS);
        for (size_t b = 0; b < 3; b++) {
            const auto from = qkv.begin() + static_cast<int64_t>(b * row);
            const std::vector<floatX> alone =
                run({1, s.length, s.NH, s.NKV, s.HS}, {from, from + static_cast<int64_t>(row)});
            CHECK(memcmp(alone.data(), together.data() + b * out, out * sizeof(floatX)) == 0);
        }
    }
}

TEST_CASE("attention's cache: every key and value lands in its place, and nothing else is touched", "[attention]") {
    const int NH = 3, NKV = 3, HS = 2 * PackX::size, capacity = 7, rows = 4;
    const floatX untouched = from_float<floatX>(-1.0f);
    auto check = [&](int first, int count, int position, int B, int T) {
        CAPTURE(first, count, position, B, T);
        std::vector<floatX> qkv(static_cast<size_t>(B * T * (NH + 2 * NKV) * HS));
        for (size_t i = 0; i < qkv.size(); i++) qkv[i] = from_float<floatX>(static_cast<float>(i % 251));
        const size_t size = static_cast<size_t>(attention_cache_count(rows, NKV, capacity, HS));
        Device<floatX> cache(std::vector<floatX>(size, untouched)), from(qkv);
        attention_cache_write(cache.data, first, count, position, capacity, from.data, B, T, NH, NKV, HS, nullptr);
        std::vector<floatX> want(size, untouched);
        for (int r = 0; r < count; r++)
            for (int t = 0; t < T; t++)
                for (int which = 0; which < 2; which++)
                    for (int h = 0; h < NKV; h++)
                        for (int d = 0; d < HS; d++)
                            want[static_cast<size_t>(
                                ((((first + r) * NKV + h) * capacity + position + t) * 2 + which) * HS + d)] =
                                qkv[static_cast<size_t>(
                                    (((B == 1 ? 0 : r) * T + t) * (NH + 2 * NKV) + NH + which * NKV + h) * HS + d)];
        CHECK(to_double(cache.read()) == to_double(want));
    };
    check(0, 4, 0, 1, 7);
    check(2, 1, 0, 1, 3);
    check(0, 4, 5, 4, 1);
    check(1, 2, 3, 2, 2);
}
