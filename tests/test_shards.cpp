// Token shards: both formats, every check by name, and the cached scan.
#include <fcntl.h>
#include <sys/stat.h>

#include <cstring>

#include "checkpoint/files.h"
#include "dataloader/shards.h"
#include "temp_folder.h"
#include "test.h"

namespace {

std::string shard_bytes(int32_t magic, int32_t version, int32_t count, const std::string& tokens) {
    std::string bytes(1024, '\0');
    int32_t header[3] = {magic, version, count};
    memcpy(bytes.data(), header, 12);
    return bytes + tokens;
}

void set_age(const std::string& path, int seconds) {
    timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    timespec times[2] = {now, now};
    times[1].tv_sec -= seconds;
    utimensat(AT_FDCWD, path.c_str(), times, 0);
}

std::vector<uint32_t> tokens_of(const Shard& shard) {
    std::vector<uint32_t> tokens;
    for (int64_t i = 0; i < shard.num_tokens; i++) tokens.push_back(static_cast<uint32_t>(shard.token(i)));
    return tokens;
}

}  // namespace

TEST_CASE("shards: both formats read back", "[shards]") {
    TempFolder folder;
    std::vector<uint32_t> small = {0, 50256, 65535, 7}, large = {0, 128255, 65536};
    shard_write(folder / "a.bin", small, 65536);
    shard_write(folder / "b.bin", large, 128256);
    shard_write(folder / "c.bin", {}, 256);
    REQUIRE(read_text(folder / "a.bin") == shard_bytes(20240520, 1, 4, std::string("\0\0\x50\xC4\xFF\xFF\7\0", 8)));
    REQUIRE(read_text(folder / "b.bin") ==
            shard_bytes(20240801, 7, 3, std::string("\0\0\0\0\xFF\xF4\1\0\0\0\1\0", 12)));
    std::vector<Shard> shards = shards_open(folder / "*.bin", 128256);
    REQUIRE(shards.size() == 3);
    REQUIRE(tokens_of(shards[0]) == small);
    REQUIRE(tokens_of(shards[1]) == large);
    REQUIRE(shards[2].num_tokens == 0);
    REQUIRE(shards[1].path == folder / "b.bin");
}

TEST_CASE("shards: faults are refused by name, with what to do", "[shards]") {
    TempFolder folder;
    std::string path = folder / "x.bin";
    auto says = [&](const std::string& bytes, const std::string& words, int vocab = 256) {
        put_bytes(path, bytes);
        std::string message = user_error_of([&] { shards_open(folder / "*.bin", vocab); });
        INFO(message);
        REQUIRE(message.rfind(path + ": ", 0) == 0);
        REQUIRE(message.find(words) != std::string::npos);
        REQUIRE(message.find("; ") != std::string::npos);
    };
    std::string four("\1\0\2\0\3\0\4\0", 8);
    says("", "has 0 bytes");
    says(std::string(1023, '\0'), "has 1023 bytes");
    says(std::string(2000, '\0'), "not a token shard");
    says("{\"kind\": \"bytes\"}" + std::string(2000, ' '), "not a token shard");
    says(shard_bytes(20240520, 7, 4, four), "of version 7 where 1 is known");
    says(shard_bytes(20240801, 1, 2, four), "of version 1 where 7 is known");
    says(shard_bytes(20240520, 1, 5, four), "(5 tokens) needs 1034");
    says(shard_bytes(20240520, 1, 3, four), "(3 tokens) needs 1030");
    says(shard_bytes(20240520, 1, -4, four), "is damaged (its header says -4 tokens)");
    says(shard_bytes(20240520, 1, 4, four + "x"), "has 1033 bytes");
    says(shard_bytes(20240520, 1, 4, four), "holds token 4, but the vocabulary has 4", 4);
    says(shard_bytes(20240801, 7, 1, "\xFF\xFF\xFF\xFF"), "holds token 4294967295", 50257);
    put_bytes(path, shard_bytes(20240520, 1, 4, four));
    REQUIRE(shards_open(path, 5).size() == 1);

    std::string none = user_error_of([&] { shards_open(folder / "y*.bin", 256); });
    REQUIRE(none == folder / "y*.bin" + ": no token shard matches; check the path, or make shards with tokenize");
    REQUIRE(user_error_of([&] { shards_open(folder.path, 256); }).find("is a folder") != std::string::npos);
}

TEST_CASE("shards: the scan is cached beside the shard, by size and time", "[shards]") {
    TempFolder folder;
    std::string path = folder / "x.bin", cache = folder / ".x.bin.checked";
    shard_write(path, {1, 2, 200}, 256);
    shards_open(path, 256);
    REQUIRE_FALSE(file_exists(cache));  // written just now: its time may not change with the next write
    set_age(path, 10);
    shards_open(path, 256);
    REQUIRE(file_exists(cache));
    std::string text = read_text(cache);
    struct stat info;
    stat(path.c_str(), &info);
    REQUIRE(text == format("1030 %lld 200\n", static_cast<long long>(info.st_mtim.tv_sec) * 1000000000 +
                                                  static_cast<long long>(info.st_mtim.tv_nsec)));
    // It is believed while size and time fit, and serves every vocabulary.
    REQUIRE_FALSE(user_error_of([&] { shards_open(path, 200); }).empty());
    write_text_atomic(cache, text.substr(0, text.size() - 4) + "300\n");
    REQUIRE(user_error_of([&] { shards_open(path, 256); }).find("holds token 300") != std::string::npos);
    set_age(path, 20);
    REQUIRE(user_error_of([&] { shards_open(path, 256); }).empty());
    REQUIRE(read_text(cache) != text);
    // Whatever else is in it counts for nothing.
    for (const char* rubbish : {"", "x", "1030", "1030 5 3", "99999999999999999999999 1 1\n"}) {
        put_bytes(cache, rubbish);
        REQUIRE(user_error_of([&] { shards_open(path, 256); }).empty());
        REQUIRE(user_error_of([&] { shards_open(path, 200); }).find("token 200") != std::string::npos);
    }
    // A cache that cannot be written is no fault: here a folder stands in its place.
    remove(cache.c_str());
    make_folders(cache + "/occupied");
    REQUIRE(user_error_of([&] { shards_open(path, 256); }).empty());
    REQUIRE(list_folder(folder.path) == std::vector<std::string>{".x.bin.checked", "x.bin"});
}

TEST_CASE("shards: the scan finds one bad token anywhere in a large shard", "[shards]") {
    TempFolder folder;
    int n = 9 << 20;  // enough for several threads
    for (int bytes : {2, 4}) {
        for (int at : {0, n / 2 - 1, n / 2, n - 1}) {
            std::string tokens(static_cast<size_t>(n) * static_cast<size_t>(bytes), '\0');
            tokens[static_cast<size_t>(at) * static_cast<size_t>(bytes) + 1] = 2;  // 512
            put_bytes(folder / "x.bin", shard_bytes(bytes == 2 ? 20240520 : 20240801, bytes == 2 ? 1 : 7, n, tokens));
            REQUIRE(user_error_of([&] { shards_open(folder / "x.bin", 512); }).find("token 512") != std::string::npos);
        }
    }
}

TEST_CASE("shards: random damage never crashes", "[shards]") {
    TempFolder folder;
    std::string path = folder / "x.bin";
    std::vector<uint32_t> tokens(50, 9);
    shard_write(path, tokens, 256);
    std::string bytes = read_text(path);
    Random random(5);
    for (int round = 0; round < 1000; round++) {
        std::string damaged = bytes;
        if (random.below(2)) damaged.resize(static_cast<size_t>(random.below(static_cast<int>(bytes.size()))));
        for (int flips = random.below(3); flips > 0 && damaged.size() > 12; flips--) {
            damaged[static_cast<size_t>(random.below(12))] = static_cast<char>(random.below(256));
        }
        put_bytes(path, damaged);
        std::string message = user_error_of([&] {
            for (const Shard& shard : shards_open(path, 256)) REQUIRE(tokens_of(shard).size() == 50);
        });
        if (damaged != bytes) REQUIRE((message.rfind(path, 0) == 0 || damaged.substr(0, 12) == bytes.substr(0, 12)));
    }
}

TEST_CASE("shards: a writer's tokens can be read back, cut, and written on", "[shards]") {
    TempFolder folder;
    for (int64_t vocab : {256, 100000}) {
        std::string path = folder / "w.bin";
        ShardWriter writer(path, vocab);
        std::vector<uint32_t> tokens = {5, 6, 7, 8, 9};
        writer.append(tokens.data(), 5);
        writer.close();
        REQUIRE(writer.read(1, 3) == std::vector<uint32_t>{6, 7, 8});
        writer.truncate(2);
        writer.append(tokens.data() + 4, 1);
        REQUIRE(writer.num_tokens() == 3);
        writer.close();
        REQUIRE(writer.read(0, 3) == std::vector<uint32_t>{5, 6, 9});
        writer.commit();
        REQUIRE(tokens_of(shards_open(path, static_cast<int>(vocab)).at(0)) == std::vector<uint32_t>{5, 6, 9});
    }
}
