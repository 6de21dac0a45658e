// The command line of train_gpt2: what can be chosen, checked before anything else happens.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dataloader/loader.h"
#include "model/config.h"
#include "optimizer/schedule.h"
#include "residual/recompute.h"

struct TrainOptions {
    // Model
    std::string model, init_from;
    std::optional<int> layers, heads, kv_heads, channels, context, vocab, ffn;
    std::optional<std::string> init, activation, norm, residual;
    std::optional<bool> bias, tie;
    std::optional<double> norm_eps, rope_theta;
    std::vector<std::string> residual_opt;  // KEY=VALUE

    // Data
    std::string train, val;
    std::vector<std::string> mix;  // GLOB=SHARE
    double hold_out = 0;
    int batch = 4;
    std::optional<int> seq;
    std::optional<int64_t> total_batch;
    std::string recompute = "none";
    bool fp8 = false;
    bool shuffle = true;

    // Run
    int64_t steps = 0;  // 0: not given
    uint64_t seed = 1337;
    std::string out;
    int64_t save_every = 0, keep = 0;
    std::string save_dtype = "fp32";
    bool resume = false, init_only = false, dry_run = false;
    std::optional<double> memory;  // GiB
    std::string dump_grads;
    bool tune_gemms = true;
    bool graph = true;

    // Optimizer
    std::string optimizer = "adamw", decay = "2d", layerwise_lr = "none";
    double lr = 3e-4, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1, grad_clip = 1.0;
    std::vector<std::string> freeze;
    std::string schedule = "cosine";
    std::optional<int64_t> warmup, decay_steps;
    std::optional<double> final_lr_ratio;
    std::optional<std::string> wsd_shape;

    // What is watched
    std::optional<int64_t> val_every, val_batches, eval_every;
    std::vector<std::string> eval;  // TASK=FILE
    int64_t sample_every = 0;
    int64_t layer_stats_every = 0;
    std::optional<int> sample_tokens;
    std::optional<std::string> prompt;
};

// The corpora of --train and --mix with their shares; UserError for what is not GLOB=SHARE, or leaves --train nothing.
std::vector<Corpus> options_corpora(const TrainOptions& options);

// Nothing: help or the version was asked for and has been printed. UserError (one line) for every mistake: first what
// does not go together, then what is missing.
std::optional<TrainOptions> parse_train_options(int argc, char** argv);

// The model asked for: the preset, or the config of --init-from, with everything that overrides it; checked.
// folder: of --init-from, as model_folder() found it.
ModelConfig options_config(const TrainOptions& options, const std::string& folder, std::vector<std::string>& notes);
// Sets what may be chosen with --init-from too: --norm, --residual and --residual-opt. Checks the result.
void options_choices(const TrainOptions& options, ModelConfig& config);

Recompute options_recompute(const TrainOptions& options);
Schedule options_schedule(const TrainOptions& options);

// names, one after the other with `between` in between.
std::string list_of(const std::vector<std::string>& names, const char* between = ", ");

// Every option with the value it has, but where to write (--out, --dump-grads), for log.jsonl and state.json.
std::vector<std::pair<std::string, std::string>> option_values(const TrainOptions& options);
// A note for every option that a resumed run has otherwise than `before`, the values in its checkpoint. UserError for one
// that the weights it began with depend on, or, once it has `begun` to read them, the order of the data.
std::vector<std::string> options_changes(const TrainOptions& options,
                                         const std::vector<std::pair<std::string, std::string>>& before, bool begun);
