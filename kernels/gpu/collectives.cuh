// Shared memory, and sums and maxima over a warp, a row of threads, or a block. This is the GPU's side; the CPU machine
// has the same functions in simt/collectives.cuh. Both add in the same order (a butterfly over the 32 lanes, then a
// butterfly over the warps), so the result is deterministic, the same in every thread, and the same on both machines.
//
// All 32 lanes of every warp that takes part must call, with blockDim.x * blockDim.y * blockDim.z a multiple of 32.
// None of these orders other memory, except that a call with a block barrier inside orders it as __syncthreads does.
#pragma once

#include <cuda_runtime.h>

// Kernels that work on rows: whether they are also compiled with several packs of 16 bytes per thread, for machines of few,
// costly threads. Here one pack does, except for the longest rows.
constexpr bool WIDE_ROWS = false;

#ifdef __CUDACC__  // host-only files include this through kernels/common.cuh and see nothing

// The block's dynamic shared memory as an S: the launch must ask for at least sizeof(S) bytes. 1024-byte aligned.
// A kernel that needs a length known only at the launch takes an S that ends in an array and offsets beyond it.
template <class S>
__device__ __forceinline__ S& shared_as() {
    extern __shared__ __align__(1024) unsigned char block_shared_memory[];
    return *reinterpret_cast<S*>(block_shared_memory);
}

namespace collective {

struct Sum {
    template <class T>
    static __device__ __forceinline__ T of(T a, T b) {
        return a + b;
    }
    static __device__ __forceinline__ float neutral() { return 0.0f; }
};
struct Max {
    static __device__ __forceinline__ float of(float a, float b) { return fmaxf(a, b); }
    static __device__ __forceinline__ float neutral() { return __int_as_float(0xff800000); }
};

template <class Op, class T>
__device__ __forceinline__ T butterfly(T v, int lanes) {
    for (int offset = lanes / 2; offset > 0; offset /= 2) v = Op::of(v, __shfl_xor_sync(0xffffffffu, v, offset));
    return v;
}

template <class Op, int K>
__device__ __forceinline__ void warp_fold(float (&v)[K]) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
#pragma unroll
        for (int k = 0; k < K; k++) v[k] = Op::of(v[k], __shfl_xor_sync(0xffffffffu, v[k], offset));
    }
}

// Folds over `group` consecutive warps; this thread's warp is number `warp` of its group. `mine` has room for 32 floats
// per value. The first barrier lets everyone see the partial results, the second lets the scratch be used again.
template <class Op, int K>
__device__ __forceinline__ void group_fold(float (&v)[K], int warp, int group, float* mine, int lane) {
    warp_fold<Op>(v);
    if (lane == 0) {
#pragma unroll
        for (int k = 0; k < K; k++) mine[k * 32 + warp] = v[k];
    }
    __syncthreads();
    int lanes = group <= 1 ? 1 : 1 << (32 - __clz(group - 1));
    int i = lane & (lanes - 1);
#pragma unroll
    for (int k = 0; k < K; k++) v[k] = butterfly<Op>(i < group ? mine[k * 32 + i] : Op::neutral(), lanes);
    __syncthreads();
}

template <class Op, int K>
__device__ __forceinline__ void row_fold(float (&v)[K], float* scratch) {
    if (blockDim.x == 32) {
        warp_fold<Op>(v);
    } else {
        int x = static_cast<int>(threadIdx.x);
        float* mine = scratch + threadIdx.y * (K * 32);
        group_fold<Op>(v, x / 32, static_cast<int>(blockDim.x) / 32, mine, x % 32);
    }
}

__device__ __forceinline__ int thread_in_block() {
    return static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
}
__device__ __forceinline__ int warps_in_block() {
    return static_cast<int>(blockDim.x * blockDim.y * blockDim.z) / 32;
}

}  // namespace collective

// Over the 32 lanes of the warp. With an array: K sums at once, each v[k] over the lanes. K <= 64.
__device__ __forceinline__ float warp_sum(float v) {
    return collective::butterfly<collective::Sum>(v, 32);
}
__device__ __forceinline__ float warp_max(float v) {
    return collective::butterfly<collective::Max>(v, 32);
}
template <int K>
__device__ __forceinline__ void warp_sum(float (&v)[K]) {
    collective::warp_fold<collective::Sum>(v);
}
template <int K>
__device__ __forceinline__ void warp_max(float (&v)[K]) {
    collective::warp_fold<collective::Max>(v);
}

// Over a row: the threads with the same threadIdx.y. blockDim.x is a multiple of 32, blockDim.z is 1. With blockDim.x
// == 32 a row is a warp and there is no barrier, so warps may call it apart, and scratch is not touched; otherwise all
// threads of the block must call it together. scratch: K*32*blockDim.y floats of shared memory, free to use again at
// once.
template <int K>
__device__ __forceinline__ void row_sum(float (&v)[K], float* scratch) {
    collective::row_fold<collective::Sum>(v, scratch);
}
template <int K>
__device__ __forceinline__ void row_max(float (&v)[K], float* scratch) {
    collective::row_fold<collective::Max>(v, scratch);
}
__device__ __forceinline__ float row_sum(float v, float* scratch) {
    float t[1] = {v};
    row_sum(t, scratch);
    return t[0];
}
__device__ __forceinline__ float row_max(float v, float* scratch) {
    float t[1] = {v};
    row_max(t, scratch);
    return t[0];
}

// Over all threads of the block, which must call it together. scratch: 32 floats (doubles) of shared memory.
__device__ __forceinline__ float block_sum(float v, float* scratch) {
    float t[1] = {v};
    int thread = collective::thread_in_block();
    collective::group_fold<collective::Sum>(t, thread / 32, collective::warps_in_block(), scratch, thread % 32);
    return t[0];
}
__device__ __forceinline__ float block_max(float v, float* scratch) {
    float t[1] = {v};
    int thread = collective::thread_in_block();
    collective::group_fold<collective::Max>(t, thread / 32, collective::warps_in_block(), scratch, thread % 32);
    return t[0];
}
__device__ __forceinline__ double block_sum(double v, double* scratch) {
    int thread = collective::thread_in_block(), warps = collective::warps_in_block();
    v = collective::butterfly<collective::Sum>(v, 32);
    if (thread % 32 == 0) scratch[thread / 32] = v;
    __syncthreads();
    int lanes = warps <= 1 ? 1 : 1 << (32 - __clz(warps - 1));
    int i = thread & (lanes - 1);
    v = collective::butterfly<collective::Sum>(i < warps ? scratch[i] : 0.0, lanes);
    __syncthreads();
    return v;
}

#endif  // __CUDACC__
