// Perplexity of a text file.
//
// Every token of the file is predicted exactly once. A window holds the model's context of T tokens; the first token of
// the file is predicted from the tokenizer's end-of-text token before it. Windows follow each other without overlap
// (stride T), or, with a stride S < T, each moves on by S tokens and only the S tokens that no earlier window has
// predicted count, each with at least T-S tokens of context before it (but near the beginning).
//
//   token perplexity  exp(NLL / tokens)         word perplexity  exp(NLL / words), words separated by white space,
//   bits per byte     NLL / (ln 2 * bytes)                        separator lines not counted
//   NLL: summed over all tokens, in nats; bytes: of the file as it is
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "dataloader/tokenizer.h"

struct Model;

struct Perplexity {
    double nll = 0;
    int64_t tokens = 0, words = 0, bytes = 0;
    double ppl() const;
    double word_ppl() const;
    double bits_per_byte() const;
};

// A text as tokens: separator lines become the end-of-text token, as in the program tokenize.
struct TextTokens {
    std::vector<int> tokens;
    int64_t words = 0, bytes = 0;
};
// UserError when the file cannot be read, is empty, or holds a token that the vocabulary has not.
TextTokens read_text_tokens(const std::string& path, const Tokenizer& tokenizer, int vocab);

// B, T: of the batches to run (the sizes of model_create); stride 0: T. UserError for a stride above T.
Perplexity perplexity(Model& model, const TextTokens& text, int eot, int B, int T, int stride);
