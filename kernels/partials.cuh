// The second stage of a two-stage sum. In the first stage every block of a persistent grid writes one row of partial
// sums; here the rows are added in a fixed order and the totals are accumulated. No atomics: the same launch gives the
// same bits.
#pragma once
#include "kernels/common.cuh"

constexpr int MAX_PARTIAL_SUMS = 16;

struct PartialTargets {
    float* total[MAX_PARTIAL_SUMS] = {};  // (C) fp32 each; null: that sum is not wanted
};

// target[m] (C) += SUM_r partial (rows, M, C)[r][m], for every m < M <= MAX_PARTIAL_SUMS; without accumulate: = .
void add_partials(const PartialTargets& target, const float* partial, int rows, int M, int C, cudaStream_t stream,
                  bool accumulate = true);
