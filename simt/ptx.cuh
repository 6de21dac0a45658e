// PTX instructions on the CPU machine: the twins of kernels/gpu/ptx.cuh, where the contracts and fragment layouts
// stand.
//
// Strict, not kind: a misaligned or foreign address ends the program, and an asynchronous copy arrives only in
// the cp_async_wait that waits for it. Until then its 16 bytes are 0xff (NaN), so that a missing wait, and a copy onto
// what others still read, are seen at once.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstring>
#include <vector>
#include <wide.cuh>

// An offset into the block's shared memory.
SIMT_INLINE uint32_t shared_address(const void* p) {
    const simt::Block& block = *simt::self.block;
    size_t offset = static_cast<size_t>(static_cast<const unsigned char*>(p) - block.shared);
    if (offset > block.shared_bytes) [[unlikely]]
        simt::die("shared_address: %p does not lie in shared memory", p);
    return static_cast<uint32_t>(offset);
}

namespace simt {

SIMT_INLINE float low_half(uint32_t pair) {
    return __builtin_bit_cast(float, pair << 16);
}
SIMT_INLINE float high_half(uint32_t pair) {
    return __builtin_bit_cast(float, pair & 0xffff0000u);
}

SIMT_INLINE void check_shared_address(const char* name, uint32_t address, uint32_t bytes = 16) {
    if (address % bytes) [[unlikely]]
        die("%s: the shared address is %u bytes off a multiple of %u", name, address % bytes, bytes);
    if (address + bytes > self.block->shared_bytes) [[unlikely]]
        die("%s: %u bytes at %u of %zu bytes of shared memory", name, bytes, address, self.block->shared_bytes);
}

// ---------------------------------------------------------------------------------------------------------------------
// mma: the lane that arrives last gathers the fragments into dense fp32 matrices, multiplies those on register tiles of
// 4x16, and spreads the result.

template <int MB, int NB>
struct MmaArgs {
    float (*d)[NB][4];
    const uint32_t* a;
    const uint32_t* b;
};

template <int MB, int NB>
SIMT_NOINLINE void mma_warp(MmaArgs<MB, NB>* const* lanes) {
    constexpr int N = (8 * NB + Wide::size - 1) / Wide::size * Wide::size;
    alignas(64) uint32_t pairs[8][N];  // rows 2i and 2i+1 of B
    alignas(64) float a[16][16], b[16][N], d[16][N];
    if constexpr (N > 8 * NB) {  // columns that nobody reads, but the loops below touch
        memset(pairs, 0, sizeof pairs);
        memset(d, 0, sizeof d);
    }
    for (int lane = 0; lane < 32; lane++) {
        const int group = lane / 4, tid = lane % 4;
        const uint32_t* from = lanes[lane]->b;
        for (int n = 0; n < NB; n++) {
            pairs[tid][8 * n + group] = from[2 * n];
            pairs[tid + 4][8 * n + group] = from[2 * n + 1];
        }
    }
    for (int i = 0; i < 8; i++) {
        for (int c = 0; c < N; c++) {
            b[2 * i][c] = low_half(pairs[i][c]);
            b[2 * i + 1][c] = high_half(pairs[i][c]);
        }
    }
    for (int m = 0; m < MB; m++) {
        for (int lane = 0; lane < 32; lane++) {
            const int group = lane / 4, tid = lane % 4;
            const uint32_t* from = lanes[lane]->a + 4 * m;
            for (int i = 0; i < 4; i++) {
                float* to = &a[group + i % 2 * 8][2 * tid + i / 2 * 8];
                to[0] = low_half(from[i]);
                to[1] = high_half(from[i]);
            }
            for (int n = 0; n < NB; n++) {
                memcpy(&d[group][8 * n + 2 * tid], &lanes[lane]->d[m][n][0], 8);
                memcpy(&d[group + 8][8 * n + 2 * tid], &lanes[lane]->d[m][n][2], 8);
            }
        }
        for (int c = 0; c < N; c += Wide::size) {
            for (int r = 0; r < 16; r += 4) {
                Wide acc[4];
                for (int i = 0; i < 4; i++) acc[i] = wide_load(&d[r + i][c]);
                for (int k = 0; k < 16; k++) {
                    const Wide row = wide_load(&b[k][c]);
                    for (int i = 0; i < 4; i++) wide_fma(acc[i], a[r + i][k], row);
                }
                for (int i = 0; i < 4; i++) wide_store(&d[r + i][c], acc[i]);
            }
        }
        for (int lane = 0; lane < 32; lane++) {
            const int group = lane / 4, tid = lane % 4;
            for (int n = 0; n < NB; n++) {
                memcpy(&lanes[lane]->d[m][n][0], &d[group][8 * n + 2 * tid], 8);
                memcpy(&lanes[lane]->d[m][n][2], &d[group + 8][8 * n + 2 * tid], 8);
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------

struct LdmatrixArgs {
    uint32_t* to;
    const uint32_t* row;
};

// COUNT instructions of MATRICES 8x8 matrices each.
template <int COUNT, int MATRICES, bool TRANSPOSED>
SIMT_INLINE void ldmatrix(const char* name, uint32_t* to, const uint32_t* row) {
    require_full_warp(name);
    if (self.lane < 8 * MATRICES) {
        for (int i = 0; i < COUNT; i++) {
            check_shared_address(name, row[i]);
            note_read(self.block->shared + row[i], 16);
        }
    }
    LdmatrixArgs args{to, row};
    warp_collective(name, args, [](LdmatrixArgs* const* lanes, uint32_t) {
        const unsigned char* shared = self.block->shared;
        for (int i = 0; i < COUNT; i++) {
            for (int m = 0; m < MATRICES; m++) {
                uint16_t x[8][8];
                for (int r = 0; r < 8; r++) memcpy(x[r], shared + lanes[8 * m + r]->row[i], 16);
                for (int r = 0; r < 8; r++) {
                    for (int j = 0; j < 4; j++) {
                        const uint32_t low = TRANSPOSED ? x[2 * j][r] : x[r][2 * j];
                        const uint32_t high = TRANSPOSED ? x[2 * j + 1][r] : x[r][2 * j + 1];
                        lanes[4 * r + j]->to[MATRICES * i + m] = low | high << 16;
                    }
                }
            }
        }
    });
}

// ---------------------------------------------------------------------------------------------------------------------

struct AsyncCopy {
    const void* from;
    uint32_t to;
    unsigned size, bytes;  // written, and of these copied
    unsigned group;
};
struct AsyncCopies {                 // of one lane
    std::vector<AsyncCopy> waiting;  // oldest first
    unsigned groups = 0;             // committed so far; also the number of the group that is open
};

SIMT_INLINE void async_copy(const char* name, uint32_t to, const void* from, unsigned size, int bytes) {
    check_shared_address(name, to, size);
    if (reinterpret_cast<uintptr_t>(from) % size) [[unlikely]]
        die("%s: the global address %p is not a multiple of %u", name, from, size);
    if (bytes < 0 || bytes > static_cast<int>(size)) [[unlikely]]
        die("%s: %d bytes of %u", name, bytes, size);
    AsyncCopies& copies = lane_local<AsyncCopies>();
    note_written(self.block->shared + to, size);  // from now on nobody else may use these bytes
    copies.waiting.push_back({from, to, size, static_cast<unsigned>(bytes), copies.groups});
    memset(self.block->shared + to, 0xff, size);
}

}  // namespace simt

template <int MB, int NB>
SIMT_INLINE void mma_m16n8k16(float (&d)[MB][NB][4], const uint32_t (&a)[4 * MB], const uint32_t (&b)[2 * NB]) {
    simt::require_full_warp("mma_m16n8k16");
    simt::MmaArgs<MB, NB> args{d, a, b};
    simt::warp_collective("mma_m16n8k16", args, [](auto lanes, uint32_t) { simt::mma_warp<MB, NB>(lanes); });
}

SIMT_INLINE void ldmatrix_x1(uint32_t (&r)[1], uint32_t row) {
    simt::ldmatrix<1, 1, false>("ldmatrix_x1", r, &row);
}
SIMT_INLINE void ldmatrix_x1_trans(uint32_t (&r)[1], uint32_t row) {
    simt::ldmatrix<1, 1, true>("ldmatrix_x1_trans", r, &row);
}
SIMT_INLINE void ldmatrix_x2(uint32_t (&r)[2], uint32_t row) {
    simt::ldmatrix<1, 2, false>("ldmatrix_x2", r, &row);
}
SIMT_INLINE void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t row) {
    simt::ldmatrix<1, 2, true>("ldmatrix_x2_trans", r, &row);
}
template <int N>
SIMT_INLINE void ldmatrix_x4(uint32_t (&r)[N], const uint32_t (&row)[N / 4]) {
    static_assert(N % 4 == 0, "four registers per instruction");
    simt::ldmatrix<N / 4, 4, false>("ldmatrix_x4", r, row);
}
template <int N>
SIMT_INLINE void ldmatrix_x4_trans(uint32_t (&r)[N], const uint32_t (&row)[N / 4]) {
    static_assert(N % 4 == 0, "four registers per instruction");
    simt::ldmatrix<N / 4, 4, true>("ldmatrix_x4_trans", r, row);
}

SIMT_INLINE void cp_async_16(uint32_t to, const void* from, int bytes = 16) {
    simt::async_copy("cp_async_16", to, from, 16, bytes);
}
SIMT_INLINE void cp_async_4(uint32_t to, const void* from, int bytes = 4) {
    simt::async_copy("cp_async_4", to, from, 4, bytes);
}
SIMT_INLINE void cp_async_commit() {
    simt::lane_local<simt::AsyncCopies>().groups++;
}
template <int N>
SIMT_INLINE void cp_async_wait() {
    simt::AsyncCopies& copies = simt::lane_local<simt::AsyncCopies>();
    size_t done = 0;
    for (; done < copies.waiting.size() && copies.waiting[done].group + N < copies.groups; done++) {
        const simt::AsyncCopy& copy = copies.waiting[done];
        unsigned char* to = simt::self.block->shared + copy.to;
        simt::note_read(copy.from, copy.bytes);
        simt::note_written(to, copy.size);
        if (copy.bytes == 16) {
            memcpy(to, copy.from, 16);
        } else {
            memset(to, 0, copy.size);
            if (copy.bytes > 0) memcpy(to, copy.from, copy.bytes);
        }
    }
    copies.waiting.erase(copies.waiting.begin(), copies.waiting.begin() + static_cast<long>(done));
}

SIMT_INLINE float exp2_approx(float x) {
    return exp2f(x);
}
SIMT_INLINE float reciprocal_approx(float x) {
    return reciprocal_ftz(x);
}

SIMT_INLINE uint32_t pack_bf16(float low, float high) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(low)) |
           static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(high))) << 16;
}
