// Pieces shared by the bf16 attention kernels: tiles in shared memory, and products of a warp on the tensor cores.
//
// A tile is ROWS x D bf16, D the head size rounded up to a class (32, 64, 96, 128, 256) and filled with zeros. Its rows
// are cut into units of 16 bytes, and unit u of row r lies where unit u ^ swizzle(r) would: then the eight rows that
// one ldmatrix reads at the same u lie in eight different groups of four banks, and so do eight rows written at once.
//
// A warp owns 16*MB rows of the left matrix of every product. The right matrix comes from a tile in two ways:
//     "rows"     right = tile^T: the sum runs along the tile's rows, over D      (Q K^T, dO V^T, K Q^T, V dO^T)
//     "columns"  right = tile:   the sum runs over the tile's rows, output is D  (P V, dS K, P^T dO, dS^T Q)
// The result of the first, rounded to bf16, is by the layout of the fragments just the left matrix of the second.
#pragma once
#include <ptx.cuh>

#include "kernels/attention_impl.cuh"

#if defined(PRECISION_BF16)

template <int D>
__device__ __forceinline__ int swizzle(int row) {
    static_assert(D % 32 == 0, "the swizzle stays inside 4 or 8 units");
    return D % 64 == 0 ? row & 7 : row >> 1 & 3;
}
// Bytes from the start of a tile.
template <int D>
__device__ __forceinline__ int tile_offset(int row, int unit) {
    return row * D * 2 + ((unit ^ swizzle<D>(row)) << 4);
}

// Starts the copy of rows 0..ROWS-1 of from (valid,HS), `stride` apart, to a tile; zeros elsewhere.
template <int THREADS, int ROWS, int D>
__device__ __forceinline__ void load_tile(uint32_t tile, const __nv_bfloat16* from, int64_t stride, int valid, int HS) {
    constexpr int UNITS = D / 8;
    if constexpr (THREADS % UNITS == 0 && THREADS / UNITS % 8 == 0) {
        // A thread keeps its unit, and its row modulo 8: addresses advance by constants. Not unrolled far: the
        // registers are full of accumulators when this runs.
        constexpr int STEP = THREADS / UNITS;
        static_assert(ROWS % STEP == 0);
        int row = static_cast<int>(threadIdx.x) / UNITS;
        const int unit = static_cast<int>(threadIdx.x) % UNITS;
        uint32_t to = tile + tile_offset<D>(row, unit);
        const __nv_bfloat16* p = from + row * stride + unit * 8;
        if (unit * 8 >= HS) valid = 0;
#pragma unroll 2
        for (int r = 0; r < ROWS; r += STEP) {
            cp_async_16(to, row < valid ? p : from, row < valid ? 16 : 0);
            row += STEP;
            to += STEP * D * 2;
            p += STEP * stride;
        }
    } else {
#pragma unroll 2
        for (int i = static_cast<int>(threadIdx.x); i < ROWS * UNITS; i += THREADS) {
            const int row = i / UNITS, unit = i % UNITS;
            const bool there = row < valid && unit * 8 < HS;
            cp_async_16(tile + tile_offset<D>(row, unit), there ? from + row * stride + unit * 8 : from,
                        there ? 16 : 0);
        }
    }
}

// Where lane i points its ldmatrix, as lane*-dependent bytes: rows row0..row0+15 of a tile, units 2*pair and 2*pair+1.
// Matrices in the order (first 8 rows, unit 0), (last 8, 0), (first, 1), (last, 1): the left matrix of a product, and
// by .trans the right one of a "columns" product.
template <int D>
__device__ __forceinline__ uint32_t tall_address(uint32_t tile, int row0, int pair, int lane) {
    return tile + row0 * D * 2 + tile_offset<D>(lane & 15, 2 * pair + (lane >> 4));
}
// The order (first 8 rows, unit 0), (first 8, 1), (last 8, 0), (last 8, 1): the right matrix of a "rows" product.
template <int D>
__device__ __forceinline__ uint32_t wide_address(uint32_t tile, int row0, int pair, int lane) {
    return tile + row0 * D * 2 + tile_offset<D>((lane & 7) | (lane >> 4 << 3), 2 * pair + (lane >> 3 & 1));
}

// acc (16*MB x 8*NB) = left rows left0.. times (right rows right0..)^T, summed over D.
template <int D, int MB, int NB>
__device__ __forceinline__ void multiply_rows(float (&acc)[MB][NB][4], uint32_t left, int left0, uint32_t right,
                                              int right0, int lane) {
#pragma unroll
    for (int m = 0; m < MB; m++) {
#pragma unroll
        for (int n = 0; n < NB; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) acc[m][n][e] = 0.0f;
        }
    }
    // Unrolled further, what is loaded ahead no longer fits the registers of these head sizes.
#pragma unroll(D == 128 ? 4 : D == 96 ? 3 : D / 16)
    for (int k = 0; k < D / 16; k++) {
        uint32_t a[4 * MB], b[2 * NB], from_a[MB], from_b[NB / 2];
#pragma unroll
        for (int m = 0; m < MB; m++) from_a[m] = tall_address<D>(left, left0 + 16 * m, k, lane);
#pragma unroll
        for (int n = 0; n < NB / 2; n++) from_b[n] = wide_address<D>(right, right0 + 16 * n, k, lane);
        ldmatrix_x4<4 * MB>(a, from_a);
        ldmatrix_x4<2 * NB>(b, from_b);
        mma_m16n8k16<MB, NB>(acc, a, b);
    }
}

// An accumulator 16*MB x D in chunks of 64 or 32 columns: as much of the right matrix as is held in registers at a
// time.
template <int D, int MB>
struct Accumulator {
    static constexpr int NB = D % 64 == 0 ? 8 : 4, CHUNKS = D / (8 * NB);
    float c[CHUNKS][MB][NB][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
#pragma unroll
            for (int m = 0; m < MB; m++) {
#pragma unroll
                for (int n = 0; n < NB; n++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) c[i][m][n][e] = 0.0f;
                }
            }
        }
    }
    // Row 16*m + lane/4 times x0, row 16*m + lane/4 + 8 times x1.
    __device__ __forceinline__ void scale(int m, float x0, float x1) {
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
#pragma unroll
            for (int n = 0; n < NB; n++) {
                c[i][m][n][0] *= x0;
                c[i][m][n][1] *= x0;
                c[i][m][n][2] *= x1;
                c[i][m][n][3] *= x1;
            }
        }
    }
    // += p (16*MB x 16*STEPS) times rows right0.. of the tile `right`.
    template <int STEPS>
    __device__ __forceinline__ void multiply_columns(const uint32_t (&p)[STEPS][4 * MB], uint32_t right, int right0,
                                                     int lane) {
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
#pragma unroll
            for (int i = 0; i < CHUNKS; i++) {
                uint32_t b[2 * NB], from[NB / 2];
#pragma unroll
                for (int n = 0; n < NB / 2; n++)
                    from[n] = tall_address<D>(right, right0 + 16 * k, i * (NB / 2) + n, lane);
                ldmatrix_x4_trans<2 * NB>(b, from);
                mma_m16n8k16<MB, NB>(c[i], p[k], b);
            }
        }
    }
    // Rounds to bf16 and writes rows 0..15 of the warp's 16*MB to `to`, `stride` apart, as far as they are below
    // `valid`. tile: the warp's own rows of a tile that it alone reads, and no more; so that stores to global memory
    // are 16 bytes.
    __device__ __forceinline__ void store(__nv_bfloat16* to, int64_t stride, int valid, int HS, void* tile, int lane) {
        unsigned char* bytes = static_cast<unsigned char*>(tile);
        __syncwarp();
#pragma unroll
        for (int m = 0; m < MB; m++) {
#pragma unroll
            for (int i = 0; i < CHUNKS; i++) {
#pragma unroll
                for (int n = 0; n < NB; n++) {
                    const int row = 16 * m + lane / 4, unit = i * NB + n, at = lane % 4 * 4;
                    *reinterpret_cast<uint32_t*>(bytes + tile_offset<D>(row, unit) + at) =
                        pack_bf16(c[i][m][n][0], c[i][m][n][1]);
                    *reinterpret_cast<uint32_t*>(bytes + tile_offset<D>(row + 8, unit) + at) =
                        pack_bf16(c[i][m][n][2], c[i][m][n][3]);
                }
            }
        }
        __syncwarp();
#pragma unroll 4
        for (int i = lane; i < 16 * MB * (D / 8); i += WARP) {
            const int row = i / (D / 8), unit = i % (D / 8);
            if (row < valid && unit * 8 < HS)
                *reinterpret_cast<uint4*>(to + row * stride + unit * 8) =
                    *reinterpret_cast<const uint4*>(bytes + tile_offset<D>(row, unit));
        }
    }
};

// The result of multiply_rows as the left matrix of multiply_columns.
template <int MB, int NB>
__device__ __forceinline__ void to_left(uint32_t (&p)[NB / 2][4 * MB], const float (&acc)[MB][NB][4]) {
#pragma unroll
    for (int k = 0; k < NB / 2; k++) {
#pragma unroll
        for (int m = 0; m < MB; m++) {
            p[k][4 * m] = pack_bf16(acc[m][2 * k][0], acc[m][2 * k][1]);
            p[k][4 * m + 1] = pack_bf16(acc[m][2 * k][2], acc[m][2 * k][3]);
            p[k][4 * m + 2] = pack_bf16(acc[m][2 * k + 1][0], acc[m][2 * k + 1][1]);
            p[k][4 * m + 3] = pack_bf16(acc[m][2 * k + 1][2], acc[m][2 * k + 1][3]);
        }
    }
}

#endif
