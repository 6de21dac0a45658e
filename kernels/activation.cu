#include "kernels/activation.cuh"

#include "kernels/activation_device.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int VALUES = 32;  // per thread: several loads in flight on the GPU, whole vectors on the CPU machine
constexpr int PACKS = VALUES / PackX::size;

// A thread's packs lie blockDim.x apart, so that a warp's loads are contiguous. Packs behind the end read as zeros.
__device__ __forceinline__ int64_t pack_index(int k) {
    return (static_cast<int64_t>(blockIdx.x) * PACKS + k) * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ void load_values(float (&x)[VALUES], const floatX* inp, int64_t packs) {
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        int64_t p = pack_index(k);
        PackX pack = {};
        if (p < packs) pack = load_pack(inp + p * PackX::size);
#pragma unroll
        for (int i = 0; i < PackX::size; i++) x[k * PackX::size + i] = to_float(pack[i]);
    }
}

__device__ __forceinline__ void store_values(floatX* out, const float (&x)[VALUES], int64_t packs) {
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        int64_t p = pack_index(k);
        if (p >= packs) continue;
        PackX pack;
#pragma unroll
        for (int i = 0; i < PackX::size; i++) pack[i] = from_float<floatX>(x[k * PackX::size + i]);
        store_pack(out + p * PackX::size, pack);
    }
}

template <class Function>
__global__ void __launch_bounds__(THREADS) forward_kernel(floatX* out, const floatX* pre, int64_t packs) {
    wait_for_previous();
    float x[VALUES];
    load_values(x, pre, packs);
#pragma unroll
    for (int i = 0; i < VALUES; i++) x[i] = Function::at(x[i]).value;
    store_values(out, x, packs);
}

template <class Function>
__global__ void __launch_bounds__(THREADS)
    backward_kernel(floatX* dpre, const floatX* dout, const floatX* pre, int64_t packs) {
    wait_for_previous();
    float x[VALUES], d[VALUES];
    load_values(x, pre, packs);
    load_values(d, dout, packs);
#pragma unroll
    for (int i = 0; i < VALUES; i++) d[i] *= Function::at(x[i]).slope;
    store_values(dpre, d, packs);
}

// The number of packs in n values, and the grid that covers them.
int64_t packs_of(int64_t n) {
    CHECK(n > 0 && n % PackX::size == 0);
    return n / PackX::size;
}
dim3 grid_for(int64_t packs) {
    return dim3(static_cast<unsigned>(ceil_div(packs, static_cast<int64_t>(PACKS * THREADS))));
}

}  // namespace

void activation_forward(floatX* out, const floatX* pre, Activation act, int64_t n, cudaStream_t stream) {
    CHECK(act != Activation::swiglu);
    int64_t packs = packs_of(n);
    auto kernel = act == Activation::gelu_new ? forward_kernel<GeluNew> : forward_kernel<Gelu>;
    MOVES("activation_forward", {reads(pre, n), writes(out, n)});
    launch_early(kernel, grid_for(packs), dim3(THREADS), 0, stream, out, pre, packs);
}

void activation_backward(floatX* dpre, const floatX* dout, const floatX* pre, Activation act, int64_t n,
                         cudaStream_t stream) {
    CHECK(act != Activation::swiglu);
    int64_t packs = packs_of(n);
    auto kernel = act == Activation::gelu_new ? backward_kernel<GeluNew> : backward_kernel<Gelu>;
    MOVES("activation_backward", {reads(dout, n), reads(pre, n), writes(dpre, n)});
    launch_early(kernel, grid_for(packs), dim3(THREADS), 0, stream, dpre, dout, pre, packs);
}
