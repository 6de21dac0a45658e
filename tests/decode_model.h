// Small models for tests of decoding, with the oracle's recipe of weights.
#pragma once
#include "rule_model.h"

constexpr int CONTEXT = 12;

inline ModelPtr small_model(ModelConfig config, int B, int T, Use use, Recipe recipe = small_weights) {
    ModelPtr model = model_create(config, B, T, use);
    model_write_master(*model, recipe_arena(model_registry(*model), recipe).data(), 1, 0);
    return model;
}

// A case's rule and scheme on a model whose heads are wide enough for both precisions; llama with two query heads per
// key head.
inline ModelConfig widened(ModelConfig config) {
    config.context = CONTEXT;
    config.channels = 32;
    config.heads = 4;
    config.kv_heads = config.arch == Arch::llama ? 2 : 4;
    config.ffn = 48;
    return config;
}
inline ModelConfig plain(Arch arch, int vocab = 11) {
    ModelConfig config;
    config.arch = arch;
    config.layers = 2;
    config.vocab = vocab;
    if (arch == Arch::llama) config.activation = Activation::swiglu, config.bias = config.tie = false;
    return widened(config);
}
