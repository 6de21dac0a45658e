// Every product of kernels/matmul.cuh against sums in float64.
#include "kernels/matmul.cuh"

#include <memory>

#include "test.h"

namespace {

struct Handle {
    Matmul* mm = matmul_create();
    ~Handle() { matmul_destroy(mm); }
};
Matmul* shared_handle() {  // the cache of plans is part of what is tested: it must not confuse one shape with another
    static Handle handle;
    return handle.mm;
}

struct Shape {
    int N, C, OC;
};
const Shape SHAPES[] = {{1, 8, 24},       {5, 8, 1128},    {199, 24, 24}, {5, 760, 24},
                        {199, 760, 1128}, {64, 1128, 760}, {1, 760, 8}};

size_t area(int rows, int cols) {
    return static_cast<size_t>(rows) * static_cast<size_t>(cols);
}

std::vector<double> transposed(const std::vector<double>& x, int rows, int cols) {
    std::vector<double> out(x.size());
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < cols; c++)
            out[area(c, rows) + static_cast<size_t>(r)] = x[area(r, cols) + static_cast<size_t>(c)];
    }
    return out;
}
// a (m,k) b (n,k)^T
std::vector<double> product(const std::vector<double>& a, const std::vector<double>& b, int m, int n, int k) {
    std::vector<double> out(area(m, n));
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < n; j++) {
            double sum = 0;
            const double *x = &a[area(i, k)], *y = &b[area(j, k)];
            for (int l = 0; l < k; l++) sum += x[l] * y[l];
            out[area(i, n) + static_cast<size_t>(j)] = sum;
        }
    }
    return out;
}

double activation(Activation act, double h) {
    if (act == Activation::gelu) return 0.5 * h * std::erfc(-h * 0.7071067811865476);
    return 0.5 * h * (1 + std::tanh(0.7978845608028654 * (h + 0.044715 * h * h * h)));
}
double activation_derivative(Activation act, double h) {
    return (activation(act, h + 1e-5) - activation(act, h - 1e-5)) / 2e-5;  // error below 1e-9
}

// Operands are so scaled that a sum of K products is of size 1. Its K roundings at 2^-24 together stay below
// 2^-24 sqrt(K) but for a factor; 8 covers the largest of all elements.
double atol(int K) {
    return 8 * 0x1p-24 * std::sqrt(K + 8.0);
}
template <class T>
double rtol() {
    return (sizeof(T) == 2 ? 0x1p-8 : 0) + 8 * 0x1p-24;
}

struct Data {
    Shape s;
    std::vector<floatX> inp, weight, bias, dout;
    Device<floatX> d_inp, d_weight, d_bias, d_dout;
    explicit Data(Shape shape, uint64_t seed = 1)
        : Data(shape, Random(seed + static_cast<uint64_t>(shape.N * 31 + shape.C * 7 + shape.OC))) {}

  private:
    Data(Shape shape, Random random)
        : s(shape),
          inp(random.normals<floatX>(area(s.N, s.C))),
          weight(random.normals<floatX>(area(s.OC, s.C), 1 / std::sqrt(static_cast<double>(s.C)))),
          bias(random.normals<floatX>(static_cast<size_t>(s.OC))),
          dout(random.normals<floatX>(area(s.N, s.OC), std::sqrt(static_cast<double>(s.C) / s.OC))),
          d_inp(inp),
          d_weight(weight),
          d_bias(bias),
          d_dout(dout) {}
};

}  // namespace

TEST_CASE("matmul forward", "[matmul]") {
    for (Shape s : SHAPES) {
        for (bool with_bias : {false, true}) {
            CAPTURE(s.N, s.C, s.OC, with_bias);
            Data data(s);
            Device<floatX> out(area(s.N, s.OC));
            out.poison();
            matmul_forward(shared_handle(), out.data, data.d_inp.data, data.d_weight.data,
                           with_bias ? data.d_bias.data : nullptr, s.N, s.C, s.OC, nullptr);
            std::vector<double> want = product(to_double(data.inp), to_double(data.weight), s.N, s.OC, s.C);
            for (size_t i = 0; with_bias && i < want.size(); i++)
                want[i] += to_float(data.bias[i % static_cast<size_t>(s.OC)]);
            CHECK(worst_error(to_double(out.read()), want, atol(s.C), rtol<floatX>()) <= 1);
        }
    }
}

TEST_CASE("matmul forward in fp32", "[matmul]") {
    for (Shape s : SHAPES) {
        CAPTURE(s.N, s.C, s.OC);
        Data data(s);
        Device<float> out(area(s.N, s.OC));
        out.poison();
        matmul_forward_fp32(shared_handle(), out.data, data.d_inp.data, data.d_weight.data, s.N, s.C, s.OC, nullptr);
        const std::vector<double> want = product(to_double(data.inp), to_double(data.weight), s.N, s.OC, s.C);
        CHECK(worst_error(to_double(out.read()), want, atol(s.C), rtol<float>()) <= 1);
    }
}

TEST_CASE("matmul forward adds, in place and from elsewhere", "[matmul]") {
    for (Shape s : SHAPES) {
        for (bool with_bias : {false, true}) {
            for (bool in_place : {true, false}) {
                CAPTURE(s.N, s.C, s.OC, with_bias, in_place);
                Data data(s);
                Random random(5);
                const std::vector<floatX> before = random.normals<floatX>(area(s.N, s.OC));
                Device<floatX> add(before), beside(before.size());
                beside.poison();
                Device<floatX>& out = in_place ? add : beside;
                matmul_forward(shared_handle(), out.data, data.d_inp.data, data.d_weight.data,
                               with_bias ? data.d_bias.data : nullptr, s.N, s.C, s.OC, nullptr, 0, add.data);
                std::vector<double> want = product(to_double(data.inp), to_double(data.weight), s.N, s.OC, s.C);
                for (size_t i = 0; i < want.size(); i++) {
                    want[i] += to_float(before[i]);
                    if (with_bias) want[i] += to_float(data.bias[i % static_cast<size_t>(s.OC)]);
                }
                CHECK(worst_error(to_double(out.read()), want, atol(s.C), rtol<floatX>()) <= 1);
                if (!in_place) CHECK(to_double(add.read()) == to_double(before));
            }
        }
    }
}

TEST_CASE("matmul with activation, forward", "[matmul]") {
    for (Shape s : SHAPES) {
        for (Activation act : {Activation::gelu_new, Activation::gelu}) {
            for (bool with_bias : {false, true}) {
                CAPTURE(s.N, s.C, s.OC, static_cast<int>(act), with_bias);
                Data data(s);
                Device<floatX> out(area(s.N, s.OC)), pre(area(s.N, s.OC));
                out.poison();
                pre.poison();
                matmul_activation_forward(shared_handle(), out.data, pre.data, data.d_inp.data, data.d_weight.data,
                                          with_bias ? data.d_bias.data : nullptr, act, s.N, s.C, s.OC, nullptr);
                std::vector<double> want_pre = product(to_double(data.inp), to_double(data.weight), s.N, s.OC, s.C),
                                    want;
                for (size_t i = 0; with_bias && i < want_pre.size(); i++)
                    want_pre[i] += to_float(data.bias[i % static_cast<size_t>(s.OC)]);
                for (double h : want_pre) want.push_back(activation(act, h));
                CHECK(worst_error(to_double(pre.read()), want_pre, atol(s.C), rtol<floatX>()) <= 1);
                // act may see `pre` rounded (in two steps) or not (fused). Its slope is at most 1.13, and pre is
                // below 8.
                const double extra = sizeof(floatX) == 2 ? 1.13 * 0x1p-8 : 0;
                std::vector<double> got = to_double(out.read());
                double worst = 0;
                for (size_t i = 0; i < want.size(); i++) {
                    const double allowed =
                        2 * atol(s.C) + rtol<floatX>() * std::fabs(want[i]) + extra * std::fabs(want_pre[i]);
                    worst = std::isfinite(got[i]) ? std::max(worst, std::fabs(got[i] - want[i]) / allowed) : INFINITY;
                }
                CHECK(worst <= 1);
            }
        }
    }
}

TEST_CASE("matmul backward to the input", "[matmul]") {
    for (Shape s : SHAPES) {
        for (bool accumulate : {false, true}) {
            CAPTURE(s.N, s.C, s.OC, accumulate);
            Data data(s);
            Random random(6);
            const std::vector<floatX> before = random.normals<floatX>(area(s.N, s.C));
            Device<floatX> dinp(before);
            if (!accumulate) dinp.poison();
            matmul_backward_input(shared_handle(), dinp.data, data.d_dout.data, data.d_weight.data, s.N, s.C, s.OC,
                                  accumulate, nullptr);
            std::vector<double> want =
                product(to_double(data.dout), transposed(to_double(data.weight), s.OC, s.C), s.N, s.C, s.OC);
            for (size_t i = 0; accumulate && i < want.size(); i++) want[i] += to_float(before[i]);
            CHECK(worst_error(to_double(dinp.read()), want, atol(s.OC), rtol<floatX>()) <= 1);
        }
    }
}

TEST_CASE("matmul with activation, backward", "[matmul]") {
    for (Shape s : SHAPES) {
        for (Activation act : {Activation::gelu_new, Activation::gelu}) {
            CAPTURE(s.N, s.C, s.OC, static_cast<int>(act));
            Data data(s);
            Random random(7);
            const std::vector<floatX> pre = random.normals<floatX>(area(s.N, s.C), 2);
            Device<floatX> d_pre(pre), dpre(area(s.N, s.C));
            dpre.poison();
            matmul_activation_backward_input(shared_handle(), dpre.data, data.d_dout.data, data.d_weight.data,
                                             d_pre.data, act, s.N, s.C, s.OC, nullptr);
            std::vector<double> want =
                product(to_double(data.dout), transposed(to_double(data.weight), s.OC, s.C), s.N, s.C, s.OC);
            for (size_t i = 0; i < want.size(); i++) want[i] *= activation_derivative(act, to_float(pre[i]));
            // In two steps the product is rounded before the factor is applied, hence twice the relative part. The
            // factor has an absolute error of some 2^-24 times |pre|; the product is below 6.
            CHECK(worst_error(to_double(dpre.read()), want, 2 * atol(s.OC) + 6 * 16 * 0x1p-24, 2 * rtol<floatX>()) <=
                  1);
            CHECK(to_double(d_pre.read()) == to_double(pre));
        }
    }
}

TEST_CASE("matmul backward to the weight accumulates in fp32", "[matmul]") {
    for (Shape s : SHAPES) {
        CAPTURE(s.N, s.C, s.OC);
        Data data(s);
        Random random(8);
        const std::vector<float> before = random.normals<float>(area(s.OC, s.C));
        Device<float> dweight(before);
        for (int step = 0; step < 2; step++) {
            matmul_backward_weight(shared_handle(), dweight.data, data.d_dout.data, data.d_inp.data, s.N, s.C, s.OC,
                                   true, nullptr);
        }
        std::vector<double> want = product(transposed(to_double(data.dout), s.N, s.OC),
                                           transposed(to_double(data.inp), s.N, s.C), s.OC, s.C, s.N);
        for (size_t i = 0; i < want.size(); i++) want[i] = to_float(before[i]) + 2 * want[i];
        // Products are not scaled to 1 here: dout is of size sqrt(C / OC), and N of them are added.
        const double size = std::max(1.0, std::sqrt(static_cast<double>(s.C) / s.OC * s.N));
        CHECK(worst_error(to_double(dweight.read()), want, 2 * size * atol(s.N), 8 * 0x1p-24) <= 1);
    }
}

// alpha scales the fp32 sum before anything is rounded or added, so the tolerances are those of the same products
// without it, the absolute part times |alpha|. 0 is a coefficient too: that of a rule's first update.
TEST_CASE("matmul backward with a factor in device memory", "[matmul]") {
    for (Shape s : SHAPES) {
        Data data(s);
        const std::vector<double> dinp = product(to_double(data.dout), transposed(to_double(data.weight), s.OC, s.C),
                                                 s.N, s.C, s.OC),
                                  dweight = product(transposed(to_double(data.dout), s.N, s.OC),
                                                    transposed(to_double(data.inp), s.N, s.C), s.OC, s.C, s.N);
        for (float alpha : {-0.3f, 0.0f, 2.5f}) {
            CAPTURE(s.N, s.C, s.OC, alpha);
            const double factor = alpha, size = std::fabs(factor) + 1;
            Device<float> d_alpha(std::vector<float>{1e30f, alpha});  // not at the start of an allocation
            Random random(9);
            const std::vector<floatX> before = random.normals<floatX>(area(s.N, s.C)),
                                      pre = random.normals<floatX>(area(s.N, s.C), 2);
            for (bool accumulate : {false, true}) {
                Device<floatX> got(before);
                if (!accumulate) got.poison();
                // The plan of the same product without a factor must not serve this one, nor the other way round.
                if (accumulate) {
                    Device<floatX> plain(before);
                    matmul_backward_input(shared_handle(), plain.data, data.d_dout.data, data.d_weight.data, s.N, s.C,
                                          s.OC, accumulate, nullptr);
                }
                matmul_backward_input(shared_handle(), got.data, data.d_dout.data, data.d_weight.data, s.N, s.C, s.OC,
                                      accumulate, nullptr, d_alpha.data + 1);
                std::vector<double> want = dinp;
                for (size_t i = 0; i < want.size(); i++)
                    want[i] = factor * want[i] + (accumulate ? to_float(before[i]) : 0.0);
                CHECK(worst_error(to_double(got.read()), want, size * atol(s.OC), rtol<floatX>()) <= 1);
            }
            for (Activation act : {Activation::gelu_new, Activation::gelu}) {  // fused, and in two steps
                Device<floatX> d_pre(pre), dpre(area(s.N, s.C));
                dpre.poison();
                matmul_activation_backward_input(shared_handle(), dpre.data, data.d_dout.data, data.d_weight.data,
                                                 d_pre.data, act, s.N, s.C, s.OC, nullptr, d_alpha.data + 1);
                std::vector<double> want = dinp;
                for (size_t i = 0; i < want.size(); i++)
                    want[i] *= factor * activation_derivative(act, to_float(pre[i]));
                const double absolute = 2 * atol(s.OC) + 6 * 16 * 0x1p-24;  // as without a factor, above
                CHECK(worst_error(to_double(dpre.read()), want, size * absolute, 2 * rtol<floatX>()) <= 1);
            }
            const std::vector<float> gradient = random.normals<float>(area(s.OC, s.C));
            Device<float> got(gradient);
            matmul_backward_weight(shared_handle(), got.data, data.d_dout.data, data.d_inp.data, s.N, s.C, s.OC,
                                   true, nullptr, d_alpha.data + 1);
            std::vector<double> want = dweight;
            for (size_t i = 0; i < want.size(); i++) want[i] = gradient[i] + factor * want[i];
            const double sums = std::max(1.0, std::sqrt(static_cast<double>(s.C) / s.OC * s.N));
            CHECK(worst_error(to_double(got.read()), want, size * sums * atol(s.N), 8 * 0x1p-24) <= 1);
        }
    }
}

// Weights that are blocks of columns of a wider matrix: half of one, and a block with columns on both sides.
TEST_CASE("matmul with a weight that is a block of columns", "[matmul]") {
    for (Shape s : SHAPES) {
        for (auto [stride, first] : {std::pair{2 * s.C, 0}, {2 * s.C, s.C}, {s.C + 40, 16}}) {
            CAPTURE(s.N, s.C, s.OC, stride, first);
            Data data(s);
            Random random(10);
            const size_t columns = static_cast<size_t>(stride), start = static_cast<size_t>(first), C = static_cast<size_t>(s.C);
            // Whoever reads a neighbouring column gets infinities and what comes of them.
            std::vector<floatX> wide(area(s.OC, stride), from_float<floatX>(INFINITY));
            for (size_t i = 0; i < data.weight.size(); i++) wide[i / C * columns + start + i % C] = data.weight[i];
            Device<floatX> d_wide(wide);
            const floatX* weight = d_wide.data + start;

            Device<floatX> out(area(s.N, s.OC)), plain(area(s.N, s.OC));
            out.poison();
            // The plan of the same product with a narrow weight must not serve this one.
            matmul_forward(shared_handle(), plain.data, data.d_inp.data, data.d_weight.data, nullptr, s.N, s.C, s.OC, nullptr);
            matmul_forward(shared_handle(), out.data, data.d_inp.data, weight, nullptr, s.N, s.C, s.OC, nullptr, stride);
            const std::vector<double> want = product(to_double(data.inp), to_double(data.weight), s.N, s.OC, s.C);
            CHECK(worst_error(to_double(out.read()), want, atol(s.C), rtol<floatX>()) <= 1);

            const std::vector<floatX> before = random.normals<floatX>(area(s.N, s.C));
            const float alpha = -0.6f;
            Device<float> d_alpha(std::vector<float>{alpha});
            const std::vector<double> back =
                product(to_double(data.dout), transposed(to_double(data.weight), s.OC, s.C), s.N, s.C, s.OC);
            for (bool scaled : {false, true}) {
                const double factor = scaled ? alpha : 1;
                const float* device_alpha = scaled ? d_alpha.data : nullptr;
                for (bool accumulate : {false, true}) {
                    Device<floatX> dinp(before);
                    if (!accumulate) dinp.poison();
                    matmul_backward_input(shared_handle(), dinp.data, data.d_dout.data, weight, s.N, s.C, s.OC, accumulate,
                                          nullptr, device_alpha, stride);
                    std::vector<double> sum = back;
                    for (size_t i = 0; i < sum.size(); i++) sum[i] = factor * sum[i] + (accumulate ? to_float(before[i]) : 0.0);
                    CHECK(worst_error(to_double(dinp.read()), sum, atol(s.OC), rtol<floatX>()) <= 1);
                }
                // The gradient adds to its own columns and leaves the others as they are.
                const std::vector<float> gradient = random.normals<float>(area(s.OC, stride));
                Device<float> dweight(gradient);
                matmul_backward_weight(shared_handle(), dweight.data + start, data.d_dout.data, data.d_inp.data, s.N, s.C, s.OC,
                                       true, nullptr, device_alpha, stride);
                const std::vector<double> added = product(transposed(to_double(data.dout), s.N, s.OC),
                                                          transposed(to_double(data.inp), s.N, s.C), s.OC, s.C, s.N);
                const std::vector<float> got = dweight.read();
                std::vector<double> got_block, want_block;
                bool others = true;
                for (size_t i = 0; i < got.size(); i++) {
                    const size_t row = i / columns, column = i % columns;
                    if (column < start || column >= start + C) {
                        others = others && got[i] == gradient[i];
                        continue;
                    }
                    got_block.push_back(got[i]);
                    want_block.push_back(gradient[i] + factor * added[row * C + column - start]);
                }
                const double size = std::max(1.0, std::sqrt(static_cast<double>(s.C) / s.OC * s.N));
                CHECK(worst_error(got_block, want_block, size * atol(s.N), 8 * 0x1p-24) <= 1);
                CHECK(others);
            }
        }
    }
}

TEST_CASE("matmul: addresses that are 16-byte aligned and no more", "[matmul]") {
    const Shape s{5, 24, 40};
    Data data(s);
    const size_t shift = 16 / sizeof(floatX);
    auto moved = [&](const std::vector<floatX>& x) {
        std::vector<floatX> out(shift);
        out.insert(out.end(), x.begin(), x.end());
        return std::make_unique<Device<floatX>>(out);
    };
    const auto inp = moved(data.inp), weight = moved(data.weight), bias = moved(data.bias);
    Device<floatX> out(area(s.N, s.OC) + shift), plain(area(s.N, s.OC));
    // Well aligned first: the plan made for that must not serve the others.
    matmul_forward(shared_handle(), plain.data, data.d_inp.data, data.d_weight.data, data.d_bias.data, s.N, s.C, s.OC,
                   nullptr);
    matmul_forward(shared_handle(), out.data + shift, inp->data + shift, weight->data + shift, bias->data + shift, s.N,
                   s.C, s.OC, nullptr);
    std::vector<floatX> got = out.read();
    got.erase(got.begin(), got.begin() + static_cast<long>(shift));
    CHECK(worst_error(to_double(got), to_double(plain.read()), atol(s.C), 2 * rtol<floatX>()) <= 1);
}

TEST_CASE("matmul: fp32 is not TF32", "[matmul]") {
    if (sizeof(floatX) == 2) SKIP_TEST("matmul: TF32 concerns fp32 builds");
    // Eight times 1 + 2^-13: TF32 has 10 bits behind the point and would drop the 2^-13.
    const int C = 8;
    Device<floatX> inp(std::vector<floatX>(C, from_float<floatX>(1 + 0x1p-13f))),
        ones(std::vector<floatX>(C * 8, from_float<floatX>(1.0f)));
    Device<floatX> out(8);
    matmul_forward(shared_handle(), out.data, inp.data, ones.data, nullptr, 1, C, 8, nullptr);
    for (floatX x : out.read()) CHECK(to_float(x) == 8 + 0x1p-10f);
}
