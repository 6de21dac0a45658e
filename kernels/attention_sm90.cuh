// Pieces shared by the Hopper attention kernels: how work is dealt out, and names of barriers.
#pragma once
#include <ptx.cuh>
#include <ptx_sm90.cuh>

#include "kernels/attention_impl.cuh"

#if defined(PRECISION_BF16)

constexpr int GROUP_THREADS = 128;  // of a warp group
// Named barriers: 0 is __syncthreads.
constexpr int STORE_BARRIER = 1, TURN_BARRIER = 4;  // + consumer

// Key tiles that the queries q0..q0+BQ-1 of T see.
template <int BQ, int BK>
__host__ __device__ constexpr int key_tiles(int q0, int T) {
    return ((q0 + BQ < T ? q0 + BQ : T) + BK - 1) / BK;
}

// Pieces of work: a tile of one head of one batch row. Heads come in chunks whose keys and values fit into L2; within a
// chunk the longest tiles come first. Block x of G takes pieces x, 2G-1-x, 2G+x, 4G-1-x, ...: who had the longest of
// one round gets the shortest of the next.
struct AttentionWork {
    int tiles, heads, NH, chunk;  // heads: B*NH
    bool last_first;              // the longest tile is the last one (queries), or the first (keys)

    __host__ __device__ int count() const { return tiles * heads; }
    __device__ __forceinline__ int piece(int round) const {
        const int x = static_cast<int>(blockIdx.x), G = static_cast<int>(gridDim.x);
        return round * G + (round % 2 == 0 ? x : G - 1 - x);
    }
    __device__ __forceinline__ AttentionBlock decode(int piece) const {
        const int first = piece / (tiles * chunk) * chunk;
        const int size = heads - first < chunk ? heads - first : chunk;
        const int rest = piece - first * tiles, tile = rest / size, head = first + rest % size;
        return {last_first ? tiles - 1 - tile : tile, head % NH, head / NH};
    }
};
// Heads whose keys and values take at most half of the smallest L2 of such cards (50 MiB, of which one half is near).
inline AttentionWork attention_work(int rows, const AttentionShape& s, bool last_first) {
    const int64_t bytes = ceil_div(int64_t{4} * s.T * s.HS, static_cast<int64_t>(s.group()));
    const int heads = s.B * s.NH;
    const int64_t chunk = (int64_t{12} << 20) / bytes;
    return {ceil_div(s.T, rows), heads, s.NH,
            static_cast<int>(chunk < 1       ? 1
                             : chunk < heads ? chunk
                                             : heads),
            last_first};
}

__device__ __forceinline__ float low_bf16(uint32_t pair) {
    return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float high_bf16(uint32_t pair) {
    return __uint_as_float(pair & 0xffff0000u);
}

// rows (B,T,width) of bf16, as boxes of `rows` positions x 64 channels, swizzled by 128 bytes; beyond T: zeros.
inline TensorMap attention_map(const __nv_bfloat16* base, int64_t width, const AttentionShape& s, int rows) {
    const uint64_t size[3] = {static_cast<uint64_t>(width), static_cast<uint64_t>(s.T), static_cast<uint64_t>(s.B)};
    const uint64_t stride[2] = {size[0] * 2, size[0] * size[1] * 2};
    const uint32_t box[3] = {64, static_cast<uint32_t>(rows), 1};
    return make_tensor_map(base, 3, size, stride, box, Swizzle::b128, Element::bf16);
}

#endif
