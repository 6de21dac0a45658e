// wgmma's arithmetic: operands from shared memory, through descriptors and swizzles, into dense fp32 panels, and these
// multiplied on register tiles.
#include <algorithm>
#include <cstring>
#include <wide.cuh>

#include "wgmma.h"

namespace simt {

namespace {

constexpr unsigned kBatch = 4;  // products whose panels are multiplied at once
#if defined(__AVX512F__)
constexpr int kRows = 8, kColumns = 2;  // a register tile: rows, and Wides side by side
#elif defined(__AVX__)
constexpr int kRows = 4, kColumns = 1;
#else
constexpr int kRows = 2, kColumns = 1;
#endif

struct Panels {
    alignas(64) float a[64 * 16 * kBatch];  // (64,depth), or (depth,64) if transposed
    alignas(64) float b[16 * kBatch][256];
};
thread_local Panels panels;

using Bits = uint32_t __attribute__((vector_size(32)));
using Halves = uint16_t __attribute__((vector_size(16)));

// Eight bf16 become eight floats.
SIMT_INLINE void widen(float* to, const unsigned char* from) {
    Halves halves;
    memcpy(&halves, from, 16);
    const Bits bits = __builtin_convertvector(halves, Bits) << 16;
    memcpy(to, &bits, 32);
}

void load_a(const unsigned char* view, const Product& p, unsigned batch, unsigned depth) {
    if (p.a_registers) {
        for (unsigned row = 0; row < 64; row++)
            for (unsigned part = 0; part < 2; part++)
                widen(panels.a + row * depth + 16 * batch + 8 * part,
                      reinterpret_cast<const unsigned char*>(p.a_values.data() + 16 * row + 8 * part));
        return;
    }
    const Operand a(p.a, p.a_transposed);
    if (a.transposed) {
        for (unsigned k = 0; k < 16; k++)
            for (unsigned part = 0; part < 8; part++)
                widen(panels.a + (16 * batch + k) * 64 + 8 * part, view + a.piece(k, part));
    } else {
        for (unsigned row = 0; row < 64; row++)
            for (unsigned part = 0; part < 2; part++)
                widen(panels.a + row * depth + 16 * batch + 8 * part, view + a.piece(row, part));
    }
}

void load_b(const unsigned char* view, const Product& p, unsigned batch) {
    const Operand b(p.b, p.b_transposed);
    float(*to)[256] = panels.b + 16 * batch;
    if (b.transposed) {
        for (unsigned k = 0; k < 16; k++)
            for (unsigned part = 0; part < p.n / 8; part++) widen(to[k] + 8 * part, view + b.piece(k, part));
        return;
    }
    // Columns of B are contiguous in k: sixteen of them are turned in pairs of k, then spread into two rows.
    for (unsigned column = 0; column < p.n; column += 16) {
        for (unsigned part = 0; part < 2; part++) {
            alignas(64) uint32_t pairs[4][16];
            for (unsigned c = 0; c < 16; c++) {
                uint32_t piece[4];
                memcpy(piece, view + b.piece(column + c, part), 16);
                for (unsigned i = 0; i < 4; i++) pairs[i][c] = piece[i];
            }
            for (unsigned i = 0; i < 4; i++) {
                alignas(64) uint32_t low[16], high[16];
                for (unsigned c = 0; c < 16; c++) {
                    low[c] = pairs[i][c] << 16;
                    high[c] = pairs[i][c] & 0xffff0000u;
                }
                memcpy(to[8 * part + 2 * i] + column, low, 64);
                memcpy(to[8 * part + 2 * i + 1] + column, high, 64);
            }
        }
    }
}

// kRows rows and 16*COLUMNS columns of d (64,n) += a b; a's element (row, k) stands at row * row_step + k * k_step.
template <int COLUMNS>
SIMT_INLINE void multiply_tile(float* d, size_t n, const float* a, size_t row_step, size_t k_step, const float* b,
                               unsigned depth) {
    Wide acc[kRows][COLUMNS];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++)
        for (int c = 0; c < COLUMNS; c++) acc[r][c] = wide_load(d + static_cast<size_t>(r) * n + 16 * c);
    for (unsigned k = 0; k < depth; k++) {
        Wide row[COLUMNS];
        for (int c = 0; c < COLUMNS; c++) row[c] = wide_load(b + 256 * k + 16 * c);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; r++)
            for (int c = 0; c < COLUMNS; c++)
                wide_fma(acc[r][c], a[static_cast<size_t>(r) * row_step + k * k_step], row[c]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++)
        for (int c = 0; c < COLUMNS; c++) wide_store(d + static_cast<size_t>(r) * n + 16 * c, acc[r][c]);
}

void multiply_panels(float* d, unsigned n, bool a_transposed, unsigned depth) {
    const size_t row_step = a_transposed ? 1 : depth, k_step = a_transposed ? 64 : 1;
    unsigned column = 0;
    for (; column + 16 * kColumns <= n; column += 16 * kColumns)
        for (unsigned row = 0; row < 64; row += kRows)
            multiply_tile<kColumns>(d + row * n + column, n, panels.a + row * row_step, row_step, k_step,
                                    panels.b[0] + column, depth);
    for (; column < n; column += 16)
        for (unsigned row = 0; row < 64; row += kRows)
            multiply_tile<1>(d + row * n + column, n, panels.a + row * row_step, row_step, k_step, panels.b[0] + column,
                             depth);
}

}  // namespace

void multiply(const unsigned char* view, Product* const* products, unsigned count) {
    for (unsigned i = 0; i < count;) {
        const Product& first = *products[i];
        unsigned batch = 1;
        while (batch < kBatch && i + batch < count && products[i + batch]->accumulate &&
               products[i + batch]->a_transposed == first.a_transposed)
            batch++;
        float* d = first.accumulators->d;
        if (!first.accumulate) std::fill(d, d + 64 * first.n, 0.0f);
        for (unsigned k = 0; k < batch; k++) {
            load_a(view, *products[i + k], k, 16 * batch);
            load_b(view, *products[i + k], k);
        }
        multiply_panels(d, first.n, first.a_transposed, 16 * batch);
        i += batch;
    }
}

}  // namespace simt
