// Scalar factors of branches, and the dot products of parameters with their gradients, against sums in float64.
#include "residual/branch_scale.cuh"

#include "test.h"

namespace {

// 2^20 + 5 elements are more than the largest grid takes in one round.
const int64_t COUNTS[] = {1, 3, 31, 257, 2048, 2049, 100003, (1 << 20) + 5};

template <class T>
void check_dot() {
    for (int64_t count : COUNTS) {
        for (bool weighted : {false, true}) {
            for (float scale : {NAN, 0.0f, -1.75f}) {  // NaN: none given
                CAPTURE(count, weighted, scale);
                Random random(static_cast<uint64_t>(count) + weighted);
                const size_t n = static_cast<size_t>(count);
                std::vector<float> grad = random.normals<float>(n + 3);  // three more that belong to somebody else
                const std::vector<T> value = random.normals<T>(n, 2, 0.5);
                const bool scaled = scale == scale;
                const float weight = 0.3f, before = 7;
                Device<float> d_grad(grad), factors(std::vector<float>{weight, scale}), scratch(branch_dot_scratch_bytes() / 4);
                Device<float> total(std::vector<float>{before, -1, before});
                Device<T> d_value(value);
                scratch.poison();
                auto run = [&](float* to) {
                    d_grad.write(grad);
                    branch_dot(to, weighted ? factors.data : nullptr, d_value.data, d_grad.data,
                               scaled ? factors.data + 1 : nullptr, count, scratch.data, nullptr);
                };
                run(total.data);
                run(total.data + 2);
                double sum = 0, size = 0;
                for (size_t i = 0; i < n; i++) {
                    const double product = static_cast<double>(grad[i]) * static_cast<double>(to_float(value[i]));
                    sum += product;
                    size += std::fabs(product);
                }
                // A term takes part in at most 8 additions of its thread, 10 of its block, 2 and 10 of the total: 32
                // roundings of at most 2^-24 of the terms' absolute sum.
                const double factor = weighted ? static_cast<double>(weight) : 1.0;
                const std::vector<float> got = total.read();
                CHECK(std::fabs(got[0] - (before + factor * sum)) <= 32 * 0x1p-24 * (factor * size + before));
                CHECK(got[1] == -1);
                CHECK(got[2] == got[0]);  // deterministic
                for (size_t i = 0; scaled && i < n; i++) grad[i] *= scale;
                CHECK(d_grad.read() == grad);  // one product each: the same in every build
            }
        }
    }
}

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

TEST_CASE("branch dot of fp32 values", "[branch_scale]") { check_dot<float>(); }
TEST_CASE("branch dot of floatX values", "[branch_scale]") { check_dot<floatX>(); }

TEST_CASE("branch dot of nothing", "[branch_scale]") {
    Device<float> total(std::vector<float>{5}), scratch(branch_dot_scratch_bytes() / 4);
    branch_dot<float>(total.data, nullptr, nullptr, nullptr, nullptr, 0, scratch.data, nullptr);
    CHECK(total.read()[0] == 5);
}
