// A trained model for evaluation and sampling.
#pragma once
#include <string>

#include "dataloader/loader.h"
#include "dataloader/tokenizer.h"
#include "model/model.h"

struct LoadedModel {
    ModelPtr model;
    TokenizerPtr tokenizer;
    std::string folder;  // where it was found
};
// dir: a checkpoint, run or Hugging Face folder. B: sequences per batch, of the model's context each. UserError when
// there is no such model, no tokenizer beside it that could be its own, or no room for it. Notes worth knowing are printed on stdout.
LoadedModel load_model(const std::string& dir, int B);

// The tokenizer of a training run, null when none is known: that of the shards, in `file` beside them, or else that of the
// trained model in `folder` ("": a fresh one), and `file` is "". UserError when any of these are different tokenizers.
TokenizerPtr training_tokenizer(const Loader& train, const Loader& val, const std::string& folder, std::string& file);
