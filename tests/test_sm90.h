// What the tests of Hopper's instructions share: the tables and figures of the PTX ISA.
#pragma once
#include "test.h"

#include <cstring>
#include <ptx_sm90.cuh>

constexpr const char* NO_HOPPER = "needs a GPU of compute capability 9.0 or the CPU machine";
inline cudaDeviceProp device_properties() {
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
    return properties;
}
inline bool on_gpu() {
    return std::string(device_properties().name).find("NVIDIA") != std::string::npos;
}
inline bool has_hopper() {
    return !on_gpu() || (device_properties().major == 9 && device_properties().minor == 0);
}

// "Tensor swizzling modes": 16-byte pieces in lines of 128 bytes; where a piece goes within its line.
inline size_t swizzled(Swizzle swizzle, size_t byte) {
    static const size_t pieces_32[2][8] = {{0, 1, 2, 3, 4, 5, 6, 7}, {1, 0, 3, 2, 5, 4, 7, 6}};
    static const size_t pieces_64[4][8] = {
        {0, 1, 2, 3, 4, 5, 6, 7}, {1, 0, 3, 2, 5, 4, 7, 6}, {2, 3, 0, 1, 6, 7, 4, 5}, {3, 2, 1, 0, 7, 6, 5, 4}};
    static const size_t pieces_128[8][8] = {
        {0, 1, 2, 3, 4, 5, 6, 7}, {1, 0, 3, 2, 5, 4, 7, 6}, {2, 3, 0, 1, 6, 7, 4, 5}, {3, 2, 1, 0, 7, 6, 5, 4},
        {4, 5, 6, 7, 0, 1, 2, 3}, {5, 4, 7, 6, 1, 0, 3, 2}, {6, 7, 4, 5, 2, 3, 0, 1}, {7, 6, 5, 4, 3, 2, 1, 0}};
    const size_t line = byte / 128, piece = byte / 16 % 8;
    const size_t moved = swizzle == Swizzle::none  ? piece
                         : swizzle == Swizzle::b32 ? pieces_32[line % 2][piece]
                         : swizzle == Swizzle::b64 ? pieces_64[line % 4][piece]
                                                   : pieces_128[line % 8][piece];
    return line * 128 + moved * 16 + byte % 16;
}

// "WGMMA .m64nNk16 register fragment layout": element i of a thread's 8 elements of A (bf16, two to a register) and of
// its N/2 elements of D.
inline int a_row(int t, int i) {
    return 16 * (t / 32) + t % 32 / 4 + (i / 2 % 2 ? 8 : 0);
}
inline int a_column(int t, int i) {
    return t % 4 * 2 + i % 2 + (i >= 4 ? 8 : 0);
}
inline int d_row(int t, int i) {
    return 16 * (t / 32) + t % 32 / 4 + (i / 2 % 2 ? 8 : 0);
}
inline int d_column(int t, int i) {
    return i / 4 * 8 + t % 4 * 2 + i % 2;
}

// A (rows are its rows) or B (rows are its columns) for wgmma, as it lies in shared memory, with the strides of its
// descriptor: "Strides" of the matrix descriptor, leading-dimension and stride-dimension byte offset.
struct OperandImage {
    Swizzle swizzle;
    bool transposed;
    int rows, k;
    unsigned width, leading, stride;  // bytes; with a swizzle stride is `spread` times what dense tiles have
    std::vector<uint32_t> words;

    // values (rows,k)
    OperandImage(const std::vector<__nv_bfloat16>& values, int rows_, int k_, Swizzle swizzle_, bool transposed_,
                 unsigned spread = 1)
        : swizzle(swizzle_), transposed(transposed_), rows(rows_), k(k_), width(16u << static_cast<int>(swizzle_)) {
        const bool none = swizzle == Swizzle::none;
        const int group = static_cast<int>(width) / 2;  // rows side by side in a transposed image
        const int stored = transposed ? (rows + group - 1) / group * group : rows;
        if (none) {  // 8 x 8 blocks of 128 bytes: all k of 8 rows, then the next 8 rows; transposed the other way round
            leading = transposed ? static_cast<unsigned>(rows) / 8 * 128 : 128;
            stride = transposed ? 128 : static_cast<unsigned>(k) / 8 * 128;
        } else {
            stride = 8 * width * spread;
            leading = transposed ? static_cast<unsigned>(k) / 8 * stride : 16;
        }
        words.assign(static_cast<size_t>(stored * k) / 2 * (none ? 1 : spread), 0x7fc07fc0u);  // NaN where nothing is
        auto* halves = reinterpret_cast<unsigned char*>(words.data());
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < k; c++) memcpy(halves + byte(r, c), &values[static_cast<size_t>(r * k + c)], 2);
    }
    size_t byte(int r, int c) const {
        const auto w = static_cast<int>(width);
        if (swizzle == Swizzle::none)
            return static_cast<size_t>(r / 8 * static_cast<int>(stride) + c / 8 * static_cast<int>(leading) +
                                       (transposed ? c % 8 * 16 + r % 8 * 2 : r % 8 * 16 + c % 8 * 2));
        const int group = w / 2, next8 = static_cast<int>(stride);
        const int dense = transposed
                              ? r / group * (k / 8 * next8) + c / 8 * next8 + c % 8 * w + r % group * 2  // k after k
                              : c / group * (rows / 8 * next8) + r / 8 * next8 + r % 8 * w + c % group * 2;
        return swizzled(swizzle, static_cast<size_t>(dense));
    }
    // Where 16*step k further on begin, seen from the first.
    int step(int step) const {
        const auto w = static_cast<int>(width);
        if (swizzle == Swizzle::none) return 2 * static_cast<int>(leading) * step;
        if (transposed) return 2 * static_cast<int>(stride) * step;
        return 32 * step / w * (rows / 8 * static_cast<int>(stride)) + 32 * step % w;
    }
};
