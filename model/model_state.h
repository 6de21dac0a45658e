// What a Model holds. Private to model/: the driver sees model.h only.
#pragma once
#include <vector>

#include "kernels/embedding.cuh"
#include "kernels/matmul.cuh"
#include "model/linear.h"
#include "model/model.h"
#include "optimizer/adamw.cuh"

struct LayerValues {
    floatX* qkv;    // (N,W): query, key and value heads, W = C + 2*KV
    floatX* attn;   // (N,C) attention's output before its projection
    float* lse;     // (B,NH,T)
    floatX* pre;    // (N,H) before the activation: H = Fp, or 2*Fp (gate, up) for SwiGLU
    floatX* act;    // (N,Fp)
    floatX* value;  // (N,KV) with +value: the values before they were mixed
};

// A linear map's tensors in the arena; -1: the model has none.
struct LinearOffsets {
    int64_t weight = -1, bias = -1;
};
struct LayerOffsets {
    LinearOffsets qkv, attn_proj, fc, mlp_proj;
    int64_t value_lambda = -1;
};

// Keys and values of sequences that grow token by token, and what the coming forward pass adds to them.
struct KvCache {
    floatX* data = nullptr;  // (L) of layer_count elements: kernels/attention_decode.cuh
    int64_t layer_count = 0;
    int capacity = 0;         // positions
    void* scratch = nullptr;  // for attention_decode
    int first = 0, rows = 0;  // sequences that the pass writes
    int position = 0;         // of the pass's first token; a pass of several tokens begins at 0
    floatX* layer(int l) const { return data + l * layer_count; }
};

// What decides which kernels a training pass launches, and with which arguments.
struct StepKey {
    int b, t;
    float loss_scale;
    bool watching;
    bool accumulates;  // not the first micro-batch of its update, whose products store their gradients
    bool calibrates;   // in 8 bits, some tensors get their first scale
    bool operator==(const StepKey&) const = default;
};
// Training passes by kind: seen once, or recorded.
struct StepGraph {
    StepKey key;
    cudaGraphExec_t exec;
};
struct StepGraphs {
    bool on = true;
    std::string note;  // why there are none; empty: there are
    std::vector<StepGraph> known;
    ~StepGraphs();
    void forget_oldest();
};

// Results of the latest updates, in pinned memory from the moment their events tell.
struct UpdateResults {
    static constexpr int MOST = 2;  // that may wait to be taken; one slot more keeps the time of the one before them
    struct Slot {
        double* sums = nullptr;  // (ranks,2) sum of losses and mark, then the gradient norm as a float
        size_t ranks = 0;
        cudaEvent_t ready = nullptr;
    };
    Slot slots[MOST + 1];
    int64_t queued = 0, taken = 0;
    cudaEvent_t start = nullptr, last = nullptr;
    bool started = false;  // since the last result
    ~UpdateResults();
    Slot& slot(int64_t number) { return slots[number % (MOST + 1)]; }
};

struct Model {
    ModelConfig config;
    Registry registry;
    Use use;
    int B, T;
    Recompute recompute = Recompute::none;
    int64_t chunk;  // rows of logits that exist at a time

    // Parameter-sized arrays, all in arena layout.
    floatX* params = nullptr;  // working copy
    float* master = nullptr;   // fp32; the same memory as params in an fp32 build
    float* grads = nullptr;
    float* m = nullptr;
    float* v = nullptr;

    float* exact_tail = nullptr;  // inference in bf16: fp32 values of the exact tensors (arena from exact_start on)

    std::vector<LayerOffsets> layers;
    std::vector<bool> stored;  // by tensor: an update's first micro-batch stores its gradient, whatever was there
    int64_t wte = -1, wpe = -1, head = -1;

    Fp8Maps fp8;
    Residual residual;                          // everything between sublayers: streams, norms, the rule's own state
    int64_t time = 0;                           // completed updates, for schedules
    int64_t passes = 0, passes_per_update = 1;  // training passes of this rank
    int64_t accumulated = 0;                    // micro-batches whose gradients are in grads; 0: none
    int64_t alpha_time = -1;                    // what the branch factors on the device were made for; -1: nothing yet
    bool alpha_evaluation = false;

    bool watching = false;           // forward passes note the moments of each layer's stream
    float* layer_moments = nullptr;  // (L,2)
    int64_t watched = 0;             // elements behind them

    std::vector<LayerValues> values;  // L; layers share what is computed again
    int input_at = 0;                 // the seam whose input is in the rule's shared buffer, from level norm on
    floatX* first_value = nullptr;    // (N,KV) with +value: v_1
    float* dfirst_value = nullptr;    // (N,KV) its gradient from the later layers
    float* rope = nullptr;            // rotary table, llama
    floatX* logits = nullptr;         // (chunk,Vp)
    float* losses = nullptr;          // (N)
    double* loss_sum = nullptr;       // (2) the second: this rank's mark
    // Of training passes inputs (n), targets (n), groups (token_groups_capacity(n)) behind each other, so that one copy
    // can bring them, n <= N; of others (N) inputs.
    int* tokens = nullptr;
    int* targets = nullptr;         // (N) of other passes, in the same memory
    int* rows = nullptr;            // (N) scoring: the positions that have a target
    unsigned char* hits = nullptr;  // (N) scoring: whether the target is the likeliest token

    floatX* dwide = nullptr;  // (N,max(W,H)) gradient of qkv, or of the MLP's hidden layer
    floatX* dact = nullptr;   // (N,max(C,Fp)) gradient of attention's output, or of SwiGLU's
    void* scratch = nullptr;  // partial sums of parameter gradients, attention's backward pass, the gradient norm
    float* clip = nullptr;    // (2) gradient norm, clip factor
    AdamWTensor* adamw_tensors = nullptr;
    AdamWChunk* adamw_chunk_list = nullptr;

    std::vector<int> host_groups;
    std::unique_ptr<StepGraphs> graphs = std::make_unique<StepGraphs>();
    std::unique_ptr<UpdateResults> results = std::make_unique<UpdateResults>();
    std::vector<AdamWTensor> adamw_host;
    std::vector<AdamWChunk> chunks_host;
    std::vector<void*> allocations;
    Matmul* mm = nullptr;
    cudaStream_t stream = nullptr;

    // A tensor's working copy and gradient; null where the model has none.
    const floatX* param(int64_t offset) const { return offset < 0 ? nullptr : params + offset; }
    const float* exact(int64_t offset) const {
        if (offset < 0) return nullptr;
        return exact_tail ? exact_tail + (offset - registry.exact_start) : master + offset;
    }
    int kv_channels() const { return config.kv_heads * config.head_size(); }
    int qkv_width() const { return config.channels + 2 * kv_channels(); }
    int hidden_width() const {
        return config.activation == Activation::swiglu ? 2 * config.padded_ffn() : config.padded_ffn();
    }
    Rule& rule() const { return *residual.rule; }
    float* grad(int64_t offset) const { return offset < 0 ? nullptr : grads + offset; }
};

// What the schedules give for the coming pass: counts it, and queues what has changed.
void set_schedule(Model& m, bool evaluation);
// a.act from a.pre, of N tokens.
void activate(Model& m, LayerValues& a, int N);
// Forward and backward of the batch at m.tokens, without set_schedule.
void training_pass(Model& m, const StepKey& key);
// The copy of what the update that was queued just now has found; the sum of losses begins anew.
void queue_result(Model& m, Comm* comm, double mark);
// tokens (b,t) of m.tokens -> input(2L) of the rule, which the head reads. With a cache: it is written, and tokens
// behind position 0 read it.
void forward(Model& m, int b, int t, bool evaluation, const KvCache* cache = nullptr);
// logits (rows,V) on the host of rows first .. first+rows-1 of the last forward pass (synchronises).
void logits_of(Model& m, int64_t first, int rows, float* logits);
void upload(Model& m, int* device, const int* host, size_t count);
