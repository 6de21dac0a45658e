#include "kernels/classifier.cuh"

#include <cstring>
#include <limits>

#include "test.h"

namespace {

bool masked(int64_t row) { return row % 7 == 2 || row % 11 == 3; }

void check_classifier(Random& random, int64_t N, int V, int Vp, double spread, double offset) {
    INFO("N=" << N << " V=" << V << " Vp=" << Vp << " spread=" << spread << " offset=" << offset);
    size_t n = static_cast<size_t>(N) * Vp;
    auto logits = random.normals<floatX>(n, spread, offset);
    std::vector<int> targets(N);
    const float dloss = 0.125f;
    std::vector<double> want_losses(N), want_d(n, 0.0);
    for (int64_t r = 0; r < N; r++) {
        floatX* row = &logits[r * Vp];
        for (int i = V; i < Vp; i++)  // the padding holds garbage
            row[i] = from_float<floatX>(i % 2 ? std::numeric_limits<float>::quiet_NaN() : 3e38f);
        targets[r] = masked(r) ? -1 : r == 0 ? V - 1 : random.below(V);
        if (targets[r] < 0) continue;
        double max = -1e300, sum = 0;
        for (int i = 0; i < V; i++) max = std::max(max, static_cast<double>(to_float(row[i])));
        for (int i = 0; i < V; i++) sum += std::exp(to_float(row[i]) - max);
        want_losses[r] = max + std::log(sum) - to_float(row[targets[r]]);
        for (int i = 0; i < V; i++)
            want_d[r * Vp + i] = (std::exp(to_float(row[i]) - max) / sum - (i == targets[r])) * dloss;
    }
    Device<int> d_targets(targets);
    Device<float> losses(N);

    // Loss only: the logits stay as they are.
    Device<floatX> kept(logits);
    losses.poison();
    classifier(kept.data, losses.data, d_targets.data, dloss, N, V, Vp, false, nullptr);
    auto alone = losses.read();
    auto unchanged = kept.read();
    CHECK(memcmp(unchanged.data(), logits.data(), n * sizeof(floatX)) == 0);
    // loss = (max - target) + log(sum): each part is right to a few 2^-24 of its own size; the exponentials carry errors
    // of about |argument| * 2^-24 and 2 ulp.
    double scale = std::fabs(offset) + 6 * spread + 12;
    CHECK(worst_error(to_double(alone), want_losses, 4 * 0x1p-24 * scale, 2e-6) <= 1);

    for (auto kernel : {ClassifierKernel::cached, ClassifierKernel::resident}) {
        if (kernel == ClassifierKernel::resident && !classifier_row_fits(Vp)) continue;
        CAPTURE(static_cast<int>(kernel));
        std::vector<floatX> first;
        std::vector<float> first_losses;
        for (int run = 0; run < 2; run++) {
            Device<floatX> d(logits);
            losses.poison();
            classifier_with(kernel, d.data, losses.data, d_targets.data, dloss, N, V, Vp, true, nullptr);
            auto again = losses.read();
            CHECK(worst_error(to_double(again), want_losses, 4 * 0x1p-24 * scale, 2e-6) <= 1);
            auto got = d.read();
            // Rounding of the output; fp32 exponentials and sums inside. p - 1 at the target cancels: hence the
            // absolute part.
            CHECK(worst_error(to_double(got), want_d, 0x1p-22 * dloss, unit_roundoff + 2e-5) <= 1);
            bool zero = true;  // padding and masked rows
            for (int64_t r = 0; r < N; r++) {
                for (int i = masked(r) ? 0 : V; i < Vp; i++) zero &= to_float(got[r * Vp + i]) == 0;
                if (masked(r)) zero &= again[r] == 0;
            }
            CHECK(zero);
            if (run == 0) {
                first = got, first_losses = again;
            } else {
                CHECK(memcmp(first.data(), got.data(), n * sizeof(floatX)) == 0);
                CHECK(memcmp(first_losses.data(), again.data(), N * sizeof(float)) == 0);
            }
        }
        if (kernel == ClassifierKernel::cached)
            CHECK(memcmp(first_losses.data(), alone.data(), N * sizeof(float)) == 0);
    }
}

}  // namespace

TEST_CASE("classifier: losses and gradients") {
    Random random(1);
    for (int V : {1, 5, 61, 256, 1000, 4097})
        for (int64_t N : {1, 5, 199}) {
            int Vp = static_cast<int>(round_up(V, 16));
            check_classifier(random, N, V, Vp, 3, 0);
            if (N == 5) check_classifier(random, N, V, Vp + 128, 3, 0);
        }
    for (int V : {7, 255, 257, 32000}) check_classifier(random, 37, V, static_cast<int>(round_up(V, 8)), 2, 0);
    check_classifier(random, 5, 50257, 50304, 2, 0);
    check_classifier(random, 3, 50304, 50304, 2, 0);
    check_classifier(random, 3, 113000, 113024, 2, 0);  // fits in shared memory in bf16 alone
    check_classifier(random, 3, 128256, 128256, 2, 0);  // fits in neither
    check_classifier(random, 4, 300, 304, 20, 0);     // most exponentials vanish
    check_classifier(random, 4, 300, 304, 1, 500);    // exp(500) is infinite in fp32
    check_classifier(random, 4, 300, 304, 1, -500);   // exp(-500) is zero
}

TEST_CASE("classifier: a NaN in a row shows in its loss, and in no other") {
    Random random(2);
    const int N = 3, V = 100, Vp = 112;
    auto logits = random.normals<floatX>(N * Vp);
    logits[Vp + 7] = from_float<floatX>(std::numeric_limits<float>::quiet_NaN());
    Device<float> losses(N);
    Device<int> targets(std::vector<int>{1, 2, 3});
    for (auto kernel : {ClassifierKernel::cached, ClassifierKernel::resident}) {
        Device<floatX> d(logits);
        classifier_with(kernel, d.data, losses.data, targets.data, 1.0f, N, V, Vp, true, nullptr);
        auto got = losses.read();
        CHECK(std::isfinite(got[0]));
        CHECK(std::isnan(got[1]));
        CHECK(std::isfinite(got[2]));
    }
}

TEST_CASE("classifier: which kernel") {
    int limit = 0;
    REQUIRE(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) == cudaSuccess);
    const int widest = limit / static_cast<int>(sizeof(floatX)) / PackX::size * PackX::size;
    CHECK(classifier_row_fits(widest - 128));
    CHECK_FALSE(classifier_row_fits(widest));
    // Losses alone need one pass; too long a row has no choice; short rows stay in any cache.
    CHECK(classifier_choice(50304, false) == ClassifierKernel::cached);
    CHECK(classifier_choice(widest, true) == ClassifierKernel::cached);
    CHECK(classifier_choice(256, true) == ClassifierKernel::cached);
    // What it takes is one of the two, to the bit.
    Random random(4);
    const int N = 5, V = 1000, Vp = 1008;
    auto logits = random.normals<floatX>(N * Vp);
    Device<int> targets(std::vector<int>{1, 2, 3, 4, 5});
    Device<float> losses(N), want_losses(N);
    Device<floatX> got(logits), want(logits);
    classifier(got.data, losses.data, targets.data, 0.5f, N, V, Vp, true, nullptr);
    const ClassifierKernel kernel = classifier_choice(Vp, true);
    classifier_with(kernel, want.data, want_losses.data, targets.data, 0.5f, N, V, Vp, true, nullptr);
    CHECK(to_double(got.read()) == to_double(want.read()));
    CHECK(losses.read() == want_losses.read());
}

TEST_CASE("sum of losses in fp64") {
    Random random(3);
    for (int64_t N : {1, 5, 199, 70001}) {
        auto losses = random.normals<float>(N, 1.0, 10.0);
        double want = 0.25;
        for (float x : losses) want += x;
        Device<float> d(losses);
        Device<double> total(std::vector<double>{0.25});
        sum_losses(total.data, d.data, N, nullptr);
        CHECK(total.read()[0] == Approx(want).epsilon(1e-14));  // fp64 sums, in another order
    }
}
