// What a byte-level BPE tokenizer (GPT-2's) is made of, as its files hold it: a vocabulary, encoder.json or vocab.json
// (one object, token to id), and the merges, vocab.bpe or merges.txt (a line "#version: ..." first, then one merge of
// two tokens a line, in the order of their ranks). In both, tokens are strings in which a character stands for a byte:
// printable Latin-1 characters for themselves, U+0100 and up for the other 68 bytes in their order.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

struct BpeVocabulary {
    std::vector<std::string> tokens;  // by id, as in the files; "" where an id is not used
    std::vector<std::pair<std::string, std::string>> merges;
    std::string vocab_source, merges_source;  // the files, to be named when something is wrong in them
};

// True when the folder holds both files, under either name.
bool bpe_folder(const std::string& folder);
// UserError names the file (and the line of a merge) when one is missing, broken, or belongs to another tokenizer.
BpeVocabulary bpe_read(const std::string& folder);
// From and to the fields "vocab" and "merges" of a tokenizer file of ours.
BpeVocabulary bpe_read(const nlohmann::json& file, const std::string& path);
void bpe_write(const BpeVocabulary& vocabulary, nlohmann::ordered_json& file);
// The texts of vocab.json and merges.txt.
std::string bpe_vocab_json(const BpeVocabulary& vocabulary);
std::string bpe_merges_txt(const BpeVocabulary& vocabulary);

// The bytes that a token stands for; one with a character that stands for no byte (a special token) is itself.
std::string bpe_bytes(const std::string& token);
