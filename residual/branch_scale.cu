#include "residual/branch_scale.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int MAX_BLOCKS = 512;

struct Shared {
    float scratch[WARP];
};

__global__ void branch_factors_kernel(float* beta, const float* alpha, const float* const* factor, int count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) beta[i] = alpha[i] * (factor[i] != nullptr ? *factor[i] : 1.0f);
}

template <class T>
__global__ void __launch_bounds__(THREADS)
    branch_dot_kernel(float* partial, const T* value, float* grad, const float* scale, int64_t count) {
    float factor = scale != nullptr ? *scale : 1.0f, sum = 0.0f;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < count; i += gridDim.x * THREADS) {
        sum += grad[i] * to_float(value[i]);
        if (scale != nullptr) grad[i] *= factor;
    }
    sum = block_sum(sum, shared_as<Shared>().scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(THREADS)
    branch_total_kernel(float* total, const float* weight, const float* partial, int blocks) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < blocks; i += THREADS) sum += partial[i];
    sum = block_sum(sum, shared_as<Shared>().scratch);
    if (threadIdx.x == 0) *total += (weight != nullptr ? *weight : 1.0f) * sum;
}

}  // namespace

void branch_factors(float* beta, const float* alpha, const float* const* factor, int count, cudaStream_t stream) {
    launch(branch_factors_kernel, ceil_div(count, THREADS), THREADS, 0, stream, beta, alpha, factor, count);
}

size_t branch_dot_scratch_bytes() {
    return MAX_BLOCKS * sizeof(float);
}

template <class T>
void branch_dot(float* total, const float* weight, const T* value, float* grad, const float* scale, int64_t count,
                float* scratch, cudaStream_t stream) {
    if (count == 0) return;
    int blocks = static_cast<int>(ceil_div(count, static_cast<int64_t>(THREADS) * 8));
    if (blocks > MAX_BLOCKS) blocks = MAX_BLOCKS;
    launch(branch_dot_kernel<T>, blocks, THREADS, sizeof(Shared), stream, scratch, value, grad, scale, count);
    launch(branch_total_kernel, 1, THREADS, sizeof(Shared), stream, total, weight, scratch, blocks);
}

template void branch_dot<float>(float*, const float*, const float*, float*, const float*, int64_t, float*,
                                cudaStream_t);
#ifdef PRECISION_BF16
template void branch_dot<floatX>(float*, const float*, const floatX*, float*, const float*, int64_t, float*,
                                 cudaStream_t);
#endif
