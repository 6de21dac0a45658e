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

constexpr int QUAD = 4;  // elements a thread meets at a time

// Blocks that share a dot.
__host__ __device__ __forceinline__ int dot_blocks(int64_t count) {
    const int64_t blocks = ceil_div(count, static_cast<int64_t>(THREADS) * 2 * QUAD);
    return static_cast<int>(blocks < MAX_BLOCKS ? blocks : MAX_BLOCKS);
}

template <class T>
__device__ __forceinline__ float branch_dot(const BranchDot& dot, const T* value, float factor, int blocks) {
    struct alignas(QUAD * sizeof(T)) Quad {
        T v[QUAD];
    };
    float sum = 0.0f;
    int64_t i = (static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x) * QUAD;
    for (; i + QUAD <= dot.count; i += static_cast<int64_t>(blocks) * THREADS * QUAD) {
        const Quad v = *reinterpret_cast<const Quad*>(value + i);
        Pack<float> g = load_pack(dot.grad + i);
        float product[QUAD];
#pragma unroll
        for (int j = 0; j < QUAD; j++) {
            product[j] = g[j] * to_float(v.v[j]);
            g[j] *= factor;
        }
        sum += (product[0] + product[1]) + (product[2] + product[3]);
        if (dot.scale != nullptr) store_pack(dot.grad + i, g);
    }
    for (; i < dot.count; i++) {  // the last thread's rest: the others are a step or more behind the end
        sum += dot.grad[i] * to_float(value[i]);
        if (dot.scale != nullptr) dot.grad[i] *= factor;
    }
    return sum;
}

// Block (x, y): part x of dot y.
__global__ void __launch_bounds__(THREADS) branch_dots_kernel(float* partial, const BranchDot* dots) {
    const BranchDot dot = dots[blockIdx.y];
    const int blocks = dot_blocks(dot.count);
    if (static_cast<int>(blockIdx.x) >= blocks) return;
    const float factor = dot.scale != nullptr ? *dot.scale : 1.0f;
    float sum = dot.value != nullptr ? branch_dot(dot, dot.value, factor, blocks)
                                     : branch_dot(dot, dot.exact_value, factor, blocks);
    sum = block_sum(sum, shared_as<Shared>().scratch);
    if (threadIdx.x == 0) partial[blockIdx.y * MAX_BLOCKS + blockIdx.x] = sum;
}

// Block y goes through the dots of one total if y is the first of them.
__global__ void __launch_bounds__(THREADS)
    branch_totals_kernel(const float* partial, const BranchDot* dots, int count) {
    int y = blockIdx.x;
    float* total = dots[y].total;
    if (y > 0 && dots[y - 1].total == total) return;
    for (; y < count && dots[y].total == total; y++) {
        const int blocks = dot_blocks(dots[y].count);
        float sum = 0.0f;
        for (int i = threadIdx.x; i < blocks; i += THREADS) sum += partial[y * MAX_BLOCKS + i];
        sum = block_sum(sum, shared_as<Shared>().scratch);
        if (threadIdx.x == 0) *total += (dots[y].weight != nullptr ? *dots[y].weight : 1.0f) * sum;
    }
}

}  // namespace

void branch_factors(float* beta, const float* alpha, const float* const* factor, int count, cudaStream_t stream) {
    MOVES("branch_factors", {reads(alpha, count), reads(factor, count), writes(beta, count)});
    launch(branch_factors_kernel, ceil_div(count, THREADS), THREADS, 0, stream, beta, alpha, factor, count);
}

size_t branch_dots_scratch_bytes(int count) {
    return static_cast<size_t>(count) * MAX_BLOCKS * sizeof(float);
}

void branch_dots(const BranchDot* dots, const std::vector<BranchDot>& host, float* scratch, cudaStream_t stream) {
    const int count = static_cast<int>(host.size());
    int64_t largest = 0, read = 0, written = 0, blocks = 0, totals = 0;
    for (size_t i = 0; i < host.size(); i++) {
        const BranchDot& dot = host[i];
        const int64_t gradient = dot.count * static_cast<int64_t>(sizeof(float));
        if (dot.count > largest) largest = dot.count;
        read += gradient + (dot.value ? dot.count * static_cast<int64_t>(sizeof(floatX)) : gradient);
        written += dot.scale ? gradient : 0;
        blocks += dot_blocks(dot.count);
        totals += i == 0 || host[i - 1].total != dot.total;
    }
    if (largest == 0) return;
    const int64_t table = static_cast<int64_t>(host.size() * sizeof(BranchDot)), F = sizeof(float);
    MOVES("branch_dots", {reads_bytes(read + table), writes_bytes(written + blocks * F)});
    launch(branch_dots_kernel, dim3(dot_blocks(largest), count), THREADS, sizeof(Shared), stream, scratch, dots);
    MOVES("branch_totals", {reads_bytes((blocks + totals) * F + table), writes_bytes(totals * F)});
    launch(branch_totals_kernel, count, THREADS, sizeof(Shared), stream, scratch, dots, count);
}
