// The vanilla seam against a float64 reference, whose own backward pass is first checked by finite differences.
#include "residual/seam.cuh"
#include <cstring>

#include "test.h"

namespace {

using Vec = std::vector<double>;

struct Norm {
    bool present = false;
    Vec gain, bias;  // (C); bias empty: none
    double scale = 1;
};
struct Problem {
    int N, C;
    NormKind kind;
    double eps, skip;
    bool first;  // no u
    Norm out, post, in;
};

// ---- the reference ----

struct Stats {
    double mean, rstd;
};
Stats stats(const Problem& q, const double* x) {
    double mean = 0, square = 0;
    if (q.kind == NormKind::layer) {
        for (int c = 0; c < q.C; c++) mean += x[c];
        mean /= q.C;
    }
    for (int c = 0; c < q.C; c++) square += (x[c] - mean) * (x[c] - mean);
    return {mean, 1 / std::sqrt(square / q.C + q.eps)};
}
Vec apply(const Problem& q, const Norm& norm, const Vec& x) {
    if (!norm.present) return x;
    Vec y(x.size());
    for (int n = 0; n < q.N; n++) {
        Stats s = stats(q, &x[n * q.C]);
        for (int c = 0; c < q.C; c++) {
            double xh = (x[n * q.C + c] - s.mean) * s.rstd;
            y[n * q.C + c] = norm.scale * (norm.gain[c] * xh + (norm.bias.empty() ? 0 : norm.bias[c]));
        }
    }
    return y;
}
struct Grads {
    Vec dgain, dbias;
};
Vec apply_backward(const Problem& q, const Norm& norm, const Vec& x, const Vec& dy, Grads& grads) {
    if (!norm.present) return dy;
    Vec dx(x.size());
    grads.dgain.assign(q.C, 0);
    grads.dbias.assign(q.C, 0);
    for (int n = 0; n < q.N; n++) {
        Stats s = stats(q, &x[n * q.C]);
        double mean_a = 0, mean_axh = 0;
        for (int c = 0; c < q.C; c++) {
            double g = norm.scale * dy[n * q.C + c], xh = (x[n * q.C + c] - s.mean) * s.rstd;
            grads.dgain[c] += g * xh;
            grads.dbias[c] += g;
            mean_a += g * norm.gain[c] / q.C;
            mean_axh += g * norm.gain[c] * xh / q.C;
        }
        if (q.kind == NormKind::rms) mean_a = 0;
        for (int c = 0; c < q.C; c++) {
            double xh = (x[n * q.C + c] - s.mean) * s.rstd;
            dx[n * q.C + c] = s.rstd * (norm.scale * dy[n * q.C + c] * norm.gain[c] - mean_a - xh * mean_axh);
        }
    }
    return dx;
}
struct Forward {
    Vec p, x_new, z;
};
Forward forward(const Problem& q, const Vec& x, const Vec& u) {
    Forward f;
    f.p = x;
    if (!q.first) {
        Vec v = apply(q, q.out, u);
        for (size_t i = 0; i < x.size(); i++) f.p[i] = q.skip * x[i] + v[i];
    }
    f.x_new = apply(q, q.post, f.p);
    f.z = apply(q, q.in, f.x_new);
    return f;
}
struct Backward {
    Vec dx, du;
    Grads out, post, in;
};
Backward backward(const Problem& q, const Vec& u, const Vec& p, const Vec& x_new, const Vec& dx_new, const Vec& dz) {
    Backward b;
    Vec d = dx_new;
    if (q.in.present) {
        Vec dx = apply_backward(q, q.in, x_new, dz, b.in);
        for (size_t i = 0; i < d.size(); i++) d[i] += dx[i];
    }
    d = apply_backward(q, q.post, p, d, b.post);
    b.dx = d;
    if (q.first) return b;
    for (double& x : b.dx) x *= q.skip;
    b.du = apply_backward(q, q.out, u, d, b.out);
    return b;
}

// ---- problems ----

Norm random_norm(Random& random, const Problem& q, bool present, bool with_bias, double scale = 1) {
    Norm norm;
    norm.present = present;
    norm.gain = to_double(random.normals<floatX>(q.C, 0.3, 1.0));
    if (with_bias && q.kind == NormKind::layer) norm.bias = to_double(random.normals<floatX>(q.C, 0.3));
    norm.scale = scale;
    return norm;
}
Problem make_problem(Random& random, int N, int C, NormKind kind, bool out, bool post, bool in, double skip = 1,
                     bool first = false) {
    Problem q{N, C, kind, 1e-5, skip, first, {}, {}, {}};
    q.out = random_norm(random, q, out, true);
    q.post = random_norm(random, q, post, true);
    q.in = random_norm(random, q, in, C % 32 == 0, in ? 0.5 : 1.0);  // the bias and the scale at times
    return q;
}

// The device side of one norm.
struct DeviceNorm {
    Device<float> gain, bias, mean, rstd, dgain, dbias;
    Vec dgain0, dbias0;
    SeamNorm seam;
    DeviceNorm(Random& random, const Problem& q, const Norm& norm)
        : gain(q.C), bias(q.C), mean(q.N), rstd(q.N), dgain(q.C), dbias(q.C) {
        if (!norm.present) return;
        auto narrow = [](const Vec& v) {
            std::vector<float> out;
            for (double x : v) out.push_back(static_cast<float>(x));
            return out;
        };
        gain.write(narrow(norm.gain));
        seam.gain = gain.data;
        if (!norm.bias.empty()) {
            bias.write(narrow(norm.bias));
            seam.bias = bias.data;
            seam.dbias = dbias.data;
        }
        mean.poison();
        rstd.poison();
        std::vector<float> g0 = random.normals<float>(q.C), b0 = random.normals<float>(q.C);  // gradients accumulate
        dgain.write(g0);
        dbias.write(b0);
        dgain0 = to_double(g0);
        dbias0 = to_double(b0);
        if (q.kind == NormKind::layer) seam.mean = mean.data;
        seam.rstd = rstd.data;
        seam.dgain = dgain.data;
        seam.scale = static_cast<float>(norm.scale);
    }
    // What the gradient buffers must hold now.
    void check(const Norm& norm, const Grads& want, double tolerance) const {
        if (!norm.present) return;
        Vec gain_total = dgain0, bias_total = dbias0;
        for (size_t c = 0; c < gain_total.size(); c++) gain_total[c] += want.dgain[c];
        CHECK(relative_error(to_double(dgain.read()), gain_total) < tolerance);
        if (!norm.bias.empty())
            for (size_t c = 0; c < bias_total.size(); c++) bias_total[c] += want.dbias[c];
        CHECK(relative_error(to_double(dbias.read()), bias_total) < tolerance);
    }
};

// fp32 arithmetic inside: sums over C and N grow rounding errors about as the square root of their length, and
// a - mean(a) - xh*mean(a*xh) cancels a little. Measured worst is 4e-7; 3e-6 leaves room for other orders.
constexpr double arithmetic = 3e-6;
// One rounding of the result; at most u relative, so at most u in norm.
constexpr double one_rounding = unit_roundoff + arithmetic;

// Runs forward and backward and compares everything. in_place: x_new = x, dx = dx_new, du = dx where they may be one.
void check_seam(Random& random, const Problem& q, bool last = false, bool in_place = false) {
    INFO("N=" << q.N << " C=" << q.C << " kind=" << (q.kind == NormKind::layer ? "layer" : "rms") << " out=" << q.out.present
              << " post=" << q.post.present << " in=" << q.in.present << " skip=" << q.skip << " first=" << q.first
              << " last=" << last << " in_place=" << in_place);
    size_t n = static_cast<size_t>(q.N) * q.C;
    auto x = random.normals<floatX>(n, 2.0, 0.5), u = random.normals<floatX>(n, 1.0, -0.3);
    Device<floatX> dx_in(x), du_in(u), x_new(n), z(n), p(n);
    DeviceNorm out(random, q, q.out), post(random, q, q.post), in(random, q, q.in);
    x_new.poison(), z.poison(), p.poison();

    SeamShape shape{q.N, q.C, q.kind, static_cast<float>(q.eps), static_cast<float>(q.skip)};
    bool writes_stream = !q.first || q.post.present;
    floatX* stream = in_place || !writes_stream ? dx_in.data : x_new.data;
    vanilla_forward({dx_in.data, q.first ? nullptr : du_in.data, stream, q.in.present ? z.data : nullptr,
                     q.post.present && !q.first ? p.data : nullptr, out.seam, post.seam, in.seam}, shape, nullptr);
    Forward want = forward(q, to_double(x), to_double(u));
    auto got_stream = in_place || !writes_stream ? dx_in.read() : x_new.read();
    if (q.post.present && !q.first) CHECK(relative_error(to_double(p.read()), want.p) < one_rounding);
    // The saved values are rounded before each norm: one rounding more for each that stands before.
    CHECK(relative_error(to_double(got_stream), want.x_new) < (q.post.present ? 2 : 1) * one_rounding);
    if (q.in.present) {
        CHECK(relative_error(to_double(z.read()), want.z) < 3 * one_rounding);
        // Once more from what was saved: the same bits.
        Device<floatX> z_again(n);
        z_again.poison();
        norm_rows_again(stream, z_again.data, in.seam, shape, nullptr);
        CHECK(memcmp(z_again.read().data(), z.read().data(), n * sizeof(floatX)) == 0);
    }

    // Backward, from the values that the kernel has saved; so only the results are rounded.
    Vec saved_x = to_double(got_stream), saved_p = q.first ? to_double(x) : q.post.present ? to_double(p.read()) : Vec(n);
    auto d_new = random.normals<floatX>(n), d_z = random.normals<floatX>(n);
    if (last) d_new.assign(n, from_float<floatX>(0.0f));
    Device<floatX> dnew(d_new), dz(d_z), dx(n), du(n), first_p(x);
    dx.poison(), du.poison();
    bool in_place_dx = in_place && !last, shared_du = in_place && !q.out.present && q.skip == 1;
    floatX* to_dx = in_place_dx ? dnew.data : dx.data;
    floatX* to_du = q.first ? nullptr : shared_du ? to_dx : du.data;
    Device<float> scratch(seam_scratch_bytes(q.C) / sizeof(float));
    scratch.poison();
    SeamBackward seam{last ? nullptr : dnew.data, q.in.present ? dz.data : nullptr, stream,
                      !q.post.present ? nullptr : q.first ? first_p.data : p.data, q.out.present ? du_in.data : nullptr,
                      to_dx, to_du, out.seam, post.seam, in.seam};
    seam.first = q.first;
    vanilla_backward(seam, shape, scratch.data, nullptr);
    Backward back = backward(q, to_double(u), saved_p, saved_x, to_double(d_new), to_double(d_z));
    auto got_dx = in_place_dx ? dnew.read() : dx.read();
    CHECK(relative_error(to_double(got_dx), back.dx) < one_rounding);
    if (!q.first) CHECK(relative_error(to_double(shared_du ? got_dx : du.read()), back.du) < one_rounding);
    out.check(q.out, back.out, arithmetic);
    post.check(q.post, back.post, arithmetic);
    in.check(q.in, back.in, arithmetic);
    if (in_place_dx) return;

    // The same again gives the same bits, and the parameter gradients grow by the same amount.
    vanilla_backward(seam, shape, scratch.data, nullptr);
    auto again = dx.read();
    CHECK(memcmp(again.data(), got_dx.data(), n * sizeof(floatX)) == 0);
    auto twice = [](Grads g) {
        for (double& v : g.dgain) v *= 2;
        for (double& v : g.dbias) v *= 2;
        return g;
    };
    if (q.in.present) in.check(q.in, twice(back.in), arithmetic);
}

}  // namespace

TEST_CASE("the seam's reference agrees with finite differences") {
    Random random(1);
    for (int parts = 0; parts < 8; parts++) {
        for (NormKind kind : {NormKind::layer, NormKind::rms}) {
            Problem q = make_problem(random, 2, 32, kind, parts & 4, parts & 2, parts & 1, 0.7);
            size_t n = q.N * q.C;
            Vec x = to_double(random.normals<float>(n)), u = to_double(random.normals<float>(n));
            Vec dx_new = to_double(random.normals<float>(n));
            Vec dz = q.in.present ? to_double(random.normals<float>(n)) : Vec(n, 0.0);
            auto loss = [&] {
                Forward f = forward(q, x, u);
                double sum = 0;
                for (size_t i = 0; i < n; i++) sum += dx_new[i] * f.x_new[i] + dz[i] * f.z[i];
                return sum;
            };
            Forward f = forward(q, x, u);
            Backward b = backward(q, u, f.p, f.x_new, dx_new, dz);
            auto check = [&](double& value, double gradient) {
                const double h = 1e-5, kept = value;
                value = kept + h;
                double up = loss();
                value = kept - h;
                double down = loss();
                value = kept;
                CHECK(gradient == Approx((up - down) / (2 * h)).epsilon(1e-6).margin(1e-7));
            };
            for (int t = 0; t < 4; t++) {
                int i = random.below(static_cast<int>(n)), c = random.below(q.C);
                check(x[i], b.dx[i]);
                check(u[i], b.du[i]);
                if (q.out.present) check(q.out.gain[c], b.out.dgain[c]);
                if (q.post.present) check(q.post.gain[c], b.post.dgain[c]);
                if (q.in.present) check(q.in.gain[c], b.in.dgain[c]);
                if (q.in.present && !q.in.bias.empty()) check(q.in.bias[c], b.in.dbias[c]);
            }
        }
    }
}

TEST_CASE("vanilla seam: every set of norms") {
    Random random(2);
    for (int parts = 0; parts < 8; parts++) {
        for (NormKind kind : {NormKind::layer, NormKind::rms}) {
            bool out = parts & 4, post = parts & 2, in = parts & 1;
            if (out && post) continue;  // no scheme has both
            check_seam(random, make_problem(random, 7, 96, kind, out, post, in));
            check_seam(random, make_problem(random, 7, 96, kind, out, post, in), false, true);
            check_seam(random, make_problem(random, 37, 760, kind, out, post, in, 2.5), false, true);
            if (in) check_seam(random, make_problem(random, 9, 128, kind, out, post, in), true);
            if (!out) check_seam(random, make_problem(random, 6, 104, kind, out, post, in, 1, true));
        }
    }
}

TEST_CASE("vanilla seam: awkward sizes") {
    Random random(3);
    for (int C : {PackX::size, 8, 16, 128, 264, 760, 768, 1128, 1600, 4096, 8192})
        for (int N : {1, 5, 199}) {
            if (N == 199 && C > 1600) continue;
            check_seam(random, make_problem(random, N, C, NormKind::layer, false, false, true));
            check_seam(random, make_problem(random, N, C, N == 5 ? NormKind::layer : NormKind::rms, N != 1, N == 1, true));
        }
    check_seam(random, make_problem(random, 199, 8192, NormKind::layer, true, false, true));
}

// The variance comes from the centred row. With E[x^2] - E[x]^2 in fp32 this would be wrong in the second digit.
TEST_CASE("layer norm of a row far from zero") {
    Random random(4);
    Problem q = make_problem(random, 3, 1600, NormKind::layer, false, false, true, 1, true);
    q.in = Norm{true, Vec(q.C, 1.0), {}, 1};
    size_t n = static_cast<size_t>(q.N) * q.C;
    auto x = random.normals<floatX>(n, 1.0, 1000.0);
    Device<floatX> stream(x), z(n);
    DeviceNorm in(random, q, q.in);
    vanilla_forward({stream.data, nullptr, nullptr, z.data, nullptr, {}, {}, in.seam}, {q.N, q.C, q.kind, 1e-5f}, nullptr);
    // The mean, 1000, is known to 1000 * 2^-24 * a few.
    CHECK(relative_error(to_double(z.read()), forward(q, to_double(x), {}).z) < unit_roundoff + 3e-4);
}
