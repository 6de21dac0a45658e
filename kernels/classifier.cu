// Softmax, cross entropy and their gradient for one row of logits l (V) with target t:
//
//     M = max(l);  S = SUM exp(l - M);  loss = M + log S - l[t];  dl[i] = (exp(l[i] - M)/S - [i == t]) * dloss
//
// One block per row. The first pass keeps a running maximum and the sum relative to it (Milakov & Gimelshein 2018), one
// correction per step of several packs; the second recomputes the exponentials from the row, which is still in the cache.
#include "kernels/classifier.cuh"

#include <cmath>
#include <fold.cuh>
#include <wide.cuh>

namespace {

constexpr int MAX_THREADS = 256;
constexpr float LOWEST = -3.402823466e38f;  // finite, so that exp(-inf - LOWEST) is 0 and not NaN

// What a thread reads in one piece. bf16: one pack, two in flight. fp32, where the CPU machine is what matters: four packs,
// which are one vector register there.
constexpr int STEP = 16;
constexpr int PIECE = sizeof(floatX) == 2 ? PackX::size : Wide::size;
constexpr int PIECES = STEP / PIECE;
constexpr int LINE = WARP * PIECE;

template <class T, int N>
__device__ __forceinline__ void load_piece(float (&v)[N], int piece, const T* from) {
    if constexpr (sizeof(T) == 4) {
        wide_to_array(v, wide_load(from));
    } else {
        Pack<T> pack = load_pack(from);
#pragma unroll
        for (int j = 0; j < PIECE; j++) v[piece * PIECE + j] = to_float(pack[j]);
    }
}
template <class T, int N>
__device__ __forceinline__ void store_piece(T* to, const float (&v)[N], int piece) {
    if constexpr (sizeof(T) == 4) {
        wide_store(to, wide_from_array(v));
    } else {
        Pack<T> pack;
#pragma unroll
        for (int j = 0; j < PIECE; j++) pack[j] = from_float<T>(v[piece * PIECE + j]);
        store_pack(to, pack);
    }
}

struct Shared {
    float scratch[WARP];
};

// How the row is shared out: each warp has a contiguous part, read in lines of 32 pieces, PIECES lines in a step.
struct Part {
    int first, lines, steps;  // first column of this thread, lines of its warp
    __device__ __forceinline__ explicit Part(int Vp) {
        int warps = blockDim.x / WARP;
        lines = ceil_div(ceil_div(Vp, LINE), warps);
        steps = ceil_div(lines, PIECES);
        first = threadIdx.x / WARP * lines * LINE + threadIdx.x % WARP * PIECE;
    }
    // Beyond every row for pieces behind the last line.
    __device__ __forceinline__ int column(int step, int piece) const {
        int line = step * PIECES + piece;
        return line < lines ? first + line * LINE : 1 << 30;
    }
};

// One thread's share of a step.
struct Step {
    float v[STEP];

    // Columns from V on become -infinity, whatever they hold.
    __device__ __forceinline__ Step(const floatX* row, const Part& part, int step, int V) {
        if (part.column(step, PIECES - 1) + PIECE <= V) {
#pragma unroll
            for (int p = 0; p < PIECES; p++) {
                load_piece(v, p, row + part.column(step, p));
            }
        } else {  // the end of the row
            for (int i = 0; i < STEP; i++) {
                int c = part.column(step, i / PIECE) + i % PIECE;
                v[i] = c < V ? to_float(row[c]) : -INFINITY;
            }
        }
    }
    __device__ __forceinline__ void store(floatX* row, const Part& part, int step, int Vp) const {
        if (part.column(step, PIECES - 1) + PIECE <= Vp) {
#pragma unroll
            for (int p = 0; p < PIECES; p++) {
                store_piece(row + part.column(step, p), v, p);
            }
        } else {
            for (int i = 0; i < STEP; i++) {
                int c = part.column(step, i / PIECE) + i % PIECE;
                if (c < Vp) row[c] = from_float<floatX>(v[i]);
            }
        }
    }
};

__global__ void __launch_bounds__(MAX_THREADS) classifier_kernel(floatX* logits, float* losses, const int* targets,
                                                                float dloss, int V, int Vp, bool write_dlogits) {
    floatX* row = logits + static_cast<int64_t>(blockIdx.x) * Vp;
    int target = targets[blockIdx.x];
    if (target < 0) {  // masked
        if (threadIdx.x == 0) losses[blockIdx.x] = 0.0f;
        if (!write_dlogits) return;
        for (int c = threadIdx.x * PackX::size; c < Vp; c += blockDim.x * PackX::size) store_pack(row + c, PackX{});
        return;
    }
    float target_logit = target < V ? to_float(row[target]) : NAN;  // read before anyone overwrites it

    const Part part(Vp);
    float max = LOWEST, sum = 0.0f;
    for (int s = 0; s < part.steps; s++) {
        if (part.column(s, 0) >= V) break;
        Step x(row, part, s, V);
        float larger = fold_max(x.v);
        larger = larger > max ? larger : max;
#pragma unroll
        for (int i = 0; i < STEP; i++) x.v[i] = __expf(x.v[i] - larger);
        sum = sum * __expf(max - larger) + fold_sum(x.v);
        max = larger;
    }
    Shared& shared = shared_as<Shared>();
    float row_maximum = block_max(max, shared.scratch);
    float total = block_sum(sum * __expf(max - row_maximum), shared.scratch);
    if (threadIdx.x == 0) losses[blockIdx.x] = row_maximum - target_logit + logf(total);
    if (!write_dlogits) return;

    float scale = dloss / total;
    for (int s = 0; s < part.steps; s++) {
        if (part.column(s, 0) >= Vp) break;
        Step x(row, part, s, V);
#pragma unroll
        for (int i = 0; i < STEP; i++) {
            int c = part.column(s, i / PIECE) + i % PIECE;
            x.v[i] = __expf(x.v[i] - row_maximum) * scale - (c == target ? dloss : 0.0f);
        }
        x.store(row, part, s, Vp);
    }
}

struct SumShared {
    double scratch[WARP];
};

__global__ void __launch_bounds__(MAX_THREADS) sum_losses_kernel(double* total, const float* losses, int64_t N) {
    double sum = 0.0;
    for (int64_t n = threadIdx.x; n < N; n += blockDim.x) sum += static_cast<double>(losses[n]);
    sum = block_sum(sum, shared_as<SumShared>().scratch);
    if (threadIdx.x == 0) *total += sum;
}

}  // namespace

void classifier(floatX* logits, float* losses, const int* targets, float dloss, int64_t N, int V, int Vp,
                bool write_dlogits, cudaStream_t stream) {
    CHECK(Vp % PackX::size == 0 && V >= 1 && V <= Vp);
    if (N == 0) return;
    int threads = static_cast<int>(round_up(ceil_div(Vp, STEP), WARP));
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    launch(classifier_kernel, static_cast<unsigned>(N), threads, sizeof(Shared), stream, logits, losses, targets, dloss,
           V, Vp, write_dlogits);
}

void sum_losses(double* total, const float* losses, int64_t N, cudaStream_t stream) {
    launch(sum_losses_kernel, 1, MAX_THREADS, sizeof(SumShared), stream, total, losses, N);
}
