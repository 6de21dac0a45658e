// Products through OpenBLAS's sgemm. fp32 operands go in as they are. bf16 and fp8 operands are widened tile by tile
// into buffers that live on (a widened element is used a thousand times, so the widening costs little), summed in fp32,
// and rounded once.
#include "gemm.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "simt.h"

// From OpenBLAS; declared here so that no header path is needed. The enumerations are passed as ints.
extern "C" void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float* a,
                            int lda, const float* b, int ldb, float beta, float* c, int ldc);
extern "C" void cblas_sgemv(int order, int trans, int m, int n, float alpha, const float* a, int lda, const float* x,
                            int incx, float beta, float* y, int incy);

namespace simt::gemm {

namespace {

constexpr int kColMajor = 102, kNoTrans = 111, kTrans = 112;

// Tile of a widened product: three buffers of 8, 4 and 8 MiB.
constexpr int64_t kTileM = 2048, kTileN = 1024, kTileK = 1024;
// An fp32 D with an epilogue is made in groups of columns that are still in the cache when the epilogue reads them.
constexpr int64_t kPanelElements = 1 << 20;

void sgemm(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a, int64_t lda,
           const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
    if (n == 1) {  // a token at a time: sgemm would copy the whole matrix first
        const int rows = static_cast<int>(trans_a ? k : m), columns = static_cast<int>(trans_a ? m : k);
        cblas_sgemv(kColMajor, trans_a ? kTrans : kNoTrans, rows, columns, alpha, a, static_cast<int>(lda), b,
                    trans_b ? static_cast<int>(ldb) : 1, beta, c, 1);
        return;
    }
    cblas_sgemm(kColMajor, trans_a ? kTrans : kNoTrans, trans_b ? kTrans : kNoTrans, static_cast<int>(m),
                static_cast<int>(n), static_cast<int>(k), alpha, a, static_cast<int>(lda), b, static_cast<int>(ldb),
                beta, c, static_cast<int>(ldc));
}

// Memory that grows and stays, one per OS thread and purpose.
struct Scratch {
    float* data = nullptr;
    size_t count = 0;
    ~Scratch() { std::free(data); }
    float* get(int64_t needed) {
        if (static_cast<size_t>(needed) > count) {
            std::free(data);
            count = (static_cast<size_t>(needed) + 1023) / 1024 * 1024;
            data = static_cast<float*>(std::aligned_alloc(64, count * sizeof(float)));
            if (!data) throw std::bad_alloc();
        }
        return data;
    }
};

// dst (rows x cols, packed) = src (rows x cols, ld), as fp32; value(x): what a stored element is.
template <class T, class Value>
void widen(float* dst, const T* src, int64_t ld, int64_t rows, int64_t cols, Value&& value) {
#pragma omp parallel for schedule(static) if (rows * cols > kParallelElements)
    for (int64_t j = 0; j < cols; j++) {
        const T* from = src + j * ld;
        float* to = dst + j * rows;
#pragma omp simd
        for (int64_t i = 0; i < rows; i++) to[i] = value(from[i]);
    }
}

// An operand's tile in fp32: widened unless it still is from the last time.
struct Widened {
    Scratch scratch;
    const float* data = nullptr;
    int64_t ld = 0, at_row = -1, at_col = -1;

    // Rows and columns of op(X).
    void load(const Operand& operand, int64_t row, int64_t rows, int64_t col, int64_t cols) {
        if (row == at_row && col == at_col) return;
        at_row = row, at_col = col;
        if (operand.transposed) std::swap(row, col), std::swap(rows, cols);
        float* buffer = scratch.get(rows * cols);
        const int64_t first = col * operand.ld + row;
        if (const float* values = operand.values)
            widen(buffer, static_cast<const uint8_t*>(operand.data) + first, operand.ld, rows, cols,
                  [values](uint8_t code) { return values[code]; });
        else
            widen(buffer, static_cast<const bf16*>(operand.data) + first, operand.ld, rows, cols,
                  [](bf16 x) { return to_float(x); });
        data = buffer;
        ld = rows;
    }
    void forget() { at_row = at_col = -1; }
};

// fp32 D: beta C is added by sgemm, which finds it in D.
void bring_c(const Problem& p) {
    if (p.half_out || p.beta == 0 || p.c == p.d) return;
    const float* c = static_cast<const float*>(p.c);
    float* d = static_cast<float*>(p.d);
#pragma omp parallel for schedule(static) if (p.m * p.n > kParallelElements)
    for (int64_t j = 0; j < p.n; j++)
        std::memcpy(d + j * p.ldd, c + j * p.ldc, static_cast<size_t>(p.m) * sizeof(float));
}

void run_fp32(const Problem& p, const float* bias, double* row_sums) {
    const float *a = static_cast<const float*>(p.a.data), *b = static_cast<const float*>(p.b.data);
    float* d = static_cast<float*>(p.d);
    int64_t panel = p.n;
    if (!nothing_to_finish(p))
        panel = std::clamp(kPanelElements / p.m / 64 * 64, int64_t{256}, std::max(p.n, int64_t{256}));
    for (int64_t n = 0; n < p.n; n += panel) {
        const int64_t cols = std::min(panel, p.n - n);
        sgemm(p.a.transposed, p.b.transposed, p.m, cols, p.k, p.alpha, a, p.a.ld, b + (p.b.transposed ? n : n * p.b.ld),
              p.b.ld, p.beta, d + n * p.ldd, p.ldd);
        finish_tile(p, d + n * p.ldd, p.ldd, 0, p.m, n, cols, bias, row_sums);
    }
}

void run_widened(const Problem& p, const float* bias, double* row_sums) {
    thread_local Widened a, b;
    thread_local Scratch accumulator;
    a.forget();
    b.forget();
    for (int64_t m = 0; m < p.m; m += kTileM) {
        const int64_t rows = std::min(kTileM, p.m - m);
        for (int64_t n = 0; n < p.n; n += kTileN) {
            const int64_t cols = std::min(kTileN, p.n - n);
            float* acc = p.half_out ? accumulator.get(rows * cols) : static_cast<float*>(p.d) + n * p.ldd + m;
            const int64_t ld = p.half_out ? rows : p.ldd;
            for (int64_t k = 0; k < p.k; k += kTileK) {
                const int64_t depth = std::min(kTileK, p.k - k);
                a.load(p.a, m, rows, k, depth);
                b.load(p.b, k, depth, n, cols);
                const float beta = k > 0 ? 1.0f : p.half_out ? 0.0f : p.beta;
                sgemm(p.a.transposed, p.b.transposed, rows, cols, depth, p.alpha, a.data, a.ld, b.data, b.ld, beta, acc,
                      ld);
            }
            finish_tile(p, acc, ld, m, rows, n, cols, bias, row_sums);
        }
    }
}

// Parts of k, each a product of its own into its slice of p.partial; then their sum.
void run_split(const Problem& p, const float* bias, double* row_sums) {
    const int64_t area = p.m * p.n, depth = (p.k + p.splits - 1) / p.splits;
    auto part_of = [&](const Operand& operand, int64_t k, bool k_is_row) {
        Operand part = operand;
        const int64_t at = k_is_row ? k : k * operand.ld;
        part.data = static_cast<const char*>(operand.data) + at * (operand.values ? 1 : operand.half ? 2 : 4);
        return part;
    };
    for (int64_t s = 0; s < p.splits; s++) {
        Problem part = {};
        part.m = p.m, part.n = p.n, part.k = std::min(depth, p.k - s * depth);
        part.a = part_of(p.a, s * depth, p.a.transposed);
        part.b = part_of(p.b, s * depth, !p.b.transposed);
        part.d = p.partial + s * area, part.ldd = p.m;
        part.alpha = p.alpha;
        p.a.half || p.a.values ? run_widened(part, nullptr, nullptr) : run_fp32(part, nullptr, nullptr);
    }
    float* sum = p.partial;
    const int64_t ld = p.half_out ? p.m : p.ldd;
    float* acc = p.half_out ? sum : static_cast<float*>(p.d);
#pragma omp parallel for schedule(static) if (area > kParallelElements)
    for (int64_t j = 0; j < p.n; j++)
        for (int64_t i = 0; i < p.m; i++) {
            float x = sum[j * p.m + i];
            for (int64_t s = 1; s < p.splits; s++) x += sum[s * area + j * p.m + i];
            if (!p.half_out && p.beta != 0) x += p.beta * acc[j * ld + i];  // bring_c has brought it
            acc[j * ld + i] = x;
        }
    finish_tile(p, acc, ld, 0, p.m, 0, p.n, bias, row_sums);
}

}  // namespace

void run(const Problem& p) {
    bring_c(p);
    std::vector<float> bias;
    if (!nothing_to_finish(p)) {
        bias.resize(static_cast<size_t>(p.m));
        if (p.bias) {
            for (int64_t i = 0; i < p.m; i++) {
                bias[static_cast<size_t>(i)] =
                    p.half_out ? to_float(static_cast<const bf16*>(p.bias)[i]) : static_cast<const float*>(p.bias)[i];
            }
        }
    }
    std::vector<double> row_sums(p.row_grad ? static_cast<size_t>(p.m) : 0);
    if (p.splits > 1)
        run_split(p, bias.data(), row_sums.data());
    else if (p.a.half || p.a.values)
        run_widened(p, bias.data(), row_sums.data());
    else
        run_fp32(p, bias.data(), row_sums.data());
    if (p.row_grad) store_sums(row_sums.data(), p.m, p.row_grad, p.half_out);
    // op(A) is m x k; stored k x m if transposed.
    if (p.a_grad)
        operand_sums(p.a, p.a.transposed ? p.k : p.m, p.a.transposed ? p.m : p.k, !p.a.transposed, p.a_grad,
                     p.half_out);
    if (p.b_grad)
        operand_sums(p.b, p.b.transposed ? p.n : p.k, p.b.transposed ? p.k : p.n, p.b.transposed, p.b_grad, p.half_out);
}

}  // namespace simt::gemm
