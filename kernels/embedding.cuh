// Token and position embedding. The backward pass adds each token's rows in a fixed order, so that it needs no atomics.
#pragma once
#include "kernels/common.cuh"

// x (B,T,C) = wte (Vp,C)[tokens (B,T)] + wpe (>=T,C)[t]; wpe may be null (LLaMA has none).
void embedding_forward(floatX* x, const int* tokens, const floatX* wte, const floatX* wpe, int B, int T, int C,
                       cudaStream_t stream);

// Positions of a micro-batch grouped by token, made on the host from the tokens (which come from there anyway):
// token u of the U distinct ones is token[u]; it stands at position[start[u]] .. position[start[u+1]-1].
// groups: U (1) | token (U) | start (U+1) | position (N), in one array of token_groups_capacity(N) ints, of which the
// number used is returned. The order is deterministic.
size_t group_tokens(int* groups, const int* tokens, int N);
constexpr size_t token_groups_capacity(size_t N) { return 3 * N + 2; }

// dwte (>=V,C) fp32 += rows of dx (N,C) by token < V. `groups` is the device copy of what group_tokens() made of N tokens.
void embedding_backward_tokens(float* dwte, const floatX* dx, const int* groups, int N, int V, int C,
                               cudaStream_t stream);
// dwpe (>=T,C) fp32 += SUM_b dx (B,T,C)
void embedding_backward_positions(float* dwpe, const floatX* dx, int B, int T, int C, cudaStream_t stream);
