// Pieces shared by the fp32 attention kernels: loading tiles, and the one inner loop everything is made of.
//
// Every product is a sum of outer products on register tiles of 4 rows by 16 columns: a thread reads 4 numbers of the
// left matrix and a Wide of 16 of the right one, and does 64 multiply-adds. The right matrix must therefore lie in
// shared memory with its 16 columns side by side, which is why keys and values are also stored transposed.
// Blocks are small, 64 or 128 threads, so that a barrier is cheap on the CPU machine.
#pragma once
#include <wide.cuh>

#include "kernels/attention_impl.cuh"

constexpr int TILE_ROWS = 4, TILE_COLS = Wide::size;

// acc[r] += sum_k a[r*stride_a + k] * b[k*stride_b + 0..15], k < n; n and stride_a multiples of 4, a 16-byte aligned.
__device__ __forceinline__ void multiply(Wide (&acc)[TILE_ROWS], const float* a, int stride_a, const float* b,
                                         int stride_b, int n) {
#pragma unroll 1
    for (int k = 0; k < n; k += 4) {
        Pack<float> x[TILE_ROWS];
#pragma unroll
        for (int r = 0; r < TILE_ROWS; r++) x[r] = load_pack(a + r * stride_a + k);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const Wide y = wide_load(b + (k + j) * stride_b);
#pragma unroll
            for (int r = 0; r < TILE_ROWS; r++) wide_fma(acc[r], x[r][j], y);
        }
    }
}

// acc[r] += sum_k a[k*stride_a + r] * b[k*stride_b + 0..15], begin <= k < end: the left matrix transposed.
__device__ __forceinline__ void multiply_transposed(Wide (&acc)[TILE_ROWS], const float* a, int stride_a,
                                                    const float* b, int stride_b, int begin, int end) {
#pragma unroll 2
    for (int k = begin; k < end; k++) {
        const Pack<float> x = load_pack(a + k * stride_a);
        const Wide y = wide_load(b + k * stride_b);
#pragma unroll
        for (int r = 0; r < TILE_ROWS; r++) wide_fma(acc[r], x[r], y);
    }
}

__device__ __forceinline__ void clear(Wide (&acc)[TILE_ROWS]) {
#pragma unroll
    for (int r = 0; r < TILE_ROWS; r++) acc[r] = wide_zero();
}

// The loads below take 16 channels, a cache line, at a time: the fewer instructions lie between two lines, the more of
// them are on their way at once on the CPU machine.

// x = from[0..15], zero from `left` on (a multiple of 4).
__device__ __forceinline__ void load_sixteen(float (&x)[TILE_COLS], const float* from, int left) {
    if (left >= TILE_COLS) {
        wide_to_array(x, wide_load(from));
        return;
    }
#pragma unroll
    for (int e = 0; e < TILE_COLS; e += 4) {
        Pack<float> pack = {};
        if (e < left) pack = load_pack(from + e);
#pragma unroll
        for (int j = 0; j < 4; j++) x[e + j] = pack[j];
    }
}

// tile (ROWS,STRIDE) = rows 0..ROWS-1 of from (valid,HS), whose rows lie `stride` apart; zero beyond `valid` and, up to
// the next multiple of 16, beyond HS.
template <int THREADS, int ROWS, int D, int STRIDE>
__device__ __forceinline__ void load_rows(float* tile, const float* from, int64_t stride, int valid, int HS) {
#pragma unroll 2
    for (int i = static_cast<int>(threadIdx.x); i < ROWS * (D / TILE_COLS); i += THREADS) {
        const int row = i / (D / TILE_COLS), c = i % (D / TILE_COLS) * TILE_COLS;
        if (c >= HS) continue;
        float x[TILE_COLS];
        load_sixteen(x, from + row * stride + c, row < valid ? HS - c : 0);
        wide_store(tile + row * STRIDE + c, wide_from_array(x));
    }
}

// tile (D,COLS) = from^T: column j is row j of from (valid,HS); zero beyond `valid`.
template <int THREADS, int COLS, int D>
__device__ __forceinline__ void load_transposed(float* tile, const float* from, int64_t stride, int valid, int HS) {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < COLS * (D / TILE_COLS); i += THREADS) {
        const int j = i % COLS, c = i / COLS * TILE_COLS;
        if (c >= HS) break;
        float x[TILE_COLS];
        load_sixteen(x, from + j * stride + c, j < valid ? HS - c : 0);
#pragma unroll
        for (int e = 0; e < TILE_COLS; e++) tile[(c + e) * COLS + j] = x[e];
    }
}

// to (HS) columns c.. = acc: one row of a register tile to global memory.
__device__ __forceinline__ void store_row(float* to, const Wide& acc, int c, int HS) {
    float x[TILE_COLS];
    wide_to_array(x, acc);
#pragma unroll
    for (int e = 0; e < TILE_COLS; e += 4) {
        if (c + e < HS) store_pack(to + c + e, Pack<float>{{x[e], x[e + 1], x[e + 2], x[e + 3]}});
    }
}
