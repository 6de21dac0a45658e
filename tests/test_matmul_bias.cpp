// Products that give the gradient of a bias beside their own result, and their parts, against sums in float64.
#include "kernels/bias.cuh"
#include "kernels/matmul.cuh"
#include "test.h"

namespace {

struct Handle {
    Matmul* mm = matmul_create();
    ~Handle() { matmul_destroy(mm); }
};

struct Shape {
    int N, C, OC;
};
const Shape SHAPES[] = {{1, 8, 24}, {5, 8, 1128}, {199, 24, 24}, {5, 760, 24}, {300, 88, 136}, {64, 152, 760}};

size_t area(int rows, int cols) {
    return static_cast<size_t>(rows) * static_cast<size_t>(cols);
}
// (cols) sums of the columns of x (rows,cols)
std::vector<double> column_sums(const std::vector<double>& x, int cols) {
    std::vector<double> sums(static_cast<size_t>(cols));
    for (size_t i = 0; i < x.size(); i++) sums[i % sums.size()] += x[i];
    return sums;
}
// Element by element, old + factor * new; old counts only if `add`.
std::vector<double> combined(const std::vector<float>& old, double factor, const std::vector<double>& fresh, bool add) {
    std::vector<double> out(fresh.size());
    for (size_t i = 0; i < out.size(); i++) out[i] = factor * fresh[i] + (add ? old[i] : 0);
    return out;
}
// Sums of N terms of size 1, each addition rounded at 2^-24 of a partial sum; the rest is for the factor in front and
// for what was there.
double atol(int N) {
    return 16 * 0x1p-24 * (N + 8);
}

}  // namespace

TEST_CASE("matmul backward to weight and bias", "[matmul]") {
    Handle handle;
    for (Shape s : SHAPES) {
        Random random(static_cast<uint64_t>(s.N * 31 + s.C * 7 + s.OC));
        const std::vector<floatX> inp = random.normals<floatX>(area(s.N, s.C)),
                                  dout = random.normals<floatX>(area(s.N, s.OC), 1.0, 0.25);
        const std::vector<float> weight_before = random.normals<float>(area(s.OC, s.C)),
                                 bias_before = random.normals<float>(static_cast<size_t>(s.OC));
        const std::vector<double> x = to_double(inp), dy = to_double(dout);
        std::vector<double> dweight(area(s.OC, s.C));
        for (int n = 0; n < s.N; n++)
            for (int o = 0; o < s.OC; o++)
                for (int c = 0; c < s.C; c++)
                    dweight[area(o, s.C) + static_cast<size_t>(c)] +=
                        dy[area(n, s.OC) + static_cast<size_t>(o)] * x[area(n, s.C) + static_cast<size_t>(c)];
        const std::vector<double> dbias = column_sums(dy, s.OC);
        Device<floatX> d_inp(inp), d_dout(dout);
        const float alpha = -0.6f;
        Device<float> d_alpha(std::vector<float>{alpha}), scratch(bias_scratch_bytes(s.OC) / sizeof(float));
        for (bool scaled : {false, true}) {
            for (bool accumulate : {false, true, true}) {  // the last meets a plan that is there
                CAPTURE(s.N, s.C, s.OC, scaled, accumulate);
                Device<float> weight(weight_before), bias(bias_before), plain(weight_before);
                scratch.poison();
                if (!accumulate) weight.poison(), bias.poison(), plain.poison();
                const float* device_alpha = scaled ? d_alpha.data : nullptr;
                matmul_backward_weight_bias(handle.mm, weight.data, bias.data, d_dout.data, d_inp.data, scratch.data,
                                            s.N, s.C, s.OC, accumulate, nullptr, device_alpha);
                matmul_backward_weight(handle.mm, plain.data, d_dout.data, d_inp.data, s.N, s.C, s.OC, accumulate,
                                       nullptr, device_alpha);
                const double factor = scaled ? alpha : 1;
                const std::vector<double> want = combined(weight_before, factor, dweight, accumulate);
                CHECK(worst_error(to_double(weight.read()), want, atol(s.N), 8 * 0x1p-24) <= 1);
                CHECK(worst_error(to_double(plain.read()), want, atol(s.N), 8 * 0x1p-24) <= 1);
                CHECK(worst_error(to_double(bias.read()), combined(bias_before, factor, dbias, accumulate), atol(s.N),
                                  8 * 0x1p-24) <= 1);
            }
        }
    }
}

TEST_CASE("matmul with activation, backward to input and bias", "[matmul]") {
    Handle handle;
    int taken = 0;
    for (Shape s : SHAPES) {
        Random random(static_cast<uint64_t>(s.N * 37 + s.C * 7 + s.OC));
        const std::vector<floatX> dout = random.normals<floatX>(area(s.N, s.OC)),
                                  weight = random.normals<floatX>(area(s.OC, s.C), 1 / std::sqrt(s.OC)),
                                  pre = random.normals<floatX>(area(s.N, s.C), 2);
        const std::vector<float> before = random.normals<float>(static_cast<size_t>(s.C));
        Device<floatX> d_dout(dout), d_weight(weight), d_pre(pre), dpre(area(s.N, s.C)), want_dpre(area(s.N, s.C));
        Device<float> d_alpha(std::vector<float>{0.75f}), scratch(bias_scratch_bytes(s.C) / sizeof(float));
        for (bool accumulate : {false, true}) {
            for (Activation act : {Activation::gelu_new, Activation::gelu}) {
                CAPTURE(s.N, s.C, s.OC, accumulate, static_cast<int>(act));
                Device<float> bias(before);
                scratch.poison();
                dpre.poison();
                if (!accumulate) bias.poison();
                const bool done = matmul_activation_backward_bias(
                    handle.mm, dpre.data, bias.data, d_dout.data, d_weight.data, d_pre.data, act, scratch.data, s.N,
                    s.C, s.OC, accumulate, nullptr, d_alpha.data);
                if (sizeof(floatX) == 2 || act == Activation::gelu) CHECK_FALSE(done);
                if (!done) continue;
                taken++;
                matmul_activation_backward_input(handle.mm, want_dpre.data, d_dout.data, d_weight.data, d_pre.data, act,
                                                 s.N, s.C, s.OC, nullptr, d_alpha.data);
                const std::vector<double> want = to_double(want_dpre.read());  // has a test of its own
                CHECK(worst_error(to_double(dpre.read()), want, atol(1), 16 * 0x1p-24) <= 1);
                CHECK(worst_error(to_double(bias.read()), combined(before, 1, column_sums(want, s.C), accumulate),
                                  atol(s.N), 8 * 0x1p-24) <= 1);
            }
        }
    }
    UNSCOPED_INFO("a library may lack this product; the stand-in has it");
    if (sizeof(floatX) == 4) CHECK(taken > 0);
}

TEST_CASE("bias gradient: stored, and added from elsewhere", "[matmul]") {
    Random random(4);
    const int N = 199, OC = 136;
    const std::vector<floatX> dout = random.normals<floatX>(area(N, OC));
    const std::vector<float> sums = random.normals<float>(OC), before = random.normals<float>(OC);
    Device<floatX> d_dout(dout);
    Device<float> d_sums(sums), factor(std::vector<float>{-1.5f}), scratch(bias_scratch_bytes(OC) / sizeof(float));
    Device<float> bias(before);
    bias.poison();
    bias_backward(bias.data, d_dout.data, scratch.data, N, OC, false, nullptr, factor.data);
    CHECK(worst_error(to_double(bias.read()), combined(before, -1.5, column_sums(to_double(dout), OC), false), atol(N),
                      8 * 0x1p-24) <= 1);
    for (bool accumulate : {false, true}) {
        for (const float* scale : {static_cast<const float*>(nullptr), static_cast<const float*>(factor.data)}) {
            bias.write(before);
            if (!accumulate) bias.poison();
            bias_add(bias.data, d_sums.data, OC, accumulate, nullptr, scale);
            CHECK(worst_error(to_double(bias.read()), combined(before, scale ? -1.5 : 1, to_double(sums), accumulate),
                              atol(1), 4 * 0x1p-24) <= 1);
        }
    }
}
