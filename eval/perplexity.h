// Perplexity of a text.
//
// Every token of the text is predicted exactly once. A window holds T tokens; the first token of the text is predicted
// from the tokenizer's end-of-text token before it. Windows follow each other without overlap (stride T), or, with a
// stride S < T, each moves on by S tokens and only the S tokens that no earlier window has predicted count, each with
// at least T-S tokens of context before it (but near the beginning).
//
// With whole chunks it is done as in nanoGPT and MLS-Bench: inputs tokens[i : i+T], targets tokens[i+1 : i+T+1] for i =
// 0, T, 2T, ...; nothing stands before the first token, which is not predicted, and what fills no whole chunk is
// dropped. Their mean of the chunks' losses is the mean over tokens, since all chunks are of one length.
//
//   token perplexity  exp(NLL / tokens)         word perplexity  exp(NLL / words), words separated by white space,
//   bits per byte     NLL / (ln 2 * bytes)                        separator lines not counted
//   NLL: summed over the predicted tokens, in nats; words and bytes: of the text they stand for, a separator with its
//   line and the newline that ends the text before it
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "dataloader/tokenizer.h"
#include "parallel/comm.h"

struct Model;

struct Perplexity {
    double nll = 0;
    int64_t tokens = 0, words = 0, bytes = 0;
    int64_t dropped = 0;  // whole chunks: tokens that were not predicted
    double ppl() const;
    double word_ppl() const;
    double bits_per_byte() const;
};

// A text as tokens: separator lines become the end-of-text token, as in the program tokenize.
struct TextTokens {
    std::string path;
    std::vector<int> tokens;
    int64_t words = 0, bytes = 0;
};
// The file is plain text; or JSON lines with the string "text", each a document, with the end-of-text token between two
// (known by the first line, or by a name that ends in .jsonl); or a token shard of this tokenizer (a regular file,
// known by its first bytes), whose words and bytes are found by decoding. UserError when the file cannot be read, holds
// no text, or holds a token that the vocabulary has not; names file and line.
TextTokens read_text_tokens(const std::string& path, const Tokenizer& tokenizer, int vocab);

struct Windows {
    int B, T;        // of the batches to run (the sizes of model_create)
    int stride = 0;  // from 1 to T; 0: T
    bool whole_chunks = false;
};
// Ranks take turns at the batches; the sum does not depend on their number. comm: null is one rank. UserError for a
// stride above T, and for a text that fills no whole chunk.
Perplexity perplexity(Model& model, const TextTokens& text, const Tokenizer& tokenizer, const Windows& windows,
                      Comm* comm);
