// Tokenizers: text to tokens and back. Which one made a set of shards is written beside them, in PREFIX_tokenizer.json:
//
//     {"kind": "bytes", "vocab_size": 256, "eot_token": 0, "separator": "<|endoftext|>"}
//
// kind: `bytes` (a token is a byte; token 0, NUL, which text does not use, ends a text). separator: the line that
// stands for eot_token in text files.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

struct Tokenizer {
    virtual ~Tokenizer() = default;
    virtual std::string kind() const = 0;
    virtual int vocab_size() const = 0;
    virtual int eot() const = 0;  // the token that ends a text
    // Appends the tokens of `text`. Encoding text piece by piece, cut at ends of lines or documents, is the caller's
    // risk for every kind but `bytes`. Separator lines mean nothing here: see dataloader/prepare.h.
    virtual void encode(std::string_view text, std::vector<int>& tokens) const = 0;
    // Appends a token's bytes; a token that is none (padding of the vocabulary) adds nothing.
    virtual void decode(int token, std::string& text) const = 0;

    std::vector<int> encode(std::string_view text) const;
    std::string decode(const std::vector<int>& tokens) const;

    std::string separator = "<|endoftext|>";
};
using TokenizerPtr = std::unique_ptr<Tokenizer>;

// As given to tokenize --tokenizer. UserError for a name that is not known.
TokenizerPtr tokenizer_create(const std::string& name);

// Reads PREFIX_tokenizer.json; UserError when it is not one, or of a kind that this build does not know.
TokenizerPtr tokenizer_load(const std::string& path);
void tokenizer_save(const Tokenizer& tokenizer, const std::string& path);

// The tokenizer file that belongs to a shard: PREFIX_tokenizer.json for PREFIX_train_000000.bin; "" when there is none.
std::string tokenizer_beside(const std::string& shard_path);
// The tokenizer file in a folder (a checkpoint's): the one *tokenizer.json that is ours; "" when there is none.
// (Hugging Face folders hold a tokenizer.json of another format, which is passed over.)
std::string tokenizer_in(const std::string& folder);
