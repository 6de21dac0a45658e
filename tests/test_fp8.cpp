// 8-bit floats: the conversions against PyTorch's (dev/oracle/fp8_vectors.py), and the kernels of kernels/fp8.cuh
// against those conversions, byte for byte.
#include "test_fp8.h"

#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

namespace {

using nlohmann::json;

const json& conversions() {
    static const json all = [] {
        std::ifstream file("tests/golden/fp8/conversions.json");
        return json::parse(file);
    }();
    return all;
}

// See dev/oracle/fp8_vectors.py.
struct Checksum {
    uint64_t sum = 0, place = 0;
    void add(unsigned char code) { sum += (code + 1ull) * ((2 * place++ + 1) * 0x9E3779B97F4A7C15ull); }
};

template <class F>
void check_conversions() {
    const json& golden = conversions()[Format<F>::name];
    INFO(Format<F>::name);
    for (int code = 0; code < 256; code++) {
        INFO("code " << code);
        F x;
        x.__x = static_cast<unsigned char>(code);
        const float value = static_cast<float>(x);
        const uint32_t want = golden["values"][static_cast<size_t>(code)];
        CHECK(bits_of(value) == want);
        const bool nan = std::isnan(value);
        CHECK(std::isnan(to_float(static_cast<__nv_bfloat16>(x))) == nan);
        if (nan) continue;
        CHECK(to_float(static_cast<__nv_bfloat16>(x)) == value);
        // There and back; infinity only without saturation.
        CHECK(__nv_cvt_float_to_fp8(value, __NV_NOSAT, Format<F>::kind) == code);
        if (std::isinf(value)) continue;
        CHECK(F(value).__x == code);
        CHECK(F(from_float<__nv_bfloat16>(value)).__x == code);
    }
    for (auto mode : {__NV_NOSAT, __NV_SATFINITE}) {
        const std::string name = mode == __NV_SATFINITE ? "saturated" : "plain";
        auto code = [&](float x) { return __nv_cvt_float_to_fp8(x, mode, Format<F>::kind); };
        for (size_t i = 0; i < golden["bits"].size(); i++) {
            const float x = float_of(golden["bits"][i]);
            const int want = golden[name][i];
            INFO(name << " " << x);
            CHECK(code(x) == want);
            CHECK(code(-x) == (want | 0x80));
            CHECK(__nv_cvt_float2_to_fp8x2(make_float2(x, 1.0f), mode, Format<F>::kind) == (want | code(1.0f) << 8));
        }
        Checksum every_bf16, random_floats;
        for (unsigned bits = 0; bits < 65536; bits++) {
            __nv_bfloat16_raw raw;
            raw.x = static_cast<unsigned short>(bits);
            every_bf16.add(__nv_cvt_bfloat16raw_to_fp8(raw, mode, Format<F>::kind));
        }
        Random random(8);
        for (int i = 0; i < 1 << 20; i++) random_floats.add(code(float_of(static_cast<uint32_t>(random.bits() >> 32))));
        CHECK(every_bf16.sum == golden[name + "_bf16"].get<uint64_t>());
        CHECK(random_floats.sum == golden[name + "_random"].get<uint64_t>());
    }
}

template <class F>
unsigned char converted(floatX x, float scale) {
    return __nv_cvt_float_to_fp8(to_float(x) * scale, __NV_SATFINITE, Format<F>::kind);
}
struct Shape {
    int R, S;
};
const Shape SHAPES[] = {{16, 16}, {16, 400}, {400, 16}, {128, 128}, {144, 112}, {272, 1136}};

template <class F>
void check_quantize() {
    Random random(3);
    for (auto [R, S] : SHAPES) {
        for (int copies : {1, 2, 3}) {  // rows, transposed, both
            INFO(Format<F>::name << " R=" << R << " S=" << S << " copies=" << copies);
            const float scale = 32.0f;
            const size_t n = area(R, S);
            // From numbers that underflow to some that saturate.
            std::vector<floatX> host = random.normals<floatX>(n);
            for (size_t i = 0; i < n; i++)
                host[i] = from_float<floatX>(to_float(host[i]) * std::exp2(random.below(28) - 17));
            float amax = 0;
            std::vector<int> want(n + 16, 0xFF), want_t = want;  // nothing behind the end is written
            for (size_t r = 0; r < static_cast<size_t>(R); r++) {
                for (size_t s = 0; s < static_cast<size_t>(S); s++) {
                    const floatX x = host[r * static_cast<size_t>(S) + s];
                    amax = std::max(amax, std::fabs(to_float(x)));
                    if (copies & 1) want[r * static_cast<size_t>(S) + s] = converted<F>(x, scale);
                    if (copies & 2) want_t[s * static_cast<size_t>(R) + r] = converted<F>(x, scale);
                }
            }
            Device<floatX> inp(host);
            Device<F> out(n + 16), out_t(n + 16);
            out.poison();
            out_t.poison();
            Scaling scaling(scale);
            fp8_quantize<F>(copies & 1 ? out.data : nullptr, copies & 2 ? out_t.data : nullptr, inp.data,
                            scaling.scales[0], R, S, nullptr);
            CHECK((codes(out, n + 16) == want));
            CHECK((codes(out_t, n + 16) == want_t));
            CHECK(scaling.amax() == amax);
            if (copies != 3) continue;
            Device<F> again(n + 16);
            again.poison();
            fp8_transpose(again.data, out.data, R, S, nullptr);
            CHECK((codes(again, n + 16) == want_t));
        }
    }
}

template <class F>
void check_quantize_bias() {
    Random random(6);
    for (auto [R, S] : {Shape{16, 16}, Shape{144, 112}, Shape{2064, 48}, Shape{272, 1136}}) {
        const size_t n = area(R, S);
        const std::vector<floatX> host = random.normals<floatX>(n, 1.0, 0.5);  // a lost row of mean 0 would hide
        const std::vector<float> zeros(static_cast<size_t>(S)), some = random.normals<float>(static_cast<size_t>(S));
        Device<floatX> inp(host);
        Device<F> want(n), want_t(n), out(n), out_t(n);
        Scaling scaling(32.0f);
        fp8_quantize(want.data, want_t.data, inp.data, scaling.scales[0], R, S, nullptr);
        Device<float> scratch(fp8_bias_scratch_bytes(R, S) / sizeof(float)), factor(std::vector<float>{1e30f, -0.37f});
        for (bool accumulate : {false, true}) {
            for (bool scaled : {false, true}) {
                INFO(Format<F>::name << " R=" << R << " S=" << S << " " << accumulate << scaled);
                std::vector<float> first;
                for (int run = 0; run < 2; run++) {
                    Scaling again(32.0f);
                    Device<float> dbias(some);
                    scratch.poison();
                    out.poison();
                    out_t.poison();
                    fp8_quantize_bias(out.data, out_t.data, dbias.data, inp.data, again.scales[0], scratch.data, R, S,
                                      accumulate, nullptr, scaled ? factor.data + 1 : nullptr);
                    CHECK((codes(out, n) == codes(want, n)));
                    CHECK((codes(out_t, n) == codes(want_t, n)));
                    CHECK(again.amax() == scaling.amax());
                    check_column_sums(dbias, host, R, S, scaled ? -0.37f : 1.0f, accumulate ? some : zeros);
                    if (run == 0) first = dbias.read();
                    CHECK(dbias.read() == first);
                }
            }
        }
    }
}

template <class F>
void check_unusual_values() {
    INFO(Format<F>::name);
    const float infinity = std::numeric_limits<float>::infinity();
    std::vector<floatX> host(256, from_float<floatX>(1.0f));
    const float values[] = {infinity, -infinity, NAN, 1e30f, -1e30f, 0.0f, 1e-30f};
    const int largest = F(Format<F>::largest).__x, want[] = {0x7f, 0x7f, 0x7f, largest, largest | 0x80, 0, 0};
    for (size_t i = 0; i < 7; i++) host[i * 17] = from_float<floatX>(values[i]);
    Device<floatX> inp(host);
    Device<F> out(256), out_t(256);
    Scaling scaling(1e30f);  // finite numbers may leave fp32's range: they saturate as well
    fp8_quantize(out.data, out_t.data, inp.data, scaling.scales[0], 16, 16, nullptr);
    const std::vector<int> got = codes(out, 256), got_t = codes(out_t, 256);
    for (size_t i = 0; i < 6; i++) {
        INFO(values[i]);
        CHECK(got[i * 17] == want[i]);
        CHECK(got_t[i * 17] == want[i]);
    }
    for (int i = 0; i < 16; i++) {  // row 0 begins with infinity, row 2 has NaN at 2
        CHECK((got[i] == 0x7f) == (i < 4));
        CHECK((got[2 * 16 + i] == 0x7f) == (i == 2));
    }
    CHECK(scaling.amax() == infinity);  // the update of the scales leaves it out

    host[0] = host[17] = from_float<floatX>(1.0f);  // NaN is left, which is not a maximum
    inp.write(host);
    Scaling without(1.0f);
    fp8_quantize(out.data, out_t.data, inp.data, without.scales[0], 16, 16, nullptr);
    CHECK(codes(out, 256)[34] == 0x7f);
    CHECK(codes(out, 256)[6 * 17] == 0);
    CHECK(without.amax() == to_float(from_float<floatX>(1e30f)));
}

}  // namespace

TEST_CASE("fp8 conversions are PyTorch's", "[fp8]") {
    check_conversions<e4m3>();
    check_conversions<e5m2>();
}

TEST_CASE("fp8 quantize writes rows, columns and the abs-max", "[fp8]") {
    check_quantize<e4m3>();
    check_quantize<e5m2>();
}

TEST_CASE("fp8 quantize adds up columns on the way", "[fp8]") {
    check_quantize_bias<e4m3>();
    check_quantize_bias<e5m2>();
}

TEST_CASE("fp8 quantize: what is not finite shows, what is too large saturates", "[fp8]") {
    check_unusual_values<e4m3>();
    check_unusual_values<e5m2>();
}

TEST_CASE("fp8 abs-max", "[fp8]") {
    Random random(4);
    for (int64_t n : {int64_t{PackX::size}, int64_t{1000}, int64_t{40000}}) {
        for (double earlier : {0.0, 1e6}) {
            INFO("n=" << n << " earlier=" << earlier);
            std::vector<floatX> host = random.normals<floatX>(static_cast<size_t>(n));
            host[static_cast<size_t>(n) - 1] = from_float<floatX>(-77.0f);
            if (n > 100) host[50] = from_float<floatX>(NAN);
            Device<floatX> x(host);
            Device<unsigned> amax(std::vector<unsigned>{bits_of(static_cast<float>(earlier))});
            fp8_amax(amax.data, x.data, n, nullptr);
            CHECK(float_of(amax.read()[0]) == std::max(77.0f, static_cast<float>(earlier)));
        }
    }
}

TEST_CASE("fp8 scales follow the largest abs-max of the history", "[fp8]") {
    const int n = 300, first = 7, count = 290;  // more than a block, and neighbours that must stay as they are
    Device<float> memory(fp8_scales_bytes(n) / sizeof(float));
    memory.zero();
    const Fp8Scales scales = fp8_scales_in(memory.data, n);
    Random random(5);
    std::vector<std::vector<double>> seen(n);
    for (int update = 0; update < 40; update++) {
        std::vector<float> host = memory.read();
        std::vector<float> amax(n);
        for (int i = 0; i < n; i++) {
            const int kind = random.below(12);
            amax[static_cast<size_t>(i)] = kind == 0   ? 0.0f
                                           : kind == 1 ? std::numeric_limits<float>::infinity()
                                           : kind == 2 ? std::exp2(static_cast<float>(random.below(200) - 100)) * 448
                                                       : static_cast<float>(std::exp(6 * random.normal()));
            if (i == first) amax[static_cast<size_t>(i)] = update == 20 ? 3.4e38f : 2e-38f;  // the ends of the range
            if (i == first + 1) amax[static_cast<size_t>(i)] = 0.0f;                         // nothing ever
            if (i == first + 2) amax[static_cast<size_t>(i)] = 448.00003f;                   // a quotient just below 1
            const double finite = std::isinf(amax[static_cast<size_t>(i)]) ? 0.0 : amax[static_cast<size_t>(i)];
            seen[static_cast<size_t>(i)].push_back(finite);
            host[static_cast<size_t>(2 * n + i)] = amax[static_cast<size_t>(i)];
        }
        memory.write(host);
        const bool wide = update % 2;  // both formats in turn
        if (wide)
            fp8_update_scales<e5m2>(scales, first, count, nullptr);
        else
            fp8_update_scales<e4m3>(scales, first, count, nullptr);
        const double largest = wide ? 57344 : 448;
        const std::vector<float> now = memory.read();
        for (int i = 0; i < n; i++) {
            INFO("update " << update << " tensor " << i);
            const size_t at = static_cast<size_t>(i);
            const float scale = now[at], inverse = now[at + n], left = now[at + 2 * n];
            if (i < first || i >= first + count) {
                REQUIRE((scale == 0 && inverse == 0 && left == amax[at]));
                continue;
            }
            REQUIRE(left == 0);
            double window = 0;
            for (size_t u = seen[at].size() > FP8_HISTORY ? seen[at].size() - FP8_HISTORY : 0; u < seen[at].size(); u++)
                window = std::max(window, seen[at][u]);
            int exponent = 0;
            REQUIRE(std::frexp(scale, &exponent) == 0.5f);
            REQUIRE(inverse == 1 / scale);
            if (window == 0) {  // nothing to go by: what it was
                REQUIRE(scale == (update == 0 || host[at] == 0 ? 1.0f : host[at]));
                continue;
            }
            REQUIRE(window * scale <= largest);
            REQUIRE((window * scale * 2 > largest || scale == 0x1p126f));
        }
    }
}

TEST_CASE("fp8 first scales are of tensors that have no history", "[fp8]") {
    const int n = 5, first = 1, count = 3;  // of neighbours that must stay as they are
    Device<float> memory(fp8_scales_bytes(n) / sizeof(float));
    std::vector<float> host(memory.count, 0.0f);
    const std::vector<float> amax = {3, 3, 3, 0, 3};
    for (size_t i = 0; i < n; i++) host[2 * n + i] = amax[i];
    const size_t known = 2;  // the oldest entry is one too
    host[known] = 8;
    host[n + known] = 0.125f;
    host[3 * n + known * FP8_HISTORY + FP8_HISTORY - 1] = 1e-3f;
    memory.write(host);
    fp8_first_scales<e4m3>(fp8_scales_in(memory.data, n), first, count, nullptr);
    std::vector<float> want = host;
    want[1] = 128;  // 448 / 3 and no more
    want[n + 1] = 1 / 128.0f;
    want[3] = want[n + 3] = 1;  // nothing to go by
    CHECK(memory.read() == want);
}

TEST_CASE("fp8 quantize of several tensors by one launch", "[fp8]") {
    const int R = 144, S = 272, count = 3;
    Random random(6);
    Device<float> memory(fp8_scales_bytes(count) / sizeof(float)), want_memory(memory.count);
    std::vector<float> host(memory.count, 0.0f);
    for (size_t i = 0; i < count; i++) host[i] = std::exp2(static_cast<float>(i));
    memory.write(host);
    want_memory.write(host);
    const Fp8Scales scales = fp8_scales_in(memory.data, count), want_scales = fp8_scales_in(want_memory.data, count);
    const Device<floatX> inp(random.normals<floatX>(count * area(R, S)));
    Device<e4m3> out(count * area(R, S)), out_t(out.count), want(out.count), want_t(out.count);
    std::vector<Fp8Job<e4m3>> jobs;
    for (int i = count - 1; i >= 0; i--) {  // in any order
        const size_t at = static_cast<size_t>(i) * area(R, S);
        jobs.push_back({out.data + at, out_t.data + at, inp.data + at, scales[i]});
        fp8_quantize(want.data + at, want_t.data + at, inp.data + at, want_scales[i], R, S, nullptr);
    }
    const Device<Fp8Job<e4m3>> d_jobs(jobs);
    fp8_quantize_each(d_jobs.data, count, R, S, nullptr);
    CHECK(codes(out, out.count) == codes(want, want.count));
    CHECK(codes(out_t, out.count) == codes(want_t, want.count));
    CHECK(memory.read() == want_memory.read());
}
