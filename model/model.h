// The network: allocation, forward, backward, update. The driver sees this header and nothing below it.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/common.cuh"
#include "kernels/matmul_choice.h"
#include "model/config.h"
#include "model/fp8_state.h"
#include "model/registry.h"
#include "parallel/comm.h"

enum class Use { training, inference };

struct MemorySegment {
    std::string name;
    size_t bytes;
};
// Every device allocation model_create would make, by segment, without making it.
std::vector<MemorySegment> model_memory(const ModelConfig& config, int B, int T, Use use,
                                        Recompute recompute = Recompute::none, bool fp8 = false);
size_t total_bytes(const std::vector<MemorySegment>& segments);
// The largest batch of length T whose segments fit into `free_bytes`; 0: not even one.
int largest_batch(const ModelConfig& config, int T, Use use, size_t free_bytes, Recompute recompute = Recompute::none,
                  bool fp8 = false);
// UserError where micro-batches of B x T of this model cannot be multiplied in 8 bits.
void check_fp8(const ModelConfig& config, int B, int T);
// Of N tokens in a micro-batch, how many have logits at a time.
int64_t logits_rows(const ModelConfig& config, int64_t N);

// Floating-point operations per token, forward and backward: 6 per matmul parameter plus causal attention.
double flops_per_token(const ModelConfig& config, int T);
// Those that a level of recomputation adds: products and attention that run a second time.
double recompute_flops_per_token(const ModelConfig& config, int T, Recompute recompute);

struct UpdateSettings {
    double lr = 3e-4;       // this update's, schedule included
    double peak_lr = 3e-4;  // the run's: lr / peak_lr is where the schedule stands
    double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
    double grad_clip = 1.0;  // 0: off
    std::string decay = "2d";
    std::vector<std::string> freeze;  // classes or name globs
    uint64_t seed = 1337;
};

struct Model;
struct ModelDeleter {
    void operator()(Model* model) const;
};
using ModelPtr = std::unique_ptr<Model, ModelDeleter>;

// Allocates everything for micro-batches of up to B sequences of up to T tokens. UserError when it cannot fit into the
// free memory, predicted before anything is allocated.
// recompute (training only) trades memory for time; gradients stay the same (residual/recompute.h).
// fp8 (training only): layers multiply in 8 bits (model/linear.h). UserError where card, batch or model do not allow it.
ModelPtr model_create(const ModelConfig& config, int B, int T, Use use, Recompute recompute = Recompute::none,
                      bool fp8 = false);
const ModelConfig& model_config(const Model& model);
const Registry& model_registry(const Model& model);
cudaStream_t model_stream(const Model& model);

// Fresh weights from the registry's initialisation; a function of (seed, tensor name, element), not of padding.
void model_init_weights(Model& model, uint64_t seed);

// Which algorithms the products run. Whether this machine has a choice; what is chosen so far of the products met; and
// choices made elsewhere. A rehearsal, before the first micro-batch, measures every product of a training step that
// nothing was chosen for; it leaves no trace.
bool model_has_gemm_choice(Model& model);
std::vector<MatmulChoice> model_gemms(const Model& model);
void model_use_gemms(Model& model, const std::vector<MatmulChoice>& choices);
void model_rehearse(Model& model);

// Host copies in arena layout (registry.arena floats): masters, first and second moments, gradients.
void model_read_master(Model& model, float* host);
void model_write_master(Model& model, const float* host, uint64_t seed, uint64_t step);  // also makes the working copy
void model_read_moments(Model& model, float* m, float* v);
void model_write_moments(Model& model, const float* m, const float* v);
void model_read_grads(Model& model, float* host);
// The scales of a model with fp8.
Fp8State model_read_fp8(Model& model);
void model_write_fp8(Model& model, const Fp8State& state);  // behind model_write_master

// Per layer, the variance of the stream behind it in the last micro-batch since model_watch(model, true).
void model_watch(Model& model, bool on);
std::vector<double> model_stream_variances(Model& model);  // (L); synchronises
// The branch factor that the run's schedule (ProRes) gives layer l, from one, at present; 1 without one.
double model_branch_factor(const Model& model, int l);

// One micro-batch forward and backward; inputs, targets (B,T) on the host, b <= B and t <= T of model_create.
// Gradients accumulate, of the sum of losses times loss_scale (1 / tokens of the update on this rank). A target < 0 is
// masked.
void model_forward_backward(Model& model, const int* inputs, const int* targets, int b, int t, double loss_scale);
// The same from a batch on the device, which the model's stream has read when it has passed this call: inputs (b,t) |
// targets (b,t) | groups of the inputs (kernels/embedding.cuh), `count` ints in all.
void model_forward_backward_device(Model& model, const int* batch, size_t count, int b, int t, double loss_scale);
// Whether training passes are recorded and repeated as CUDA graphs; they are at first. Results are the same bits.
void model_use_graphs(Model& model, bool on);
int model_graphs(const Model& model);                     // kinds of passes recorded so far
const std::string& model_graph_note(const Model& model);  // why none can be; empty: nothing stood against it
// Sum of token losses over the micro-batches since the last call or update (synchronises), then starts at zero again.
double model_take_loss(Model& model);
// Where schedules of residual rules stand: `step` updates of this run are done, each of `passes_per_update` micro-steps
// of this rank. Without it a model starts at the configuration's residual_step.
void model_set_time(Model& model, int64_t step, int64_t passes_per_update);
// Completes gradients that follow from accumulated ones, and averages them over the ranks.
void model_average_grads(Model& model, Comm* comm);
// Global norm, clipping and AdamW; `step` is 1-based. Gradients begin anew. Nothing here waits for the device: what
// the update found is asked for later, at most two updates late. With a comm over all its ranks; `mark` is any number.
void model_update(Model& model, const UpdateSettings& settings, int64_t step, Comm* comm = nullptr, double mark = 0);
struct UpdateResult {
    double loss_sum;   // of the token losses of its micro-batches, over the ranks in their order
    double grad_norm;  // before clipping; if it is not finite nothing was updated
    double mark;       // the sum of the ranks'
    double ms;         // from the result before it, or from model_start_clock(), to this one; 0 without either
};
// Of the oldest update not asked for yet; waits for it.
UpdateResult model_result(Model& model);
void model_start_clock(Model& model);

// Sum of token losses of one batch, no gradients (synchronises).
double model_loss(Model& model, const int* inputs, const int* targets, int b, int t);
// Of every token of one batch, no gradients (synchronises): its loss (b,t), and whether it is the likeliest, of equal ones
// the first, greedy (b,t); both 0 where the target is < 0. b*t tokens of room, whatever b and t. The head runs over the
// targets alone.
void model_token_losses(Model& model, const int* inputs, const int* targets, int b, int t, float* losses,
                        unsigned char* greedy);
// logits (V) fp32 on the host of the last of t tokens of one sequence.
void model_last_logits(Model& model, const int* tokens, int t, float* logits);

// ---------------------------------------------------------------------------------------------------------------------
// Text that grows token by token: `rows` sequences of one length, whose earlier keys and values are kept, so that a
// step costs one token's work for each. Every function gives the logits of the next token, fp32 on the host (synchronises).
struct Decoder;
struct DecoderDeleter {
    void operator()(Decoder* decoder) const;
};
using DecoderPtr = std::unique_ptr<Decoder, DecoderDeleter>;

// Device memory of a decoder of that many sequences of up to `capacity` tokens.
size_t decoder_bytes(const ModelConfig& config, int rows, int capacity);
// How many sequences, 1 .. wanted, can be decoded at a time: what the model's buffers and the free memory hold.
int decoder_rows(const Model& model, int wanted, int capacity);
// capacity <= the model's context and B*T. UserError when the memory is not there. The model must outlive the decoder;
// its other passes may come in between.
DecoderPtr decoder_create(Model& model, int rows, int capacity);
int decoder_length(const Decoder& decoder);
// Starts anew: all rows hold the same t tokens. logits (V).
void decoder_start(Decoder& decoder, const int* tokens, int t, float* logits);
// Starts anew with tokens (rows,t). logits (rows,V).
void decoder_restart(Decoder& decoder, const int* tokens, int t, float* logits);
// One more token for each row, tokens (rows); decoder_length must be below the capacity. logits (rows,V).
void decoder_step(Decoder& decoder, const int* tokens, float* logits);
