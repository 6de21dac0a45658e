// The device side of kernels/fp8.cuh, for kernels that convert what they produce: Fp8Writer turns a thread's values
// into packed bytes and keeps their abs-max; Fp8Tile transposes bytes through shared memory, Fp8Place says what a
// thread does of it, and Fp8ColumnSums adds up columns on the way.
#pragma once
#include <fold.cuh>

#include "kernels/fp8.cuh"

template <class F>
struct Fp8Format;
template <>
struct Fp8Format<e4m3> {
    static constexpr __nv_fp8_interpretation_t kind = __NV_E4M3;
    static constexpr float largest = 448.0f;
};
template <>
struct Fp8Format<e5m2> {
    static constexpr __nv_fp8_interpretation_t kind = __NV_E5M2;
    static constexpr float largest = 57344.0f;
};

// N fp8 numbers, the first in the lowest byte; N = 4, 8 or 16.
template <int N>
struct alignas(N) Fp8Pack {
    unsigned word[N / 4];
};
template <class F, int N>
__device__ __forceinline__ void store_fp8(F* p, const Fp8Pack<N>& pack) {
    *reinterpret_cast<Fp8Pack<N>*>(p) = pack;
}

// One thread's conversions of one tensor.
template <class F>
struct Fp8Writer {
    float scale, amax = 0.0f;

    __device__ __forceinline__ explicit Fp8Writer(const Fp8Slot& slot) : scale(*slot.scale) {}

    template <int N>
    __device__ __forceinline__ Fp8Pack<N> convert(const float (&x)[N]) {
        Fp8Pack<N> pack;
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            const float largest =
                fmaxf(fmaxf(fabsf(x[i]), fabsf(x[i + 1])), fmaxf(fabsf(x[i + 2]), fabsf(x[i + 3])));
            amax = fmaxf(amax, largest);
            // The conversion would turn infinity into the largest number. NaN, which fmaxf passes over, stays NaN.
            const float spoil = largest - largest;  // 0, or NaN
            const unsigned low = pair(x[i], x[i + 1], spoil), high = pair(x[i + 2], x[i + 3], spoil);
            pack.word[i / 4] = low | high << 16;
        }
        return pack;
    }

    // By all threads of the block together; scratch: 32 floats of shared memory.
    __device__ __forceinline__ void finish(const Fp8Slot& slot, float* scratch) const {
        const float block = block_max(amax, scratch);
        if (threadIdx.x == 0 && threadIdx.y == 0) atomicMax(slot.amax, __float_as_uint(block));
    }

  private:
    __device__ __forceinline__ unsigned pair(float x, float y, float spoil) const {
        const float2 scaled = make_float2(fmaf(x, scale, spoil), fmaf(y, scale, spoil));
        return __nv_cvt_float2_to_fp8x2(scaled, __NV_SATFINITE, Fp8Format<F>::kind);
    }
};

// A tile of bytes in shared memory, written by rows and read by columns. 256 threads share the work. A row's eight
// chunks of 16 bytes lie rotated by its number of 16 rows, so that neither way meets a bank twice.
struct Fp8Tile {
    static constexpr int SIZE = 128, THREADS = 256;
    unsigned word[SIZE][SIZE / 4];

    // Bytes N i .. N i + N-1 of a row.
    template <int N>
    __device__ __forceinline__ void put(unsigned row, unsigned i, const Fp8Pack<N>& pack) {
        const unsigned chunk = i * N / 16, within = i % (16 / N) * (N / 4);
        *reinterpret_cast<Fp8Pack<N>*>(&word[row][(chunk + row / 16) % 8 * 4 + within]) = pack;
    }

    // out_t (cols of the tile, R) = its transpose, the tile's corner at out_t; rows and cols, multiples of 16, say how
    // much of the tile there is. After a barrier; by thread 0 .. THREADS-1. Each does 16 rows of 4 columns.
    template <class F>
    __device__ __forceinline__ void write_transposed(F* out_t, int64_t R, int rows, int cols, int thread) const {
        const int block = thread % 8, quad = thread / 8;
        if (block * 16 >= rows || quad * 4 >= cols) return;
        Fp8Pack<16> column[4];
#pragma unroll
        for (int i = 0; i < 16; i += 4) {
            unsigned row[4];
#pragma unroll
            for (int k = 0; k < 4; k++) row[k] = word[block * 16 + i + k][(quad + block * 4) % 32];
            // Pairs of rows interleave their bytes, then pairs of pairs their halves.
            const unsigned low01 = __byte_perm(row[0], row[1], 0x5140), high01 = __byte_perm(row[0], row[1], 0x7362);
            const unsigned low23 = __byte_perm(row[2], row[3], 0x5140), high23 = __byte_perm(row[2], row[3], 0x7362);
            column[0].word[i / 4] = __byte_perm(low01, low23, 0x5410);
            column[1].word[i / 4] = __byte_perm(low01, low23, 0x7632);
            column[2].word[i / 4] = __byte_perm(high01, high23, 0x5410);
            column[3].word[i / 4] = __byte_perm(high01, high23, 0x7632);
        }
#pragma unroll
        for (int k = 0; k < 4; k++) store_fp8(out_t + (quad * 4 + k) * R + block * 16, column[k]);
    }
};

// The part of (R,S) that is this block's tile, and of it this thread's: V neighbours in each of PASSES rows. V = 8 are
// 16 bytes of bf16; V = 16 are 16 bytes of fp8.
template <int V>
struct Fp8Place {
    static constexpr int ACROSS = Fp8Tile::SIZE / V;               // threads to a row
    static constexpr int ROWS = Fp8Tile::THREADS / ACROSS;         // of a pass
    static constexpr int PASSES = Fp8Tile::SIZE / ROWS;
    int row, col, rows, cols;  // of the tile
    int y, x;                  // this thread's
    int left;                  // rows of the tile from y on, none if there is no column x

    __device__ __forceinline__ Fp8Place(int R, int S)
        : row(static_cast<int>(blockIdx.y) * Fp8Tile::SIZE),
          col(static_cast<int>(blockIdx.x) * Fp8Tile::SIZE),
          rows(min(Fp8Tile::SIZE, R - row)),
          cols(min(Fp8Tile::SIZE, S - col)),
          y(static_cast<int>(threadIdx.x / ACROSS)),
          x(static_cast<int>(threadIdx.x % ACROSS)),
          left(x * V < cols ? rows - y : 0) {}
    __device__ __forceinline__ int tile_row(int pass) const { return pass * ROWS + y; }
    // Whether this pass' values are there; from pass PASSES on none are.
    __device__ __forceinline__ bool has(int pass) const { return pass * ROWS < left; }
    // Where those of pass 0 are, in elements, in an array whose rows have `stride`; and of a later pass, from there on.
    __device__ __forceinline__ int64_t start(int64_t stride) const { return (row + y) * stride + col + x * V; }
    __device__ __forceinline__ int step(int pass, int stride) const { return pass * ROWS * stride; }
    // The tile's corner in the transposed array, whose rows have R.
    __device__ __forceinline__ int64_t transposed(int64_t R) const { return col * R + row; }
};
// A block for every tile of (R,S).
inline dim3 fp8_tiles(int R, int S) {
    CHECK(R > 0 && S > 0 && R % 16 == 0 && S % 16 == 0 && R <= 65535 * Fp8Tile::SIZE);
    return dim3(static_cast<unsigned>(ceil_div(S, Fp8Tile::SIZE)), static_cast<unsigned>(ceil_div(R, Fp8Tile::SIZE)));
}

// Eight neighbours of floatX, loaded 16 bytes at a time. They wait as words: nvcc would give each bf16 of a load that
// may not happen a register of its own.
struct Fp8Values {
    static constexpr int WORDS = 8 * sizeof(floatX) / 4;
    unsigned word[WORDS];

    // Zeros where there is nothing.
    __device__ __forceinline__ void load(const floatX* from, bool there) {
#pragma unroll
        for (int k = 0; k < WORDS; k += 4) {
            Pack<unsigned> pack = {};
            if (there) pack = load_pack(reinterpret_cast<const unsigned*>(from) + k);
#pragma unroll
            for (int i = 0; i < 4; i++) word[k + i] = pack[i];
        }
    }
    __device__ __forceinline__ float operator[](int i) const {
        if constexpr (sizeof(floatX) == 4)
            return __uint_as_float(word[i]);
        else
            return __uint_as_float(i % 2 ? word[i / 2] & 0xffff0000u : word[i / 2] << 16);
    }
};

// What a floatX kernel would store of each value. In pairs: a GPU converts two at the price of a quarter of one.
template <int N>
__device__ __forceinline__ void round_to_floatX(float (&x)[N]) {
    if constexpr (sizeof(floatX) == 2) {
#pragma unroll
        for (int i = 0; i < N; i += 2) {
            const float2 pair = __bfloat1622float2(__floats2bfloat162_rn(x[i], x[i + 1]));
            x[i] = pair.x;
            x[i + 1] = pair.y;
        }
    }
}

// Sums of a tile's columns, in shared memory: every thread puts the sums over its own rows; after a barrier, thread i
// adds up column i's.
struct Fp8ColumnSums {
    using Place = Fp8Place<8>;
    float sum[Place::ROWS][Fp8Tile::SIZE];

    __device__ __forceinline__ void put(const Place& place, const float (&v)[8]) {
#pragma unroll
        for (int k = 0; k < 8; k += 4)
            store_pack(&sum[place.y][place.x * 8 + k], Pack<float>{{v[k], v[k + 1], v[k + 2], v[k + 3]}});
    }
    __device__ __forceinline__ float total(int column) const {
        float v[Place::ROWS];
#pragma unroll
        for (int y = 0; y < Place::ROWS; y++) v[y] = sum[y][column];
        return fold_sum(v);
    }
};
