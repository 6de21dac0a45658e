// Scalar factors of branches, and the dot products of parameters with their gradients, against sums in float64.
#include "residual/branch_scale.cuh"

#include <memory>

#include "test.h"

namespace {

// 2^20 + 5 elements are more than the largest grid takes in one round.
const int64_t COUNTS[] = {1, 3, 31, 257, 2048, 2049, 0, 100003, (1 << 20) + 5};

struct Dot {
    int64_t count;
    bool exact, weighted;
    float scale;  // NaN: none given
    int total;
    Device<float> grad, exact_value;
    Device<floatX> value;
    std::vector<float> want_grad;
    double sum = 0, size = 0;

    Dot(Random& random, int64_t count, bool exact, bool weighted, float scale, int total)
        : count(count), exact(exact), weighted(weighted), scale(scale), total(total),
          grad(static_cast<size_t>(count) + 3), exact_value(static_cast<size_t>(exact ? count : 0)),
          value(static_cast<size_t>(exact ? 0 : count)) {
        const size_t n = static_cast<size_t>(count);
        want_grad = random.normals<float>(n + 3);  // three more that belong to somebody else
        grad.write(want_grad);
        std::vector<double> values;
        if (exact) {
            const auto v = random.normals<float>(n, 2, 0.5);
            exact_value.write(v), values = to_double(v);
        } else {
            const auto v = random.normals<floatX>(n, 2, 0.5);
            value.write(v), values = to_double(v);
        }
        for (size_t i = 0; i < n; i++) {
            const double product = static_cast<double>(want_grad[i]) * values[i];
            sum += product, size += std::fabs(product);
            if (scale == scale) want_grad[i] *= scale;
        }
    }
};

}  // namespace

TEST_CASE("branch factors", "[branch_scale]") {
    for (int count : {1, 7, 256, 257, 1000}) {
        CAPTURE(count);
        Random random(static_cast<uint64_t>(count));
        const size_t n = static_cast<size_t>(count);
        const std::vector<float> alpha = random.normals<float>(n), factor = random.normals<float>(n);
        Device<float> d_alpha(alpha), d_factor(factor), beta(n + 1);
        beta.write(std::vector<float>(n + 1, -3));
        // Factors in any order, shared, and missing.
        std::vector<const float*> table(n, nullptr);
        std::vector<float> want = alpha;
        for (size_t i = 0; i < n; i++) {
            if (i % 3 == 1) continue;
            const size_t from = (n - 1 - i) / 2 * 2;
            table[i] = d_factor.data + from;
            want[i] = alpha[i] * factor[from];
        }
        Device<const float*> d_table(table);
        branch_factors(beta.data, d_alpha.data, d_table.data, count, nullptr);
        want.push_back(-3);
        CHECK(beta.read() == want);
    }
}

TEST_CASE("branch dots, all in one go", "[branch_scale]") {
    Random random(1);
    const float weight = 0.3f, before = 7;
    const std::vector<float> scales = {0.0f, -1.75f};
    Device<float> d_weight(std::vector<float>{weight}), d_scales(scales);
    std::vector<std::unique_ptr<Dot>> dots;
    for (int64_t count : COUNTS)
        for (bool exact : {false, true})
            for (int kind = 0; kind < 4; kind++) {  // the four share a total
                const float scale = kind == 0 ? NAN : scales[static_cast<size_t>(kind % 2)];
                const int total = static_cast<int>(dots.size()) / 4;
                dots.push_back(std::make_unique<Dot>(random, count, exact, kind > 1, scale, total));
            }
    const size_t totals = dots.size() / 4;
    std::vector<float> first;
    for (int run = 0; run < 2; run++) {
        std::vector<float> start(totals + 1, before);
        Device<float> total(start);
        std::vector<BranchDot> table;
        for (const auto& dot : dots)
            table.push_back({total.data + dot->total, dot->weighted ? d_weight.data : nullptr,
                             dot->scale != dot->scale ? nullptr : d_scales.data + (dot->scale == 0 ? 0 : 1),
                             dot->exact ? nullptr : dot->value.data, dot->exact ? dot->exact_value.data : nullptr,
                             dot->grad.data, dot->count});
        std::vector<std::vector<float>> grads;
        for (const auto& dot : dots) grads.push_back(dot->grad.read());
        Device<BranchDot> d_table(table);
        const int count = static_cast<int>(table.size());
        Device<float> scratch(branch_dots_scratch_bytes(count) / sizeof(float));
        scratch.poison();
        branch_dots(d_table.data, table, scratch.data, nullptr);
        const std::vector<float> got = total.read();
        for (size_t t = 0; t < totals; t++) {
            double want = before, size = before;
            for (size_t i = 4 * t; i < 4 * t + 4; i++) {
                const Dot& dot = *dots[i];
                CAPTURE(dot.count, dot.exact, dot.weighted, dot.scale);
                const double factor = dot.weighted ? static_cast<double>(weight) : 1.0;
                want += factor * dot.sum, size += factor * dot.size;
                CHECK(dot.grad.read() == dot.want_grad);  // one product each: the same in every build
            }
            // A term takes part in at most 2 + 4 additions of its thread, 10 of its block, 12 of the parts and 4 of the
            // total: 32 roundings of at most 2^-24 of the terms' absolute sum.
            CHECK(std::fabs(got[t] - want) <= 32 * 0x1p-24 * size);
        }
        CHECK(got[totals] == before);
        if (run == 1) CHECK(got == first);  // deterministic
        first = got;
        for (size_t i = 0; i < dots.size(); i++)
            dots[i]->grad.write(grads[i]);  // as they were before
    }
}

TEST_CASE("branch dots of nothing", "[branch_scale]") { branch_dots(nullptr, {}, nullptr, nullptr); }
