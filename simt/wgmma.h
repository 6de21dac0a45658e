// Products of a warpgroup on their way: shared by wgmma.cpp, which keeps them, and wgmma_product.cpp, which multiplies.
#pragma once

#include <cstdint>
#include <vector>

#include "async.h"

namespace simt {

// 64 x n accumulators while products add to them, dense; the lanes' own registers are poisoned meanwhile.
struct Accumulators {
    unsigned n = 0, taken = 0;      // lanes that have their part back
    alignas(64) float d[64 * 256];  // (64,n)
};

struct Product {
    uint64_t a, b;  // descriptors; a: 0 with A in registers
    unsigned n;
    bool a_registers, a_transposed, b_transposed, accumulate;
    uint64_t group;
    unsigned lanes;  // that have issued it
    unsigned first;  // the first of them
    const void* pc;
    Accumulators* accumulators;
    std::vector<uint16_t> a_values;  // (64,16) bf16, with A in registers
    std::vector<uint16_t> pieces;    // of 16 bytes of shared memory that it reads
};

// A or B of one product in shared memory: `rows` are A's rows or B's columns, of 16 k each.
struct Operand {
    uint32_t start, leading, stride, width;  // bytes; width: of the swizzle, 16 without
    Swizzle swizzle;
    bool transposed;

    Operand(uint64_t descriptor, bool is_transposed)
        : start(field(descriptor, 0)),
          leading(field(descriptor, 16)),
          stride(field(descriptor, 32)),
          swizzle(static_cast<Swizzle>((4 - (descriptor >> 62)) % 4)),
          transposed(is_transposed) {
        width = 16u << static_cast<unsigned>(swizzle);
    }
    // The address of the 16 bytes with 8 k of one row (row, 8*part..), or if transposed with 8 rows of one k (8*part..,
    // row). PTX ISA, "Matrix Descriptor Format", "Strides" and the canonical layouts.
    SIMT_INLINE uint32_t piece(unsigned row, unsigned part) const {
        uint32_t at = start;
        if (!transposed)  // 8 rows `width` apart
            at += row / 8 * stride + row % 8 * width + part * (swizzle == Swizzle::none ? leading : 16);
        else if (swizzle == Swizzle::none)  // 8 k 16 bytes apart
            at += part * stride + row / 8 * leading + row % 8 * 16;
        else  // 8 k `width` apart, each with width/16 pieces
            at += part * 16 / width * leading + part * 16 % width + row / 8 * stride + row % 8 * width;
        return at ^ swizzle_bits(swizzle, at);
    }
    // Calls visit(address) for every 16 bytes.
    template <class Visit>
    void for_each_piece(unsigned rows, Visit&& visit) const {
        const unsigned first = transposed ? 16 : rows, parts = transposed ? rows / 8 : 2;
        for (unsigned row = 0; row < first; row++)
            for (unsigned part = 0; part < parts; part++) visit(piece(row, part));
    }

  private:
    static constexpr uint32_t field(uint64_t descriptor, unsigned bit) {
        return static_cast<uint32_t>(descriptor >> bit & 0x3fff) << 4;
    }
};

// D = or += A B for `count` products in turn, all of one D.
void multiply(const unsigned char* view, Product* const* products, unsigned count);

}  // namespace simt
