// What was measured of a product: which of the library's algorithms it runs, and whether its epilogue pays. Plain data,
// for the cache on disk and for checkpoints (checkpoint/gemm_record.h).
#pragma once
#include <string>

struct MatmulChoice {
    std::string product;    // shape, types, epilogue, leading dimensions, alignments: all that an algorithm depends on
    std::string algorithm;  // the library's 64 bytes, in hexadecimal
    bool fused = true;      // of an epilogue that replaces a kernel of ours: false where two steps were faster
    double us = 0;          // medians of a call: with this algorithm,
    double first_us = 0;    // with the one that the library's heuristic names first,
    double two_steps_us = 0;  // and of the same work without the epilogue; 0: there is no such thing
    bool operator==(const MatmulChoice&) const = default;
};
