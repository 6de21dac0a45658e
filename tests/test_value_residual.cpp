// Value residual against float64: values that are the last KV of W columns, whatever the number of tokens.
#include "residual/value_residual.cuh"

#include "test.h"

namespace {

struct Shape {
    int N, W, KV;
};
// Multi-head (W = 3 KV), grouped, one small head, and several packs per thread.
const Shape SHAPES[] = {{1, 24, 8}, {7, 120, 40}, {37, 40, 8}, {111, 440, 88}, {3001, 312, 104}};

size_t area(int rows, int columns) { return static_cast<size_t>(rows) * static_cast<size_t>(columns); }

std::vector<double> values_of(const std::vector<double>& qkv, const Shape& s) {
    std::vector<double> out;
    for (int n = 0; n < s.N; n++)
        for (int c = 0; c < s.KV; c++) out.push_back(qkv[area(n, s.W) + static_cast<size_t>(s.W - s.KV + c)]);
    return out;
}
// Queries and keys are nobody's business here.
bool others_same(const std::vector<double>& a, const std::vector<double>& b, const Shape& s) {
    for (int n = 0; n < s.N; n++)
        for (int c = 0; c < s.W - s.KV; c++)
            if (a[area(n, s.W) + static_cast<size_t>(c)] != b[area(n, s.W) + static_cast<size_t>(c)]) return false;
    return true;
}

// Two products and a sum of numbers below 8, then rounded to floatX.
constexpr double ATOL = 8 * 4 * 0x1p-24, RTOL = sizeof(floatX) == 2 ? unit_roundoff : 0;

struct Data {
    Shape s;
    std::vector<floatX> qkv, first;
    std::vector<float> lambda = {0.375f, -1.2f};
    Device<floatX> d_qkv, d_first;
    Device<float> d_lambda;
    explicit Data(Shape shape) : Data(shape, Random(static_cast<uint64_t>(shape.N * 7 + shape.KV))) {}

private:
    Data(Shape shape, Random random)
        : s(shape), qkv(random.normals<floatX>(area(s.N, s.W))), first(random.normals<floatX>(area(s.N, s.KV))), d_qkv(qkv),
          d_first(first), d_lambda(lambda) {}
};

}  // namespace

TEST_CASE("value residual: layer 1 keeps its values", "[value_residual]") {
    for (Shape s : SHAPES) {
        CAPTURE(s.N, s.W, s.KV);
        Data data(s);
        Device<floatX> kept(area(s.N, s.KV));
        kept.poison();
        value_copy(kept.data, data.d_qkv.data, s.N, s.W, s.KV, nullptr);
        CHECK(to_double(kept.read()) == values_of(to_double(data.qkv), s));
        CHECK(to_double(data.d_qkv.read()) == to_double(data.qkv));
    }
}

TEST_CASE("value residual: mixing", "[value_residual]") {
    for (Shape s : SHAPES) {
        for (bool training : {false, true}) {
            CAPTURE(s.N, s.W, s.KV, training);
            Data data(s);
            Device<floatX> own(area(s.N, s.KV));
            own.poison();
            value_mix(data.d_qkv.data, training ? own.data : nullptr, data.d_first.data, data.d_lambda.data, s.N, s.W, s.KV,
                      nullptr);
            const std::vector<double> before = to_double(data.qkv), after = to_double(data.d_qkv.read()),
                                      first = to_double(data.first), v = values_of(before, s);
            std::vector<double> want;
            for (size_t i = 0; i < v.size(); i++) want.push_back(data.lambda[0] * first[i] + data.lambda[1] * v[i]);
            CHECK(worst_error(values_of(after, s), want, ATOL, RTOL) <= 1);
            CHECK(others_same(after, before, s));
            if (training) CHECK(to_double(own.read()) == v);
        }
    }
}

TEST_CASE("value residual: backward", "[value_residual]") {
    for (Shape s : SHAPES) {
        for (bool fresh : {true, false}) {
            CAPTURE(s.N, s.W, s.KV, fresh);
            Data data(s);
            Random random(3);
            const std::vector<floatX> own = random.normals<floatX>(area(s.N, s.KV));
            const std::vector<float> earlier = random.normals<float>(area(s.N, s.KV));
            Device<floatX> d_own(own);
            Device<float> dfirst(earlier), dlambda(std::vector<float>{3, -2, 9}), scratch(value_scratch_bytes() / 4);
            scratch.poison();
            if (fresh) dfirst.poison();
            // data.qkv serves as the gradient of the mixed values.
            value_mix_backward(data.d_qkv.data, dfirst.data, fresh, dlambda.data, d_own.data, data.d_first.data,
                               data.d_lambda.data, scratch.data, s.N, s.W, s.KV, nullptr);
            const std::vector<double> before = to_double(data.qkv), after = to_double(data.d_qkv.read()),
                                      d = values_of(before, s), first = to_double(data.first), v = to_double(own);
            std::vector<double> want_own, want_first;
            double sum1 = 0, sum2 = 0, size1 = 0, size2 = 0;
            for (size_t i = 0; i < d.size(); i++) {
                want_own.push_back(data.lambda[1] * d[i]);
                want_first.push_back((fresh ? 0.0 : static_cast<double>(earlier[i])) + data.lambda[0] * d[i]);
                sum1 += d[i] * first[i];
                sum2 += d[i] * v[i];
                size1 += std::fabs(d[i] * first[i]);
                size2 += std::fabs(d[i] * v[i]);
            }
            CHECK(worst_error(values_of(after, s), want_own, ATOL, RTOL) <= 1);
            CHECK(others_same(after, before, s));
            CHECK(worst_error(to_double(dfirst.read()), want_first, ATOL, 0) <= 1);  // fp32 in every build
            // 4 packs of 8, the block's 10 additions, those of the blocks: 64 roundings of the terms' absolute sum.
            const std::vector<float> got = dlambda.read();
            CHECK(std::fabs(got[0] - (3 + sum1)) <= 64 * 0x1p-24 * (size1 + 3));
            CHECK(std::fabs(got[1] - (sum2 - 2)) <= 64 * 0x1p-24 * (size2 + 2));
            CHECK(got[2] == 9);
        }
    }
}

TEST_CASE("value residual: layer 1 takes the gradient of the later layers", "[value_residual]") {
    for (Shape s : SHAPES) {
        CAPTURE(s.N, s.W, s.KV);
        Data data(s);
        Random random(4);
        const std::vector<float> dfirst = random.normals<float>(area(s.N, s.KV));
        Device<float> d_dfirst(dfirst);
        value_first_backward(data.d_qkv.data, d_dfirst.data, s.N, s.W, s.KV, nullptr);
        const std::vector<double> before = to_double(data.qkv), after = to_double(data.d_qkv.read());
        std::vector<double> want = values_of(before, s);
        for (size_t i = 0; i < want.size(); i++) want[i] += static_cast<double>(dfirst[i]);
        CHECK(worst_error(values_of(after, s), want, ATOL, RTOL) <= 1);
        CHECK(others_same(after, before, s));
    }
}
