#include "kernels/activation.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int VALUES = 32;  // per thread: several loads in flight on the GPU, whole vectors on the CPU machine
constexpr int PACKS = VALUES / PackX::size;

// tanh(u) = 2 s - 1 with s = 1 / (1 + e^-2u), so that gelu_new(h) = h s: one exponential and no cancellation for
// negative h. u = sqrt(2/pi) (h + 0.044715 h^3).
struct GeluNew {
    static constexpr float SCALE = 0.7978845608028654f;  // sqrt(2/pi)
    static constexpr float CUBIC = 0.044715f;

    static __device__ __forceinline__ float value(float h) {
        float u = SCALE * h * (1.0f + CUBIC * h * h);
        return h / (1.0f + expf(-2.0f * u));
    }
    // s + h ds/dh,  ds/dh = 2 s (1 - s) du/dh,  s (1 - s) = e / (1 + e)^2 with e = e^-2|u|, which can't overflow.
    static __device__ __forceinline__ float derivative(float h) {
        float h2 = h * h;
        float u = SCALE * h * (1.0f + CUBIC * h2);
        float e = expf(-2.0f * fabsf(u));
        float r = 1.0f / (1.0f + e);
        float s = u < 0.0f ? e * r : r;
        return s + h * 2.0f * e * r * r * SCALE * (1.0f + 3.0f * CUBIC * h2);
    }
};

// gelu(h) = h Phi(h) with Phi the normal distribution function. The upper tail is Q(a) = 1 - Phi(a) = e^(-a^2/2) t
// P(t), t = 1 / (1 + 0.35 a), a >= 0; P interpolates at Chebyshev nodes over 0 <= a <= 13, relative error 4e-8. Below
// e^(-13^2/2) fp32 has nothing left. erff would cost a call per element on the CPU machine; and the derivative needs
// e^(-h^2/2) anyway.
struct Gelu {
    static constexpr float DENSITY = 0.3989422804014327f;  // 1 / sqrt(2 pi)

    static __device__ __forceinline__ float distribution(float h, float bell) {
        float t = 1.0f / (1.0f + 0.35f * fabsf(h));
        float p = -0.02952030812f;
        p = p * t + 0.1458046663f;
        p = p * t - 0.2595086626f;
        p = p * t + 0.1634932637f;
        p = p * t - 0.02605236568f;
        p = p * t + 0.1067301772f;
        p = p * t + 0.1195322885f;
        p = p * t + 0.139901687f;
        p = p * t + 0.1396192375f;
        float tail = bell * t * p;
        return h < 0.0f ? tail : 1.0f - tail;
    }
    static __device__ __forceinline__ float value(float h) { return h * distribution(h, expf(-0.5f * h * h)); }
    static __device__ __forceinline__ float derivative(float h) {
        float bell = expf(-0.5f * h * h);
        return distribution(h, bell) + h * DENSITY * bell;
    }
};

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
    for (int i = 0; i < VALUES; i++) x[i] = Function::value(x[i]);
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
    for (int i = 0; i < VALUES; i++) d[i] *= Function::derivative(x[i]);
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
