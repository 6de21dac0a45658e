// The joint clip of gates, behind the global one, against float64.
#include "residual/gate_clip.cuh"

#include <algorithm>

#include "test.h"

namespace {

void check(const std::vector<int64_t>& gates, float global, float limit, bool clips) {
    CAPTURE(gates.size(), global, limit);
    Random random(gates.size());
    const std::vector<float> grads = random.normals<float>(5000, 0.1);
    Device<float> d_grads(grads), clip(std::vector<float>{1e30f, global});
    clip_gates(d_grads.data, gates, clip.data, limit, nullptr);
    double square = 0;
    for (int64_t i : gates) square += std::pow(static_cast<double>(grads[static_cast<size_t>(i)]) * global, 2);
    const double factor = std::min(1.0, limit / (std::sqrt(square) + 1e-6));
    CHECK((factor < 1) == clips);
    std::vector<double> want = to_double(grads);
    for (int64_t i : gates) want[static_cast<size_t>(i)] *= factor;
    const std::vector<double> got = to_double(d_grads.read());
    // One thread adds up to 256 squares: 2^-24 each, halved by the root; then a root, a quotient and a product.
    CHECK(worst_error(got, want, 0, clips ? (128 + 4) * 0x1p-24 : 0) <= 1);
    double after = 0;
    for (int64_t i : gates) after += std::pow(got[static_cast<size_t>(i)] * global, 2);
    CHECK(std::sqrt(after) <= limit * (1 + 1e-4));
    for (size_t i = 0; i < grads.size(); i++) {
        const bool gate = std::find(gates.begin(), gates.end(), static_cast<int64_t>(i)) != gates.end();
        if (!gate && got[i] != static_cast<double>(grads[i])) FAIL("gradient " << i << " is no gate's and changed");
    }
}

std::vector<int64_t> some(int count) {
    std::vector<int64_t> gates;
    for (int i = 0; i < count; i++) gates.push_back(64 + static_cast<int64_t>(i) * 19);
    return gates;
}

}  // namespace

TEST_CASE("gate clip", "[gate_clip]") {
    for (int count : {1, 2, 24, 37, 256}) {
        check(some(count), 1.0f, 0.01f, true);
        check(some(count), 0.03f, 1e-4f, true);
        check(some(count), 1.0f, 100.0f, false);
    }
    // The global clip alone brings these below the limit: 24 gates of size 0.1 have length 0.5, times 0.01.
    check(some(24), 0.01f, 0.1f, false);
    check(some(24), 1.0f, 0.1f, true);
    check({}, 1.0f, 0.01f, false);
}

TEST_CASE("gate clip: gates without gradient stay", "[gate_clip]") {
    Device<float> grads(std::vector<float>{0, 0, 3}), clip(std::vector<float>{1, 1});
    clip_gates(grads.data, {0, 1}, clip.data, 0.01f, nullptr);
    CHECK(grads.read() == std::vector<float>{0, 0, 3});
}
