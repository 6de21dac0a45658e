// Attention forward and backward. Useful work: the causal half of two products forward, of five backward. Beside each
// stands a plain kernel that does the same job with one thread per query (forward) or per query and per key (backward).
// Then attention of one new query over a cache, whose work is reading the cache.
#include <vector>

#include "dev/bench/bench.h"
#include "kernels/attention.cuh"
#include "kernels/attention_decode.cuh"

namespace {

constexpr int NAIVE_THREADS = 128;

// One thread per query: scores are computed twice, for the maximum and for the sum. out (B,T,NH*HS), lse (B,NH,T)
__global__ void naive_forward_kernel(floatX* out, float* lse, const floatX* qkv, int B, int T, int NH, int NKV,
                                     int HS) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * NAIVE_THREADS + threadIdx.x;
    if (i >= static_cast<int64_t>(B) * NH * T) return;
    const int t = static_cast<int>(i % T), h = static_cast<int>(i / T % NH), b = static_cast<int>(i / T / NH);
    const int64_t row = static_cast<int64_t>(NH + 2 * NKV) * HS, first = b * T * row;
    const int kv = h / (NH / NKV);
    const float scale = 1.0f / sqrtf(static_cast<float>(HS));
    const floatX* q = qkv + first + t * row + h * HS;
    const floatX* k = qkv + first + (NH + kv) * HS;
    const floatX* v = qkv + first + (NH + NKV + kv) * HS;
    float maximum = -INFINITY, sum = 0.0f, acc[256];
    for (int d = 0; d < HS; d++) acc[d] = 0.0f;
    for (int j = 0; j <= t; j++) {
        float s = 0.0f;
        for (int d = 0; d < HS; d++) s += to_float(q[d]) * to_float(k[j * row + d]);
        maximum = fmaxf(maximum, s * scale);
    }
    for (int j = 0; j <= t; j++) {
        float s = 0.0f;
        for (int d = 0; d < HS; d++) s += to_float(q[d]) * to_float(k[j * row + d]);
        const float p = expf(s * scale - maximum);
        sum += p;
        for (int d = 0; d < HS; d++) acc[d] += p * to_float(v[j * row + d]);
    }
    for (int d = 0; d < HS; d++)
        out[(static_cast<int64_t>(b) * T + t) * NH * HS + h * HS + d] = from_float<floatX>(acc[d] / sum);
    lse[i] = maximum + logf(sum);
}

// One thread per query (dQ) or, where blockIdx.y is 1, per key of each key head (dK, dV). The arrays are
// attention_backward's.
__global__ void naive_backward_kernel(floatX* dqkv, const floatX* dout, const floatX* qkv, const floatX* out,
                                      const float* lse, int B, int T, int NH, int NKV, int HS) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * NAIVE_THREADS + threadIdx.x;
    const bool of_key = blockIdx.y == 1;
    const int heads = of_key ? NKV : NH, group = NH / NKV;
    if (i >= static_cast<int64_t>(B) * heads * T) return;
    const int t = static_cast<int>(i % T), mine = static_cast<int>(i / T % heads), b = static_cast<int>(i / T / heads);
    const int64_t row = static_cast<int64_t>(NH + 2 * NKV) * HS, first = b * T * row,
                  width = static_cast<int64_t>(NH) * HS;
    const float scale = 1.0f / sqrtf(static_cast<float>(HS));
    float acc[256], more[256];
    for (int d = 0; d < HS; d++) acc[d] = more[d] = 0.0f;
    for (int h = of_key ? mine * group : mine; h < (of_key ? (mine + 1) * group : mine + 1); h++) {
        const int kv = h / group;
        for (int j = of_key ? t : 0; j <= (of_key ? T - 1 : t); j++) {
            const int tq = of_key ? j : t, tk = of_key ? t : j;
            const floatX* q = qkv + first + tq * row + h * HS;
            const floatX* k = qkv + first + tk * row + (NH + kv) * HS;
            const floatX* v = qkv + first + tk * row + (NH + NKV + kv) * HS;
            const floatX* dy = dout + (static_cast<int64_t>(b) * T + tq) * width + h * HS;
            const floatX* y = out + (static_cast<int64_t>(b) * T + tq) * width + h * HS;
            float s = 0.0f, dp = 0.0f, delta = 0.0f;
            for (int d = 0; d < HS; d++) {
                s += to_float(q[d]) * to_float(k[d]);
                dp += to_float(dy[d]) * to_float(v[d]);
                delta += to_float(dy[d]) * to_float(y[d]);
            }
            const float p = expf(s * scale - lse[(static_cast<int64_t>(b) * NH + h) * T + tq]);
            const float ds = p * (dp - delta) * scale;
            for (int d = 0; d < HS; d++) {
                acc[d] += ds * to_float(of_key ? q[d] : k[d]);
                more[d] += p * to_float(dy[d]);
            }
        }
    }
    floatX* to = dqkv + first + t * row + (of_key ? NH + mine : mine) * HS;
    for (int d = 0; d < HS; d++) {
        to[d] = from_float<floatX>(acc[d]);
        if (of_key) to[NKV * HS + d] = from_float<floatX>(more[d]);
    }
}

template <class T>
T* device_array(int64_t count) {
    void* p = nullptr;
    CUDA_CHECK(cudaMalloc(&p, static_cast<size_t>(count) * sizeof(T)));
    return static_cast<T*>(p);
}
floatX* random_array(int64_t count) {
    std::vector<floatX> host(static_cast<size_t>(count));
    uint32_t state = 1;
    for (floatX& x : host) {
        float sum = 0.0f;  // of four uniform numbers: nearly normal, deviation 1
        for (int i = 0; i < 4; i++) {
            state = state * 1664525u + 1013904223u;
            sum += static_cast<float>(state >> 8) * 0x1p-24f - 0.5f;
        }
        x = from_float<floatX>(sum * 1.7320508f);
    }
    floatX* device = device_array<floatX>(count);
    CUDA_CHECK(cudaMemcpy(device, host.data(), host.size() * sizeof(floatX), cudaMemcpyHostToDevice));
    return device;
}

void bench_one(int B, int T, int NH, int NKV, int HS) {
    const int64_t N = static_cast<int64_t>(B) * T, wide = static_cast<int64_t>(NH + 2 * NKV) * HS;
    floatX *qkv = random_array(N * wide), *dout = random_array(N * NH * HS);
    floatX *out = device_array<floatX>(N * NH * HS), *dqkv = device_array<floatX>(N * wide);
    float* lse = device_array<float>(N * NH);
    void* scratch = device_array<char>(static_cast<int64_t>(attention_scratch_bytes(B, T, NH, NKV, HS)));
    const std::string shape = format("B=%d T=%d NH=%d NKV=%d HS=%d", B, T, NH, NKV, HS);
    const double product = 2.0 * T * (T + 1) / 2 * HS * NH * B;  // one causal product
    const unsigned blocks = static_cast<unsigned>(ceil_div(N * NH, int64_t{NAIVE_THREADS}));
    const double naive_forward = time_us([&] {
        launch(naive_forward_kernel, dim3(blocks), dim3(NAIVE_THREADS), 0, nullptr, out, lse, qkv, B, T, NH, NKV, HS);
    });
    const double naive_backward = time_us([&] {
        launch(naive_backward_kernel, dim3(blocks, 2), dim3(NAIVE_THREADS), 0, nullptr, dqkv, dout, qkv, out, lse, B, T,
               NH, NKV, HS);
    });
    auto both = [&](const std::string& suffix) {
        const double forward = time_us([&] { attention_forward(out, lse, qkv, B, T, NH, NKV, HS, nullptr); });
        bench_report(
            {"attention_forward" + suffix, shape, forward, 0, 2 * product, naive_forward, "one thread per query"});
        const double backward =
            time_us([&] { attention_backward(dqkv, scratch, dout, qkv, out, lse, B, T, NH, NKV, HS, nullptr); });
        bench_report({"attention_backward" + suffix, shape, backward, 0, 5 * product, naive_backward,
                      "one thread per query and key"});
    };
    both("");
    if (attention_uses_hopper(HS)) {  // the portable kernels beside this card's own; they need less scratch
        attention_choose(AttentionKernels::portable);
        both("_portable");
        attention_choose(AttentionKernels::best);
    }
    for (void* p : {static_cast<void*>(qkv), static_cast<void*>(dout), static_cast<void*>(out),
                    static_cast<void*>(dqkv), static_cast<void*>(lse), scratch})
        CUDA_CHECK(cudaFree(p));
}

// B sequences with `length` positions in the cache.
void bench_decode(int B, int length, int NH, int NKV, int HS) {
    const int64_t count = attention_cache_count(B, NKV, length, HS);
    floatX *cache = random_array(count), *qkv = random_array(static_cast<int64_t>(B) * (NH + 2 * NKV) * HS);
    floatX* out = device_array<floatX>(static_cast<int64_t>(B) * NH * HS);
    void* scratch =
        device_array<char>(static_cast<int64_t>(attention_decode_scratch_bytes(B, length, NH, NKV, HS)));
    bench_beside_copy("attention_decode", format("B=%d T=%d NH=%d NKV=%d HS=%d", B, length, NH, NKV, HS), [&] {
        attention_decode(out, scratch, qkv, cache, B, length, length, NH, NKV, HS, nullptr);
    });
    for (void* p : {static_cast<void*>(cache), static_cast<void*>(qkv), static_cast<void*>(out), scratch})
        CUDA_CHECK(cudaFree(p));
}

}  // namespace

void bench_attention_decode(const BenchShape& shape) {
    if (shape.B > 0 && shape.T > 0 && shape.C > 0 && shape.heads > 0) {
        bench_decode(shape.B, shape.T, shape.heads, shape.heads, shape.C / shape.heads);
        return;
    }
    if (multiprocessors() < 16) {  // sizes a CPU does in a second
        bench_decode(1, 1024, 12, 12, 64);
        bench_decode(4, 256, 12, 12, 64);
        bench_decode(4, 1024, 8, 2, 128);
        return;
    }
    bench_decode(1, 1024, 12, 12, 64);
    bench_decode(32, 1024, 12, 12, 64);
    bench_decode(16, 4096, 16, 16, 64);
    bench_decode(1, 8192, 32, 8, 128);
    bench_decode(16, 8192, 32, 8, 128);
    bench_decode(16, 4096, 8, 1, 256);
}

void bench_attention(const BenchShape& shape) {
    if (shape.B > 0 && shape.T > 0 && shape.C > 0 && shape.heads > 0) {
        bench_one(shape.B, shape.T, shape.heads, shape.heads, shape.C / shape.heads);
        return;
    }
    if (multiprocessors() < 16) {  // sizes a CPU does in a second
        bench_one(12, 64, 4, 4, 32);
        bench_one(4, 64, 12, 12, 64);
        bench_one(1, 512, 4, 4, 64);
        bench_one(1, 256, 4, 1, 128);
        return;
    }
    bench_one(12, 64, 4, 4, 32);
    bench_one(16, 1024, 12, 12, 64);
    bench_one(4, 4096, 12, 12, 64);
    bench_one(8, 1024, 16, 16, 128);
    bench_one(4, 4096, 32, 8, 128);
    bench_one(4, 1024, 8, 8, 256);
}
