// Text from a model: one token at a time from the distribution behind the last one.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "dataloader/tokenizer.h"
#include "model/model.h"

struct SampleSettings {
    double temperature = 1.0;  // 0: always the likeliest token
    int top_k = 0;             // only the k likeliest; 0: all
    double top_p = 1.0;        // only the likeliest that together have at least this probability
    uint64_t seed = 1337;
};

// The token that `uniform` in [0,1) picks from logits (V). Tokens rank by logit, then by number. As in Hugging Face's
// generate: temperature first, then top-k, and top-p keeps the fewest of what that left whose share of its probability
// reaches P. UserError when a logit is no number.
int pick_token(const float* logits, int V, const SampleSettings& settings, double uniform);

// UserError for a token that a model with this vocabulary does not have; `option` is where they came from.
void check_tokens(const std::vector<int>& tokens, int vocab, const char* option);
// Tokens of --prompt, checked; of an empty one the end-of-text token, behind which a new text begins.
std::vector<int> prompt_tokens(const Tokenizer& tokenizer, std::string_view prompt, int vocab);

// Continues `prompt` (not empty) by `count` tokens in each of the samples first .. first+num-1, several at a time.
// Sample number n of a seed is the same text alone and among others (up to the rounding of products with more rows).
//
// The model reads the last T tokens of the prompt. When T tokens are in its cache, it forgets them and reads the last
// T/2 anew: moving the window by one token would change every position, and with it everything in the cache. So each
// token sees at least the last T/2 and at most the last T.
//
// on_token(i, token) gets every new token of sample first+i; false ends that sample.
void generate(Model& model, const std::vector<int>& prompt, int count, int T, const SampleSettings& settings,
              uint64_t first, int num, const std::function<bool(int, int)>& on_token);

// How many of the bytes come before a character of UTF-8 that has begun and may still be completed. What is no UTF-8
// counts as complete.
size_t complete_utf8(std::string_view text);
