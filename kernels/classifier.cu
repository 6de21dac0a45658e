// Softmax, cross entropy and their gradient for one row of logits l (V) with target t:
//
//     M = max(l);  S = SUM exp(l - M);  loss = M + log S - l[t];  dl[i] = (exp(l[i] - M)/S - [i == t]) * dloss
//
// One block per row. The first pass keeps a running maximum and the sum relative to it (Milakov & Gimelshein 2018), one
// correction per step of several packs; the second recomputes the exponentials from the row, which is still in the cache.
#include "kernels/classifier.cuh"

#include <cmath>

namespace {

constexpr int MAX_THREADS = 256;
constexpr int PACKS = 4;  // a thread's loads in flight
constexpr int STEP = PACKS * PackX::size;
constexpr float LOWEST = -3.402823466e38f;  // finite, so that exp(-inf - LOWEST) is 0 and not NaN

struct Shared {
    float scratch[WARP];
};

// One thread's share of a step: PACKS packs, blockDim.x packs apart from each other.
struct Step {
    float v[STEP];

    static __device__ __forceinline__ int column(int step, int pack) {
        return ((step * PACKS + pack) * blockDim.x + threadIdx.x) * PackX::size;
    }
    // Columns from V on become -infinity, whatever they hold.
    __device__ __forceinline__ Step(const floatX* row, int step, int V) {
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int c = column(step, p);
            PackX pack = {};
            if (c < V) pack = load_pack(row + c);
#pragma unroll
            for (int j = 0; j < PackX::size; j++)
                v[p * PackX::size + j] = c + j < V ? to_float(pack[j]) : -INFINITY;
        }
    }
};

__global__ void __launch_bounds__(MAX_THREADS) classifier_kernel(floatX* logits, float* losses, const int* targets,
                                                                float dloss, int V, int Vp, bool write_dlogits) {
    floatX* row = logits + static_cast<int64_t>(blockIdx.x) * Vp;
    int target = targets[blockIdx.x];
    int steps = ceil_div(Vp, static_cast<int>(blockDim.x) * STEP);
    if (target < 0) {  // masked
        if (threadIdx.x == 0) losses[blockIdx.x] = 0.0f;
        if (!write_dlogits) return;
        for (int c = threadIdx.x * PackX::size; c < Vp; c += blockDim.x * PackX::size) store_pack(row + c, PackX{});
        return;
    }
    float target_logit = target < V ? to_float(row[target]) : NAN;  // read before anyone overwrites it

    float max = LOWEST, sum = 0.0f;
    for (int s = 0; s < steps; s++) {
        Step x(row, s, V);
        float larger = max;
#pragma unroll
        for (int i = 0; i < STEP; i++) larger = x.v[i] > larger ? x.v[i] : larger;
        float added = 0.0f;
#pragma unroll
        for (int i = 0; i < STEP; i++) added += __expf(x.v[i] - larger);
        sum = sum * __expf(max - larger) + added;
        max = larger;
    }
    Shared& shared = shared_as<Shared>();
    float row_maximum = block_max(max, shared.scratch);
    float total = block_sum(sum * __expf(max - row_maximum), shared.scratch);
    if (threadIdx.x == 0) losses[blockIdx.x] = row_maximum - target_logit + logf(total);
    if (!write_dlogits) return;

    float scale = dloss / total;
    for (int s = 0; s < steps; s++) {
        Step x(row, s, V);
#pragma unroll
        for (int i = 0; i < STEP; i++) x.v[i] = __expf(x.v[i] - row_maximum) * scale;
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int c = Step::column(s, p);
            PackX pack;
#pragma unroll
            for (int j = 0; j < PackX::size; j++)
                pack[j] = from_float<floatX>(x.v[p * PackX::size + j] - (c + j == target ? dloss : 0.0f));
            if (c < Vp) store_pack(row + c, pack);
        }
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
