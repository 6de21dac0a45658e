// Tokenizers: text to tokens and back. Which one made a set of shards is written beside them, in PREFIX_tokenizer.json:
//
//     {"kind": "bytes", "vocab_size": 256, "eot_token": 0, "separator": "<|endoftext|>"}
//     {"kind": "gpt2", ..., "vocab": {"!": 0, ...}, "merges": ["\u0120 t", ...]}      (dataloader/bpe_vocabulary.h)
//     {"kind": "table", "name": "t5-base", ..., "tokens": ["\u0000", ...]}
//
// kind: `bytes` (a token is a byte; token 0, NUL, which text does not use, ends a text), `gpt2` (byte-level BPE), or
// `table`, which has the bytes of every token (U+00xx stands for the byte xx) and can only decode:
// dev/data/hf_shards.py writes it for tokenizers that are not written here. separator: the line that stands for
// eot_token in text files.
#pragma once
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/files.h"

struct Tokenizer {
    virtual ~Tokenizer() = default;
    virtual std::string kind() const = 0;
    virtual int vocab_size() const = 0;
    virtual int eot() const = 0;  // the token that ends a text
    // Appends the tokens of a whole text. Any number of threads may do so at once. Separator lines mean nothing here:
    // see dataloader/prepare.h; `<|endoftext|>` is text like any other. UserError when this tokenizer cannot.
    virtual void encode(std::string_view text, std::vector<int>& tokens) const = 0;
    // A part of a text of more than `whole_text` bytes, cut where cut() says so.
    virtual void encode_part(std::string_view part, std::vector<int>& tokens) const { encode(part, tokens); }
    // The last place at which the text that begins with `text` may be cut, whatever follows, so that the tokens of the
    // parts are those of the whole; 0 when there is none.
    virtual size_t cut(std::string_view text) const { return text.size(); }
    // Appends a token's bytes; a token that is none (padding of the vocabulary) adds nothing.
    virtual void decode(int token, std::string& text) const = 0;
    // Adds what the kind needs to its file.
    virtual void write(nlohmann::ordered_json&) const {}
    // The files by which Hugging Face's libraries know the tokenizer, if they do.
    virtual std::vector<NamedText> huggingface_files() const { return {}; }

    std::vector<int> encode(std::string_view text) const;
    std::string decode(const std::vector<int>& tokens) const;

    std::string separator = "<|endoftext|>";
};
using TokenizerPtr = std::unique_ptr<Tokenizer>;

constexpr size_t whole_text = 1 << 20;  // bytes of the longest text that is always encoded in one

// As given to tokenize --tokenizer: bytes, or gpt2:FOLDER with a GPT-2 tokenizer's two files. UserError for a name that
// is not known, and for a folder that holds no such tokenizer.
TokenizerPtr tokenizer_create(const std::string& name);

// Reads PREFIX_tokenizer.json; UserError when it is not one, or of a kind that this build does not know.
TokenizerPtr tokenizer_load(const std::string& path);
void tokenizer_save(const Tokenizer& tokenizer, const std::string& path);

// The tokenizer file that belongs to a shard: PREFIX_tokenizer.json for PREFIX_train_000000.bin; "" when there is none.
std::string tokenizer_beside(const std::string& shard_path);
// UserError when the file beside a shard is of another tokenizer. A shard without one is taken on trust.
void check_shard_tokenizer(const std::string& shard_path, const Tokenizer& tokenizer);
// The tokenizer of a model's folder: its *tokenizer.json that is ours, or else the files of a Hugging Face GPT-2
// folder. Null when there is none. (Hugging Face's own tokenizer.json has another format and is passed over.) UserError
// for a *_tokenizer.json that is no JSON.
TokenizerPtr tokenizer_in(const std::string& folder);
// What a checkpoint holds of the tokenizer that was loaded from `path` ("": not from a file of ours): that file, and those
// of Hugging Face.
std::vector<NamedText> tokenizer_files(const Tokenizer& tokenizer, const std::string& path);
