#include "dataloader/loader.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>

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
    return static_cast<int64_t>(loader.settings.B) * loader.settings.T;
}

int64_t windows_in(const Shard& shard, int T) {
    return shard.num_tokens > 0 ? (shard.num_tokens - 1) / T : 0;
}

void next_in_order(Loader& loader, int* inputs, int* targets) {
    const std::vector<Shard>& shards = loader.corpora[0].shards;
    int64_t step = loader.settings.ranks * batch_tokens(loader);
    LoaderPosition& at = loader.at;
    // Ends: loader_create saw a shard that is large enough.
    while (shards[static_cast<size_t>(at.shard)].num_tokens - at.token < step + 1) {
        at.shard = (at.shard + 1) % static_cast<int64_t>(shards.size());
        at.token = 0;
    }
    read_tokens(shards[static_cast<size_t>(at.shard)], at.token + loader.settings.rank * batch_tokens(loader),
                batch_tokens(loader), inputs, targets);
    at.token += step;
}

// Which corpus gives the next window, when those have given `taken` so far: the first that is furthest behind.
size_t next_corpus(const std::vector<Corpus>& corpora, const std::vector<int64_t>& taken, int64_t all) {
    size_t chosen = 0;
    double largest = -1e300;
    for (size_t c = 0; c < corpora.size(); c++) {
        double behind = corpora[c].share * static_cast<double>(all + 1) - static_cast<double>(taken[c]);
        if (behind > largest) largest = behind, chosen = c;
    }
    return chosen;
}

void next_shuffled(Loader& loader, int* inputs, int* targets) {
    const LoaderSettings& s = loader.settings;
    std::vector<WindowPosition>& at = loader.at.corpora;
    std::vector<int64_t> taken(at.size());
    int64_t all = 0;
    for (size_t c = 0; c < at.size(); c++) {
        taken[c] = at[c].epoch * loader.corpora[c].num_windows + at[c].window;
        all += taken[c];
    }
    std::vector<std::optional<Permutation>> orders(at.size());
    const int64_t first = static_cast<int64_t>(s.rank) * s.B, count = static_cast<int64_t>(s.ranks) * s.B;
    for (int64_t i = 0; i < count; i++) {
        const size_t c = next_corpus(loader.corpora, taken, all);
        const Corpus& corpus = loader.corpora[c];
        if (i >= first && i < first + s.B) {
            // The corpus's number keeps corpora of equal size from having equal orders.
            if (!orders[c])
                orders[c].emplace(static_cast<uint64_t>(corpus.num_windows), s.seed + c * 0xD1B54A32D192ED03ull,
                                  static_cast<uint64_t>(at[c].epoch));
            int64_t window = static_cast<int64_t>((*orders[c])(static_cast<uint64_t>(at[c].window)));
            auto after = std::upper_bound(corpus.windows_before.begin(), corpus.windows_before.end(), window);
            size_t shard = static_cast<size_t>(after - corpus.windows_before.begin()) - 1;
            read_tokens(corpus.shards[shard], (window - corpus.windows_before[shard]) * s.T, s.T,
                        inputs + (i - first) * s.T, targets + (i - first) * s.T);
        }
        taken[c]++;
        all++;
        if (++at[c].window == corpus.num_windows) {
            at[c] = {at[c].epoch + 1, 0};
            orders[c].reset();
        }
    }
}

int64_t validation_batches_in(const Loader& loader, const Shard& shard) {
    return shard.num_tokens > 0 ? (shard.num_tokens - 1) / batch_tokens(loader) : 0;
}

// Cuts every shard to the part that training reads, or to the held-out one.
void apply_hold_out(std::vector<Shard>& shards, const LoaderSettings& s) {
    int64_t windows = 0, held = 0;
    for (Shard& shard : shards) {
        const int64_t here = windows_in(shard, s.T);
        windows += here;
        const int64_t due = std::llround(s.hold_out * static_cast<double>(windows)) - held;
        const int64_t out = std::clamp<int64_t>(due, 0, here), kept = (here - out) * s.T;
        held += out;
        if (s.held_out) {  // begins at what is training's last target
            shard.tokens += kept * shard.token_bytes;
            shard.num_tokens = out > 0 ? shard.num_tokens - kept : 0;
        } else if (out > 0) {
            shard.num_tokens = kept + 1;
        }
    }
}

void check_size(const Corpus& corpus, const LoaderSettings& s) {
    const double step = static_cast<double>(s.ranks) * s.B * corpus.share;
    const int64_t windows = static_cast<int64_t>(std::ceil(step - 1e-9)), needed = windows * s.T + 1;
    int64_t longest = 0;
    for (const Shard& shard : corpus.shards) longest = std::max(longest, shard.num_tokens);
    if (s.shuffle && corpus.num_windows < windows) {
        throw user_error(
            "%s: has %lld windows of %d tokens, one step needs %lld (ranks %d, batch %d); use more data or a "
            "smaller --batch or --seq",
            corpus.pattern.c_str(), static_cast<long long>(corpus.num_windows), s.T, static_cast<long long>(windows),
            s.ranks, s.B);
    }
    if (!s.shuffle && longest < needed) {
        throw user_error(
            "%s: the longest shard has %lld tokens, one step needs %lld (ranks %d, batch %d, length %d); use "
            "more data or a smaller --batch or --seq",
            corpus.pattern.c_str(), static_cast<long long>(longest), static_cast<long long>(needed), s.ranks, s.B, s.T);
    }
}

}  // namespace

int64_t Loader::num_tokens() const {
    int64_t tokens = 0;
    for (const Corpus& corpus : corpora)
        for (const Shard& shard : corpus.shards) tokens += shard.num_tokens;
    return tokens;
}

Loader loader_create(const std::vector<Corpus>& corpora, const LoaderSettings& s) {
    CHECK(s.B > 0 && s.T > 0 && s.ranks > 0 && s.rank >= 0 && s.rank < s.ranks);
    Loader loader{s, corpora, {}};
    for (Corpus& corpus : loader.corpora) {
        corpus.shards = shards_open(corpus.pattern, s.vocab);
        if (s.hold_out > 0) apply_hold_out(corpus.shards, s);
        for (const Shard& shard : corpus.shards) {
            corpus.windows_before.push_back(corpus.num_windows);
            corpus.num_windows += windows_in(shard, s.T);
        }
        if (!s.held_out) check_size(corpus, s);
    }
    if (s.shuffle) loader.at.corpora.resize(loader.corpora.size());
    return loader;
}

void loader_seek(Loader& loader, const LoaderPosition& at) {
    const std::vector<Shard>& shards = loader.corpora[0].shards;
    bool inside = at.shard >= 0 && at.shard < static_cast<int64_t>(shards.size()) && at.token >= 0 &&
                  at.token <= shards[static_cast<size_t>(at.shard)].num_tokens;
    if (loader.settings.shuffle) {
        if (at.corpora.empty()) return;  // saved before any update: the beginning
        inside = at.corpora.size() == loader.corpora.size();
        for (size_t c = 0; inside && c < at.corpora.size(); c++)
            inside = at.corpora[c].epoch >= 0 && at.corpora[c].window >= 0 &&
                     at.corpora[c].window < loader.corpora[c].num_windows;
    }
    if (!inside) {
        throw user_error(
            "the saved data position lies outside of %s and the %zu shards with it; resume with the same "
            "--train and --seq",
            shards[0].path.c_str(), shards.size() - 1);
    }
    loader.at = at;
}

void loader_next(Loader& loader, int* inputs, int* targets) {
    if (loader.settings.shuffle) {
        next_shuffled(loader, inputs, targets);
    } else {
        next_in_order(loader, inputs, targets);
    }
}

bool loader_validation_batch(const Loader& loader, int64_t m, int* inputs, int* targets) {
    for (const Corpus& corpus : loader.corpora) {
        for (const Shard& shard : corpus.shards) {
            int64_t here = validation_batches_in(loader, shard);
            if (m < here) {
                read_tokens(shard, m * batch_tokens(loader), batch_tokens(loader), inputs, targets);
                return true;
            }
            m -= here;
        }
    }
    return false;
}

int64_t loader_validation_batches(const Loader& loader) {
    int64_t total = 0;
    for (const Corpus& corpus : loader.corpora)
        for (const Shard& shard : corpus.shards) total += validation_batches_in(loader, shard);
    return total;
}
