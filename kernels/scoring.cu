#include "kernels/scoring.cuh"

namespace {

constexpr int MAX_THREADS = 256;

__global__ void __launch_bounds__(MAX_THREADS) gather_kernel(floatX* out, const floatX* in, const int* rows, int C) {
    const floatX* from = in + static_cast<int64_t>(rows[blockIdx.x]) * C;
    floatX* to = out + static_cast<int64_t>(blockIdx.x) * C;
    for (int c = threadIdx.x * PackX::size; c < C; c += blockDim.x * PackX::size)
        store_pack(to + c, load_pack(from + c));
}

struct Shared {
    float scratch[WARP];
};

// The target wins if it is larger than every logit before it and no smaller than any behind it; written so that a NaN
// on either side beats it.
__global__ void __launch_bounds__(MAX_THREADS)
    greedy_kernel(unsigned char* hits, const floatX* logits, const int* targets, int V, int Vp) {
    const int target = targets[blockIdx.x];
    if (target < 0) {
        if (threadIdx.x == 0) hits[blockIdx.x] = 0;
        return;
    }
    const floatX* row = logits + static_cast<int64_t>(blockIdx.x) * Vp;
    const float level = to_float(row[target]);
    bool beaten = !(level == level);
    for (int c = threadIdx.x * PackX::size; c < V; c += blockDim.x * PackX::size) {
        const PackX pack = load_pack(row + c);
#pragma unroll
        for (int j = 0; j < PackX::size; j++) {
            const float x = to_float(pack[j]);
            const int i = c + j;
            if (i < V && i != target) beaten |= i < target ? !(x < level) : !(x <= level);
        }
    }
    const float any = block_max(beaten ? 1.0f : 0.0f, shared_as<Shared>().scratch);
    if (threadIdx.x == 0) hits[blockIdx.x] = any == 0.0f;
}

int threads_for(int columns) {
    const int threads = static_cast<int>(round_up(ceil_div(columns, PackX::size), WARP));
    return threads < MAX_THREADS ? threads : MAX_THREADS;
}

}  // namespace

void gather_rows(floatX* out, const floatX* in, const int* rows, int64_t n, int C, cudaStream_t stream) {
    CHECK(C % PackX::size == 0);
    if (n == 0) return;
    MOVES("gather_rows", {reads(rows, n), reads(in, n * C), writes(out, n * C)});
    launch(gather_kernel, static_cast<unsigned>(n), threads_for(C), 0, stream, out, in, rows, C);
}

void greedy_hits(unsigned char* hits, const floatX* logits, const int* targets, int64_t N, int V, int Vp,
                 cudaStream_t stream) {
    CHECK(Vp % PackX::size == 0 && V >= 1 && V <= Vp);
    if (N == 0) return;
    const int64_t whole = round_up(V, PackX::size);  // packs
    MOVES("greedy_hits", {reads(logits, N * whole), reads(targets, N), writes(hits, N)});
    launch(greedy_kernel, static_cast<unsigned>(N), threads_for(V), sizeof(Shared), stream, hits, logits, targets, V,
           Vp);
}
