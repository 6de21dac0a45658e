// x_0, the normed embedding that the lscale rules come back to, and the way back through it, against float64.
#include "residual/x0.h"

#include "planned_memory.h"

namespace {

using Vec = std::vector<double>;

struct Norm {
    NormKind kind;
    double eps;
    Vec gain, bias;
};

struct Stats {
    double mean = 0, rstd = 0;
};
Stats stats(const Norm& norm, const double* x, size_t C) {
    Stats s;
    for (size_t c = 0; norm.kind == NormKind::layer && c < C; c++) s.mean += x[c] / static_cast<double>(C);
    double square = 0;
    for (size_t c = 0; c < C; c++) square += (x[c] - s.mean) * (x[c] - s.mean);
    s.rstd = 1 / std::sqrt(square / static_cast<double>(C) + norm.eps);
    return s;
}
Vec normalise(const Norm& norm, const Vec& x) {
    const size_t C = norm.gain.size();
    Vec y(x.size());
    for (size_t at = 0; at < x.size(); at += C) {
        const Stats s = stats(norm, &x[at], C);
        for (size_t c = 0; c < C; c++) y[at + c] = norm.gain[c] * (x[at + c] - s.mean) * s.rstd + norm.bias[c];
    }
    return y;
}
// dy becomes dx.
void normalise_backward(const Norm& norm, const Vec& x, Vec& dy, Vec& dgain, Vec& dbias) {
    const size_t C = norm.gain.size();
    dgain.assign(C, 0);
    dbias.assign(C, 0);
    for (size_t at = 0; at < x.size(); at += C) {
        const Stats s = stats(norm, &x[at], C);
        double mean = 0, along = 0;
        for (size_t c = 0; c < C; c++) {
            const double xh = (x[at + c] - s.mean) * s.rstd, a = norm.gain[c] * dy[at + c];
            dgain[c] += dy[at + c] * xh;
            dbias[c] += dy[at + c];
            if (norm.kind == NormKind::layer) mean += a / static_cast<double>(C);
            along += a * xh / static_cast<double>(C);
        }
        for (size_t c = 0; c < C; c++)
            dy[at + c] = s.rstd * (norm.gain[c] * dy[at + c] - mean - (x[at + c] - s.mean) * s.rstd * along);
    }
}

struct Problem {
    int N, C;
    NormKind kind;
    bool rms0, embed_norm, gradient, extra;
};

Vec floats(const std::vector<float>& v) { return to_double(v); }

void check(const Problem& q) {
    CAPTURE(q.N, q.C, q.kind == NormKind::layer, q.rms0, q.embed_norm, q.gradient, q.extra);
    Random random(static_cast<uint64_t>(q.N * 100 + q.C));
    const size_t rows = static_cast<size_t>(q.N), C = static_cast<size_t>(q.C), count = rows * C;
    RuleShape shape;
    shape.L = 1;
    shape.C = q.C;
    shape.kind = q.kind;
    const bool embed_bias = q.kind == NormKind::layer;
    shape.eps = 1e-5f;
    shape.N = q.N + 2;  // memory for more tokens than this pass has
    shape.scheme.embed_norm = q.embed_norm;

    X0 x0(q.rms0);
    CHECK(x0.has_entry(shape) == (q.rms0 || q.embed_norm));
    PlannedMemory memory;
    x0.plan(memory, shape, q.gradient);
    x0.ready(shape, nullptr);
    CHECK((x0.gradient() != nullptr) == q.gradient);

    const std::vector<floatX> entry = random.normals<floatX>(count, 0.7, 0.2);
    const std::vector<float> gain = random.normals<float>(C, 0.1, 1), bias = random.normals<float>(C, 0.1);
    Device<floatX> d_entry(entry), d_x0(count);
    Device<float> d_gain(gain), d_bias(bias), mean(rows), rstd(rows), dgain(std::vector<float>(C, 2)),
        dbias(std::vector<float>(C, -1)), scratch(seam_scratch_bytes(q.C) / 4);
    SeamNorm norm;
    if (q.embed_norm) {
        norm.gain = d_gain.data;
        norm.dgain = dgain.data;
        norm.mean = mean.data;
        norm.rstd = rstd.data;
        if (embed_bias) norm.bias = d_bias.data, norm.dbias = dbias.data;
    }
    const Norm embed = {q.kind, 1e-5, floats(gain), embed_bias ? floats(bias) : Vec(C, 0)};
    const Norm unit = {NormKind::rms, 1e-6, Vec(C, 1), Vec(C, 0)};
    const Pass pass = {q.N, nullptr, nullptr, scratch.data};

    d_x0.poison();
    if (x0.has_entry(shape)) x0.forward(shape, norm, d_entry.data, d_x0.data, pass);
    Vec normed = to_double(entry);
    if (q.embed_norm) normed = normalise(embed, normed);
    Vec stored = normed;  // what lies between both norms is rounded to floatX, and the second one sees it rounded
    for (double& v : stored) v = static_cast<double>(to_float(from_float<floatX>(static_cast<float>(v))));
    // fp32 statistics, and one rounding to floatX: two with both norms.
    const double atol = 64 * 0x1p-24, rtol = (sizeof(floatX) == 2 ? unit_roundoff : 0) + 8 * 0x1p-24;
    if (x0.has_entry(shape)) {
        const Vec want = q.rms0 ? normalise(unit, stored) : normed;
        CHECK(worst_error(to_double(d_x0.read()), want, atol, (q.rms0 && q.embed_norm ? 2 : 1) * rtol) <= 1);
    }

    const std::vector<floatX> dx = random.normals<floatX>(count), extra = random.normals<floatX>(count);
    const std::vector<float> own = random.normals<float>(count);
    const float factor = 1.75f;
    Device<floatX> d_dx(dx), d_extra(extra);
    Device<float> d_factor(std::vector<float>{factor});
    if (q.gradient) CUDA_CHECK(cudaMemcpy(x0.gradient(), own.data(), count * sizeof(float), cudaMemcpyHostToDevice));
    x0.backward(shape, norm, d_entry.data, d_dx.data, q.extra ? d_extra.data : nullptr, q.extra ? d_factor.data : nullptr, pass);
    Vec d = to_double(dx), want_gain, want_bias;
    const Vec e = to_double(extra);
    for (size_t i = 0; i < count; i++)
        d[i] += (q.gradient ? static_cast<double>(own[i]) : 0) + (q.extra ? (factor - 1.0) * e[i] : 0);
    if (q.rms0) normalise_backward(unit, q.embed_norm ? stored : to_double(entry), d, want_gain, want_bias);
    if (q.embed_norm) normalise_backward(embed, to_double(entry), d, want_gain, want_bias);
    // Up to three roundings of the gradient, each of size 2^-9 and random: compared as whole arrays. In bf16 the two means
    // that a norm's backward pass takes out do not lower the error.
    const double allowed = sizeof(floatX) == 2 ? 3 * unit_roundoff : 1e-5;
    CHECK(relative_error(to_double(d_dx.read()), d) < allowed);
    if (!q.embed_norm) return;
    for (double& v : want_gain) v += 2;
    CHECK(relative_error(to_double(dgain.read()), want_gain) < allowed);
    if (!embed_bias) return;
    for (double& v : want_bias) v -= 1;
    CHECK(relative_error(to_double(dbias.read()), want_bias) < allowed);
}

}  // namespace

TEST_CASE("x0: forward and backward", "[x0]") {
    for (auto [N, C] : {std::pair{1, 8}, {7, 104}, {37, 264}, {3, 1000}})
        for (NormKind kind : {NormKind::layer, NormKind::rms})
            for (int what = 0; what < 16; what++)
                check({N, C, kind, (what & 1) != 0, (what & 2) != 0, (what & 4) != 0, (what & 8) != 0});
}

TEST_CASE("x0: the sum over many tokens", "[x0]") { check({2500, 104, NormKind::layer, false, false, true, true}); }

TEST_CASE("x0: inference plans no gradient", "[x0]") {
    RuleShape shape;
    shape.L = 1;
    shape.C = 8;
    shape.N = 4;
    shape.training = false;
    PlannedMemory memory;
    X0 x0(true);
    x0.plan(memory, shape, true);
    CHECK(x0.gradient() == nullptr);
}
