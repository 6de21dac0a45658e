// What a Model holds. Private to model/: the driver sees model.h only.
#pragma once
#include <vector>

#include "kernels/embedding.cuh"
#include "kernels/matmul.cuh"
#include "model/model.h"
#include "optimizer/adamw.cuh"

// A seam's saved values: the stream behind it and the norm of the next sublayer's input. Seam 0 follows the embedding,
// seam s the s-th sublayer; seam 2L feeds the head.
struct SeamValues {
    floatX* x;    // (N,C) the stream
    floatX* z;    // (N,C) N_in(x)
    float* mean;  // (N)
    float* rstd;  // (N)
};

struct LayerValues {
    floatX* qkv;   // (N,3C)
    floatX* attn;  // (N,C) attention's output before c_proj
    float* lse;    // (B,NH,T)
    floatX* pre;   // (N,Fp) before the activation
    floatX* act;   // (N,Fp)
};

// Where a layer's tensors lie in the arena; -1: the model has none.
struct LayerOffsets {
    int64_t ln_1_weight, ln_1_bias, qkv_weight, qkv_bias, attn_proj_weight, attn_proj_bias;
    int64_t ln_2_weight, ln_2_bias, fc_weight, fc_bias, mlp_proj_weight, mlp_proj_bias;
};

struct Model {
    ModelConfig config;
    Registry registry;
    Use use;
    int B, T;
    int64_t chunk;  // rows of logits that exist at a time

    // Parameter-sized arrays, all in arena layout.
    floatX* params = nullptr;  // working copy
    float* master = nullptr;   // fp32; the same memory as params in an fp32 build
    float* grads = nullptr;
    float* m = nullptr;
    float* v = nullptr;

    std::vector<LayerOffsets> layers;
    int64_t wte = -1, wpe = -1, ln_f_weight = -1, ln_f_bias = -1, head = -1;

    std::vector<SeamValues> seams;    // 2L + 1
    std::vector<LayerValues> values;  // L
    floatX* u = nullptr;              // (N,C) a sublayer's output
    floatX* logits = nullptr;         // (chunk,Vp)
    float* losses = nullptr;          // (N)
    double* loss_sum = nullptr;       // (1)
    int* tokens = nullptr;            // (N)
    int* targets = nullptr;           // (N)
    int* groups = nullptr;            // token_groups_capacity(N)

    floatX* dx = nullptr;    // (N,C) gradient of the stream
    floatX* dz = nullptr;    // (N,C) gradient of a sublayer's input
    floatX* dwide = nullptr; // (N,max(3C,Fp)) gradient of qkv, or of the MLP's hidden layer
    void* scratch = nullptr; // partial sums of parameter gradients, attention's backward pass, the gradient norm
    float* clip = nullptr;   // (2) gradient norm, clip factor
    AdamWTensor* adamw_tensors = nullptr;
    AdamWChunk* adamw_chunk_list = nullptr;

    TokenGroups token_groups;
    std::vector<AdamWTensor> adamw_host;
    std::vector<AdamWChunk> chunks_host;
    std::vector<void*> allocations;
    Matmul* mm = nullptr;
    cudaStream_t stream = nullptr;

    // A tensor's working copy and gradient; null where the model has none.
    const floatX* param(int64_t offset) const { return offset < 0 ? nullptr : params + offset; }
    float* grad(int64_t offset) const { return offset < 0 ? nullptr : grads + offset; }
};
