// Token and position embedding. The backward pass adds each token's rows in a fixed order, so that it needs no atomics.
#pragma once
#include <vector>

#include "kernels/common.cuh"

// x (B,T,C) = wte (Vp,C)[tokens (B,T)] + wpe (>=T,C)[t]; wpe may be null (LLaMA has none).
void embedding_forward(floatX* x, const int* tokens, const floatX* wte, const floatX* wpe, int B, int T, int C,
                       cudaStream_t stream);

// Positions of a micro-batch grouped by token, made on the host from the tokens (which come from there anyway).
// Token u of the num_unique distinct ones is token[u]; it stands at position[start[u]] .. position[start[u+1]-1].
// The buffer is one array of ints, uploaded with one copy: token (U) | start (U+1) | position (N), U = num_unique.
struct TokenGroups {
    int num_unique = 0;
    std::vector<int> data;  // 2*U + 1 + N ints; order is deterministic
};
void group_tokens(TokenGroups& groups, const int* tokens, int N);
// Largest number of ints in `data` for N positions.
constexpr size_t token_groups_capacity(size_t N) { return 3 * N + 1; }

// dwte (Vp,C) fp32 += rows of dx (B,T,C) by token. `groups` is the device copy of TokenGroups::data.
void embedding_backward_tokens(float* dwte, const floatX* dx, const int* groups, int num_unique, int N, int C,
                               cudaStream_t stream);
// dwpe (>=T,C) fp32 += SUM_b dx (B,T,C)
void embedding_backward_positions(float* dwpe, const floatX* dx, int B, int T, int C, cudaStream_t stream);
