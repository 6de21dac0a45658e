// Batches of (inputs, targets) in the order of the outside contract, a pure function of (settings, position):
// --no-shuffle reads the shards in sequence; --shuffle permutes T-long windows over all shards by (seed, epoch).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "dataloader/shards.h"

struct LoaderPosition {  // what state.json keeps
    int64_t shard = 0, token = 0;   // --no-shuffle: where the next update's first micro-step starts
    int64_t epoch = 0, window = 0;  // --shuffle: the next window in this epoch's order
};

struct Loader {
    std::vector<Shard> shards;
    int B = 0, T = 0, rank = 0, ranks = 1;
    bool shuffle = true;
    uint64_t seed = 0;
    LoaderPosition at;
    std::vector<int64_t> windows_before;  // per shard: windows in the shards before it
    int64_t num_windows = 0;
};

// UserError when the data is too small for one micro-step of all ranks.
Loader loader_create(const std::string& pattern, int vocab, int B, int T, int rank, int ranks, bool shuffle,
                     uint64_t seed);
// This rank's next micro-batch: inputs (B,T), targets (B,T); advances by one micro-step of all ranks.
void loader_next(Loader& loader, int* inputs, int* targets);
// Validation: micro-batch number m of a pass in order from the start (independent of `at`); false when the data is
// exhausted (fewer than B*T+1 tokens left in a shard: the next shard; after the last: false).
bool loader_validation_batch(const Loader& loader, int64_t m, int* inputs, int* targets);
