// The rotary embedding against float64, at head sizes whose halves are and are not 16-byte packs.
#include "kernels/rope.cuh"

#include "test.h"

namespace {

struct Shape {
    int B, T, NH, NKV, HS;
};
// Head counts around the four heads of a thread; halves of 64, 32, 20, 12, 4 channels, of 48 and 2 packs.
const Shape SHAPES[] = {{1, 1, 1, 1, 8},    {2, 7, 4, 4, 64},  {3, 33, 5, 1, 40},  {1, 200, 3, 3, 24},
                        {2, 5, 12, 4, 128}, {1, 65, 9, 3, 96}, {2, 300, 2, 1, 16}, {1, 3, 32, 32, 256}};

// x (B,T,(NH+2*NKV)*HS): query and key heads turned by direction * m * theta^(-2i/HS).
std::vector<double> rotated(std::vector<double> x, Shape s, double theta, double direction) {
    const int heads = s.NH + 2 * s.NKV;
    for (int row = 0; row < s.B * s.T; row++) {
        for (int h = 0; h < s.NH + s.NKV; h++) {
            double* head = &x[(static_cast<size_t>(row) * heads + h) * s.HS];
            for (int i = 0; i < s.HS / 2; i++) {
                const double w = direction * (row % s.T) * std::pow(theta, -2.0 * i / s.HS);
                const double a = head[i], b = head[i + s.HS / 2];
                head[i] = a * std::cos(w) - b * std::sin(w);
                head[i + s.HS / 2] = b * std::cos(w) + a * std::sin(w);
            }
        }
    }
    return x;
}

size_t size_of(Shape s) {
    return static_cast<size_t>(s.B) * s.T * (s.NH + 2 * s.NKV) * s.HS;
}

// Two products and a sum, and cosine and sine themselves rounded to fp32: five roundings at 2^-24 of numbers up to
// |a| + |b| < 12. Then one rounding to floatX.
constexpr double ATOL = 5 * 12 * 0x1p-24, RTOL = unit_roundoff;

}  // namespace

TEST_CASE("rope forward and backward", "[rope]") {
    for (Shape s : SHAPES) {
        for (double theta : {10000.0, 500000.0}) {
            for (bool backward : {false, true}) {
                CAPTURE(s.B, s.T, s.NH, s.NKV, s.HS, theta, backward);
                Random random(static_cast<uint64_t>(s.HS + s.T));
                const std::vector<floatX> x = random.normals<floatX>(size_of(s));
                const int longer = s.T + 3;  // the table is of the longest sequence, not of this one
                Device<float> table(rope_table_count(longer, s.HS));
                table.poison();
                rope_table(table.data, longer, s.HS, theta, nullptr);
                Device<floatX> qkv(x);
                (backward ? rope_backward : rope_forward)(qkv.data, table.data, s.B, s.T, s.NH, s.NKV, s.HS, nullptr);
                const std::vector<double> want = rotated(to_double(x), s, theta, backward ? -1 : 1),
                                          got = to_double(qkv.read());
                CHECK(worst_error(got, want, ATOL, RTOL) <= 1);
                // Values are not rounded again: they are what they were, and so is position 0.
                bool untouched = true;
                for (size_t i = 0; i < got.size(); i++) {
                    const size_t row = i / (static_cast<size_t>(s.NH + 2 * s.NKV) * s.HS);
                    const size_t head = i / s.HS % static_cast<size_t>(s.NH + 2 * s.NKV);
                    if (head >= static_cast<size_t>(s.NH + s.NKV) || row % s.T == 0)
                        untouched = untouched && got[i] == to_float(x[i]);
                }
                CHECK(untouched);
            }
        }
    }
}

TEST_CASE("rope backward is the transpose of rope forward", "[rope]") {
    // <y, R x> = <R^T y, x>, whatever the reference says.
    const Shape s{2, 19, 3, 1, 48};
    Random random(11);
    const std::vector<floatX> x = random.normals<floatX>(size_of(s)), y = random.normals<floatX>(size_of(s));
    Device<float> table(rope_table_count(s.T, s.HS));
    rope_table(table.data, s.T, s.HS, 10000.0, nullptr);
    Device<floatX> turned(x), back(y);
    rope_forward(turned.data, table.data, s.B, s.T, s.NH, s.NKV, s.HS, nullptr);
    rope_backward(back.data, table.data, s.B, s.T, s.NH, s.NKV, s.HS, nullptr);
    const std::vector<double> rx = to_double(turned.read()), ry = to_double(back.read());
    double left = 0, right = 0, size = 0;
    for (size_t i = 0; i < x.size(); i++) {
        left += to_float(y[i]) * rx[i];
        right += ry[i] * to_float(x[i]);
        size += rx[i] * rx[i] * to_float(y[i]) * to_float(y[i]) + ry[i] * ry[i] * to_float(x[i]) * to_float(x[i]);
    }
    // Independent roundings of every term; 4 standard deviations, and 4 roundings in fp32.
    CHECK(std::fabs(left - right) <= 4 * (unit_roundoff + 4 * 0x1p-24) * std::sqrt(size));
}

TEST_CASE("rope scores depend on the distance of positions alone", "[rope]") {
    // One query vector at every position, one key vector at every position: q_m . k_n is a function of m - n.
    const Shape s{1, 40, 1, 1, 32};
    Random random(12);
    const std::vector<floatX> q = random.normals<floatX>(32), k = random.normals<floatX>(32);
    std::vector<floatX> x(size_of(s), from_float<floatX>(0.0f));
    for (int m = 0; m < s.T; m++) {
        for (int i = 0; i < 32; i++) {
            x[static_cast<size_t>(m * 96 + i)] = q[static_cast<size_t>(i)];
            x[static_cast<size_t>(m * 96 + 32 + i)] = k[static_cast<size_t>(i)];
        }
    }
    Device<float> table(rope_table_count(s.T, s.HS));
    rope_table(table.data, s.T, s.HS, 10000.0, nullptr);
    Device<floatX> qkv(x);
    rope_forward(qkv.data, table.data, s.B, s.T, s.NH, s.NKV, s.HS, nullptr);
    const std::vector<double> got = to_double(qkv.read());
    auto score = [&](int m, int n) {
        double sum = 0;
        for (int i = 0; i < 32; i++)
            sum += got[static_cast<size_t>(m * 96 + i)] * got[static_cast<size_t>(n * 96 + 32 + i)];
        return sum;
    };
    double norm_q = 0, norm_k = 0;
    for (int i = 0; i < 32; i++) norm_q += std::pow(to_float(q[i]), 2), norm_k += std::pow(to_float(k[i]), 2);
    const double tolerance = 2 * (unit_roundoff + 5 * 0x1p-24) * 2 * std::sqrt(norm_q * norm_k);
    for (int m = 0; m < s.T; m++) {
        for (int n = 0; n <= m; n++) CHECK(std::fabs(score(m, n) - score(m - n, 0)) <= tolerance);
    }
}
