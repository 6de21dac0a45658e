//     G = sqrt(SUM g^2);   kappa = min(1, max_norm/(G + 1e-6)),  1 when max_norm is 0
//
// Two stages: each block sums one chunk (a few squares at a time in fp32, then fp64), one block adds the chunks. A NaN or
// infinite gradient makes G so, and the optimizer then skips the update.
#include "optimizer/gradient_norm.cuh"

#include <fold.cuh>
#include <wide.cuh>

namespace {

constexpr int THREADS = 128;
constexpr int CHUNK = 131072;  // elements of a block
constexpr int WINDOW = CHUNK / (THREADS / WARP);  // of a warp: contiguous, so that it stays in the nearest cache
constexpr int STEP = WARP * Wide::size;  // elements a warp reads at a time

struct Shared {
    double scratch[WARP];
};

__global__ void __launch_bounds__(THREADS) squares_kernel(double* partial, const float* grads, int64_t count) {
    int64_t begin = static_cast<int64_t>(blockIdx.x) * CHUNK + threadIdx.x / WARP * WINDOW;
    int64_t end = begin + WINDOW < count ? begin + WINDOW : count;
    int lane = threadIdx.x % WARP;
    double sum = 0.0;
    for (int64_t i = begin + lane * Wide::size; i < end; i += STEP) {
        float g[Wide::size];
        if (i + Wide::size <= end) {
            wide_to_array(g, wide_load(grads + i));
        } else {
            for (int j = 0; j < Wide::size; j++) g[j] = i + j < end ? grads[i + j] : 0.0f;
        }
#pragma unroll
        for (int j = 0; j < Wide::size; j++) g[j] *= g[j];
        sum += static_cast<double>(fold_sum(g));
    }
    sum = block_sum(sum, shared_as<Shared>().scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(THREADS) clip_kernel(float* clip, const double* partial, int blocks, float max_norm) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < blocks; i += THREADS) sum += partial[i];
    sum = block_sum(sum, shared_as<Shared>().scratch);
    if (threadIdx.x > 0) return;
    double norm = sqrt(sum);
    double kappa = static_cast<double>(max_norm) / (norm + 1e-6);
    clip[0] = static_cast<float>(norm);
    clip[1] = max_norm == 0.0f || kappa > 1.0 ? 1.0f : static_cast<float>(kappa);
}

int chunks(int64_t count) { return static_cast<int>(ceil_div(count, static_cast<int64_t>(CHUNK))); }

}  // namespace

size_t gradient_norm_scratch_bytes(int64_t count) { return sizeof(double) * chunks(count); }

void gradient_norm(float* clip, const float* grads, int64_t count, float max_norm, void* scratch, cudaStream_t stream) {
    double* partial = static_cast<double*>(scratch);
    if (count > 0) launch(squares_kernel, chunks(count), THREADS, sizeof(Shared), stream, partial, grads, count);
    launch(clip_kernel, 1, THREADS, sizeof(Shared), stream, clip, partial, chunks(count), max_norm);
}
