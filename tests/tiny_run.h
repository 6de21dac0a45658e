// A training run small enough for tests: random bytes, a model of a few thousand parameters, through the programs.
#pragma once
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/files.h"
#include "dataloader/shards.h"
#include "dataloader/tokenizer.h"
#include "run_program.h"
#include "test.h"

// PREFIX_train_000000.bin, PREFIX_val_000000.bin, PREFIX_tokenizer.json of words that repeat, so that there is
// something to learn.
inline void write_tiny_data(const std::string& prefix, size_t tokens = 4000) {
    Random random(11);
    const std::vector<std::string> words = {"the ", "cat ", "sat ", "on ", "a ", "mat. ", "It ", "was\n"};
    for (const char* split : {"train", "val"}) {
        std::vector<uint32_t> shard;
        while (shard.size() < tokens) {
            for (char c : words[static_cast<size_t>(random.below(8))]) shard.push_back(static_cast<unsigned char>(c));
        }
        shard.resize(tokens);
        shard_write(prefix + "_" + split + "_000000.bin", shard, 256);
    }
    tokenizer_save(*tokenizer_create("bytes"), prefix + "_tokenizer.json");
}

// Options of a run in DIR on the data at PREFIX; later options override.
inline std::vector<std::string> tiny_args(const std::string& prefix, const std::string& dir,
                                          std::vector<std::string> more = {}) {
    std::vector<std::string> args = {"--model",    "gpt2-nano", "--layers",  "2",  "--heads", "2",
                                     "--channels", "32",        "--context", "16", "--train", prefix + "_train_*.bin",
                                     "--batch",    "4",         "--steps",   "10", "--lr",    "1e-2",
                                     "--warmup",   "2",         "--out",     dir};
    args.insert(args.end(), more.begin(), more.end());
    return args;
}

inline std::vector<nlohmann::json> read_events(const std::string& dir, const std::string& kind = "") {
    std::vector<nlohmann::json> events;
    std::ifstream file(dir + "/log.jsonl");
    for (std::string line; std::getline(file, line);) {
        nlohmann::json event = nlohmann::json::parse(line);
        if (kind.empty() || event["event"] == kind) events.push_back(event);
    }
    return events;
}

inline std::vector<double> read_losses(const std::string& dir) {
    std::vector<double> losses;
    for (const nlohmann::json& event : read_events(dir, "step")) losses.push_back(event["loss"]);
    return losses;
}

inline int count_lines(const std::string& text) {
    int lines = 0;
    for (char c : text) lines += c == '\n';
    return lines;
}
