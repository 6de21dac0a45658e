// Softmax, cross entropy and their gradient for one row of logits l (V) with target t:
//
//     M = max(l);  S = SUM exp(l - M);  loss = M + log S - l[t];  dl[i] = (exp(l[i] - M)/S - [i == t]) * dloss
//
// The first pass over a row keeps a running maximum and the sum relative to it (Milakov & Gimelshein 2018); the second
// recomputes the exponentials. Two kernels, which differ in where the row waits for its second pass:
//
//     cached      in the cache: a block per row, or a warp for short rows. Right where all rows that are being worked
//                 on fit there together, for losses alone, and for rows longer than shared memory.
//     resident    in shared memory: persistent blocks, each with one row. What the second pass has used makes room
//                 for the same columns of the block's next row, so that loads are in flight at all times.
#include "kernels/classifier.cuh"

#include <cmath>
#include <fold.cuh>
#include <ptx.cuh>
#include <wide.cuh>

namespace {

constexpr int MAX_THREADS = 256;
// Rows of a block, where a warp is enough for each; on the CPU machine the stacks of fewer threads stay in its cache.
constexpr int MAX_ROWS = WIDE_ROWS ? 2 : 8;
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
struct Shared {
    float scratch[MAX_ROWS * WARP];
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
            for (int p = 0; p < PIECES; p++) load_piece(v, p, row + part.column(step, p));
        } else {  // the end of the row
            for (int p = 0; p < PIECES; p++) {
                int first = part.column(step, p);
                if (first + PIECE <= V) load_piece(v, p, row + first);
                else
                    for (int j = 0; j < PIECE; j++)
                        v[p * PIECE + j] = first + j < V ? to_float(row[first + j]) : -INFINITY;
            }
        }
    }
    __device__ __forceinline__ void store(floatX* row, const Part& part, int step, int Vp) const {
        floatX rounded[STEP];
        for (int i = 0; i < STEP; i++) rounded[i] = from_float<floatX>(v[i]);
        for (int p = 0; p < PIECES; p++) {
            int first = part.column(step, p);
            if (first + PIECE <= Vp) {
                for (int q = 0; q < PIECE; q += PackX::size) {
                    PackX pack;
                    for (int j = 0; j < PackX::size; j++) pack[j] = rounded[p * PIECE + q + j];
                    store_pack(row + first + q, pack);
                }
            } else {
                for (int j = 0; j < PIECE; j++)
                    if (first + j < Vp) row[first + j] = rounded[p * PIECE + j];
            }
        }
    }
};

// A row per threadIdx.y.
__global__ void __launch_bounds__(MAX_THREADS) cached_kernel(floatX* logits, float* losses, const int* targets,
                                                            float dloss, int64_t N, int V, int Vp, bool write_dlogits) {
    wait_for_previous();
    int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
    if (n >= N) return;  // several rows in a block are warps, which do not wait for each other
    floatX* row = logits + n * Vp;
    int target = targets[n];
    if (target < 0) {  // masked
        if (threadIdx.x == 0) losses[n] = 0.0f;
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
    float row_maximum = row_max(max, shared.scratch);
    float total = row_sum(sum * __expf(max - row_maximum), shared.scratch);
    if (threadIdx.x == 0) losses[n] = row_maximum - target_logit + logf(total);
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

// ---------------------------------------------------------------------------------------------------------------------
// The row in shared memory

constexpr int RESIDENT_THREADS = 1024;  // of a multiprocessor: one block, or two of half as many
constexpr int STAGES = 4;               // groups in which a row arrives

struct ResidentShared {
    float scratch[WARP];
    alignas(16) floatX row[1];  // Vp
};
size_t resident_bytes(int Vp) { return offsetof(ResidentShared, row) + static_cast<size_t>(Vp) * sizeof(floatX); }

// One block's way through its rows. A thread reads only what it has copied itself, so the row needs no barriers.
struct Resident {
    ResidentShared& shared;
    int V, packs, per_stage;  // packs of a row; of a thread in a stage

    __device__ __forceinline__ Resident(int V, int Vp)
        : shared(shared_as<ResidentShared>()), V(V), packs(Vp / PackX::size),
          per_stage(ceil_div(ceil_div(packs, static_cast<int>(blockDim.x)), STAGES)) {}

    // Number of the thread's i-th pack.
    __device__ __forceinline__ int pack(int i) const {
        return i * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
    }
    __device__ __forceinline__ void fetch(const floatX* row, int p) const {
        cp_async_16(shared_address(shared.row + p * PackX::size), row + p * PackX::size);
    }
    __device__ __forceinline__ void load(float (&v)[PackX::size], int p) const {
        PackX pack = load_pack(shared.row + p * PackX::size);
#pragma unroll
        for (int j = 0; j < PackX::size; j++) v[j] = p * PackX::size + j < V ? to_float(pack[j]) : -INFINITY;
    }
    // The first pass, stage by stage as they arrive.
    template <int STAGE>
    __device__ __forceinline__ void scan(float& max, float& sum) const {
        cp_async_wait<STAGES - 1 - STAGE>();
        for (int i = STAGE * per_stage; i < (STAGE + 1) * per_stage && pack(i) < packs; i++) {
            float v[PackX::size];
            load(v, pack(i));
            float larger = fold_max(v);
            if (larger > max) {  // seldom, but for the first packs
                sum *= __expf(max - larger);
                max = larger;
            }
#pragma unroll
            for (int j = 0; j < PackX::size; j++) v[j] = __expf(v[j] - max);
            sum += fold_sum(v);
        }
        if constexpr (STAGE + 1 < STAGES) scan<STAGE + 1>(max, sum);
    }
};

__global__ void __launch_bounds__(RESIDENT_THREADS)
    resident_kernel(floatX* logits, float* losses, const int* targets, float dloss, int64_t N, int V, int Vp) {
    wait_for_previous();
    const Resident row(V, Vp);
    int64_t n = blockIdx.x;  // the grid has no more blocks than rows
    for (int stage = 0; stage < STAGES; stage++) {
        for (int i = stage * row.per_stage; i < (stage + 1) * row.per_stage && row.pack(i) < row.packs; i++)
            if (targets[n] >= 0) row.fetch(logits + n * Vp, row.pack(i));
        cp_async_commit();
    }
    for (; n < N; n += gridDim.x) {
        const int64_t next = n + gridDim.x;
        const bool fetches = next < N && targets[next] >= 0;
        const int target = targets[n];
        float row_maximum = 0.0f, scale = 0.0f;
        if (target < 0) {  // masked: nothing was fetched
            if (threadIdx.x == 0) losses[n] = 0.0f;
        } else {
            float max = LOWEST, sum = 0.0f;
            row.scan<0>(max, sum);
            row_maximum = block_max(max, row.shared.scratch);
            // Others' columns are there since that barrier, and stay until the next.
            float target_logit = target < V ? to_float(row.shared.row[target]) : NAN;
            float total = block_sum(sum * __expf(max - row_maximum), row.shared.scratch);
            if (threadIdx.x == 0) losses[n] = row_maximum - target_logit + logf(total);
            scale = dloss / total;
        }
        for (int stage = 0; stage < STAGES; stage++) {
            for (int i = stage * row.per_stage; i < (stage + 1) * row.per_stage && row.pack(i) < row.packs; i++) {
                const int p = row.pack(i), at = target - p * PackX::size;
                PackX gradient = {};
                if (target >= 0) {
                    float v[PackX::size];
                    row.load(v, p);
#pragma unroll
                    for (int j = 0; j < PackX::size; j++)
                        gradient[j] = from_float<floatX>(__expf(v[j] - row_maximum) * scale - (j == at ? dloss : 0.0f));
                }
                store_pack(logits + n * Vp + p * PackX::size, gradient);
                if (fetches) row.fetch(logits + next * Vp, p);
            }
            cp_async_commit();
        }
    }
}

int device_attribute(cudaDeviceAttr attribute) {
    int device = 0, value = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
    return value;
}

// Threads of a row in the cached kernel.
int cached_threads(int Vp) {
    int threads = static_cast<int>(round_up(ceil_div(Vp, STEP), WARP));
    return threads < MAX_THREADS ? threads : MAX_THREADS;
}

struct SumShared {
    double scratch[WARP];
};

__global__ void __launch_bounds__(MAX_THREADS) sum_losses_kernel(double* total, const float* losses, int64_t N) {
    wait_for_previous();
    double sum = 0.0;
    for (int64_t n = threadIdx.x; n < N; n += blockDim.x) sum += static_cast<double>(losses[n]);
    sum = block_sum(sum, shared_as<SumShared>().scratch);
    if (threadIdx.x == 0) *total += sum;
}

}  // namespace

bool classifier_row_fits(int Vp) {
    static const int limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    return resident_bytes(Vp) <= static_cast<size_t>(limit);
}

ClassifierKernel classifier_choice(int Vp, bool write_dlogits) {
    if (!write_dlogits || !classifier_row_fits(Vp)) return ClassifierKernel::cached;
    static const int cache = device_attribute(cudaDevAttrL2CacheSize);
    int threads = cached_threads(Vp), blocks = 0;
    CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, cached_kernel, threads, sizeof(Shared)));
    const double rows = static_cast<double>(multiprocessors()) * blocks;  // that are being worked on at a time
    // Half of the cache: the rows' gradients and what else is going on want their share.
    return rows * Vp * sizeof(floatX) <= 0.5 * cache ? ClassifierKernel::cached : ClassifierKernel::resident;
}

void classifier(floatX* logits, float* losses, const int* targets, float dloss, int64_t N, int V, int Vp,
                bool write_dlogits, cudaStream_t stream) {
    classifier_with(classifier_choice(Vp, write_dlogits), logits, losses, targets, dloss, N, V, Vp, write_dlogits,
                    stream);
}

void classifier_with(ClassifierKernel kernel, floatX* logits, float* losses, const int* targets, float dloss, int64_t N,
                     int V, int Vp, bool write_dlogits, cudaStream_t stream) {
    CHECK(Vp % PackX::size == 0 && V >= 1 && V <= Vp);
    if (N == 0) return;
    MOVES("classifier", {reads(logits, N * V), reads(targets, N), writes(losses, N),
                         writes(write_dlogits ? logits : nullptr, N * Vp)});
    if (kernel == ClassifierKernel::cached) {
        const int threads = cached_threads(Vp), rows = threads == WARP ? MAX_ROWS : 1;
        const unsigned blocks = static_cast<unsigned>(ceil_div(N, static_cast<int64_t>(rows)));
        launch_early(cached_kernel, blocks, dim3(threads, rows), sizeof(Shared), stream, logits, losses, targets, dloss, N, V,
               Vp, write_dlogits);
        return;
    }
    CHECK(write_dlogits && classifier_row_fits(Vp));
    static const int shared_bytes = device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    const size_t bytes = resident_bytes(Vp);
    const int reserved = 1024;  // of each block, by the system
    const int blocks = 2 * (bytes + reserved) <= static_cast<size_t>(shared_bytes) ? 2 : 1;  // of a multiprocessor
    const int64_t grid = static_cast<int64_t>(multiprocessors()) * blocks;
    launch_early(resident_kernel, static_cast<unsigned>(N < grid ? N : grid), RESIDENT_THREADS / blocks, bytes, stream,
           logits, losses, targets, dloss, N, V, Vp);
}

void sum_losses(double* total, const float* losses, int64_t N, cudaStream_t stream) {
    MOVES("sum_losses", {reads(losses, N), updates(total, 1)});
    launch_early(sum_losses_kernel, 1, MAX_THREADS, sizeof(SumShared), stream, total, losses, N);
}
