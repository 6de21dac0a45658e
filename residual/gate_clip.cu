#include "residual/gate_clip.cuh"

namespace {

constexpr int MAX_GATES = 256;
struct Gates {
    int64_t offset[MAX_GATES];
    int count;
};

// One thread: a few dozen numbers, once per update, added in a fixed order.
__global__ void clip_gates_kernel(float* grads, Gates gates, const float* clip, float limit) {
    float square = 0.0f;
    for (int i = 0; i < gates.count; i++) {
        float g = grads[gates.offset[i]] * clip[1];
        square += g * g;
    }
    float factor = limit / (sqrtf(square) + 1e-6f);
    if (factor >= 1.0f) return;
    for (int i = 0; i < gates.count; i++) grads[gates.offset[i]] *= factor;
}

}  // namespace

void clip_gates(float* grads, const std::vector<int64_t>& gates, const float* clip, float limit, cudaStream_t stream) {
    CHECK(gates.size() <= MAX_GATES);
    if (gates.empty()) return;
    Gates list = {};
    for (int64_t offset : gates) list.offset[list.count++] = offset;
    MOVES("clip_gates", {reads_bytes(list.count * static_cast<int64_t>(sizeof(float)))});
    launch(clip_gates_kernel, 1, 1, 0, stream, grads, list, clip, limit);
}
