#include "kernels/fp8_device.cuh"

namespace {

constexpr int THREADS = Fp8Tile::THREADS;
constexpr int PASSES = Fp8Tile::SIZE * Fp8Tile::SIZE / (THREADS * 16);  // chunks of 16 values that a thread does
constexpr int CHUNKS = Fp8Tile::SIZE / 16;                              // of a row

struct Shared {
    Fp8Tile tile;
    float scratch[32];
};

// The part of (R,S) that this block does.
struct Part {
    int row, col, rows, cols;
    __device__ __forceinline__ Part(int R, int S)
        : row(static_cast<int>(blockIdx.y) * Fp8Tile::SIZE),
          col(static_cast<int>(blockIdx.x) * Fp8Tile::SIZE),
          rows(min(Fp8Tile::SIZE, R - row)),
          cols(min(Fp8Tile::SIZE, S - col)) {}
    // Where the tile's row r, chunk c is, in elements, and whether it is there.
    __device__ __forceinline__ int64_t at(int r, int c, int S) const {
        return static_cast<int64_t>(row + r) * S + col + c * 16;
    }
    __device__ __forceinline__ bool has(int r, int c) const { return r < rows && c * 16 < cols; }
    template <class F>
    __device__ __forceinline__ F* transposed(F* out_t, int R) const {
        return out_t + static_cast<int64_t>(col) * R + row;
    }
};

template <class F>
__global__ void __launch_bounds__(THREADS, sizeof(floatX) == 2 ? 3 : 2)
    quantize_kernel(F* out, F* out_t, const floatX* inp, Fp8Slot slot, int R, int S) {
    constexpr int PACKS = 16 / PackX::size;
    Shared& shared = shared_as<Shared>();
    const Part part(R, S);
    const int thread = static_cast<int>(threadIdx.x), chunk = thread % CHUNKS;
    Fp8Writer<F> writer(slot);
    PackX values[PASSES][PACKS];  // all loads before the first store
#pragma unroll
    for (int p = 0; p < PASSES; p++) {
        const int row = p * (THREADS / CHUNKS) + thread / CHUNKS;
#pragma unroll
        for (int k = 0; k < PACKS; k++) {
            values[p][k] = {};
            if (part.has(row, chunk)) values[p][k] = load_pack(inp + part.at(row, chunk, S) + k * PackX::size);
        }
    }
#pragma unroll
    for (int p = 0; p < PASSES; p++) {
        const int row = p * (THREADS / CHUNKS) + thread / CHUNKS;
        float x[16];
#pragma unroll
        for (int i = 0; i < 16; i++) x[i] = to_float(values[p][i / PackX::size][i % PackX::size]);
        const Fp8Pack<16> pack = writer.convert(x);
        if (!part.has(row, chunk)) continue;
        if (out) store_fp8(out + part.at(row, chunk, S), pack);
        if (out_t) shared.tile.put(row, chunk, pack);
    }
    writer.finish(slot, shared.scratch);  // also the barrier between writing the tile and reading it
    if (out_t) shared.tile.write_transposed(part.transposed(out_t, R), R, part.rows, part.cols, thread);
}

template <class F>
__global__ void __launch_bounds__(THREADS) transpose_kernel(F* out_t, const F* inp, int R, int S) {
    Shared& shared = shared_as<Shared>();
    const Part part(R, S);
    const int thread = static_cast<int>(threadIdx.x), chunk = thread % CHUNKS;
#pragma unroll
    for (int p = 0; p < PASSES; p++) {
        const int row = p * (THREADS / CHUNKS) + thread / CHUNKS;
        if (!part.has(row, chunk)) continue;
        shared.tile.put(row, chunk, *reinterpret_cast<const Fp8Pack<16>*>(inp + part.at(row, chunk, S)));
    }
    __syncthreads();
    shared.tile.write_transposed(part.transposed(out_t, R), R, part.rows, part.cols, thread);
}

constexpr int AMAX_PACKS = 8;  // in flight per thread

__global__ void __launch_bounds__(THREADS) amax_kernel(unsigned* amax, const floatX* x, int64_t packs) {
    float largest = 0.0f;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * (AMAX_PACKS * THREADS) + threadIdx.x;
#pragma unroll
    for (int k = 0; k < AMAX_PACKS; k++) {
        const int64_t p = first + k * THREADS;
        if (p >= packs) continue;
        const PackX pack = load_pack(x + p * PackX::size);
#pragma unroll
        for (int i = 0; i < PackX::size; i++) largest = fmaxf(largest, fabsf(to_float(pack[i])));
    }
    largest = block_max(largest, shared_as<Shared>().scratch);
    if (threadIdx.x == 0) atomicMax(amax, __float_as_uint(largest));
}

// The largest power of two with amax times it at most `largest`, within 2^+-126 so that its inverse is a normal number.
// Largest is 1.75 times a power of two: its quotient by the next number above is not rounded up to 1.
__device__ __forceinline__ float power_of_two_scale(float amax, float largest) {
    const unsigned exponent = __float_as_uint(largest / amax) & 0x7f800000u;
    return __uint_as_float(min(exponent, (126u + 127u) << 23));
}

__global__ void __launch_bounds__(THREADS) update_scales_kernel(Fp8Scales scales, int first, int count, float largest) {
    int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count) return;
    i += first;
    float newest = __uint_as_float(scales.amax[i]);
    scales.amax[i] = 0;
    if (newest > 3.402823466e38f) newest = 0.0f;  // infinity
    float* history = scales.history + static_cast<int64_t>(i) * FP8_HISTORY;
    float amax = newest;
    for (int k = FP8_HISTORY - 1; k > 0; k--) {
        history[k] = history[k - 1];
        amax = fmaxf(amax, history[k]);
    }
    history[0] = newest;
    float scale = scales.scale[i];
    if (amax > 0.0f) scale = power_of_two_scale(amax, largest);
    if (scale == 0.0f) scale = 1.0f;
    scales.scale[i] = scale;
    scales.inverse[i] = 1.0f / scale;
}

dim3 tiles(int R, int S) {
    CHECK(R > 0 && S > 0 && R % 16 == 0 && S % 16 == 0);
    return dim3(static_cast<unsigned>(ceil_div(S, Fp8Tile::SIZE)), static_cast<unsigned>(ceil_div(R, Fp8Tile::SIZE)));
}

}  // namespace

size_t fp8_scales_bytes(int n) {
    return static_cast<size_t>(n) * (3 + FP8_HISTORY) * sizeof(float);
}

Fp8Scales fp8_scales_in(void* memory, int n) {
    float* p = static_cast<float*>(memory);
    return {p, p + n, reinterpret_cast<unsigned*>(p + 2 * n), p + 3 * n};
}

template <class F>
void fp8_update_scales(const Fp8Scales& scales, int first, int count, cudaStream_t stream) {
    launch(update_scales_kernel, dim3(static_cast<unsigned>(ceil_div(count, THREADS))), dim3(THREADS), 0, stream,
           scales, first, count, Fp8Format<F>::largest);
}

void fp8_amax(unsigned* amax, const floatX* x, int64_t n, cudaStream_t stream) {
    CHECK(n > 0 && n % PackX::size == 0);
    const int64_t packs = n / PackX::size;
    launch(amax_kernel, dim3(static_cast<unsigned>(ceil_div(packs, static_cast<int64_t>(AMAX_PACKS * THREADS)))),
           dim3(THREADS), sizeof(Shared), stream, amax, x, packs);
}

template <class F>
void fp8_quantize(F* out, F* out_t, const floatX* inp, const Fp8Slot& slot, int R, int S, cudaStream_t stream) {
    launch(quantize_kernel<F>, tiles(R, S), dim3(THREADS), sizeof(Shared), stream, out, out_t, inp, slot, R, S);
}

template <class F>
void fp8_transpose(F* out_t, const F* inp, int R, int S, cudaStream_t stream) {
    launch(transpose_kernel<F>, tiles(R, S), dim3(THREADS), sizeof(Shared), stream, out_t, inp, R, S);
}

template void fp8_update_scales<e4m3>(const Fp8Scales&, int, int, cudaStream_t);
template void fp8_update_scales<e5m2>(const Fp8Scales&, int, int, cudaStream_t);
template void fp8_quantize(e4m3*, e4m3*, const floatX*, const Fp8Slot&, int, int, cudaStream_t);
template void fp8_quantize(e5m2*, e5m2*, const floatX*, const Fp8Slot&, int, int, cudaStream_t);
template void fp8_transpose(e4m3*, const e4m3*, int, int, cudaStream_t);
template void fp8_transpose(e5m2*, const e5m2*, int, int, cudaStream_t);
