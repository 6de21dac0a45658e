#include "kernels/swiglu.cuh"

#include "kernels/activation_device.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int VALUES = 32;  // per thread: several loads in flight on the GPU, whole vectors on the CPU machine
constexpr int PACKS = VALUES / PackX::size;

// Where a thread's k-th pack lies. Packs of act are numbered row by row, `width` to a row; a thread's lie blockDim.x
// apart, so that a warp's loads are contiguous.
struct Place {
    int64_t act, gate, up;  // elements from the start of act and of gate_up
    bool inside;
};
__device__ __forceinline__ Place place(int k, unsigned packs, unsigned width) {
    const unsigned p = (blockIdx.x * PACKS + k) * THREADS + threadIdx.x;
    const unsigned row = p / width;
    const int64_t act = static_cast<int64_t>(p) * PackX::size, F = static_cast<int64_t>(width) * PackX::size;
    return {act, act + row * F, act + (row + 1) * F, p < packs};
}

// Packs behind the end read as zeros.
__device__ __forceinline__ void load_values(float (&x)[VALUES], int k, const floatX* from, bool inside) {
    PackX pack = {};
    if (inside) pack = load_pack(from);
#pragma unroll
    for (int i = 0; i < PackX::size; i++) x[k * PackX::size + i] = to_float(pack[i]);
}
__device__ __forceinline__ void store_values(floatX* to, const float (&x)[VALUES], int k) {
    PackX pack;
#pragma unroll
    for (int i = 0; i < PackX::size; i++) pack[i] = from_float<floatX>(x[k * PackX::size + i]);
    store_pack(to, pack);
}

__global__ void __launch_bounds__(THREADS)
    forward_kernel(floatX* act, const floatX* gate_up, unsigned packs, unsigned width) {
    wait_for_previous();
    float gate[VALUES], up[VALUES];
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        const Place at = place(k, packs, width);
        load_values(gate, k, gate_up + at.gate, at.inside);
        load_values(up, k, gate_up + at.up, at.inside);
    }
#pragma unroll
    for (int i = 0; i < VALUES; i++) gate[i] = Swiglu::act({gate[i], up[i]});
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        const Place at = place(k, packs, width);
        if (at.inside) store_values(act + at.act, gate, k);
    }
}

__global__ void __launch_bounds__(THREADS)
    backward_kernel(floatX* dgate_up, const floatX* dact, const floatX* gate_up, unsigned packs, unsigned width) {
    wait_for_previous();
    float gate[VALUES], up[VALUES], d[VALUES];
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        const Place at = place(k, packs, width);
        load_values(gate, k, gate_up + at.gate, at.inside);
        load_values(up, k, gate_up + at.up, at.inside);
        load_values(d, k, dact + at.act, at.inside);
    }
#pragma unroll
    for (int i = 0; i < VALUES; i++) {
        float dpre[2];
        Swiglu::backward(dpre, d[i], {gate[i], up[i]});
        gate[i] = dpre[0];
        up[i] = dpre[1];
    }
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        const Place at = place(k, packs, width);
        if (!at.inside) continue;
        store_values(dgate_up + at.gate, gate, k);
        store_values(dgate_up + at.up, up, k);
    }
}

unsigned packs_of(int64_t N, int F) {
    CHECK(N > 0 && F > 0 && F % PackX::size == 0);
    const int64_t packs = N * (F / PackX::size);
    CHECK(packs < INT32_MAX);
    return static_cast<unsigned>(packs);
}
dim3 grid_for(unsigned packs) {
    return dim3((packs + PACKS * THREADS - 1) / (PACKS * THREADS));
}

}  // namespace

void swiglu_forward(floatX* act, const floatX* gate_up, int64_t N, int F, cudaStream_t stream) {
    const unsigned packs = packs_of(N, F);
    MOVES("swiglu_forward", {reads(gate_up, 2 * N * F), writes(act, N * F)});
    launch_early(forward_kernel, grid_for(packs), dim3(THREADS), 0, stream, act, gate_up, packs, F / PackX::size);
}

void swiglu_backward(floatX* dgate_up, const floatX* dact, const floatX* gate_up, int64_t N, int F,
                     cudaStream_t stream) {
    const unsigned packs = packs_of(N, F);
    MOVES("swiglu_backward", {reads(dact, N * F), reads(gate_up, 2 * N * F), writes(dgate_up, 2 * N * F)});
    launch_early(backward_kernel, grid_for(packs), dim3(THREADS), 0, stream, dgate_up, dact, gate_up, packs, F / PackX::size);
}
