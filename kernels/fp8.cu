#include "kernels/fp8_device.cuh"
#include "kernels/partials.cuh"

namespace {

constexpr int THREADS = Fp8Tile::THREADS;
struct Shared {
    Fp8Tile tile;
    float scratch[32];
};
struct QuantizeShared : Shared {
    Fp8ColumnSums sums;
};

// One tile of (R,S). partial (gridDim.y, S), null: no sums of columns.
template <class F>
__device__ __forceinline__ void quantize_tile(F* out, F* out_t, float* partial, const float* factor, const floatX* inp,
                                              const Fp8Slot& slot, int R, int S) {
    using Place = Fp8Place<8>;
    QuantizeShared& shared = shared_as<QuantizeShared>();
    const Place place(R, S);
    Fp8Writer<F> writer(slot);
    inp += place.start(S);
    if (out) out += place.start(S);
    Fp8Values values[Place::PASSES];  // all loads before the first store
#pragma unroll
    for (int p = 0; p < Place::PASSES; p++) values[p].load(inp + place.step(p, S), place.has(p));
    float sums[8] = {};
#pragma unroll
    for (int p = 0; p < Place::PASSES; p++) {
        float x[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            x[i] = values[p][i];
            sums[i] += x[i];
        }
        const Fp8Pack<8> pack = writer.convert(x);
        if (out && place.has(p)) store_fp8(out + place.step(p, S), pack);
        if (out_t) shared.tile.put(place.tile_row(p), place.x, pack);
    }
    if (partial) shared.sums.put(place, sums);
    writer.finish(slot, shared.scratch);  // also the barrier between writing shared memory and reading it
    const int thread = static_cast<int>(threadIdx.x);
    if (out_t) shared.tile.write_transposed(out_t + place.transposed(R), R, place.rows, place.cols, thread);
    if (partial && thread < place.cols)
        partial[static_cast<int64_t>(blockIdx.y) * S + place.col + thread] =
            (factor ? *factor : 1.0f) * shared.sums.total(thread);
}

constexpr int QUANTIZE_BLOCKS = sizeof(floatX) == 2 ? 4 : 2;  // on a multiprocessor

template <class F>
__global__ void __launch_bounds__(THREADS, QUANTIZE_BLOCKS)
    quantize_kernel(F* out, F* out_t, float* partial, const float* factor, const floatX* inp, Fp8Slot slot, int R,
                    int S) {
    wait_for_previous();
    launch_next_early();
    quantize_tile(out, out_t, partial, factor, inp, slot, R, S);
}

template <class F>
__global__ void __launch_bounds__(THREADS, QUANTIZE_BLOCKS) quantize_each_kernel(const Fp8Job<F>* jobs, int R, int S) {
    wait_for_previous();
    const Fp8Job<F> job = jobs[blockIdx.z];
    quantize_tile<F>(job.out, job.out_t, nullptr, nullptr, job.inp, job.slot, R, S);
}

template <class F>
__global__ void __launch_bounds__(THREADS) transpose_kernel(F* out_t, const F* inp, int R, int S) {
    wait_for_previous();
    using Place = Fp8Place<16>;
    Shared& shared = shared_as<Shared>();
    const Place place(R, S);
    inp += place.start(S);
    Fp8Pack<16> packs[Place::PASSES] = {};
#pragma unroll
    for (int p = 0; p < Place::PASSES; p++)
        if (place.has(p)) packs[p] = *reinterpret_cast<const Fp8Pack<16>*>(inp + place.step(p, S));
#pragma unroll
    for (int p = 0; p < Place::PASSES; p++) shared.tile.put(place.tile_row(p), place.x, packs[p]);
    __syncthreads();
    shared.tile.write_transposed(out_t + place.transposed(R), R, place.rows, place.cols, static_cast<int>(threadIdx.x));
}

constexpr int AMAX_PACKS = 8;  // in flight per thread

__global__ void __launch_bounds__(THREADS) amax_kernel(unsigned* amax, const floatX* x, int64_t packs) {
    wait_for_previous();
    float largest = 0.0f;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * (AMAX_PACKS * THREADS) + threadIdx.x;
    PackX loaded[AMAX_PACKS] = {};
#pragma unroll
    for (int k = 0; k < AMAX_PACKS; k++) {
        const int64_t p = first + k * THREADS;
        if (p < packs) loaded[k] = load_pack(x + p * PackX::size);
    }
#pragma unroll
    for (int k = 0; k < AMAX_PACKS; k++) {
#pragma unroll
        for (int i = 0; i < PackX::size; i++) largest = fmaxf(largest, fabsf(to_float(loaded[k][i])));
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

constexpr float FLOAT_MAX = 3.402823466e38f;

__global__ void __launch_bounds__(THREADS)
    update_scales_kernel(Fp8Scales scales, const float* norm, int first, int count, float largest, bool remember) {
    wait_for_previous();
    int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count) return;
    i += first;
    float newest = __uint_as_float(scales.amax[i]);
    if (norm && !(fabsf(*norm) <= FLOAT_MAX)) {
        scales.amax[i] = 0;
        return;
    }
    if (newest > FLOAT_MAX) newest = 0.0f;  // infinity
    float* history = scales.history + static_cast<int64_t>(i) * FP8_HISTORY;
    float amax = newest;
    if (remember) {
        scales.amax[i] = 0;
        for (int k = FP8_HISTORY - 1; k > 0; k--) {
            history[k] = history[k - 1];
            amax = fmaxf(amax, history[k]);
        }
        history[0] = newest;
    } else {
        for (int k = 0; k < FP8_HISTORY; k++)
            if (history[k] > 0.0f) return;
    }
    float scale = scales.scale[i];
    if (amax > 0.0f) scale = power_of_two_scale(amax, largest);
    if (scale == 0.0f) scale = 1.0f;
    scales.scale[i] = scale;
    scales.inverse[i] = 1.0f / scale;
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
void fp8_update_scales(const Fp8Scales& scales, int first, int count, cudaStream_t stream, const float* norm) {
    const float* history = scales.history + static_cast<int64_t>(first) * FP8_HISTORY;  // its oldest is only written
    MOVES("fp8_update_scales", {updates(scales.amax + first, count), reads(history, count * (FP8_HISTORY - 1)),
                                writes(history, count * FP8_HISTORY), updates(scales.scale + first, count),
                                writes(scales.inverse + first, count)});
    launch_early(update_scales_kernel, dim3(static_cast<unsigned>(ceil_div(count, THREADS))), dim3(THREADS), 0, stream,
                 scales, norm, first, count, Fp8Format<F>::largest, true);
}

template <class F>
void fp8_first_scales(const Fp8Scales& scales, int first, int count, cudaStream_t stream) {
    MOVES("fp8_first_scales", {reads(scales.amax + first, count),
                               reads(scales.history + static_cast<int64_t>(first) * FP8_HISTORY, count * FP8_HISTORY),
                               updates(scales.scale + first, count), writes(scales.inverse + first, count)});
    launch_early(update_scales_kernel, dim3(static_cast<unsigned>(ceil_div(count, THREADS))), dim3(THREADS), 0, stream,
                 scales, nullptr, first, count, Fp8Format<F>::largest, false);
}

void fp8_amax(unsigned* amax, const floatX* x, int64_t n, cudaStream_t stream) {
    CHECK(n > 0 && n % PackX::size == 0);
    const int64_t packs = n / PackX::size;
    MOVES("fp8_amax", {reads(x, n)});
    launch_early(amax_kernel, dim3(static_cast<unsigned>(ceil_div(packs, static_cast<int64_t>(AMAX_PACKS * THREADS)))),
                 dim3(THREADS), sizeof(Shared), stream, amax, x, packs);
}

template <class F>
void fp8_quantize(F* out, F* out_t, const floatX* inp, const Fp8Slot& slot, int R, int S, cudaStream_t stream) {
    fp8_quantize_bias<F>(out, out_t, nullptr, inp, slot, nullptr, R, S, false, stream);
}

size_t fp8_bias_scratch_bytes(int R, int S) {
    return sizeof(float) * static_cast<size_t>(ceil_div(R, Fp8Tile::SIZE)) * S;
}

template <class F>
void fp8_quantize_bias(F* out, F* out_t, float* dbias, const floatX* inp, const Fp8Slot& slot, float* scratch, int R,
                       int S, bool accumulate, cudaStream_t stream, const float* scale) {
    const dim3 grid = fp8_tiles(R, S);
    const int64_t n = static_cast<int64_t>(R) * S;
    float* partial = dbias ? scratch : nullptr;
    MOVES("fp8_quantize", {reads(inp, n), writes(out, n), writes(out_t, n), writes(partial, int64_t{grid.y} * S)});
    launch_early(quantize_kernel<F>, grid, dim3(THREADS), sizeof(QuantizeShared), stream, out, out_t, partial, scale,
                 inp, slot, R, S);
    if (dbias) add_partials({{dbias}}, partial, static_cast<int>(grid.y), 1, S, stream, accumulate);
}

template <class F>
void fp8_quantize_each(const Fp8Job<F>* jobs, int count, int R, int S, cudaStream_t stream) {
    dim3 grid = fp8_tiles(R, S);
    grid.z = static_cast<unsigned>(count);
    const int64_t n = static_cast<int64_t>(count) * R * S;
    MOVES("fp8_quantize_each",
          {reads_bytes(n * static_cast<int64_t>(sizeof(floatX))), writes_bytes(2 * n), reads(jobs, count)});
    launch_early(quantize_each_kernel<F>, grid, dim3(THREADS), sizeof(QuantizeShared), stream, jobs, R, S);
}

template <class F>
void fp8_transpose(F* out_t, const F* inp, int R, int S, cudaStream_t stream) {
    const int64_t n = static_cast<int64_t>(R) * S;
    MOVES("fp8_transpose", {reads(inp, n), writes(out_t, n)});
    launch_early(transpose_kernel<F>, fp8_tiles(R, S), dim3(THREADS), sizeof(Shared), stream, out_t, inp, R, S);
}

template void fp8_update_scales<e4m3>(const Fp8Scales&, int, int, cudaStream_t, const float*);
template void fp8_update_scales<e5m2>(const Fp8Scales&, int, int, cudaStream_t, const float*);
template void fp8_first_scales<e4m3>(const Fp8Scales&, int, int, cudaStream_t);
template void fp8_first_scales<e5m2>(const Fp8Scales&, int, int, cudaStream_t);
template void fp8_quantize(e4m3*, e4m3*, const floatX*, const Fp8Slot&, int, int, cudaStream_t);
template void fp8_quantize(e5m2*, e5m2*, const floatX*, const Fp8Slot&, int, int, cudaStream_t);
template void fp8_quantize_bias(e4m3*, e4m3*, float*, const floatX*, const Fp8Slot&, float*, int, int, bool,
                                cudaStream_t, const float*);
template void fp8_quantize_bias(e5m2*, e5m2*, float*, const floatX*, const Fp8Slot&, float*, int, int, bool,
                                cudaStream_t, const float*);
template void fp8_quantize_each(const Fp8Job<e4m3>*, int, int, int, cudaStream_t);
template void fp8_transpose(e4m3*, const e4m3*, int, int, cudaStream_t);
template void fp8_transpose(e5m2*, const e5m2*, int, int, cudaStream_t);
