// What scoring needs behind the last layer: the rows whose targets count, and whether a target is the likeliest token.
#pragma once
#include "kernels/common.cuh"

// out (n,C) <- the rows of in (.,C) that rows (n) numbers. C * sizeof(floatX) is a multiple of 16 bytes.
void gather_rows(floatX* out, const floatX* in, const int* rows, int64_t n, int C, cudaStream_t stream);

// For each of N rows: hits (N) <- 1 if targets[row] is the arg-max of logits[0..V), of equal ones the first; else 0,
// also for a target < 0 (masked) and wherever a NaN stands in the row. Columns from V to Vp are not looked at. Targets
// are < V; Vp is a multiple of 16 bytes.
void greedy_hits(unsigned char* hits, const floatX* logits, const int* targets, int64_t N, int V, int Vp,
                 cudaStream_t stream);
