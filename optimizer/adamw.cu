// AdamW with decoupled decay, for one element:
//
//     g = kappa*grad;   m = b1*m + (1-b1)*g;   v = b2*v + (1-b2)*g^2
//     p = p - lr*( (m/c1) / (sqrt(v/c2) + eps) + wd*p ),        c1 = 1 - b1^n, c2 = 1 - b2^n
//
// eps stands outside the root, after the correction of v; the decay uses p before the step and the current lr.
// Each block updates one chunk of one tensor, every array of it read once and written once.
#include "optimizer/adamw.cuh"

#include <cmath>

#include "optimizer/chunk.cuh"

namespace {

constexpr uint32_t EXPONENT = 0x7f800000u;
using Part = ChunkPart<ADAMW_CHUNK>;

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

// The working copy in bf16, rounded at random. `element` is the index in the arena.
__device__ __forceinline__ void store_rounded(floatX* to, const float (&v)[PIECE], uint64_t key, int64_t element) {
    const uint32_t upper = key_of(key, element), first = static_cast<uint32_t>(element);
    struct alignas(PIECE == 4 ? 8 : 16) Bits {
        uint16_t v[PIECE];
    } bits;
    for (int i = 0; i < PIECE; i++)
        bits.v[i] = static_cast<uint16_t>(round_stochastic(v[i], random_bits(upper, first + static_cast<uint32_t>(i))));
    *reinterpret_cast<Bits*>(to) = bits;
}

__global__ void __launch_bounds__(CHUNK_THREADS)
    adamw_kernel(floatX* params, float* master, float* grads, float* m, float* v, const AdamWTensor* tensors,
                 const AdamWChunk* chunks, const float* clip, bool zero_grads, uint64_t key) {
    wait_for_previous();
    constexpr bool rounds = sizeof(floatX) < sizeof(float);
    const AdamWChunk chunk = chunks[blockIdx.x];
    const AdamWTensor t = tensors[chunk.tensor];
    const Part part(t.offset + static_cast<int64_t>(chunk.first) * ADAMW_CHUNK, t.offset + t.count);

    const bool finite = (__float_as_uint(clip[0]) & EXPONENT) != EXPONENT, zeroes = zero_grads && !(t.stored && finite);
    const float zero[PIECE] = {};
    if (t.frozen || !finite) {
        for (int64_t i = part.begin; i < part.end; i += Part::STEP) {
            if (zeroes) store_streamed(grads + i, zero);
            if constexpr (rounds) {
                if (!finite) continue;
                float p[PIECE];
                load_streamed(p, master + i);
                store_rounded(params + i, p, key, i);
            }
        }
        return;
    }
    const float kappa = clip[1], rest1 = 1.0f - t.beta1, rest2 = 1.0f - t.beta2;
    const float inv_c1 = 1.0f / t.correction1, inv_c2 = 1.0f / t.correction2;
    for (int64_t i = part.begin; i < part.end; i += Part::STEP) {
        float g[PIECE], mi[PIECE], vi[PIECE], p[PIECE];
        load_streamed(g, grads + i);
        load_streamed(mi, m + i);
        load_streamed(vi, v + i);
        load_streamed(p, master + i);
#pragma unroll
        for (int j = 0; j < PIECE; j++) {
            float gj = kappa * g[j];
            mi[j] = t.beta1 * mi[j] + rest1 * gj;
            vi[j] = t.beta2 * vi[j] + rest2 * (gj * gj);
            float update = mi[j] * inv_c1 / (sqrtf(vi[j] * inv_c2) + t.eps);
            p[j] -= t.lr * (update + t.weight_decay * p[j]);
        }
        store_streamed(m + i, mi);
        store_streamed(v + i, vi);
        store_streamed(master + i, p);
        if (zeroes) store_streamed(grads + i, zero);
        if constexpr (rounds) store_rounded(params + i, p, key, i);
    }
}

// first: the arena index of params[0].
__global__ void __launch_bounds__(CHUNK_THREADS)
    round_kernel(floatX* params, const float* master, int64_t first, int64_t count, uint64_t key) {
    wait_for_previous();
    const Part part(static_cast<int64_t>(blockIdx.x) * ADAMW_CHUNK, count);
    for (int64_t i = part.begin; i < part.end; i += Part::STEP) {
        float p[PIECE];
        load_streamed(p, master + i);
        if constexpr (sizeof(floatX) == sizeof(float))
            store_streamed(reinterpret_cast<float*>(params) + i, p);
        else
            store_rounded(params + i, p, key, first + i);
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

void adamw_moves(const std::vector<AdamWTensor>& tensors, bool zero_grads) {
    if (!traffic::counting) return;
    int64_t moving = 0, frozen = 0, zeroed = 0, tables = 0;
    for (const AdamWTensor& t : tensors) {
        tables += sizeof(AdamWTensor) + ceil_div(t.count, int64_t{ADAMW_CHUNK}) * sizeof(AdamWChunk);
        (t.frozen ? frozen : moving) += t.count;
        zeroed += zero_grads && !t.stored ? t.count : 0;
    }
    // Gradient, master and both moments read; master and moments written, the working copy, zeros. Frozen tensors'
    // working copies are rounded anew.
    const int64_t F = sizeof(float), copy = sizeof(floatX) < sizeof(float) ? sizeof(floatX) : 0;
    traffic::declare("adamw", {reads_bytes(4 * F * moving + (copy ? F * frozen : 0) + tables),
                               writes_bytes((3 * F + copy) * moving + copy * frozen + F * zeroed)});
}

void adamw_update(floatX* params, float* master, float* grads, float* m, float* v, const AdamWTensor* tensors,
                  const AdamWChunk* chunks, int num_chunks, const float* clip, bool zero_grads, uint64_t seed,
                  uint64_t step, cudaStream_t stream) {
    if (num_chunks == 0) return;
    launch_early(adamw_kernel, num_chunks, CHUNK_THREADS, 0, stream, params, master, grads, m, v, tensors, chunks, clip, zero_grads,
           random_key(seed, step));
}

void round_params(floatX* params, const float* master, int64_t first, int64_t count, uint64_t seed, uint64_t step,
                  cudaStream_t stream) {
    CHECK(first % PIECE == 0 && count % PIECE == 0);
    if (count == 0 || static_cast<const void*>(params) == master) return;
    unsigned blocks = static_cast<unsigned>(ceil_div(count, static_cast<int64_t>(ADAMW_CHUNK)));
    MOVES("round_params", {reads(master, count), writes(params, count)});
    launch_early(round_kernel, blocks, CHUNK_THREADS, 0, stream, params, master, first, count, random_key(seed, step));
}
