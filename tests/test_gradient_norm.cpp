#include "optimizer/gradient_norm.cuh"

#include <cstring>
#include <limits>

#include "test.h"

namespace {

std::vector<float> clip_of(const std::vector<float>& grads, float max_norm) {
    Device<float> d(grads), clip(2);
    Device<double> scratch(gradient_norm_scratch_bytes(static_cast<int64_t>(grads.size())) / sizeof(double));
    clip.poison(), scratch.poison();
    gradient_norm(clip.data, d.data, static_cast<int64_t>(grads.size()), max_norm, scratch.data, nullptr);
    return clip.read();
}

}  // namespace

TEST_CASE("gradient norm and clip factor") {
    Random random(1);
    for (int64_t count : {1, 3, 4, 64, 191, 131072, 131073, 1000003}) {
        INFO("count=" << count);
        auto g = random.normals<float>(count, 0.01);
        double square = 0;
        for (float x : g) square += static_cast<double>(x) * x;
        double norm = std::sqrt(square);
        auto clip = clip_of(g, 1.0f);
        // Sixteen squares in fp32, then fp64: about 2 * 2^-24 at random, halved by the root, and the rounding of the result.
        CHECK(clip[0] == Approx(norm).epsilon(3 * 0x1p-24));
        CHECK(clip[1] == Approx(std::min(1.0, 1.0 / (norm + 1e-6))).epsilon(4 * 0x1p-24));
        auto again = clip_of(g, 1.0f);
        CHECK(memcmp(clip.data(), again.data(), 8) == 0);
    }
}

TEST_CASE("gradient norm: the clip's cases") {
    std::vector<float> g = {3, 4, 12, 0};
    CHECK(clip_of(g, 1.0f)[0] == 13.0f);
    CHECK(clip_of(g, 1.0f)[1] == Approx(1.0 / (13 + 1e-6)).epsilon(1e-7));
    CHECK(clip_of(g, 13.0f)[1] == Approx(13.0 / (13 + 1e-6)).epsilon(1e-7));
    CHECK(clip_of(g, 100.0f)[1] == 1.0f);
    CHECK(clip_of(g, 0.0f)[1] == 1.0f);  // no clipping
    CHECK(clip_of({0, 0, 0}, 1.0f) == std::vector<float>{0.0f, 1.0f});
    CHECK(clip_of({}, 1.0f) == std::vector<float>{0.0f, 1.0f});

    std::vector<float> bad(100000, 0.5f);
    bad[77777] = std::numeric_limits<float>::infinity();
    CHECK(std::isinf(clip_of(bad, 1.0f)[0]));
    bad[5] = std::numeric_limits<float>::quiet_NaN();
    CHECK(std::isnan(clip_of(bad, 1.0f)[0]));
}
