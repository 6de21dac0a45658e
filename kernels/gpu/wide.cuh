// Sixteen floats side by side: the row of a register tile. A thread that holds R rows of one and adds x * b to them
// does R outer-product steps per load, which is what keeps fp32 units busy on both machines.
//
// This is the GPU's side, sixteen registers; simt/wide.cuh holds them in the CPU's vector registers, since leaving that
// to the compiler's vectoriser costs a factor of ten whenever it misses the pattern. Both multiply and add in one
// rounding, so that both give the same bits.
#pragma once
#include <cuda_runtime.h>

struct Wide {
    static constexpr int size = 16;
    float v[16];
};

__device__ __forceinline__ Wide wide_zero() {
    Wide w;
#pragma unroll
    for (int i = 0; i < Wide::size; i++) w.v[i] = 0.0f;
    return w;
}

// p is 16-byte aligned.
__device__ __forceinline__ Wide wide_load(const float* p) {
    Wide w;
#pragma unroll
    for (int i = 0; i < Wide::size; i += 4) {
        float4 x = *reinterpret_cast<const float4*>(p + i);
        w.v[i] = x.x;
        w.v[i + 1] = x.y;
        w.v[i + 2] = x.z;
        w.v[i + 3] = x.w;
    }
    return w;
}
__device__ __forceinline__ void wide_store(float* p, const Wide& w) {
#pragma unroll
    for (int i = 0; i < Wide::size; i += 4)
        *reinterpret_cast<float4*>(p + i) = make_float4(w.v[i], w.v[i + 1], w.v[i + 2], w.v[i + 3]);
}

// acc += x * b
__device__ __forceinline__ void wide_fma(Wide& acc, float x, const Wide& b) {
#pragma unroll
    for (int i = 0; i < Wide::size; i++) acc.v[i] = fmaf(x, b.v[i], acc.v[i]);
}
// acc *= x
__device__ __forceinline__ void wide_scale(Wide& acc, float x) {
#pragma unroll
    for (int i = 0; i < Wide::size; i++) acc.v[i] *= x;
}

// To and from an array of the thread, for elementwise work in plain loops.
__device__ __forceinline__ void wide_to_array(float (&a)[Wide::size], const Wide& w) {
#pragma unroll
    for (int i = 0; i < Wide::size; i++) a[i] = w.v[i];
}
__device__ __forceinline__ Wide wide_from_array(const float (&a)[Wide::size]) {
    Wide w;
#pragma unroll
    for (int i = 0; i < Wide::size; i++) w.v[i] = a[i];
    return w;
}
