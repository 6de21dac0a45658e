// Batches of (inputs, targets) in the order of the outside contract, a pure function of (settings, position):
// --no-shuffle reads the shards in sequence; --shuffle permutes T-long windows over all shards by (seed, epoch).
//
// Shuffled: window w of a shard is its tokens [w*T, w*T+T] (the last one only a target), so a shard of n tokens has
// (n-1)/T of them. A micro-step of all ranks takes the next ranks*B windows of the epoch's order, rank r the B at r*B;
// where an epoch ends within a micro-step, the next epoch's order goes on. So the order knows nothing of ranks.
//
// Mixed: every corpus has an order and epochs of its own, and each next window comes from the corpus that is furthest
// behind its share of the windows so far. So the shares hold at every step to within one window.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "dataloader/shards.h"

struct WindowPosition {
    int64_t epoch = 0, window = 0;  // the next window in this epoch's order
    bool operator==(const WindowPosition&) const = default;
};
struct LoaderPosition {                   // what state.json keeps
    int64_t shard = 0, token = 0;         // --no-shuffle: where the next micro-step starts, if enough is left there
    std::vector<WindowPosition> corpora;  // --shuffle: of each corpus; none: the beginning
    bool operator==(const LoaderPosition&) const = default;
};

struct Corpus {
    std::string pattern;  // its shards
    double share = 1;     // of the windows
    std::vector<Shard> shards = {};
    std::vector<int64_t> windows_before = {};  // per shard: windows in the shards before it
    int64_t num_windows = 0;
};

struct LoaderSettings {
    int vocab = 0, B = 0, T = 0, rank = 0, ranks = 1;
    bool shuffle = true;
    uint64_t seed = 0;
    // Part of the windows held out of training: the last ones of a shard, spread evenly over the shards. The loader
    // reads all windows but those, or with `held_out` those alone.
    double hold_out = 0;
    bool held_out = false;
};

struct Loader {
    LoaderSettings settings;
    std::vector<Corpus> corpora;
    LoaderPosition at;
    int64_t num_tokens() const;  // in all shards
};

// corpora: patterns and shares (which sum to 1); more than one needs shuffle. UserError when the data is too small for
// one micro-step of all ranks. A loader for validation is one with rank 0 of 1 and shuffle off: batches are numbered
// over all ranks, which share them out among themselves; it may be too small for a batch.
Loader loader_create(const std::vector<Corpus>& corpora, const LoaderSettings& settings);
// Goes on from a saved position. UserError when it does not lie in this data (the shards or T have changed).
void loader_seek(Loader& loader, const LoaderPosition& at);
// This rank's next micro-batch: inputs (B,T), targets (B,T); advances by one micro-step of all ranks.
void loader_next(Loader& loader, int* inputs, int* targets);
// Validation: micro-batch number m of a pass in order from the start (independent of `at`); false when the data is
// exhausted (fewer than B*T+1 tokens left in a shard: the next shard; after the last: false).
bool loader_validation_batch(const Loader& loader, int64_t m, int* inputs, int* targets);
int64_t loader_validation_batches(const Loader& loader);  // in a whole pass
