// The four linear maps of a layer: in floatX, or, in the training passes of a run with --fp8, in 8 bits.
//
// In 8 bits input and weight are e4m3 and the gradient of the output is e5m2, each with a scale of its own that follows
// the largest numbers of earlier updates (kernels/fp8.cuh). What makes a tensor writes it in 8 bits where it can: the
// seams what sublayers read, the activation its output and its gradient. A tensor is rounded to floatX first, so that a
// pass of its own gives the same bits; such passes serve all others, and micro-batches in which tensors get a first
// scale from their own numbers: an update's first, as long as some history holds nothing (a branch that begins with
// factor 0 has no gradients before the second update), and in no more than FP8_HISTORY updates. Backward products want
// their operands transposed: inputs are kept by rows and transposed just before; weights and gradients of outputs are
// written both ways at once. Weights are converted behind every update. Gradients of biases are sums of what had not
// been converted yet.
//
// Evaluation and sampling multiply in floatX, as the other programs do with the same weights.
#pragma once
#include "kernels/matmul_fp8.cuh"

struct Model;
struct Comm;

enum class Map { qkv, attn_proj, fc, mlp_proj };
constexpr int MAPS = 4;

// Map `which` of layer l is number i = 4 l + which; its scales are i (input), n + i (weight), 2 n + i (gradient of the
// output), with n = 4 L.
struct Fp8Maps {
    bool on = false;       // the run's choice
    bool active = false;   // the pass that is being queued multiplies in 8 bits
    bool settled = false;  // every tensor has a scale
    void* scales_memory = nullptr;
    Fp8Scales scales = {};
    std::vector<e4m3*> input, weight, weight_t;  // (N,IC), (OC,IC), (IC,OC)
    Fp8Job<e4m3>* weight_jobs = nullptr;         // (4,L) on the device
    e4m3* input_t = nullptr;                     // (IC,N) of the map at hand
    e5m2 *dout = nullptr, *dout_t = nullptr;     // (N,C), (C,N)
    e5m2 *dwide = nullptr, *dwide_t = nullptr;   // (N,max(W,H)), (max(W,H),N): of qkv and fc
    int numbers() const { return static_cast<int>(weight.size()); }
};

struct LinearMap {
    int number;
    int64_t weight, bias;  // in the arena; -1: none
    int IC, OC;
};
LinearMap linear_map(const Model& m, int l, Map which);

// out (N,OC) = inp (N,IC) weight^T + bias + add (N,OC; may be null). In 8 bits the input is what convert_input, or who
// made it, has left.
void linear_forward(Model& m, const LinearMap& map, floatX* out, const floatX* inp, int N, const floatX* add = nullptr);
// In 8 bits: inp (N,IC) becomes the map's input.
void convert_input(Model& m, const LinearMap& map, const floatX* inp, int N);

// In 8 bits: the output of layer l's activation, from what fc gave, becomes mlp_proj's input.
void convert_activation(Model& m, int l, int N);

// From dout (N,OC), the gradient of the output without the factor *scale (null: 1) of its branch: dinp (N,IC), if
// wanted, and the gradients of weight and bias, these without the factor too if raw. An update's first micro-batch
// stores them, which saves reading what is zero. inp (N,IC): what the map read.
// In 8 bits dout null says that it, with the bias's gradient, has been converted already.
void linear_backward(Model& m, const LinearMap& map, floatX* dinp, const floatX* dout, const floatX* inp, int N,
                     const float* scale = nullptr, bool raw = false);
// In 8 bits, from du, the gradient of the output of layer l's MLP: all gradients of mlp_proj, and fc's output's.
void mlp_backward_to_fc(Model& m, int l, const floatX* du, int N, const float* scale, bool raw);

// In 8 bits, behind an update (with a comm over all ranks): the scales, and the weights that it has changed.
void fp8_update(Model& m, Comm* comm);
// The memory is there: the table of weights.
void fp8_ready(Model& m);
// Of new weights: their scales and conversion. Nothing else has a scale.
void fp8_begin(Model& m);
// Whether the coming micro-batch gives first scales.
bool fp8_calibrates(const Model& m);
