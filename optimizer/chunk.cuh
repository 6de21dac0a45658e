// How the threads of a block share out a chunk of an array. A thread meets PIECE elements side by side at a time: 16
// bytes on a GPU, where the threads of a warp lie beside each other and a load of the warp is 512 bytes in one piece; a
// cache line on the CPU machine, where each thread has a stretch of its own, which the processor reads ahead.
#pragma once
#include <wide.cuh>

#include "kernels/common.cuh"

constexpr int PIECE = WIDE_ROWS ? Wide::size : 4;
constexpr int CHUNK_THREADS = WIDE_ROWS ? 64 : 512;

// The thread's elements of [first, first + SIZE), cut off at `count`, which is a multiple of PIECE away from first:
// PIECE elements at each of begin, begin + STEP, ... below end.
template <int SIZE>
struct ChunkPart {
    static constexpr int SHARE = SIZE / CHUNK_THREADS * (WIDE_ROWS ? 1 : WARP);  // of a thread, or of a warp
    static constexpr int STEP = WIDE_ROWS ? PIECE : WARP * PIECE;
    static_assert(SHARE % STEP == 0, "a whole number of steps");
    int64_t begin, end;
    __device__ __forceinline__ ChunkPart(int64_t first, int64_t count) {
        const int thread = static_cast<int>(threadIdx.x);
        const int64_t share = first + (WIDE_ROWS ? thread : thread / WARP) * SHARE;
        begin = share + (WIDE_ROWS ? 0 : thread % WARP * PIECE);
        end = share + SHARE < count ? share + SHARE : count;
    }
};

// PIECE floats that are met once in an update, so that the cache may let them go first. 16-byte aligned.
__device__ __forceinline__ void load_streamed(float (&v)[PIECE], const float* from) {
    if constexpr (WIDE_ROWS) {
        for (int i = 0; i < PIECE; i++) v[i] = from[i];
    } else {
        const float4 x = __ldcs(reinterpret_cast<const float4*>(from));
        v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
    }
}
__device__ __forceinline__ void store_streamed(float* to, const float (&v)[PIECE]) {
    if constexpr (WIDE_ROWS) {
        for (int i = 0; i < PIECE; i++) to[i] = v[i];
    } else {
        __stcs(reinterpret_cast<float4*>(to), make_float4(v[0], v[1], v[2], v[3]));
    }
}
