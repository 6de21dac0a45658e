//     G = sqrt(SUM g^2);   kappa = min(1, max_norm/(G + 1e-6)),  1 when max_norm is 0
//
// Two stages: each block sums one chunk (a few squares at a time in fp32, then fp64), one block adds the chunks; so the
// order of additions is that of the work list, on every card. A NaN or infinite gradient makes G so, and the optimizer
// then skips the update.
#include "optimizer/gradient_norm.cuh"

#include <fold.cuh>

#include "optimizer/chunk.cuh"

namespace {

constexpr int CLIP_THREADS = WIDE_ROWS ? 128 : 1024;
using Part = ChunkPart<ADAMW_CHUNK>;

struct Shared {
    double scratch[WARP];
};

__device__ __forceinline__ double squares(const float* grads) {
    float g[PIECE];
    load_streamed(g, grads);
#pragma unroll
    for (int j = 0; j < PIECE; j++) g[j] *= g[j];
    return static_cast<double>(fold_sum(g));
}

__global__ void __launch_bounds__(CHUNK_THREADS)
    squares_kernel(double* partial, const float* grads, const AdamWTensor* tensors, const AdamWChunk* chunks) {
    wait_for_previous();
    launch_next_early();
    const AdamWChunk chunk = chunks[blockIdx.x];
    const AdamWTensor t = tensors[chunk.tensor];
    const Part part(t.offset + static_cast<int64_t>(chunk.first) * ADAMW_CHUNK, t.offset + t.count);
    double sum = 0.0;
    if (!t.frozen) {
#pragma unroll 8
        for (int64_t i = part.begin; i < part.end; i += Part::STEP) sum += squares(grads + i);
    }
    sum = block_sum(sum, shared_as<Shared>().scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(CLIP_THREADS)
    clip_kernel(float* clip, const double* partial, int chunks, float max_norm) {
    wait_for_previous();
    launch_next_early();
    double sum = 0.0;
    for (int i = threadIdx.x; i < chunks; i += CLIP_THREADS) sum += partial[i];
    sum = block_sum(sum, shared_as<Shared>().scratch);
    if (threadIdx.x > 0) return;
    double norm = sqrt(sum);
    double kappa = static_cast<double>(max_norm) / (norm + 1e-6);
    clip[0] = static_cast<float>(norm);
    clip[1] = max_norm == 0.0f || kappa > 1.0 ? 1.0f : static_cast<float>(kappa);
}

}  // namespace

size_t gradient_norm_scratch_bytes(int64_t num_chunks) { return sizeof(double) * static_cast<size_t>(num_chunks); }

void gradient_norm_moves(const std::vector<AdamWTensor>& tensors) {
    if (!traffic::counting) return;
    int64_t values = 0, chunks = 0;
    for (const AdamWTensor& t : tensors) {
        values += t.frozen ? 0 : t.count;
        chunks += ceil_div(t.count, int64_t{ADAMW_CHUNK});
    }
    constexpr int64_t FIELDS = 2 * sizeof(int64_t) + sizeof(int);  // of a tensor: offset, count, frozen
    const int64_t tables = static_cast<int64_t>(tensors.size()) * FIELDS + chunks * int64_t{sizeof(AdamWChunk)};
    traffic::declare("gradient_norm", {reads_bytes(values * static_cast<int64_t>(sizeof(float)) + tables),
                                       writes_bytes(chunks * static_cast<int64_t>(sizeof(double)))});
}

void gradient_norm(float* clip, const float* grads, const AdamWTensor* tensors, const AdamWChunk* chunks,
                   int num_chunks, float max_norm, void* scratch, cudaStream_t stream) {
    double* partial = static_cast<double*>(scratch);
    if (num_chunks > 0)
        launch_early(squares_kernel, num_chunks, CHUNK_THREADS, sizeof(Shared), stream, partial, grads, tensors, chunks);
    MOVES("gradient_norm_total", {reads(partial, num_chunks), writes(clip, 2)});
    launch_early(clip_kernel, 1, CLIP_THREADS, sizeof(Shared), stream, clip, partial, num_chunks, max_norm);
}
