// Costs of the CPU machine's primitives: nanoseconds per switch, shuffle and collective, and two elementwise kernels
// against plain OpenMP loops. Prints one line each. simt/README.md has the command.
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <vector>

#include "kernels/common.cuh"

namespace {

constexpr int REPEATS = 2000;

__global__ void barriers(int repeats) {
    for (int i = 0; i < repeats; i++) __syncthreads();
}
__global__ void warp_barriers(int repeats) {
    for (int i = 0; i < repeats; i++) __syncwarp();
}
__global__ void shuffles(float* out, int repeats) {
    float v = static_cast<float>(threadIdx.x);
    for (int i = 0; i < repeats; i++) v = __shfl_xor_sync(0xffffffffu, v, 1 << (i % 5)) + 1.0f;
    out[threadIdx.x] = v;
}
__global__ void warp_sums(float* out, int repeats) {
    float v = static_cast<float>(threadIdx.x);
    for (int i = 0; i < repeats; i++) v = warp_sum(v) * 0.03f;
    out[threadIdx.x] = v;
}
struct RowShared {
    float scratch[4 * 32];
};
__global__ void row_sums(float* out, int repeats) {
    auto& shared = shared_as<RowShared>();
    float v = static_cast<float>(threadIdx.x);
    for (int i = 0; i < repeats; i++) v = row_sum(v, shared.scratch) * 0.03f;
    out[threadIdx.x] = v;
}
__global__ void row_sums4(float* out, int repeats) {
    auto& shared = shared_as<RowShared>();
    float v[4] = {static_cast<float>(threadIdx.x), 1, 2, 3};
    for (int i = 0; i < repeats; i++) {
        row_sum(v, shared.scratch);
        for (float& x : v) x *= 0.03f;
    }
    out[threadIdx.x] = v[0] + v[1] + v[2] + v[3];
}
__global__ void nothing() {}

constexpr int PACKS = 4;
__global__ void __launch_bounds__(256) add(float* out, const float* a, const float* b, int n) {
    int base = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) * PACKS * 4);
    if (base + PACKS * 4 > n) return;
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        Pack<float> x = load_pack(a + base + 4 * p), y = load_pack(b + base + 4 * p), z;
        for (int i = 0; i < 4; i++) z[i] = x[i] + y[i];
        store_pack(out + base + 4 * p, z);
    }
}
// Neighbouring threads on neighbouring packs, as the GPU wants it.
__global__ void __launch_bounds__(256) add_strided(float* out, const float* a, const float* b, int n) {
    int base = static_cast<int>(blockIdx.x * blockDim.x * PACKS * 4 + threadIdx.x * 4);
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        int i0 = base + p * static_cast<int>(blockDim.x) * 4;
        if (i0 + 4 > n) return;
        Pack<float> x = load_pack(a + i0), y = load_pack(b + i0), z;
        for (int i = 0; i < 4; i++) z[i] = x[i] + y[i];
        store_pack(out + i0, z);
    }
}
__device__ __forceinline__ float gelu(float x) {
    return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
}
__global__ void __launch_bounds__(256) gelus(float* out, const float* a, int n) {
    int base = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) * PACKS * 4);
    if (base + PACKS * 4 > n) return;
    float v[PACKS * 4];
    for (int i = 0; i < PACKS * 4; i++) v[i] = a[base + i];
    for (int i = 0; i < PACKS * 4; i++) v[i] = gelu(v[i]);
    for (int i = 0; i < PACKS * 4; i++) out[base + i] = v[i];
}

double seconds(clockid_t clock) {
    timespec t;
    clock_gettime(clock, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Median of several runs, in seconds: of this thread's own time, so that a busy machine does not disturb it, or on the
// clock, for what several threads do.
template <class F>
double time_of(F&& f, clockid_t clock = CLOCK_THREAD_CPUTIME_ID) {
    std::vector<double> times;
    f();
    for (int i = 0; i < 9; i++) {
        double begin = seconds(clock);
        f();
        times.push_back(seconds(clock) - begin);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}
template <class F>
double wall_time_of(F&& f) {
    return time_of(f, CLOCK_MONOTONIC);
}

}  // namespace

int main() {
    float *a, *b, *c;
    constexpr int n = 16 << 20;
    CUDA_CHECK(cudaMalloc(&a, n * sizeof(float)));
    CUDA_CHECK(cudaMalloc(&b, n * sizeof(float)));
    CUDA_CHECK(cudaMalloc(&c, n * sizeof(float)));
    CUDA_CHECK(cudaMemset(a, 0, n * sizeof(float)));
    CUDA_CHECK(cudaMemset(b, 0, n * sizeof(float)));
    CUDA_CHECK(cudaMemset(c, 0, n * sizeof(float)));

    for (unsigned threads : {32u, 192u, 1024u}) {
        double t = time_of([&] { launch(barriers, 1, threads, 0, nullptr, REPEATS); });
        std::printf("__syncthreads, %4u threads        %8.2f ns per thread\n", threads, t / REPEATS / threads * 1e9);
    }
    double t = time_of([&] { launch(warp_barriers, 1, 32, 0, nullptr, REPEATS); });
    std::printf("__syncwarp                         %8.2f ns per thread\n", t / REPEATS / 32 * 1e9);
    t = time_of([&] { launch(shuffles, 1, 32, 0, nullptr, a, REPEATS); });
    std::printf("__shfl_xor_sync                    %8.2f ns per thread\n", t / REPEATS / 32 * 1e9);
    t = time_of([&] { launch(warp_sums, 1, 32, 0, nullptr, a, REPEATS); });
    std::printf("warp_sum                           %8.2f ns per warp\n", t / REPEATS * 1e9);
    for (unsigned threads : {32u, 96u, 192u}) {
        t = time_of([&] { launch(row_sums, 1, threads, sizeof(RowShared), nullptr, a, REPEATS); });
        double t4 = time_of([&] { launch(row_sums4, 1, threads, sizeof(RowShared), nullptr, a, REPEATS); });
        std::printf("row_sum, %3u threads               %8.2f ns per row, %8.2f for four values at once\n", threads,
                    t / REPEATS * 1e9, t4 / REPEATS * 1e9);
    }
    t = time_of([&] { launch(nothing, 1, 32, 0, nullptr); });
    std::printf("launch of one block of 32          %8.2f ns\n", t * 1e9);
    t = wall_time_of([&] { launch(nothing, 100000, 32, 0, nullptr); });
    std::printf("empty block of 32                  %8.2f ns\n", t / 100000 * 1e9);
    t = wall_time_of([&] { launch(nothing, 10000, 1024, 0, nullptr); });
    std::printf("empty thread                       %8.2f ns\n", t / 10000 / 1024 * 1e9);

    int blocks = n / (256 * PACKS * 4);
    t = wall_time_of([&] { launch(add, blocks, 256, 0, nullptr, c, a, b, n); });
    std::printf("add, 16M floats                    %8.2f ms\n", t * 1e3);
    t = wall_time_of([&] { launch(add_strided, blocks, 256, 0, nullptr, c, a, b, n); });
    std::printf("add, 16M floats, strided packs     %8.2f ms\n", t * 1e3);
    t = wall_time_of([&] {
#pragma omp parallel for
        for (int i = 0; i < n; i++) c[i] = a[i] + b[i];
    });
    std::printf("add, plain OpenMP loop             %8.2f ms\n", t * 1e3);
    for (int i = 0; i < n; i++) a[i] = static_cast<float>(i % 1000) * 0.01f - 5.0f;
    t = wall_time_of([&] { launch(gelus, blocks, 256, 0, nullptr, c, a, n); });
    std::printf("gelu, 16M floats                   %8.2f ms, %.2f ns per element\n", t * 1e3, t / n * 1e9);
    t = wall_time_of([&] {
#pragma omp parallel for
        for (int i = 0; i < n; i++) c[i] = gelu(a[i]);
    });
    std::printf("gelu, plain OpenMP loop            %8.2f ms, %.2f ns per element\n", t * 1e3, t / n * 1e9);
}
