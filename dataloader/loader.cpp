#include "dataloader/loader.h"

#include <algorithm>
#include <bit>

#include "kernels/error.h"

namespace {

uint64_t mix(uint64_t z) {  // splitmix64's finaliser
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// A permutation of [0, n) by keys alone, no array of n: swap-or-not (Hoang, Morris, Rogaway 2012). A round with key K
// pairs every x with K - x mod n, and a hash of the pair's larger member says whether the two change places. The
// proof wants some 6 log2(n) rounds.
struct Permutation {
    uint64_t n;
    std::vector<uint64_t> pivots, keys;

    Permutation(uint64_t count, uint64_t seed, uint64_t epoch) : n(count) {
        constexpr uint64_t step = 0x9E3779B97F4A7C15ull;
        uint64_t base = mix(mix(seed + step) + (epoch + 1) * step);
        int rounds = 6 * std::bit_width(n) + 24;
        for (int r = 0; r < rounds; r++) {
            uint64_t key = mix(base + static_cast<uint64_t>(r + 1) * step);
            keys.push_back(key);
            pivots.push_back(static_cast<uint64_t>(static_cast<unsigned __int128>(mix(key + step)) * n >> 64));
        }
    }

    uint64_t operator()(uint64_t x) const {
        for (size_t r = 0; r < keys.size(); r++) {
            uint64_t partner = pivots[r] >= x ? pivots[r] - x : pivots[r] + n - x;
            if (mix(keys[r] ^ std::max(x, partner)) >> 63) x = partner;
        }
        return x;
    }
};

// Inputs [first, first+count) and the targets one further on.
void read_tokens(const Shard& shard, int64_t first, int64_t count, int* inputs, int* targets) {
    CHECK(first >= 0 && first + count < shard.num_tokens);
    for (int64_t i = 0; i < count; i++) inputs[i] = shard.token(first + i);
    for (int64_t i = 0; i < count; i++) targets[i] = shard.token(first + i + 1);
}

int64_t batch_tokens(const Loader& loader) {
    return static_cast<int64_t>(loader.B) * loader.T;
}

void next_in_order(Loader& loader, int* inputs, int* targets) {
    int64_t step = loader.ranks * batch_tokens(loader);
    LoaderPosition& at = loader.at;
    // Ends: loader_create saw a shard that is large enough.
    while (loader.shards[static_cast<size_t>(at.shard)].num_tokens - at.token < step + 1) {
        at.shard = (at.shard + 1) % static_cast<int64_t>(loader.shards.size());
        at.token = 0;
    }
    read_tokens(loader.shards[static_cast<size_t>(at.shard)], at.token + loader.rank * batch_tokens(loader),
                batch_tokens(loader), inputs, targets);
    at.token += step;
}

void next_shuffled(Loader& loader, int* inputs, int* targets) {
    LoaderPosition& at = loader.at;
    auto forward = [&](LoaderPosition from, int64_t windows) {
        from.window += windows;
        from.epoch += from.window / loader.num_windows;
        from.window %= loader.num_windows;
        return from;
    };
    LoaderPosition mine = forward(at, static_cast<int64_t>(loader.rank) * loader.B);
    Permutation order(static_cast<uint64_t>(loader.num_windows), loader.seed, static_cast<uint64_t>(mine.epoch));
    for (int64_t b = 0; b < loader.B; b++) {
        int64_t window = static_cast<int64_t>(order(static_cast<uint64_t>(mine.window)));
        auto after = std::upper_bound(loader.windows_before.begin(), loader.windows_before.end(), window);
        size_t shard = static_cast<size_t>(after - loader.windows_before.begin()) - 1;
        read_tokens(loader.shards[shard], (window - loader.windows_before[shard]) * loader.T, loader.T,
                    inputs + b * loader.T, targets + b * loader.T);
        int64_t epoch = mine.epoch;
        mine = forward(mine, 1);
        if (mine.epoch != epoch) order = Permutation(order.n, loader.seed, static_cast<uint64_t>(mine.epoch));
    }
    at = forward(at, static_cast<int64_t>(loader.ranks) * loader.B);
}

int64_t validation_batches_in(const Loader& loader, const Shard& shard) {
    return shard.num_tokens > 0 ? (shard.num_tokens - 1) / batch_tokens(loader) : 0;
}

}  // namespace

Loader loader_create(const std::string& pattern, int vocab, int B, int T, int rank, int ranks, bool shuffle,
                     uint64_t seed) {
    CHECK(B > 0 && T > 0 && ranks > 0 && rank >= 0 && rank < ranks);
    Loader loader;
    loader.shards = shards_open(pattern, vocab);
    loader.B = B;
    loader.T = T;
    loader.rank = rank;
    loader.ranks = ranks;
    loader.shuffle = shuffle;
    loader.seed = seed;
    int64_t longest = 0;
    for (const Shard& shard : loader.shards) {
        loader.windows_before.push_back(loader.num_windows);
        if (shard.num_tokens > 0) loader.num_windows += (shard.num_tokens - 1) / T;
        longest = std::max(longest, shard.num_tokens);
    }
    int64_t windows = static_cast<int64_t>(ranks) * B, needed = windows * T + 1;
    if (shuffle && loader.num_windows < windows) {
        throw user_error(
            "%s: has %lld windows of %d tokens, one step needs %lld (ranks %d, batch %d); use more data or a "
            "smaller --batch or --seq",
            pattern.c_str(), static_cast<long long>(loader.num_windows), T, static_cast<long long>(windows), ranks, B);
    }
    if (!shuffle && longest < needed) {
        throw user_error(
            "%s: the longest shard has %lld tokens, one step needs %lld (ranks %d, batch %d, length %d); use "
            "more data or a smaller --batch or --seq",
            pattern.c_str(), static_cast<long long>(longest), static_cast<long long>(needed), ranks, B, T);
    }
    return loader;
}

void loader_seek(Loader& loader, const LoaderPosition& at) {
    bool inside = at.shard >= 0 && at.shard < static_cast<int64_t>(loader.shards.size()) && at.token >= 0 &&
                  at.token <= loader.shards[static_cast<size_t>(at.shard)].num_tokens;
    if (loader.shuffle) inside = at.epoch >= 0 && at.window >= 0 && at.window < loader.num_windows;
    if (!inside) {
        throw user_error(
            "the saved data position lies outside of %s and the %zu shards with it; resume with the same "
            "--train and --seq",
            loader.shards[0].path.c_str(), loader.shards.size() - 1);
    }
    loader.at = at;
}

void loader_next(Loader& loader, int* inputs, int* targets) {
    if (loader.shuffle) {
        next_shuffled(loader, inputs, targets);
    } else {
        next_in_order(loader, inputs, targets);
    }
}

bool loader_validation_batch(const Loader& loader, int64_t m, int* inputs, int* targets) {
    for (const Shard& shard : loader.shards) {
        int64_t here = validation_batches_in(loader, shard);
        if (m < here) {
            read_tokens(shard, m * batch_tokens(loader), batch_tokens(loader), inputs, targets);
            return true;
        }
        m -= here;
    }
    return false;
}

int64_t loader_validation_batches(const Loader& loader) {
    int64_t total = 0;
    for (const Shard& shard : loader.shards) total += validation_batches_in(loader, shard);
    return total;
}
