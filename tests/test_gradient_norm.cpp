#include "optimizer/gradient_norm.cuh"

#include <cstring>
#include <limits>

#include "test.h"

namespace {

// Of tensors of these sizes one behind the other; their sum is the number of gradients.
std::vector<float> clip_of(const std::vector<float>& grads, float max_norm, std::vector<int64_t> sizes = {},
                           int frozen = -1) {
    if (sizes.empty()) sizes = {static_cast<int64_t>(grads.size())};
    std::vector<AdamWTensor> tensors;
    int64_t offset = 0;
    for (int64_t size : sizes) {
        AdamWTensor t = {};
        t.offset = offset, t.count = size, t.frozen = static_cast<int>(tensors.size()) == frozen;
        tensors.push_back(t);
        offset += size;
    }
    const std::vector<AdamWChunk> chunks = adamw_chunks(tensors);
    Device<AdamWTensor> d_tensors(tensors);
    Device<AdamWChunk> d_chunks(chunks);
    Device<float> d(grads), clip(2);
    Device<double> scratch(gradient_norm_scratch_bytes(static_cast<int64_t>(chunks.size())) / sizeof(double));
    clip.poison(), scratch.poison();
    gradient_norm(clip.data, d.data, d_tensors.data, d_chunks.data, static_cast<int>(chunks.size()), max_norm,
                  scratch.data, nullptr);
    return clip.read();
}
std::vector<float> padded(std::vector<float> grads) {
    grads.resize(64);
    return grads;
}

}  // namespace

TEST_CASE("gradient norm and clip factor") {
    Random random(1);
    for (int64_t count : {64, 128, 192, 16384, 16448, 1000064}) {
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
    const std::vector<float> g = padded({3, 4, 12});
    CHECK(clip_of(g, 1.0f)[0] == 13.0f);
    CHECK(clip_of(g, 1.0f)[1] == Approx(1.0 / (13 + 1e-6)).epsilon(1e-7));
    CHECK(clip_of(g, 13.0f)[1] == Approx(13.0 / (13 + 1e-6)).epsilon(1e-7));
    CHECK(clip_of(g, 100.0f)[1] == 1.0f);
    CHECK(clip_of(g, 0.0f)[1] == 1.0f);  // no clipping
    CHECK(clip_of(padded({}), 1.0f) == std::vector<float>{0.0f, 1.0f});
    CHECK(clip_of({}, 1.0f) == std::vector<float>{0.0f, 1.0f});

    std::vector<float> bad(100032, 0.5f);
    bad[77777] = std::numeric_limits<float>::infinity();
    CHECK(std::isinf(clip_of(bad, 1.0f)[0]));
    bad[5] = std::numeric_limits<float>::quiet_NaN();
    CHECK(std::isnan(clip_of(bad, 1.0f)[0]));
}

TEST_CASE("gradient norm: what is frozen does not count") {
    Random random(2);
    const std::vector<int64_t> sizes = {128, 2 * ADAMW_CHUNK + 64, ADAMW_CHUNK, 64};
    const int64_t count = 128 + 3 * ADAMW_CHUNK + 128;
    for (int frozen = 0; frozen < 4; frozen++) {
        auto g = random.normals<float>(count);
        double square = 0;
        int64_t first = 0;
        for (int t = 0; t < 4; first += sizes[t], t++)
            for (int64_t i = first; i < first + sizes[t]; i++) {
                if (t == frozen) g[i] = std::numeric_limits<float>::quiet_NaN();
                else square += static_cast<double>(g[i]) * g[i];
            }
        CAPTURE(frozen);
        CHECK(clip_of(g, 1.0f, sizes, frozen)[0] == Approx(std::sqrt(square)).epsilon(3 * 0x1p-24));
        CHECK(std::isnan(clip_of(g, 1.0f, sizes)[0]));
    }
}
