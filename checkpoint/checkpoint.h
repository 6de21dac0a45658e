// Checkpoint folders: DIR/step_%08d/ with config.json, model.safetensors, optimizer_RRRR.safetensors, the tokenizer's
// files, and state.json, which holds a checksum of each of them. A folder is written under a temporary name, synced,
// and renamed: one with its final name was complete when it was written, and its checksums say whether it still is.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/gemm_record.h"
#include "checkpoint/safetensors.h"
#include "dataloader/loader.h"
#include "model/fp8_state.h"
#include "model/registry.h"

// What a run is besides its arrays.
struct RunState {
    int64_t step = 0;    // completed updates
    int64_t tokens = 0;  // trained on so far
    int64_t last_change =
        0;              // the last update that was not skipped: its number rounded the working copy of a bf16 build
    LoaderPosition at;  // the data after them
    uint64_t seed = 0;  // with `step`, the state of every generator: all of them count
    int world_size = 1;
    int64_t train_tokens = 0;  // in all shards of --train: another number is other data
    std::vector<std::pair<std::string, std::string>> settings;  // options, in order
    std::map<std::string, std::string> versions;
    GemmRecord gemm;  // which algorithms the products ran; of an older checkpoint nothing is known
};

// Host arrays in arena layout. Without moments (null) the optimizer starts at zero.
struct Arrays {
    const float* master;
    const float* m = nullptr;
    const float* v = nullptr;
    Fp8State fp8 = {};  // of a run with --fp8, which has moments
};

// Writes DIR/step_%08d and returns its path. config: with the residual_step at which the run began; the file says where
// it is now. dtype: of model.safetensors; anything but fp32 puts the masters beside the moments, so that resuming stays
// exact. files: further ones (the tokenizer's).
std::string checkpoint_save(const std::string& run, const RunState& state, const ModelConfig& config,
                            const Registry& registry, const Arrays& arrays, Dtype dtype,
                            const std::vector<NamedText>& files);

std::string checkpoint_path(const std::string& run, int64_t step);
std::vector<int64_t> checkpoint_steps(const std::string& run);  // ascending, intact or not
// What is wrong with the folder, beginning with the file's path; empty when every checksum holds. weights_only: the
// optimizer's state may be damaged or gone.
std::string checkpoint_fault(const std::string& folder, bool weights_only = false);
// The newest intact checkpoint's step, -1 when there is none. A note for every damaged one that is passed over.
int64_t checkpoint_newest(const std::string& run, std::vector<std::string>& notes);

RunState checkpoint_read_state(const std::string& folder);
// Fills m and v, the masters if the file has them (arena layout, zeroed by the caller), and fp8 if the run had --fp8.
void checkpoint_read_optimizer(const std::string& folder, const Registry& registry, float* m, float* v, float* master,
                               Fp8State& fp8);

// Deletes all but the newest `keep` checkpoints (0: keeps all), and what interrupted writes have left.
void checkpoint_prune(const std::string& run, int64_t keep);

// The folder with config.json and weights that a user's DIR means: itself (a checkpoint, verified, or a Hugging Face
// folder), or a run folder's newest intact checkpoint. UserError when there is none.
std::string model_folder(const std::string& dir, std::vector<std::string>& notes);
