// The device side of kernels/fp8.cuh, for kernels that convert what they produce: Fp8Writer turns a thread's values
// into packed bytes and keeps their abs-max; Fp8Tile transposes bytes through shared memory.
#pragma once
#include "kernels/fp8.cuh"

template <class F>
struct Fp8Format;
template <>
struct Fp8Format<e4m3> {
    static constexpr __nv_fp8_interpretation_t kind = __NV_E4M3;
    static constexpr float largest = 448.0f;
};
template <>
struct Fp8Format<e5m2> {
    static constexpr __nv_fp8_interpretation_t kind = __NV_E5M2;
    static constexpr float largest = 57344.0f;
};

// N fp8 numbers, the first in the lowest byte; N = 4, 8 or 16.
template <int N>
struct alignas(N) Fp8Pack {
    unsigned word[N / 4];
};
template <class F, int N>
__device__ __forceinline__ void store_fp8(F* p, const Fp8Pack<N>& pack) {
    *reinterpret_cast<Fp8Pack<N>*>(p) = pack;
}

// One thread's conversions of one tensor.
template <class F>
struct Fp8Writer {
    float scale, amax = 0.0f;

    __device__ __forceinline__ explicit Fp8Writer(const Fp8Slot& slot) : scale(*slot.scale) {}

    template <int N>
    __device__ __forceinline__ Fp8Pack<N> convert(const float (&x)[N]) {
        Fp8Pack<N> pack;
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            const unsigned low = pair(x[i], x[i + 1]), high = pair(x[i + 2], x[i + 3]);
            pack.word[i / 4] = low | high << 16;
        }
        return pack;
    }

    // By all threads of the block together; scratch: 32 floats of shared memory.
    __device__ __forceinline__ void finish(const Fp8Slot& slot, float* scratch) const {
        const float block = block_max(amax, scratch);
        if (threadIdx.x == 0 && threadIdx.y == 0) atomicMax(slot.amax, __float_as_uint(block));
    }

  private:
    __device__ __forceinline__ unsigned pair(float x, float y) {
        amax = fmaxf(amax, fmaxf(fabsf(x), fabsf(y)));
        return __nv_cvt_float2_to_fp8x2(make_float2(scaled(x), scaled(y)), __NV_SATFINITE, Fp8Format<F>::kind);
    }
    // The conversion would turn infinity into the largest number; x - x is 0, or NaN for infinity and NaN.
    __device__ __forceinline__ float scaled(float x) const {
        return fmaf(x, scale, x - x);
    }
};

// A tile of bytes in shared memory, written by rows and read by columns. 256 threads share the work. A row's eight
// chunks of 16 bytes lie rotated by its number of 16 rows, so that neither way meets a bank twice.
struct Fp8Tile {
    static constexpr int SIZE = 128, THREADS = 256;
    unsigned word[SIZE][SIZE / 4];

    // Bytes 16 chunk .. 16 chunk + 15 of a row.
    __device__ __forceinline__ void put(int row, int chunk, const Fp8Pack<16>& pack) {
        *reinterpret_cast<Fp8Pack<16>*>(&word[row][(chunk + row / 16) % 8 * 4]) = pack;
    }

    // out_t (cols of the tile, R) = its transpose, the tile's corner at out_t; rows and cols, multiples of 16, say how
    // much of the tile there is. After a barrier; by thread 0 .. THREADS-1. Each does 16 rows of 4 columns.
    template <class F>
    __device__ __forceinline__ void write_transposed(F* out_t, int64_t R, int rows, int cols, int thread) const {
        const int block = thread % 8, quad = thread / 8;
        if (block * 16 >= rows || quad * 4 >= cols) return;
        Fp8Pack<16> column[4];
#pragma unroll
        for (int i = 0; i < 16; i += 4) {
            unsigned row[4];
#pragma unroll
            for (int k = 0; k < 4; k++) row[k] = word[block * 16 + i + k][(quad + block * 4) % 32];
            // Pairs of rows interleave their bytes, then pairs of pairs their halves.
            const unsigned low01 = __byte_perm(row[0], row[1], 0x5140), high01 = __byte_perm(row[0], row[1], 0x7362);
            const unsigned low23 = __byte_perm(row[2], row[3], 0x5140), high23 = __byte_perm(row[2], row[3], 0x7362);
            column[0].word[i / 4] = __byte_perm(low01, low23, 0x5410);
            column[1].word[i / 4] = __byte_perm(low01, low23, 0x7632);
            column[2].word[i / 4] = __byte_perm(high01, high23, 0x5410);
            column[3].word[i / 4] = __byte_perm(high01, high23, 0x7632);
        }
#pragma unroll
        for (int k = 0; k < 4; k++) store_fp8(out_t + (quad * 4 + k) * R + block * 16, column[k]);
    }
};
