// Text from a model: one token at a time from the distribution behind the last one.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "model/model.h"

struct SampleSettings {
    double temperature = 1.0;  // 0: always the likeliest token
    int top_k = 0;             // only the k likeliest; 0: all
    double top_p = 1.0;        // only the likeliest that together have at least this probability
    uint64_t seed = 1337;
};

// The token that `uniform` in [0,1) picks from logits (V). Tokens rank by logit, then by number.
int pick_token(const float* logits, int V, const SampleSettings& settings, double uniform);

// Appends `count` tokens to `tokens` (not empty), each seeing at most the last T. Sample number `sample` of a seed is
// always the same text. on_token gets every new token; false ends the sample early.
void generate(Model& model, std::vector<int>& tokens, int count, int T, const SampleSettings& settings, uint64_t sample,
              const std::function<bool(int)>& on_token);
