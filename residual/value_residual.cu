#include "residual/value_residual.cuh"

#include "kernels/partials.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int PACKS = 4;  // per thread
constexpr int MAX_BLOCKS = 1024;

struct Shared {
    float scratch[WARP];
};

// Calls f(index into (N,KV), index into (N,W)) for each of this thread's packs; the grid walks over all.
template <class F>
__device__ __forceinline__ void each_pack(int64_t N, int W, int KV, F f) {
    const int per_row = KV / PackX::size;
    const int64_t packs = N * per_row, step = static_cast<int64_t>(gridDim.x) * THREADS;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < packs; i += step) {
        int64_t row = i / per_row, column = (i - row * per_row) * PackX::size;
        f(row * KV + column, row * W + (W - KV) + column);
    }
}

__global__ void __launch_bounds__(THREADS)
    value_copy_kernel(floatX* kept, const floatX* qkv, int64_t N, int W, int KV) {
    each_pack(N, W, KV, [&](int64_t v, int64_t q) { store_pack(kept + v, load_pack(qkv + q)); });
}

__global__ void __launch_bounds__(THREADS)
    value_mix_kernel(floatX* qkv, floatX* own, const floatX* first, const float* lambda, int64_t N, int W, int KV) {
    const float l1 = lambda[0], l2 = lambda[1];
    each_pack(N, W, KV, [&](int64_t v, int64_t q) {
        PackX a = load_pack(first + v), b = load_pack(qkv + q);
        if (own != nullptr) store_pack(own + v, b);
#pragma unroll
        for (int j = 0; j < PackX::size; j++) b[j] = from_float<floatX>(l1 * to_float(a[j]) + l2 * to_float(b[j]));
        store_pack(qkv + q, b);
    });
}

__global__ void __launch_bounds__(THREADS)
    value_mix_backward_kernel(floatX* dqkv, float* dfirst, bool new_dfirst, float* partial, const floatX* own,
                              const floatX* first, const float* lambda, int64_t N, int W, int KV) {
    const float l1 = lambda[0], l2 = lambda[1];
    float sum1 = 0.0f, sum2 = 0.0f;
    each_pack(N, W, KV, [&](int64_t v, int64_t q) {
        PackX d = load_pack(dqkv + q), a = load_pack(first + v), b = load_pack(own + v);
#pragma unroll
        for (int h = 0; h < PackX::size / 4; h++) {
            Pack<float> sum = {};
            if (!new_dfirst) sum = load_pack(dfirst + v + h * 4);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int j = h * 4 + i;
                float dv = to_float(d[j]);
                sum1 += dv * to_float(a[j]);
                sum2 += dv * to_float(b[j]);
                sum[i] += l1 * dv;
                d[j] = from_float<floatX>(l2 * dv);
            }
            store_pack(dfirst + v + h * 4, sum);
        }
        store_pack(dqkv + q, d);
    });
    float* scratch = shared_as<Shared>().scratch;
    sum1 = block_sum(sum1, scratch);
    __syncthreads();
    sum2 = block_sum(sum2, scratch);
    if (threadIdx.x == 0) {
        partial[blockIdx.x * 2] = sum1;
        partial[blockIdx.x * 2 + 1] = sum2;
    }
}

__global__ void __launch_bounds__(THREADS)
    value_first_backward_kernel(floatX* dqkv, const float* dfirst, int64_t N, int W, int KV) {
    each_pack(N, W, KV, [&](int64_t v, int64_t q) {
        PackX d = load_pack(dqkv + q);
#pragma unroll
        for (int h = 0; h < PackX::size / 4; h++) {
            Pack<float> sum = load_pack(dfirst + v + h * 4);
#pragma unroll
            for (int i = 0; i < 4; i++) d[h * 4 + i] = from_float<floatX>(to_float(d[h * 4 + i]) + sum[i]);
        }
        store_pack(dqkv + q, d);
    });
}

int blocks(int64_t N, int KV) {
    CHECK(KV % PackX::size == 0);
    int64_t needed = ceil_div(N * (KV / PackX::size), static_cast<int64_t>(THREADS) * PACKS);
    return static_cast<int>(needed < MAX_BLOCKS ? needed : MAX_BLOCKS);
}

}  // namespace

void value_copy(floatX* kept, const floatX* qkv, int64_t N, int W, int KV, cudaStream_t stream) {
    MOVES("value_copy", {reads(qkv, N * KV), writes(kept, N * KV)});
    launch(value_copy_kernel, blocks(N, KV), THREADS, 0, stream, kept, qkv, N, W, KV);
}

void value_mix(floatX* qkv, floatX* own, const floatX* first, const float* lambda, int64_t N, int W, int KV,
               cudaStream_t stream) {
    MOVES("value_mix", {updates(qkv, N * KV), writes(own, N * KV), reads(first, N * KV)});
    launch(value_mix_kernel, blocks(N, KV), THREADS, 0, stream, qkv, own, first, lambda, N, W, KV);
}

size_t value_scratch_bytes() {
    return MAX_BLOCKS * 2 * sizeof(float);
}

void value_mix_backward(floatX* dqkv, float* dfirst, bool new_dfirst, float* dlambda, const floatX* own,
                        const floatX* first, const float* lambda, float* scratch, int64_t N, int W, int KV,
                        cudaStream_t stream) {
    const int grid = blocks(N, KV);
    MOVES("value_mix_backward",
          {updates(dqkv, N * KV), reads(new_dfirst ? nullptr : dfirst, N * KV), writes(dfirst, N * KV),
           reads(own, N * KV), reads(first, N * KV), writes(scratch, 2 * grid)});
    launch(value_mix_backward_kernel, grid, THREADS, sizeof(Shared), stream, dqkv, dfirst, new_dfirst, scratch, own,
           first, lambda, N, W, KV);
    PartialTargets target;
    target.total[0] = dlambda;
    add_partials(target, scratch, grid, 1, 2, stream);
}

void value_first_backward(floatX* dqkv, const float* dfirst, int64_t N, int W, int KV, cudaStream_t stream) {
    MOVES("value_first_backward", {updates(dqkv, N * KV), reads(dfirst, N * KV)});
    launch(value_first_backward_kernel, blocks(N, KV), THREADS, 0, stream, dqkv, dfirst, N, W, KV);
}
