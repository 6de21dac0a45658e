// What follows the product: bias, GELU and its gradient, rounding, bias gradients. Columns are contiguous; each is one
// vector loop, and columns or blocks of rows are shared among threads. Sums run in a fixed order whatever the threads.
#include <algorithm>
#include <vector>

#include "gemm.h"
#include "simt_math.h"

namespace simt::gemm {

namespace {

constexpr float kScale = 2 * 0.7978845608028654f;  // 2 sqrt(2/pi)
constexpr float kCubic = 0.044715f;
constexpr int64_t kRowBlock = 2048;  // rows of one piece of work
constexpr int64_t kStrip = 64;       // rows whose sums one thread owns

// h (1 + tanh u) / 2 = h sigma(2u), and its slope: by the operations of kernels/activation_device.cuh, so that in
// fp32 an activation has the same bits within a product and behind it.
struct Gelu {
    float value, slope;
};
__forceinline__ Gelu gelu(float h) {
    const float h2 = h * h, y = h * __builtin_fmaf(-kLog2e * kScale * kCubic, h2, -kLog2e * kScale);
    const float e = exp2_f(y), sigma = reciprocal_ftz(1.0f + e), v = h * sigma;
    const float rest = (e < 3.402823466e38f ? e : 3.402823466e38f) * sigma;
    return {v, __builtin_fmaf(v * rest, __builtin_fmaf(kScale * 3 * kCubic, h2, kScale), sigma)};
}

// One piece of a column of D. `acc` may be `d`.
struct Column {
    float* acc;
    void* d;
    const void* c;
    const float* bias;
    void* aux;
    float beta;
    int64_t rows;
};

template <class T, Pointwise pointwise, bool has_aux, bool has_c, bool keep>
void finish_column(const Column& column) {
    float* acc = column.acc;
    T* d = static_cast<T*>(column.d);
    const T* c = static_cast<const T*>(column.c);
    T* aux = static_cast<T*>(column.aux);
    const float *bias = column.bias, beta = column.beta;
    const int64_t rows = column.rows;
#pragma omp simd
    for (int64_t i = 0; i < rows; i++) {
        float x = acc[i] + bias[i];
        if constexpr (has_c) x += beta * to_float(c[i]);
        if constexpr (pointwise == Pointwise::gelu) {
            if constexpr (has_aux) aux[i] = rounded<T>(x);
            x = gelu(x).value;
        }
        if constexpr (pointwise == Pointwise::dgelu) x *= gelu(to_float(aux[i])).slope;
        if constexpr (keep) acc[i] = x;
        d[i] = rounded<T>(x);
    }
}

using Finish = void (*)(const Column&);

template <class T, bool has_c>
Finish pick(Pointwise pointwise, bool has_aux, bool keep) {
    if (pointwise == Pointwise::gelu) {
        return has_aux ? finish_column<T, Pointwise::gelu, true, has_c, false>
                       : finish_column<T, Pointwise::gelu, false, has_c, false>;
    }
    if (pointwise == Pointwise::dgelu) {
        return keep ? finish_column<T, Pointwise::dgelu, true, has_c, true>
                    : finish_column<T, Pointwise::dgelu, true, has_c, false>;
    }
    return finish_column<T, Pointwise::none, false, has_c, false>;
}

// sums (rows) += x (rows x cols, ld) over its columns. A strip of rows belongs to one thread.
template <class T>
void add_over_columns(double* sums, const T* x, int64_t ld, int64_t rows, int64_t cols) {
    const int64_t strips = (rows + kStrip - 1) / kStrip;
#pragma omp parallel for schedule(static) if (rows * cols > kParallelElements)
    for (int64_t strip = 0; strip < strips; strip++) {
        const int64_t begin = strip * kStrip, count = std::min(kStrip, rows - begin);
        for (int64_t j = 0; j < cols; j++) {
            const T* column = x + j * ld + begin;
#pragma omp simd
            for (int64_t i = 0; i < count; i++) sums[begin + i] += to_float(column[i]);
        }
    }
}

// sums (cols) = x (rows x cols, ld) over its rows.
template <class T>
void sum_over_rows(double* sums, const T* x, int64_t ld, int64_t rows, int64_t cols) {
#pragma omp parallel for schedule(static) if (rows * cols > kParallelElements)
    for (int64_t j = 0; j < cols; j++) {
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < rows; i++) sum += to_float(x[j * ld + i]);
        sums[j] = sum;
    }
}

}  // namespace

bool nothing_to_finish(const Problem& problem) {
    return !problem.half_out && problem.pointwise == Pointwise::none && !problem.bias;
}

void finish_tile(const Problem& problem, float* acc, int64_t ld, int64_t row, int64_t rows, int64_t col, int64_t cols,
                 const float* bias, double* row_sums) {
    if (nothing_to_finish(problem)) return;
    const size_t size = problem.half_out ? 2 : 4;
    const bool add_c = problem.half_out && problem.beta != 0;
    const bool keep = problem.row_grad != nullptr;
    const bool has_aux = problem.aux != nullptr;
    Finish finish = !problem.half_out ? pick<float, false>(problem.pointwise, has_aux, keep)
                    : add_c           ? pick<bf16, true>(problem.pointwise, has_aux, keep)
                                      : pick<bf16, false>(problem.pointwise, has_aux, keep);
    auto at = [&](const void* base, int64_t leading, int64_t i, int64_t j) {
        return const_cast<char*>(static_cast<const char*>(base)) + (j * leading + i) * static_cast<int64_t>(size);
    };
    const int64_t blocks = (rows + kRowBlock - 1) / kRowBlock;
#pragma omp parallel for collapse(2) schedule(static) if (rows * cols > kParallelElements)
    for (int64_t j = 0; j < cols; j++) {
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t i = block * kRowBlock;
            Column column = {};
            column.rows = std::min(kRowBlock, rows - i);
            column.acc = acc + j * ld + i;
            column.d = at(problem.d, problem.ldd, row + i, col + j);
            if (add_c) column.c = at(problem.c, problem.ldc, row + i, col + j);
            column.bias = bias + row + i;
            if (has_aux) column.aux = at(problem.aux, problem.ld_aux, row + i, col + j);
            column.beta = problem.beta;
            finish(column);
        }
    }
    if (keep) add_over_columns(row_sums + row, acc, ld, rows, cols);
}

void store_sums(const double* sums, int64_t count, void* out, bool half_out) {
    for (int64_t i = 0; i < count; i++) {
        const float sum = static_cast<float>(sums[i]);
        if (half_out)
            static_cast<bf16*>(out)[i] = rounded<bf16>(sum);
        else
            static_cast<float*>(out)[i] = sum;
    }
}

void operand_sums(const Operand& operand, int64_t rows, int64_t cols, bool along_rows, void* out, bool half_out) {
    const int64_t count = along_rows ? rows : cols;
    std::vector<double> sums(static_cast<size_t>(count));
    auto sum = [&](const auto* x) {
        if (along_rows)
            add_over_columns(sums.data(), x, operand.ld, rows, cols);
        else
            sum_over_rows(sums.data(), x, operand.ld, rows, cols);
    };
    if (operand.half)
        sum(static_cast<const bf16*>(operand.data));
    else
        sum(static_cast<const float*>(operand.data));
    store_sums(sums.data(), count, out, half_out);
}

}  // namespace simt::gemm
