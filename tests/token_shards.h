// Tokens of shards, for tests of the tokenizer `bytes`.
#pragma once
#include <string>
#include <vector>

#include "checkpoint/files.h"
#include "dataloader/shards.h"

using Tokens = std::vector<int>;

inline Tokens bytes_of(const std::string& text) {
    Tokens tokens;
    for (char c : text) tokens.push_back(static_cast<unsigned char>(c));
    return tokens;
}

inline Tokens read_shards(const std::string& pattern) {
    Tokens tokens;
    for (const std::string& path : glob_files(pattern)) {
        for (const Shard& shard : shards_open(path, 256)) {
            for (int64_t i = 0; i < shard.num_tokens; i++) tokens.push_back(shard.token(i));
        }
    }
    return tokens;
}
