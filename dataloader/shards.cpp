#include "dataloader/shards.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstdio>
#include <cstring>
#include <thread>

#include "kernels/error.h"

namespace {

constexpr int header_ints = 256;
constexpr size_t header_bytes = header_ints * 4;
constexpr int32_t magic16 = 20240520, version16 = 1, magic32 = 20240801, version32 = 7;

template <class Token>
int64_t largest_in(const unsigned char* tokens, int64_t first, int64_t last) {
    const Token* from = reinterpret_cast<const Token*>(tokens);
    Token largest = 0;
    for (int64_t i = first; i < last; i++) largest = from[i] > largest ? from[i] : largest;
    return static_cast<int64_t>(largest);
}

// The largest token, -1 when there is none; on all cores when there is enough to do.
int64_t largest_token(const Shard& shard) {
    if (shard.num_tokens == 0) return -1;
    auto scan = shard.token_bytes == 2 ? largest_in<uint16_t> : largest_in<uint32_t>;
    constexpr int64_t worth_a_thread = 4 << 20;
    int64_t cores = std::clamp<int64_t>(std::thread::hardware_concurrency(), 1, 32);
    int64_t parts = std::clamp<int64_t>(shard.num_tokens / worth_a_thread, 1, cores);
    std::vector<int64_t> found(static_cast<size_t>(parts), 0);
    std::vector<std::thread> threads;
    auto part = [&](int64_t p) {
        found[static_cast<size_t>(p)] =
            scan(shard.tokens, shard.num_tokens * p / parts, shard.num_tokens * (p + 1) / parts);
    };
    for (int64_t p = 1; p < parts; p++) threads.emplace_back(part, p);
    part(0);
    for (std::thread& thread : threads) thread.join();
    return *std::max_element(found.begin(), found.end());
}

std::string cache_path(const std::string& path) {
    return parent_folder(path) + "/." + base_name(path) + ".checked";
}

bool cached_largest(const std::string& path, const MappedFile& file, int64_t& largest) {
    FILE* cache = fopen(cache_path(path).c_str(), "r");
    if (!cache) return false;
    long long size = 0, time = 0, token = 0;
    char newline = 0;
    bool whole = fscanf(cache, "%lld %lld %lld%c", &size, &time, &token, &newline) == 4 && newline == '\n';
    fclose(cache);
    if (!whole || size != static_cast<long long>(file.size) || time != file.mtime_ns) return false;
    largest = token;
    return true;
}

void cache_largest(const std::string& path, const MappedFile& file, int64_t largest) {
    // A file still being changed can keep its time: the clock that stamps files ticks only every few milliseconds.
    auto now = std::chrono::system_clock::now().time_since_epoch();
    int64_t age = std::chrono::duration_cast<std::chrono::nanoseconds>(now).count() - file.mtime_ns;
    if (age < 50'000'000) return;
    // Every rank of a run may do this at once, so each writes aside under a name of its own. Failing is no fault.
    std::string target = cache_path(path), aside = target + format(".%d.tmp", static_cast<int>(getpid()));
    FILE* cache = fopen(aside.c_str(), "w");
    if (!cache) return;
    bool fine = fprintf(cache, "%lld %lld %lld\n", static_cast<long long>(file.size),
                        static_cast<long long>(file.mtime_ns), static_cast<long long>(largest)) > 0;
    fine = fclose(cache) == 0 && fine;
    if (!fine || rename(aside.c_str(), target.c_str()) != 0) remove(aside.c_str());
}

Shard open_shard(const std::string& path, int vocab) {
    if (folder_exists(path)) {
        throw user_error("%s: is a folder; name the shards in it, as in '%s/*.bin'", path.c_str(), path.c_str());
    }
    MappedFile file = map_file(path);
    int32_t header[header_ints];
    if (file.size < header_bytes) {
        throw user_error("%s: has %zu bytes, too few for a token shard; make shards with tokenize", path.c_str(),
                         file.size);
    }
    memcpy(header, file.data, header_bytes);
    int32_t magic = header[0], version = header[1], count = header[2];
    if (magic != magic16 && magic != magic32) {
        throw user_error("%s: is not a token shard (its first number is %d, not %d or %d); make shards with tokenize",
                         path.c_str(), magic, magic16, magic32);
    }
    int32_t expected = magic == magic16 ? version16 : version32;
    if (version != expected) {
        throw user_error("%s: is a token shard of version %d where %d is known; make it again with tokenize",
                         path.c_str(), version, expected);
    }
    Shard shard;
    shard.path = path;
    shard.num_tokens = count;
    shard.token_bytes = magic == magic16 ? 2 : 4;
    shard.tokens = file.data + header_bytes;
    shard.mapping = file.owner;
    int64_t needed = static_cast<int64_t>(header_bytes) + shard.num_tokens * shard.token_bytes;
    if (count < 0)
        throw user_error("%s: is damaged (its header says %d tokens); fetch or make it again", path.c_str(), count);
    if (needed != static_cast<int64_t>(file.size)) {
        throw user_error(
            "%s: has %zu bytes where its header (%d tokens) needs %lld; it was cut short or damaged, fetch "
            "or make it again",
            path.c_str(), file.size, count, static_cast<long long>(needed));
    }
    int64_t largest = -1;
    if (!cached_largest(path, file, largest)) {
        largest = largest_token(shard);
        cache_largest(path, file, largest);
    }
    if (largest >= vocab) {
        throw user_error(
            "%s: holds token %lld, but the vocabulary has %d; use shards of the model's tokenizer or set "
            "--vocab",
            path.c_str(), static_cast<long long>(largest), vocab);
    }
    return shard;
}

}  // namespace

std::vector<Shard> shards_open(const std::string& pattern, int vocab) {
    std::vector<std::string> paths = glob_files(pattern);
    if (paths.empty()) {
        throw user_error("%s: no token shard matches; check the path, or make shards with tokenize", pattern.c_str());
    }
    std::vector<Shard> shards;
    shards.reserve(paths.size());
    for (const std::string& path : paths) shards.push_back(open_shard(path, vocab));
    return shards;
}

void shard_write(const std::string& path, const std::vector<uint32_t>& tokens, int64_t vocab) {
    ShardWriter shard(path, vocab);
    shard.append(tokens.data(), static_cast<int64_t>(tokens.size()));
    shard.commit();
}

ShardWriter::ShardWriter(const std::string& path, int64_t vocab)
    : file_(path), vocab_(vocab), token_bytes_(vocab <= 65536 ? 2 : 4) {
    char zeros[header_bytes] = {};
    file_.write(zeros, header_bytes);
}

int64_t ShardWriter::num_tokens() const {
    return (file_.size() - static_cast<int64_t>(header_bytes)) / token_bytes_;
}

void ShardWriter::append(const uint32_t* tokens, int64_t count) {
    CHECK(num_tokens() + count <= INT32_MAX);
    closed_ = false;
    for (int64_t i = 0; i < count; i++) CHECK(static_cast<int64_t>(tokens[i]) < vocab_);
    if (token_bytes_ == 4) {
        file_.write(tokens, static_cast<size_t>(count) * 4);
        return;
    }
    std::vector<uint16_t> narrow(tokens, tokens + count);
    file_.write(narrow.data(), narrow.size() * 2);
}

std::vector<uint32_t> ShardWriter::read(int64_t first, int64_t count) {
    CHECK(first >= 0 && count >= 0 && first + count <= num_tokens());
    int64_t offset = static_cast<int64_t>(header_bytes) + first * token_bytes_;
    std::vector<uint32_t> tokens(static_cast<size_t>(count));
    if (token_bytes_ == 4) {
        file_.read_at(offset, tokens.data(), tokens.size() * 4);
        return tokens;
    }
    std::vector<uint16_t> narrow(tokens.size());
    file_.read_at(offset, narrow.data(), narrow.size() * 2);
    std::copy(narrow.begin(), narrow.end(), tokens.begin());
    return tokens;
}

void ShardWriter::truncate(int64_t count) {
    CHECK(count >= 0 && count <= num_tokens());
    closed_ = false;
    file_.truncate(static_cast<int64_t>(header_bytes) + count * token_bytes_);
}

void ShardWriter::close() {
    if (closed_) return file_.close();  // open again, maybe, for reading
    int32_t header[3] = {token_bytes_ == 2 ? magic16 : magic32, token_bytes_ == 2 ? version16 : version32,
                         static_cast<int32_t>(num_tokens())};
    file_.write_at(0, header, sizeof header);
    file_.close();
    closed_ = true;
}

void ShardWriter::commit() {
    close();
    file_.commit();
}
