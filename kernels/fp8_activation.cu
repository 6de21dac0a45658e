#include "kernels/fp8_activation.cuh"

#include "kernels/activation_device.cuh"
#include "kernels/fp8_device.cuh"
#include "kernels/partials.cuh"

namespace {

constexpr int THREADS = Fp8Tile::THREADS;

// ---------------------------------------------------------------------------------------------------------------------
// Forward. Rows are cut into units of 8 values, which are numbered row by row, `width` to a row of out. A thread's
// units lie a block apart, so that a warp's loads are contiguous.

constexpr int UNITS = 4;  // per thread

struct ForwardShared {
    float scratch[32];
};

template <class Act>
__global__ void __launch_bounds__(THREADS)
    forward_kernel(e4m3* out, const floatX* pre, Fp8Slot slot, unsigned units, unsigned width) {
    wait_for_previous();
    constexpr int PARTS = Act::PARTS;
    const unsigned first = blockIdx.x * (UNITS * THREADS) + threadIdx.x;
    const int64_t F = static_cast<int64_t>(width) * 8;
    Fp8Writer<e4m3> writer(slot);
    Fp8Values values[UNITS][PARTS];
#pragma unroll
    for (int k = 0; k < UNITS; k++) {
        const unsigned unit = first + k * THREADS;
        // PARTS - 1 of every PARTS parts of the rows above are not in out.
        const int64_t at = static_cast<int64_t>(unit) * 8 + (PARTS == 1 ? 0 : unit / width * F);
#pragma unroll
        for (int q = 0; q < PARTS; q++) values[k][q].load(pre + at + q * F, unit < units);
    }
#pragma unroll
    for (int k = 0; k < UNITS; k++) {
        float x[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float h[PARTS];
#pragma unroll
            for (int q = 0; q < PARTS; q++) h[q] = values[k][q][i];
            x[i] = Act::act(h);
        }
        round_to_floatX(x);
        const unsigned unit = first + k * THREADS;
        const Fp8Pack<8> pack = writer.convert(x);
        if (unit < units) store_fp8(out + static_cast<int64_t>(unit) * 8, pack);
    }
    writer.finish(slot, shared_as<ForwardShared>().scratch);
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward, a tile of dact to a block: with swiglu those are a tile of gates and one of ups.

template <int PARTS>
struct BackwardShared {
    Fp8Tile dpre[PARTS], act;
    Fp8ColumnSums sums[PARTS];
    float scratch[32];
};

// Of one pass over the tile.
template <int PARTS>
struct BackwardInputs {
    // Passes whose loads are under way at a time: registers for all eight would leave too few threads on a
    // multiprocessor.
    static constexpr int AHEAD = (sizeof(floatX) == 2 ? 4 : 2) / PARTS;
    Fp8Values dact, pre[PARTS];

    // from: where pass 0 begins.
    __device__ __forceinline__ void load(const floatX* from_dact, const floatX* from_pre, const Fp8Place<8>& place,
                                         int pass, int F) {
        dact.load(from_dact + place.step(pass, F), place.has(pass));
#pragma unroll
        for (int q = 0; q < PARTS; q++)
            pre[q].load(from_pre + place.step(pass, PARTS * F) + q * F, place.has(pass));
    }
};

// partial (gridDim.y, PARTS F), null: no sums of columns.
template <class Act>
__global__ void __launch_bounds__(THREADS, sizeof(floatX) == 2 ? 3 : 2)
    backward_kernel(e5m2* dpre, e5m2* dpre_t, e4m3* act_t, float* partial, const floatX* dact, const floatX* pre,
                    Fp8Slot dslot, Fp8Slot slot, int N, int F) {
    wait_for_previous();
    launch_next_early();
    using Place = Fp8Place<8>;
    constexpr int PARTS = Act::PARTS;
    const int64_t H = int64_t{PARTS} * F;
    BackwardShared<PARTS>& shared = shared_as<BackwardShared<PARTS>>();
    const Place place(N, F);
    Fp8Writer<e5m2> dwriter(dslot);
    Fp8Writer<e4m3> writer(slot);
    dact += place.start(F);
    pre += place.start(H);
    dpre += place.start(H);
    constexpr int AHEAD = BackwardInputs<PARTS>::AHEAD;
    BackwardInputs<PARTS> inputs[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; k++) inputs[k].load(dact, pre, place, k, F);
    float sums[PARTS][8] = {};
#pragma unroll 1
    for (int first = 0; first < Place::PASSES; first += AHEAD) {
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const int pass = first + k;
            Fp8Pack<8> packs[PARTS], act;
#pragma unroll
            for (int half = 0; half < 2; half++) {  // four values at a time in fp32 take fewer registers than eight
                float d[PARTS][4], a[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float h[PARTS], dh[PARTS];
#pragma unroll
                    for (int q = 0; q < PARTS; q++) h[q] = inputs[k].pre[q][half * 4 + i];
                    a[i] = Act::backward(dh, inputs[k].dact[half * 4 + i], h);
#pragma unroll
                    for (int q = 0; q < PARTS; q++) d[q][i] = dh[q];
                }
                round_to_floatX(a);
                act.word[half] = writer.convert(a).word[0];
#pragma unroll
                for (int q = 0; q < PARTS; q++) {
                    round_to_floatX(d[q]);
#pragma unroll
                    for (int i = 0; i < 4; i++) sums[q][half * 4 + i] += d[q][i];
                    packs[q].word[half] = dwriter.convert(d[q]).word[0];
                }
            }
            inputs[k].load(dact, pre, place, pass + AHEAD, F);
#pragma unroll
            for (int q = 0; q < PARTS; q++) {
                if (place.has(pass)) store_fp8(dpre + place.step(pass, PARTS * F) + q * F, packs[q]);
                shared.dpre[q].put(place.tile_row(pass), place.x, packs[q]);
            }
            shared.act.put(place.tile_row(pass), place.x, act);
        }
    }
    if (partial) {
#pragma unroll
        for (int q = 0; q < PARTS; q++) shared.sums[q].put(place, sums[q]);
    }
    dwriter.finish(dslot, shared.scratch);  // also the barrier between writing shared memory and reading it
    writer.finish(slot, shared.scratch);
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int q = 0; q < PARTS; q++) {
        const int64_t part = static_cast<int64_t>(q) * F;
        shared.dpre[q].write_transposed(dpre_t + part * N + place.transposed(N), N, place.rows, place.cols, thread);
        if (partial && thread < place.cols)
            partial[blockIdx.y * H + part + place.col + thread] = shared.sums[q].total(thread);
    }
    shared.act.write_transposed(act_t + place.transposed(N), N, place.rows, place.cols, thread);
}

template <class Act>
void forward(e4m3* out, const floatX* pre, const Fp8Slot& slot, int N, int F, cudaStream_t stream) {
    CHECK(N > 0 && F > 0 && N % 16 == 0 && F % 16 == 0);
    const int64_t units = static_cast<int64_t>(N) * (F / 8);
    CHECK(units < INT32_MAX);
    MOVES("fp8_activation_forward", {reads(pre, units * 8 * Act::PARTS), writes(out, units * 8)});
    launch_early(forward_kernel<Act>, dim3(static_cast<unsigned>(ceil_div(units, int64_t{UNITS * THREADS}))),
                 dim3(THREADS), sizeof(ForwardShared), stream, out, pre, slot, static_cast<unsigned>(units), F / 8);
}

template <class Act>
void backward(e5m2* dpre, e5m2* dpre_t, e4m3* act_t, float* dbias, const floatX* dact, const floatX* pre,
              const Fp8Slot& dslot, const Fp8Slot& slot, float* scratch, int N, int F, bool accumulate,
              cudaStream_t stream) {
    const dim3 grid = fp8_tiles(N, F);
    const int H = Act::PARTS * F;
    const int64_t n = static_cast<int64_t>(N) * F, rows = grid.y;
    float* partial = dbias ? scratch : nullptr;
    MOVES("fp8_activation_backward",
          {reads(dact, n), reads(pre, n * Act::PARTS), writes(dpre, n * Act::PARTS), writes(dpre_t, n * Act::PARTS),
           writes(act_t, n), writes(partial, rows * H)});
    launch_early(backward_kernel<Act>, grid, dim3(THREADS), sizeof(BackwardShared<Act::PARTS>), stream, dpre, dpre_t,
                 act_t, partial, dact, pre, dslot, slot, N, F);
    if (dbias) add_partials({{dbias}}, partial, static_cast<int>(rows), 1, H, stream, accumulate);
}

}  // namespace

void fp8_activation_forward(e4m3* out, const floatX* pre, Activation act, const Fp8Slot& slot, int N, int F,
                            cudaStream_t stream) {
    auto run = act == Activation::swiglu     ? forward<Swiglu>
               : act == Activation::gelu_new ? forward<Pointwise<GeluNew>>
                                             : forward<Pointwise<Gelu>>;
    run(out, pre, slot, N, F, stream);
}

void fp8_activation_backward(e5m2* dpre, e5m2* dpre_t, e4m3* act_t, float* dbias, const floatX* dact, const floatX* pre,
                             Activation act, const Fp8Slot& dslot, const Fp8Slot& slot, float* scratch, int N, int F,
                             bool accumulate, cudaStream_t stream) {
    auto run = act == Activation::swiglu     ? backward<Swiglu>
               : act == Activation::gelu_new ? backward<Pointwise<GeluNew>>
                                             : backward<Pointwise<Gelu>>;
    run(dpre, dpre_t, act_t, dbias, dact, pre, dslot, slot, scratch, N, F, accumulate, stream);
}
