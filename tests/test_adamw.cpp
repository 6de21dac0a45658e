#include "optimizer/adamw.cuh"

#include <cstring>
#include <limits>

#include "test.h"

namespace {

constexpr bool is_bf16 = sizeof(floatX) == 2;

// The arrays of an arena. In an fp32 build the working copy and the master are one array.
struct Arena {
    Device<float> master, grads, m, v, clip;
    Device<floatX> working;
    Device<AdamWTensor> tensors;
    Device<AdamWChunk> chunks;
    int num_chunks;
    Arena(const std::vector<float>& p, const std::vector<AdamWTensor>& list)
        : master(p), grads(p.size()), m(p.size()), v(p.size()), clip(std::vector<float>{1.0f, 1.0f}),
          working(is_bf16 ? p.size() : 1), tensors(list), chunks(adamw_chunks(list)),
          num_chunks(static_cast<int>(chunks.count)) {
        grads.zero(), m.zero(), v.zero(), working.poison();
    }
    floatX* params() { return is_bf16 ? working.data : reinterpret_cast<floatX*>(master.data); }
    void update(bool zero_grads, uint64_t step = 1, uint64_t seed = 42) {
        adamw_update(params(), master.data, grads.data, m.data, v.data, tensors.data, chunks.data, num_chunks, clip.data,
                     zero_grads, seed, step, nullptr);
    }
};

AdamWTensor tensor(int64_t offset, int64_t count, int64_t n, float lr = 1e-2f, float decay = 0.1f) {
    AdamWTensor t{offset, count, lr, decay, 0.9f, 0.95f, 1e-8f, 0, 0, 0};
    t.correction1 = static_cast<float>(adamw_correction(t.beta1, n));
    t.correction2 = static_cast<float>(adamw_correction(t.beta2, n));
    return t;
}

uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
float from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

}  // namespace

TEST_CASE("AdamW: the vector of three updates") {
    const double grads[3][3] = {{0.1, -0.2, 0}, {0.3, 0.1, -0.05}, {-0.2, 0.4, 0.02}};
    const double want_p[3][3] = {{0.989000001, -0.489500000, 0.249750000},
                                 {0.978924080, -0.486326806, 0.256849848},
                                 {0.975379379, -0.490348707, 0.259550683}};
    const double want_m[3][3] = {{0.01, -0.02, 0}, {0.039, -0.008, -0.005}, {0.0151, 0.0328, -0.0025}};
    const double want_v[3][3] = {{0.0005, 0.002, 0}, {0.004975, 0.0024, 0.000125}, {0.00672625, 0.01028, 0.00013875}};
    std::vector<float> p(64, 0.0f);
    p[0] = 1, p[1] = -0.5, p[2] = 0.25;
    Arena arena(p, {tensor(0, 64, 1)});
    for (int n = 1; n <= 3; n++) {
        std::vector<float> g(64, 0.0f);
        for (int i = 0; i < 3; i++) g[i] = static_cast<float>(grads[n - 1][i]);
        arena.grads.write(g);
        arena.tensors.write({tensor(0, 64, n)});
        arena.update(true, n);
        auto got_p = arena.master.read(), got_m = arena.m.read(), got_v = arena.v.read();
        for (int i = 0; i < 3; i++) {
            CHECK(std::fabs(got_p[i] - want_p[n - 1][i]) < 1e-6);
            CHECK(std::fabs(got_m[i] - want_m[n - 1][i]) < 1e-6);
            CHECK(std::fabs(got_v[i] - want_v[n - 1][i]) < 1e-6);
        }
        if (n == 1) {  // decay coupled into the gradient (Adam with L2) would give these
            const double coupled[3] = {0.99, -0.49, 0.24};
            for (int i = 0; i < 3; i++) CHECK(std::fabs(got_p[i] - coupled[i]) > 1e-4);
        }
    }
}

TEST_CASE("AdamW: the bias correction") {
    CHECK(adamw_correction(0.999, 1) == Approx(0.001).epsilon(1e-14));
    CHECK(adamw_correction(0.9, 3) == Approx(0.271).epsilon(1e-14));
    CHECK(adamw_correction(0.95, 1000000) == 1.0);
    CHECK(adamw_correction(0.0, 1) == 1.0);
    // A beta that fp32 does not hold exactly: after one step v/correction is g^2, whatever beta is.
    CHECK(adamw_correction(0.999f, 1) == Approx(static_cast<double>(1.0f - 0.999f)).epsilon(1e-12));
}

TEST_CASE("AdamW: tensors of their own rates, frozen ones, gaps between them") {
    Random random(1);
    const int64_t total = 64 * 3 + 2 * ADAMW_CHUNK + 64 * 7;
    auto p = random.normals<float>(total), g = random.normals<float>(total), m = random.normals<float>(total, 0.1);
    auto v = random.normals<float>(total, 0.1);
    for (float& x : v) x = std::fabs(x);
    // [0,64) belongs to nobody; the second tensor has a whole chunk and a tail.
    std::vector<AdamWTensor> list = {tensor(64, 128, 2), tensor(192, ADAMW_CHUNK + 64, 5, 3e-4f, 0.0f),
                                     tensor(192 + ADAMW_CHUNK + 64, ADAMW_CHUNK, 9), tensor(total - 64 * 6, 64 * 6, 1)};
    list[2].frozen = 1;
    list[3].beta2 = 0.999f;
    list[3].correction2 = static_cast<float>(adamw_correction(0.999f, 1));
    Arena arena(p, list);
    arena.grads.write(g), arena.m.write(m), arena.v.write(v);
    arena.clip.write({7.0f, 0.25f});
    arena.update(true);

    std::vector<double> want_p = to_double(p), want_m = to_double(m), want_v = to_double(v), want_g = to_double(g);
    for (const AdamWTensor& t : list)
        for (int64_t i = t.offset; i < t.offset + t.count; i++) {
            double gradient = 0.25 * want_g[i];
            want_g[i] = 0;
            if (t.frozen) continue;
            double b1 = t.beta1, b2 = t.beta2;
            want_m[i] = b1 * want_m[i] + (1 - b1) * gradient;
            want_v[i] = b2 * want_v[i] + (1 - b2) * gradient * gradient;
            double mh = want_m[i] / t.correction1, vh = want_v[i] / t.correction2;
            want_p[i] -= t.lr * (mh / (std::sqrt(vh) + t.eps) + t.weight_decay * want_p[i]);
        }
    // A handful of fp32 operations each. m may cancel, so its error is measured against its terms.
    CHECK(worst_error(to_double(arena.master.read()), want_p, 1e-6, 4 * 0x1p-24) <= 1);
    CHECK(worst_error(to_double(arena.m.read()), want_m, 4 * 0x1p-24, 4 * 0x1p-24) <= 1);
    CHECK(worst_error(to_double(arena.v.read()), want_v, 0, 8 * 0x1p-24) <= 1);
    auto zeroed = to_double(arena.grads.read());
    CHECK(zeroed == want_g);  // zero inside tensors, frozen or not; untouched outside
    // Outside its tensors nothing is written.
    auto after = arena.master.read();
    CHECK(memcmp(after.data(), p.data(), 64 * sizeof(float)) == 0);
    CHECK(memcmp(&after[list[2].offset], &p[list[2].offset], ADAMW_CHUNK * sizeof(float)) == 0);

    // Gradients may be kept; the same update twice gives the same bits.
    Arena again(p, list);
    again.grads.write(g), again.m.write(m), again.v.write(v);
    again.clip.write({7.0f, 0.25f});
    again.update(false);
    auto twice = again.master.read();
    CHECK(memcmp(twice.data(), after.data(), total * sizeof(float)) == 0);
    CHECK(to_double(again.grads.read()) == to_double(g));
}

TEST_CASE("AdamW: a frozen tensor's working copy is rounded anew with the others'") {
    Random random(5);
    const int64_t count = ADAMW_CHUNK + 192;
    auto p = random.normals<float>(count);
    AdamWTensor frozen = tensor(64, count - 64, 1);
    frozen.frozen = 1;
    Arena arena(p, {tensor(0, 64, 1), frozen});
    arena.grads.write(std::vector<float>(count, 1.0f));
    arena.update(true, 9, 8);
    CHECK(to_double(arena.grads.read()) == std::vector<double>(count, 0.0));
    auto master = arena.master.read();
    CHECK(memcmp(&master[64], &p[64], (count - 64) * sizeof(float)) == 0);
    if (!is_bf16) return;
    Device<floatX> want(count);
    round_params(want.data, arena.master.data, 0, count, 8, 9, nullptr);
    CHECK(to_double(arena.working.read()) == to_double(want.read()));
    // A norm that is not finite leaves the working copy as it is.
    arena.clip.write({std::numeric_limits<float>::infinity(), 1.0f});
    arena.update(true, 10, 8);
    CHECK(to_double(arena.working.read()) == to_double(want.read()));
}

TEST_CASE("AdamW: gradients that the next update overwrites are not zeroed") {
    Random random(6);
    const int64_t count = 3 * (ADAMW_CHUNK + 64), third = count / 3;
    const auto p = random.normals<float>(count), g = random.normals<float>(count);
    for (float norm : {1.0f, std::numeric_limits<float>::infinity()}) {
        std::vector<AdamWTensor> list = {tensor(0, third, 1), tensor(third, third, 1), tensor(2 * third, third, 1)};
        Arena plain(p, list);
        list[1].stored = list[2].stored = 1;
        list[0].frozen = list[1].frozen = 1;
        Arena arena(p, list);
        for (Arena* a : {&plain, &arena}) a->grads.write(g), a->clip.write({norm, 1.0f}), a->update(true);
        auto got = arena.grads.read(), master = arena.master.read(), want = plain.master.read();
        CHECK(std::vector<float>(got.begin(), got.begin() + third) == std::vector<float>(third, 0.0f));
        if (std::isfinite(norm))
            CHECK(memcmp(&got[third], &g[third], 2 * third * sizeof(float)) == 0);
        else  // a NaN must not be there when a product overwrites it
            CHECK(std::vector<float>(got.begin() + third, got.end()) == std::vector<float>(2 * third, 0.0f));
        CHECK(memcmp(&master[2 * third], &want[2 * third], third * sizeof(float)) == 0);  // updated like any other
    }
}

TEST_CASE("AdamW: a gradient norm that is not finite skips the update") {
    Random random(2);
    for (float norm : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
        auto p = random.normals<float>(256);
        Arena arena(p, {tensor(0, 256, 1)});
        arena.grads.write(std::vector<float>(256, norm));
        arena.clip.write({norm, 1.0f});
        arena.update(true);
        CHECK(to_double(arena.master.read()) == to_double(p));
        CHECK(to_double(arena.m.read()) == std::vector<double>(256, 0.0));
        CHECK(to_double(arena.v.read()) == std::vector<double>(256, 0.0));
        CHECK(to_double(arena.grads.read()) == std::vector<double>(256, 0.0));
    }
}

TEST_CASE("the working copy is the rounded master") {
    Random random(3);
    const int64_t count = 3 * ADAMW_CHUNK + 192;
    auto p = random.normals<float>(count);
    const float special[] = {0.0f, -0.0f, 3.4028235e38f, -3.4028235e38f, 1e-40f, std::numeric_limits<float>::infinity(),
                             -std::numeric_limits<float>::infinity(), from_bits(0x7f800001u), from_bits(0xffc12345u),
                             1.0f, 1.0f + 0x1p-9f};
    memcpy(p.data(), special, sizeof special);
    Device<float> master(p);
    Device<floatX> params(count);
    params.poison();
    round_params(params.data, master.data, 0, count, 5, 6, nullptr);
    auto got = params.read();
    if (!is_bf16) {
        CHECK(memcmp(got.data(), p.data(), count * sizeof(float)) == 0);
        return;
    }
    // Every result is one of the two neighbours; what bf16 holds exactly stays.
    bool neighbours = true;
    for (int64_t i = 0; i < count; i++) {
        float x = p[i], y = to_float(got[i]);
        uint32_t down = bits_of(x) & 0xffff0000u, up = down + 0x10000u;
        if (std::isnan(x)) neighbours &= std::isnan(y);
        else if (std::isinf(x) || bits_of(x) == down) neighbours &= bits_of(y) == bits_of(x);
        else if (std::fabs(x) > 3.39e38f) neighbours &= bits_of(y) == down;  // not up to infinity
        else neighbours &= bits_of(y) == down || bits_of(y) == up;
    }
    CHECK(neighbours);

    // Unbiased: 1 + 2^-9 lies a quarter of the way from 1 to its neighbour 1 + 2^-7. The mean of n roundings has the
    // standard deviation 2^-7 * sqrt(3/16 / n).
    std::fill(p.begin(), p.end(), 1.0f + 0x1p-9f);
    master.write(p);
    round_params(params.data, master.data, 0, count, 5, 6, nullptr);
    double sum = 0;
    for (floatX x : params.read()) sum += to_float(x) - 1.0;
    CHECK(std::fabs(sum / count - 0x1p-9) < 5 * 0x1p-7 * std::sqrt(3.0 / 16 / count));

    // Other steps and other seeds round otherwise; the same do the same.
    auto round = [&](uint64_t seed, uint64_t step) {
        round_params(params.data, master.data, 0, count, seed, step, nullptr);
        return to_double(params.read());
    };
    auto a = round(5, 6);
    CHECK(a == round(5, 6));
    CHECK(a != round(5, 7));
    CHECK(a != round(6, 6));

    // What adamw_update writes is what round_params makes of the master: a resumed run starts from the same bits. The
    // update's chunks and a launch from the start of the arena number the elements alike.
    auto start = random.normals<float>(count);
    Arena arena(start, {tensor(0, ADAMW_CHUNK + 64, 1), tensor(ADAMW_CHUNK + 64, count - ADAMW_CHUNK - 64, 1)});
    arena.grads.write(random.normals<float>(count));
    arena.update(true, 9, 8);
    round_params(params.data, arena.master.data, 0, count, 8, 9, nullptr);
    auto whole = to_double(params.read());
    CHECK(whole == to_double(arena.working.read()));
    // A part of the arena, from its index on.
    const int64_t first = ADAMW_CHUNK + 64;
    round_params(params.data, arena.master.data + first, first, 512, 8, 9, nullptr);
    auto part = to_double(params.read());
    CHECK(std::equal(part.begin(), part.begin() + 512, whole.begin() + first));
}

TEST_CASE("AdamW: chunks") {
    CHECK(adamw_chunks({}).empty());
    auto chunks = adamw_chunks({tensor(0, 64, 1), tensor(64, 2 * ADAMW_CHUNK + 64, 1), tensor(0, 0, 1)});
    REQUIRE(chunks.size() == 4);
    CHECK((chunks[0].tensor == 0 && chunks[0].first == 0));
    CHECK((chunks[3].tensor == 1 && chunks[3].first == 2));
}
