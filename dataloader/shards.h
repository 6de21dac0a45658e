// Token shards, llm.c's .bin: 256 little-endian int32 (magic 20240520, version 1, token count), then uint16 tokens;
// or magic 20240801, version 7, then uint32 tokens. Memory-mapped.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

struct Shard {
    std::string path;
    int64_t num_tokens = 0;
    int token_bytes = 2;  // 2 or 4
    const unsigned char* tokens = nullptr;  // inside the mapping
    std::shared_ptr<void> mapping;
    int token(int64_t i) const {
        return token_bytes == 2 ? reinterpret_cast<const uint16_t*>(tokens)[i]
                                : static_cast<int>(reinterpret_cast<const uint32_t*>(tokens)[i]);
    }
};

// Opens every file the pattern matches, in sorted order, and checks each: magic, version, length, and (scanned once, the
// result cached beside it by size and time) that every token is < vocab. UserError names the file.
std::vector<Shard> shards_open(const std::string& pattern, int vocab);

// Writes one shard (uint16 when vocab <= 65536, else uint32), aside and renamed.
void shard_write(const std::string& path, const std::vector<uint32_t>& tokens, int64_t vocab);
