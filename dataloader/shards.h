// Token shards, llm.c's .bin: 256 little-endian int32 (magic 20240520, version 1, token count), then uint16 tokens;
// or magic 20240801, version 7, then uint32 tokens. Memory-mapped.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/files.h"

struct Shard {
    std::string path;
    int64_t num_tokens = 0;
    int token_bytes = 2;                    // 2 or 4
    const unsigned char* tokens = nullptr;  // inside the mapping
    std::shared_ptr<void> mapping;
    int token(int64_t i) const {
        return token_bytes == 2 ? reinterpret_cast<const uint16_t*>(tokens)[i]
                                : static_cast<int>(reinterpret_cast<const uint32_t*>(tokens)[i]);
    }
};

// Opens every file the pattern matches, in sorted order, and checks each: magic, version, length, and (scanned once,
// the result cached beside it by size and time) that every token is < vocab. UserError names the file. The cache of
// FOLDER/NAME is FOLDER/.NAME.checked, one line "size mtime_ns largest_token" (-1: no tokens); a folder that cannot be
// written costs a scan per run, nothing else.
std::vector<Shard> shards_open(const std::string& pattern, int vocab);

// Writes one shard (uint16 when vocab <= 65536, else uint32), aside and renamed.
void shard_write(const std::string& path, const std::vector<uint32_t>& tokens, int64_t vocab);

// A shard written piece by piece. Until commit() it lies aside as PATH.tmp, and can be read and cut again.
class ShardWriter {
  public:
    ShardWriter(const std::string& path, int64_t vocab);
    void append(const uint32_t* tokens, int64_t count);
    std::vector<uint32_t> read(int64_t first, int64_t count);
    void truncate(int64_t count);
    int64_t num_tokens() const;
    const std::string& path() const { return file_.path(); }
    void close();  // header written, synced, closed: any number may wait for their commit
    void commit();

  private:
    FileWriter file_;
    int64_t vocab_;
    int token_bytes_;
    bool closed_ = false;
};
