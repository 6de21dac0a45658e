// AdamW with decoupled decay, for one element:
//
//     g = kappa*grad;   m = b1*m + (1-b1)*g;   v = b2*v + (1-b2)*g^2
//     p = p - lr*( (m/c1) / (sqrt(v/c2) + eps) + wd*p ),        c1 = 1 - b1^n, c2 = 1 - b2^n
//
// eps stands outside the root, after the correction of v; the decay uses p before the step and the current lr.
// Each block updates one chunk of one tensor; each warp a contiguous window of it, so that all five arrays stream.
#include "optimizer/adamw.cuh"

#include <cmath>

namespace {

constexpr int THREADS = 512;
constexpr int UNIT = 8;  // elements a thread updates at a time: 16 bytes of bf16, or two packs of fp32
constexpr int WINDOW = ADAMW_CHUNK / (THREADS / WARP);  // of a warp
constexpr uint32_t EXPONENT = 0x7f800000u;
static_assert(ADAMW_CHUNK % (THREADS * UNIT) == 0, "a chunk is a whole number of steps");

// Counter-based random bits: the finaliser of MurmurHash3 over (key, element). The key mixes seed and step.
uint64_t random_key(uint64_t seed, uint64_t step) {
    uint64_t z = seed * 0x9E3779B97F4A7C15ull + step;  // splitmix64's finaliser
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}
__device__ __forceinline__ uint32_t random_bits(uint32_t key, uint32_t element) {
    uint32_t h = element * 0x9E3779B1u ^ key;
    h ^= h >> 16;
    h *= 0x85EBCA6Bu;
    h ^= h >> 13;
    h *= 0xC2B2AE35u;
    return h ^ h >> 16;
}
// The key for the 2^32 elements around `element`; the low half counts within them.
__device__ __forceinline__ uint32_t key_of(uint64_t key, int64_t element) {
    return random_bits(static_cast<uint32_t>(key >> 32), static_cast<uint32_t>(element >> 32)) ^ static_cast<uint32_t>(key);
}

// Stochastic rounding: 16 random low bits added, then the low half cut off. What would become infinite is truncated;
// infinity and NaN stay.
__device__ __forceinline__ uint32_t round_stochastic(float x, uint32_t random) {
    uint32_t bits = __float_as_uint(x);
    uint32_t sum = bits + (random >> 16);
    bits |= x != x ? 0x00400000u : 0u;  // a NaN must not lose its mantissa
    return ((sum & EXPONENT) == EXPONENT || x != x ? bits : sum) >> 16;
}

// UNIT fp32 values.
struct Values {
    float v[UNIT];
    __device__ __forceinline__ explicit Values(const float* from) {
#pragma unroll
        for (int q = 0; q < UNIT; q += 4) {
            Pack<float> pack = load_pack(from + q);
#pragma unroll
            for (int j = 0; j < 4; j++) v[q + j] = pack[j];
        }
    }
    __device__ __forceinline__ void store(float* to) const {
#pragma unroll
        for (int q = 0; q < UNIT; q += 4) store_pack(to + q, Pack<float>{v[q], v[q + 1], v[q + 2], v[q + 3]});
    }
    // The working copy: the same in fp32, rounded at random to bf16. `element` is the index in the arena.
    __device__ __forceinline__ void store_rounded(floatX* to, uint64_t key, int64_t element) const {
        if constexpr (sizeof(floatX) == sizeof(float)) {
            store(reinterpret_cast<float*>(to));
        } else {
            uint32_t upper = key_of(key, element);
            Pack<uint16_t> out;
#pragma unroll
            for (int i = 0; i < UNIT; i++) {
                uint32_t random = random_bits(upper, static_cast<uint32_t>(element) + i);
                out[i] = static_cast<uint16_t>(round_stochastic(v[i], random));
            }
            store_pack(reinterpret_cast<uint16_t*>(to), out);
        }
    }
};

__global__ void __launch_bounds__(THREADS)
    adamw_kernel(floatX* params, float* master, float* grads, float* m, float* v, const AdamWTensor* tensors,
                 const AdamWChunk* chunks, const float* clip, bool zero_grads, uint64_t key) {
    const AdamWChunk chunk = chunks[blockIdx.x];
    const AdamWTensor t = tensors[chunk.tensor];
    int64_t first = static_cast<int64_t>(chunk.first) * ADAMW_CHUNK + threadIdx.x / WARP * WINDOW;
    int64_t last = first + WINDOW < t.count ? first + WINDOW : t.count;
    int64_t begin = t.offset + first + threadIdx.x % WARP * UNIT, end = t.offset + last;

    bool finite = (__float_as_uint(clip[0]) & EXPONENT) != EXPONENT;
    float kappa = clip[1], rest1 = 1.0f - t.beta1, rest2 = 1.0f - t.beta2;
    float inv_c1 = 1.0f / t.correction1, inv_c2 = 1.0f / t.correction2;
    if (t.frozen || !finite) {
        if (zero_grads) {
            const Pack<float> zero = {};
            for (int64_t i = begin; i < end; i += WARP * UNIT)
                for (int q = 0; q < UNIT; q += 4) store_pack(grads + i + q, zero);
        }
        return;
    }
    for (int64_t i = begin; i < end; i += WARP * UNIT) {
        Values g(grads + i), mi(m + i), vi(v + i), p(master + i);
#pragma unroll
        for (int j = 0; j < UNIT; j++) {
            float gj = kappa * g.v[j];
            mi.v[j] = t.beta1 * mi.v[j] + rest1 * gj;
            vi.v[j] = t.beta2 * vi.v[j] + rest2 * (gj * gj);
            float update = mi.v[j] * inv_c1 / (sqrtf(vi.v[j] * inv_c2) + t.eps);
            p.v[j] -= t.lr * (update + t.weight_decay * p.v[j]);
            g.v[j] = 0.0f;
        }
        mi.store(m + i);
        vi.store(v + i);
        p.store(master + i);
        if (zero_grads) g.store(grads + i);
        if constexpr (sizeof(floatX) < sizeof(float)) p.store_rounded(params + i, key, i);
    }
}

// first: the arena index of params[0].
__global__ void __launch_bounds__(THREADS)
    round_kernel(floatX* params, const float* master, int64_t first, int64_t count, uint64_t key) {
    int64_t begin = static_cast<int64_t>(blockIdx.x) * ADAMW_CHUNK + threadIdx.x / WARP * WINDOW;
    int64_t end = begin + WINDOW < count ? begin + WINDOW : count;
    for (int64_t i = begin + threadIdx.x % WARP * UNIT; i < end; i += WARP * UNIT) {
        Values(master + i).store_rounded(params + i, key, first + i);
    }
}

}  // namespace

double adamw_correction(double beta, int64_t n) {
    return beta <= 0.0 ? 1.0 : -std::expm1(static_cast<double>(n) * std::log(beta));
}

std::vector<AdamWChunk> adamw_chunks(const std::vector<AdamWTensor>& tensors) {
    std::vector<AdamWChunk> chunks;
    for (size_t i = 0; i < tensors.size(); i++) {
        CHECK(tensors[i].offset % 64 == 0 && tensors[i].count % 64 == 0);
        int64_t n = ceil_div(tensors[i].count, static_cast<int64_t>(ADAMW_CHUNK));
        for (int64_t c = 0; c < n; c++) chunks.push_back({static_cast<int>(i), static_cast<int>(c)});
    }
    return chunks;
}

void adamw_update(floatX* params, float* master, float* grads, float* m, float* v, const AdamWTensor* tensors,
                  const AdamWChunk* chunks, int num_chunks, const float* clip, bool zero_grads, uint64_t seed,
                  uint64_t step, cudaStream_t stream) {
    if (num_chunks == 0) return;
    launch(adamw_kernel, num_chunks, THREADS, 0, stream, params, master, grads, m, v, tensors, chunks, clip, zero_grads,
           random_key(seed, step));
}

void round_params(floatX* params, const float* master, int64_t first, int64_t count, uint64_t seed, uint64_t step,
                  cudaStream_t stream) {
    CHECK(first % UNIT == 0 && count % UNIT == 0);
    if (count == 0 || static_cast<const void*>(params) == master) return;
    unsigned blocks = static_cast<unsigned>(ceil_div(count, static_cast<int64_t>(ADAMW_CHUNK)));
    launch(round_kernel, blocks, THREADS, 0, stream, params, master, first, count, random_key(seed, step));
}
