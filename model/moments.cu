#include "model/moments.cuh"

#include "kernels/partials.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int MAX_BLOCKS = 512;

struct Shared {
    float scratch[WARP];
};

__global__ void __launch_bounds__(THREADS) moments_kernel(float* partial, const floatX* x, int64_t count) {
    float sum = 0.0f, square = 0.0f;
    for (int64_t i = (static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x) * PackX::size; i < count;
         i += static_cast<int64_t>(gridDim.x) * THREADS * PackX::size) {
        PackX pack = load_pack(x + i);
#pragma unroll
        for (int j = 0; j < PackX::size; j++) {
            float value = to_float(pack[j]);
            sum += value;
            square += value * value;
        }
    }
    float* scratch = shared_as<Shared>().scratch;
    sum = block_sum(sum, scratch);
    __syncthreads();
    square = block_sum(square, scratch);
    if (threadIdx.x == 0) {
        partial[blockIdx.x * 2] = sum;
        partial[blockIdx.x * 2 + 1] = square;
    }
}

}  // namespace

size_t moments_scratch_bytes() {
    return MAX_BLOCKS * 2 * sizeof(float);
}

void moments(float* sums, const floatX* x, int64_t count, float* scratch, cudaStream_t stream) {
    const int64_t needed = ceil_div(count, static_cast<int64_t>(THREADS) * PackX::size * 4);
    const int blocks = static_cast<int>(needed < MAX_BLOCKS ? needed : MAX_BLOCKS);
    MOVES("moments", {reads(x, count), writes(scratch, 2 * blocks)});
    launch(moments_kernel, blocks, THREADS, sizeof(Shared), stream, scratch, x, count);
    set_zero(sums, 2 * sizeof(float), stream);
    PartialTargets target;
    target.total[0] = sums;
    add_partials(target, scratch, blocks, 1, 2, stream);
}
