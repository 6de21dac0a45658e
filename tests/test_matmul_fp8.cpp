// Every product of kernels/matmul_fp8.cuh against sums in float64: of the quantized numbers, closely, and of the
// numbers before they were quantized.
#include "kernels/matmul_fp8.cuh"

#include "test.h"

namespace {

struct Handle {
    Matmul* mm = matmul_create();
    ~Handle() { matmul_destroy(mm); }
};
Matmul* shared_handle() {  // the cache of plans is part of what is tested
    static Handle handle;
    return handle.mm;
}

struct Shape {
    int N, C, OC;
};
const Shape SHAPES[] = {{16, 16, 16}, {16, 48, 1136}, {208, 16, 32}, {16, 768, 16}, {208, 752, 112}, {112, 208, 752}};

size_t area(int rows, int cols) {
    return static_cast<size_t>(rows) * static_cast<size_t>(cols);
}

// A random matrix (R,S), what it is after quantization with a scale of its own, and both copies on the device.
template <class F>
struct Quantized {
    std::vector<double> plain, value;  // (R,S)
    Device<F> rows, columns;
    Device<float> memory{fp8_scales_bytes(1) / sizeof(float)};
    Fp8Scales scales = fp8_scales_in(memory.data, 1);

    Quantized(Random& random, int R, int S, double size) : rows(area(R, S)), columns(area(R, S)) {
        const std::vector<floatX> host = random.normals<floatX>(area(R, S), size);
        Device<floatX> inp(host);
        memory.zero();
        fp8_amax(scales.amax, inp.data, static_cast<int64_t>(host.size()), nullptr);
        fp8_update_scales<F>(scales, 0, 1, nullptr);
        fp8_quantize(rows.data, columns.data, inp.data, scales[0], R, S, nullptr);
        plain = to_double(host);
        const double inverse = memory.read()[1];
        for (F x : rows.read()) value.push_back(static_cast<double>(static_cast<float>(x)) * inverse);
    }
    Fp8Matrix<F> matrix() const { return {rows.data, scales.inverse}; }
    Fp8Matrix<F> transposed() const { return {columns.data, scales.inverse}; }
};

// Sums over k of a(i,k) b(j,k): out (m,n); a's element is at i*a_row + k*a_k, b's likewise.
std::vector<double> product(const std::vector<double>& a, const std::vector<double>& b, int m, int n, int K, int a_row,
                            int a_k, int b_row, int b_k) {
    std::vector<double> out(area(m, n));
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < n; j++) {
            double sum = 0;
            for (int k = 0; k < K; k++) {
                sum += a[static_cast<size_t>(i) * static_cast<size_t>(a_row) +
                         static_cast<size_t>(k) * static_cast<size_t>(a_k)] *
                       b[static_cast<size_t>(j) * static_cast<size_t>(b_row) +
                         static_cast<size_t>(k) * static_cast<size_t>(b_k)];
            }
            out[area(i, n) + static_cast<size_t>(j)] = sum;
        }
    }
    return out;
}

// Operands are so scaled that a sum of K products is of size 1. Products of 8-bit numbers are exact; tensor cores add
// them in groups of 32 into sums that keep 13 bits behind the point of the largest, so that the error grows with the
// root of the groups; twice that covers the largest of all elements. (The CPU machine's sums are exact fp32:
// tests/test_simt_fp8.cpp.)
double atol(int K) {
    return 2 * 0x1p-12 * std::sqrt(K / 32 + 1);
}
template <class T>
double rtol() {
    return sizeof(T) == 2 ? 0x1p-8 : 0x1p-20;
}
// Rounding to 3 (2) bits behind the point is off by 2^-4 (2^-3) at most, on average by half of that or less; two such
// numbers meet in each product.
constexpr double LOOSE_E4M3 = 0.05, LOOSE_E5M2 = 0.08;

#define REQUIRE_FP8() \
    if (!matmul_fp8_supported(shared_handle())) SKIP_TEST("this card has no 8-bit products")

}  // namespace

TEST_CASE("fp8 matmul forward", "[fp8]") {
    REQUIRE_FP8();
    Random random(11);
    for (Shape s : SHAPES) {
        for (bool with_bias : {false, true}) {
            for (bool with_add : {false, true}) {
                CAPTURE(s.N, s.C, s.OC, with_bias, with_add);
                Quantized<e4m3> inp(random, s.N, s.C, 30), weight(random, s.OC, s.C, 1 / std::sqrt(s.C) / 30);
                const std::vector<floatX> bias = random.normals<floatX>(static_cast<size_t>(s.OC));
                const std::vector<floatX> add = random.normals<floatX>(area(s.N, s.OC));
                Device<floatX> d_bias(bias), d_add(add), out(area(s.N, s.OC));
                out.poison();
                matmul_fp8_forward(shared_handle(), out.data, inp.matrix(), weight.matrix(),
                                   with_bias ? d_bias.data : nullptr, s.N, s.C, s.OC, nullptr,
                                   with_add ? d_add.data : nullptr);
                std::vector<double> want = product(inp.value, weight.value, s.N, s.OC, s.C, s.C, 1, s.C, 1);
                std::vector<double> plain = product(inp.plain, weight.plain, s.N, s.OC, s.C, s.C, 1, s.C, 1);
                for (size_t i = 0; with_bias && i < want.size(); i++) {
                    want[i] += to_float(bias[i % static_cast<size_t>(s.OC)]);
                    plain[i] += to_float(bias[i % static_cast<size_t>(s.OC)]);
                }
                for (size_t i = 0; with_add && i < want.size(); i++) {
                    want[i] += to_float(add[i]);
                    plain[i] += to_float(add[i]);
                }
                const std::vector<double> got = to_double(out.read());
                CHECK(worst_error(got, want, atol(s.C), rtol<floatX>()) <= 1);
                CHECK(relative_error(got, plain) < LOOSE_E4M3);
            }
        }
    }
}

TEST_CASE("fp8 matmul backward to the input", "[fp8]") {
    REQUIRE_FP8();
    Random random(12);
    for (Shape s : SHAPES) {
        for (bool scaled : {false, true}) {
            CAPTURE(s.N, s.C, s.OC, scaled);
            Quantized<e5m2> dout(random, s.N, s.OC, 1e-4);
            Quantized<e4m3> weight(random, s.OC, s.C, 1e4 / std::sqrt(s.OC));
            Device<float> alpha(std::vector<float>{9e9f, -0.75f});
            Device<floatX> dinp(area(s.N, s.C));
            dinp.poison();
            matmul_fp8_backward_input(shared_handle(), dinp.data, dout.matrix(), weight.transposed(), s.N, s.C, s.OC,
                                      nullptr, scaled ? alpha.data + 1 : nullptr);
            std::vector<double> want = product(dout.value, weight.value, s.N, s.C, s.OC, s.OC, 1, 1, s.C);
            std::vector<double> plain = product(dout.plain, weight.plain, s.N, s.C, s.OC, s.OC, 1, 1, s.C);
            for (std::vector<double>* v : {&want, &plain}) {
                for (size_t i = 0; i < v->size(); i++) (*v)[i] *= scaled ? -0.75 : 1.0;
            }
            const std::vector<double> got = to_double(dinp.read());
            CHECK(worst_error(got, want, atol(s.OC), rtol<floatX>()) <= 1);
            CHECK(relative_error(got, plain) < LOOSE_E5M2);
        }
    }
}

TEST_CASE("fp8 matmul backward to the weight", "[fp8]") {
    REQUIRE_FP8();
    Random random(13);
    for (Shape s : SHAPES) {
        for (bool accumulate : {false, true}) {
            for (bool scaled : {false, true}) {
                CAPTURE(s.N, s.C, s.OC, accumulate, scaled);
                Quantized<e5m2> dout(random, s.N, s.OC, 1e-4);
                Quantized<e4m3> inp(random, s.N, s.C, 1e4 / std::sqrt(s.N));
                const std::vector<float> before = random.normals<float>(area(s.OC, s.C));
                Device<float> dweight(before), alpha(std::vector<float>{9e9f, -0.75f});
                if (!accumulate) dweight.poison();
                matmul_fp8_backward_weight(shared_handle(), dweight.data, dout.transposed(), inp.transposed(), s.N, s.C,
                                           s.OC, accumulate, nullptr, scaled ? alpha.data + 1 : nullptr);
                std::vector<double> want = product(dout.value, inp.value, s.OC, s.C, s.N, 1, s.OC, 1, s.C);
                std::vector<double> plain = product(dout.plain, inp.plain, s.OC, s.C, s.N, 1, s.OC, 1, s.C);
                for (std::vector<double>* v : {&want, &plain}) {
                    for (size_t i = 0; i < v->size(); i++)
                        (*v)[i] = (scaled ? -0.75 : 1.0) * (*v)[i] + (accumulate ? before[i] : 0.0f);
                }
                const std::vector<double> got = to_double(dweight.read());
                CHECK(worst_error(got, want, atol(s.N), rtol<float>()) <= 1);
                CHECK(relative_error(got, plain) < LOOSE_E5M2);
            }
        }
    }
}

TEST_CASE("fp8 matmul shows what is not finite", "[fp8]") {
    REQUIRE_FP8();
    const int N = 16, C = 32, OC = 16;
    Random random(14);
    Quantized<e4m3> weight(random, OC, C, 1);
    std::vector<floatX> host = random.normals<floatX>(area(N, C));
    host[area(3, C) + 5] = from_float<floatX>(std::numeric_limits<float>::infinity());
    Device<floatX> inp(host), out(area(N, OC));
    Device<e4m3> rows(area(N, C));
    Quantized<e4m3> like(random, N, C, 1);
    fp8_quantize<e4m3>(rows.data, nullptr, inp.data, like.scales[0], N, C, nullptr);
    matmul_fp8_forward(shared_handle(), out.data, {rows.data, like.scales.inverse}, weight.matrix(), nullptr, N, C, OC,
                       nullptr);
    const std::vector<double> got = to_double(out.read());
    for (size_t i = 0; i < got.size(); i++) CHECK(std::isnan(got[i]) == (i / OC == 3));
}
