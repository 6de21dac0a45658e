// The matrix product behind cublasLt.h: shared by the gemm*.cpp files only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt::gemm {

// bf16 as stored: the upper half of an fp32.
using bf16 = uint16_t;

inline float to_float(float x) {
    return x;
}
inline float to_float(bf16 x) {
    return __builtin_bit_cast(float, static_cast<uint32_t>(x) << 16);
}
template <class T>
T rounded(float x);
template <>
inline float rounded<float>(float x) {
    return x;
}
template <>
inline bf16 rounded<bf16>(float x) {  // to nearest, ties to even; NaN stays NaN
    uint32_t bits = __builtin_bit_cast(uint32_t, x);
    uint32_t up = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return static_cast<bf16>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : up);
}

// A column-major operand as stored; the product uses its transpose if `transposed`.
struct Operand {
    const void* data;
    bool half;  // bf16, otherwise fp32
    bool transposed;
    int64_t ld;
    const float* values = nullptr;  // fp8: a byte each, and what it stands for
};

enum class Pointwise { none, gelu, dgelu };

// D (m x n) = pointwise(alpha op(A) op(B) + beta C + bias), and what goes with it.
struct Problem {
    int64_t m, n, k;
    Operand a, b;
    const void* c;  // (m x n) of D's type; read only if beta is not 0; may be d
    int64_t ldc;
    void* d;  // (m x n)
    int64_t ldd;
    bool half_out;  // D, C, bias, aux and gradients are bf16, otherwise fp32
    float alpha, beta;
    Pointwise pointwise;
    const void* bias;  // (m) or null
    void* aux;         // (m x n): stored by gelu if not null, read by dgelu
    int64_t ld_aux;
    void* row_grad;  // (m) or null: sums of D's rows, before rounding
    void* a_grad;    // (m) or null: sums of op(A) over k
    void* b_grad;    // (n) or null: sums of op(B) over k
    int64_t splits;  // parts of k that are summed by themselves, then added in order
    float* partial;  // (splits, n, m) for their sums; not read with one part
};

void run(const Problem& problem);

// Work of fewer elements than this is not worth waking other threads.
constexpr int64_t kParallelElements = 16384;

// What happens to a tile of products, rows [row, row + rows) and columns [col, col + cols) of D.
// acc (rows x cols, ld) holds alpha op(A) op(B), with beta C if D is fp32, in which case acc may be D itself.
// row_sums (m): D's row sums so far, if problem.row_grad; bias (m): in fp32, zeros without a bias.
void finish_tile(const Problem& problem, float* acc, int64_t ld, int64_t row, int64_t rows, int64_t col, int64_t cols,
                 const float* bias, double* row_sums);
// True if finish_tile would change nothing.
bool nothing_to_finish(const Problem& problem);
// out (m or n) = sums of an operand over k; `along_rows`: the stored matrix is summed over its columns.
void operand_sums(const Operand& operand, int64_t rows, int64_t cols, bool along_rows, void* out, bool half_out);
void store_sums(const double* sums, int64_t count, void* out, bool half_out);

}  // namespace simt::gemm
