// The order of the data, against a second, plain implementation of the contract.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <set>
#include <thread>

#include "dataloader/prefetch.h"
#include "kernels/embedding.cuh"
#include "temp_folder.h"
#include "test.h"

namespace {

constexpr int vocab = 60000;

// Shards of these lengths. Every token is its place in the whole, so a window shows where it comes from.
void write_shards(const TempFolder& folder, const std::vector<int>& lengths) {
    uint32_t next = 0;
    for (size_t s = 0; s < lengths.size(); s++) {
        std::vector<uint32_t> tokens(static_cast<size_t>(lengths[s]));
        std::iota(tokens.begin(), tokens.end(), next);
        next += static_cast<uint32_t>(lengths[s]);
        shard_write(folder / format("s_%06zu.bin", s), tokens, vocab);
    }
}

Loader make_loader(const TempFolder& folder, int B, int T, int rank, int ranks, bool shuffle, uint64_t seed) {
    return loader_create({{folder / "*.bin"}}, {vocab, B, T, rank, ranks, shuffle, seed});
}

struct Tokens {
    std::vector<int> inputs, targets;
    bool operator==(const Tokens&) const = default;
};

Tokens next(Loader& loader) {
    size_t n = static_cast<size_t>(loader.settings.B) * static_cast<size_t>(loader.settings.T);
    Tokens batch{std::vector<int>(n), std::vector<int>(n)};
    loader_next(loader, batch.inputs.data(), batch.targets.data());
    return batch;
}

// Micro-steps of all ranks as the contract tells them.
struct Sequence {
    std::vector<int> lengths;
    int B, T, ranks;
    size_t shard = 0;
    int position = 0;
    std::vector<Tokens> next() {
        while (lengths[shard] - position < ranks * B * T + 1) {
            shard = shard + 1 == lengths.size() ? 0 : shard + 1;
            position = 0;
        }
        int first = std::accumulate(lengths.begin(), lengths.begin() + static_cast<long>(shard), 0);
        std::vector<Tokens> batches;
        for (int r = 0; r < ranks; r++) {
            Tokens batch;
            int start = first + position + r * B * T;
            for (int b = 0; b < B; b++) {
                for (int t = b * T; t < (b + 1) * T; t++) {
                    batch.inputs.push_back(start + t);
                    batch.targets.push_back(start + t + 1);
                }
            }
            batches.push_back(batch);
        }
        position += ranks * B * T;
        return batches;
    }
};

// First tokens of the windows that micro-steps of all ranks give, in global order.
std::vector<int> shuffled_windows(const TempFolder& folder, int B, int T, int ranks, uint64_t seed, int count) {
    std::vector<Loader> loaders;
    for (int r = 0; r < ranks; r++) loaders.push_back(make_loader(folder, B, T, r, ranks, true, seed));
    std::vector<int> starts;
    while (static_cast<int>(starts.size()) < count) {
        for (Loader& loader : loaders) {
            Tokens batch = next(loader);
            for (int b = 0; b < B; b++) {
                int start = batch.inputs[static_cast<size_t>(b * T)];
                starts.push_back(start);
                for (int t = 0; t < T; t++) {
                    REQUIRE(batch.inputs[static_cast<size_t>(b * T + t)] == start + t);
                    REQUIRE(batch.targets[static_cast<size_t>(b * T + t)] == start + t + 1);
                }
            }
        }
    }
    starts.resize(static_cast<size_t>(count));
    return starts;
}

std::set<int> all_windows(const std::vector<int>& lengths, int T) {
    std::set<int> starts;
    int first = 0;
    for (int n : lengths) {
        for (int at = 0; at + T + 1 <= n; at += T) starts.insert(first + at);
        first += n;
    }
    return starts;
}

}  // namespace

TEST_CASE("loader: in order, every rank and shard length gives the contract's sequence", "[loader]") {
    Random random(3);
    std::vector<std::vector<int>> cases = {{25}, {24, 25}, {25, 24, 49, 0, 48, 1000}, {97, 3, 98, 96}, {1, 200}};
    for (int i = 0; i < 8; i++) cases.push_back({random.below(150), 100 + random.below(100), random.below(300)});
    for (const std::vector<int>& lengths : cases) {
        TempFolder folder;
        write_shards(folder, lengths);
        for (int ranks : {1, 2, 3}) {
            int B = ranks == 3 ? 1 : 2, T = ranks == 1 ? 12 : ranks == 2 ? 6 : 8;  // 24 tokens a micro-step
            CAPTURE(lengths, ranks);
            std::vector<Loader> loaders;
            for (int r = 0; r < ranks; r++) {
                loaders.push_back(make_loader(folder, B, T, r, ranks, false, 1));
            }
            Sequence sequence{lengths, B, T, ranks};
            for (int step = 0; step < 100; step++) {
                std::vector<Tokens> want = sequence.next();
                for (int r = 0; r < ranks; r++)
                    REQUIRE(next(loaders[static_cast<size_t>(r)]) == want[static_cast<size_t>(r)]);
            }
        }
    }
}

TEST_CASE("loader: shuffled, every window comes once per epoch, whatever the ranks", "[loader]") {
    std::vector<int> lengths = {101, 0, 8, 9, 200, 5, 17};
    TempFolder folder;
    write_shards(folder, lengths);
    int T = 8, epochs = 4;
    std::set<int> windows = all_windows(lengths, T);
    int n = static_cast<int>(windows.size());
    REQUIRE(n == 12 + 0 + 0 + 1 + 24 + 0 + 2);
    std::vector<int> order = shuffled_windows(folder, 1, T, 1, 42, epochs * n);
    std::set<std::vector<int>> orders;
    for (int e = 0; e < epochs; e++) {
        std::vector<int> epoch(order.begin() + e * n, order.begin() + (e + 1) * n);
        REQUIRE(std::set<int>(epoch.begin(), epoch.end()) == windows);
        orders.insert(epoch);
    }
    REQUIRE(orders.size() == 4);
    for (int ranks : {1, 2, 3, 5}) {
        for (int B : {1, 2, 7}) REQUIRE(shuffled_windows(folder, B, T, ranks, 42, epochs * n) == order);
    }
    REQUIRE(shuffled_windows(folder, n, T, 1, 42, epochs * n) == order);
    REQUIRE(shuffled_windows(folder, 1, T, 1, 43, n) != std::vector<int>(order.begin(), order.begin() + n));
}

TEST_CASE("loader: the shuffle is a fair permutation", "[loader]") {
    // Every window is equally likely in every place: 2000 epochs of 10 windows, 200 expected with a deviation of
    // sqrt(200 * 0.9) = 13.4; five deviations over 100 cells fail by chance once in 17,000 seeds, and the seed is
    // fixed.
    TempFolder folder;
    write_shards(folder, {21});
    int epochs = 2000, n = 10, counts[10][10] = {}, follows[10][10] = {};
    std::vector<int> order = shuffled_windows(folder, 1, 2, 1, 7, epochs * n);
    for (int i = 0; i < epochs * n; i++) counts[i % n][order[static_cast<size_t>(i)] / 2]++;
    for (int i = 0; i + 1 < epochs * n; i++) {
        if (i % n != n - 1) follows[order[static_cast<size_t>(i)] / 2][order[static_cast<size_t>(i) + 1] / 2]++;
    }
    for (auto& row : counts) {
        for (int count : row) REQUIRE(std::abs(count - 200) < 67);
    }
    for (int a = 0; a < n; a++) {
        for (int b = 0; b < n; b++) REQUIRE(std::abs(follows[a][b] - (a == b ? 0 : 200)) < 68);
    }
}

TEST_CASE("loader: a permutation of every size", "[loader]") {
    for (int n : {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 63, 64, 65}) {
        TempFolder folder;
        write_shards(folder, {n + 1});
        std::vector<int> order = shuffled_windows(folder, 1, 1, 1, static_cast<uint64_t>(n), n);
        REQUIRE(std::set<int>(order.begin(), order.end()).size() == static_cast<size_t>(n));
    }
    TempFolder folder;
    write_shards(folder, {30000});
    std::vector<int> order = shuffled_windows(folder, 64, 1, 1, 1337, 29999);
    REQUIRE(std::set<int>(order.begin(), order.end()).size() == 29999);
    // Unlike any order by place: the correlation of place and window is within 4 deviations, 4/sqrt(n).
    double sum = 0, mean = 29998 / 2.0;
    for (int i = 0; i < 29999; i++) sum += (i - mean) * (order[static_cast<size_t>(i)] - mean);
    REQUIRE(std::abs(sum / (29999.0 * 29999.0 * 29999.0 / 12)) < 4 / std::sqrt(29999.0));
}

TEST_CASE("loader: a run resumed at any position goes on as if never stopped", "[loader]") {
    TempFolder folder;
    write_shards(folder, {100, 61, 12, 77});
    for (bool shuffle : {false, true}) {
        for (int ranks : {1, 2}) {
            int rank = ranks - 1;
            Loader whole = make_loader(folder, 2, 5, rank, ranks, shuffle, 9);
            for (int step = 0; step < 60; step++) {
                Loader resumed = make_loader(folder, 2, 5, rank, ranks, shuffle, 9);
                loader_seek(resumed, whole.at);
                Loader ahead = whole;
                for (int i = 0; i < 8; i++) REQUIRE(next(resumed) == next(ahead));
                next(whole);
            }
            // The position is that of the whole run: the same on every rank.
            Loader first = make_loader(folder, 2, 5, 0, ranks, shuffle, 9);
            for (int step = 0; step < 60; step++) next(first);
            REQUIRE(first.at == whole.at);
        }
    }
    // Other ranks go on in the same shuffled order.
    Loader one = make_loader(folder, 4, 5, 0, 1, true, 9);
    for (int i = 0; i < 5; i++) next(one);
    Loader left = make_loader(folder, 2, 5, 0, 2, true, 9), right = left;
    loader_seek(left, one.at);
    right.settings.rank = 1;
    loader_seek(right, one.at);
    for (int i = 0; i < 30; i++) {
        Tokens both = next(left), more = next(right);
        both.inputs.insert(both.inputs.end(), more.inputs.begin(), more.inputs.end());
        both.targets.insert(both.targets.end(), more.targets.begin(), more.targets.end());
        REQUIRE(both == next(one));
    }
}

TEST_CASE("loader: a position outside of the data is refused", "[loader]") {
    TempFolder folder;
    write_shards(folder, {100, 50});
    Loader ordered = make_loader(folder, 1, 5, 0, 1, false, 0);
    Loader shuffled = make_loader(folder, 1, 5, 0, 1, true, 0);
    auto refused = [](Loader& loader, LoaderPosition at) {
        return user_error_of([&] { loader_seek(loader, at); }).find("resume with the same") != std::string::npos;
    };
    REQUIRE(refused(ordered, {2, 0, {}}));
    REQUIRE(refused(ordered, {-1, 0, {}}));
    REQUIRE(refused(ordered, {1, 51, {}}));
    REQUIRE_FALSE(refused(ordered, {1, 50, {}}));
    REQUIRE(refused(shuffled, {0, 0, {{0, shuffled.corpora[0].num_windows}}}));
    REQUIRE(refused(shuffled, {0, 0, {{-1, 0}}}));
    REQUIRE_FALSE(refused(shuffled, {0, 0, {{5, shuffled.corpora[0].num_windows - 1}}}));
}

TEST_CASE("loader: validation reads in order and stops at the end", "[loader]") {
    std::vector<int> lengths = {30, 10, 0, 11, 21, 5};
    TempFolder folder;
    write_shards(folder, lengths);
    Loader loader = make_loader(folder, 2, 5, 0, 1, false, 0);
    std::vector<int> starts = {0, 10, 40, 51, 61};  // 30: two (the third lacks a target); 10: none; 11: one; 21: two
    REQUIRE(loader_validation_batches(loader) == 5);
    std::vector<int> inputs(10), targets(10);
    for (int pass = 0; pass < 2; pass++) {
        for (size_t m = 0; m < starts.size(); m++) {
            REQUIRE(loader_validation_batch(loader, static_cast<int64_t>(m), inputs.data(), targets.data()));
            for (int i = 0; i < 10; i++) {
                REQUIRE(inputs[static_cast<size_t>(i)] == starts[m] + i);
                REQUIRE(targets[static_cast<size_t>(i)] == starts[m] + i + 1);
            }
        }
        REQUIRE_FALSE(loader_validation_batch(loader, 5, inputs.data(), targets.data()));
        REQUIRE_FALSE(loader_validation_batch(loader, 1000, inputs.data(), targets.data()));
        next(loader);  // changes nothing for validation
    }
}

TEST_CASE("loader: too little data is refused with what one step needs", "[loader]") {
    TempFolder folder;
    write_shards(folder, {40, 40});
    auto error = [&](int B, int T, int ranks, bool shuffle) {
        return user_error_of([&] { make_loader(folder, B, T, 0, ranks, shuffle, 0); });
    };
    REQUIRE(error(3, 13, 1, false).empty());
    REQUIRE(error(4, 10, 1, false).find("40 tokens, one step needs 41 (ranks 1, batch 4, length 10)") !=
            std::string::npos);
    REQUIRE(error(2, 10, 2, false).find("one step needs 41") != std::string::npos);
    REQUIRE(error(6, 10, 1, true).empty());
    REQUIRE(error(7, 10, 1, true).find("has 6 windows of 10 tokens, one step needs 7") != std::string::npos);
    REQUIRE(error(1, 10, 7, true).find("one step needs 7 (ranks 7, batch 1)") != std::string::npos);
    REQUIRE(error(1, 40, 1, true).find("has 0 windows") != std::string::npos);
}

TEST_CASE("loader: corpora mix by their shares, each with epochs of its own, whatever the ranks", "[loader]") {
    TempFolder folder;
    make_folders(folder / "a");
    make_folders(folder / "b");
    make_folders(folder / "c");
    const std::vector<std::string> names = {"a", "b", "c"};
    const std::vector<int> windows = {40, 7, 19}, first = {0, 1000, 2000};
    const std::vector<double> shares = {0.5, 0.2, 0.3};
    const int T = 4, count = 600;
    std::vector<Corpus> corpora;
    for (size_t c = 0; c < 3; c++) {
        std::vector<uint32_t> tokens(static_cast<size_t>(windows[c] * T + 1));
        std::iota(tokens.begin(), tokens.end(), static_cast<uint32_t>(first[c]));
        shard_write(folder / (names[c] + "/s.bin"), tokens, c == 1 ? 70000 : vocab);  // one of uint32 among uint16
        corpora.push_back({folder / (names[c] + "/*.bin"), shares[c]});
    }
    auto starts = [&](int B, int ranks, uint64_t seed, int resume_at) {
        std::vector<Loader> loaders;
        for (int r = 0; r < ranks; r++) loaders.push_back(loader_create(corpora, {70000, B, T, r, ranks, true, seed}));
        std::vector<int> order;
        for (int step = 0; static_cast<int>(order.size()) < count; step++) {
            for (int r = 0; r < ranks; r++) {
                Loader& loader = loaders[static_cast<size_t>(r)];
                if (step == resume_at) {
                    Loader resumed = loader_create(corpora, loader.settings);
                    loader_seek(resumed, loader.at);
                    loader = resumed;
                }
                const Tokens batch = next(loader);
                for (int b = 0; b < B; b++) order.push_back(batch.inputs[static_cast<size_t>(b * T)]);
            }
        }
        order.resize(count);
        return order;
    };
    const std::vector<int> order = starts(1, 1, 5, -1);
    std::vector<int> given(3, 0);
    std::vector<std::vector<int>> of_corpus(3);
    for (int i = 0; i < count; i++) {
        const size_t c = static_cast<size_t>(order[static_cast<size_t>(i)] / 1000);
        given[c]++;
        of_corpus[c].push_back((order[static_cast<size_t>(i)] - first[c]) / T);
        for (size_t k = 0; k < 3; k++) REQUIRE(std::abs(given[k] - shares[k] * (i + 1)) <= 1 + 1e-9);
    }
    for (size_t c = 0; c < 3; c++) {  // whole epochs: every window once
        const size_t n = static_cast<size_t>(windows[c]);
        REQUIRE(of_corpus[c].size() >= 2 * n);
        for (size_t e = 0; (e + 1) * n <= of_corpus[c].size(); e++) {
            const auto at = of_corpus[c].begin() + static_cast<long>(e * n);
            REQUIRE(std::set<int>(at, at + windows[c]).size() == n);
        }
        REQUIRE_FALSE(
            std::equal(of_corpus[c].begin(), of_corpus[c].begin() + windows[c], of_corpus[c].begin() + windows[c]));
    }
    for (int ranks : {1, 2, 3})
        for (int B : {1, 2, 5}) REQUIRE(starts(B, ranks, 5, 3) == order);
    REQUIRE(starts(1, 1, 6, -1) != order);
    // The share decides how much a corpus must have: 0.2 of 40 windows are 8.
    const std::string error = user_error_of([&] { loader_create(corpora, {70000, 40, T, 0, 1, true, 5}); });
    REQUIRE(error.find("b/*.bin: has 7 windows of 4 tokens, one step needs 8") != std::string::npos);
}

TEST_CASE("loader: what is held out is never trained on, and nothing is lost", "[loader]") {
    const std::vector<int> lengths = {101, 0, 8, 9, 200, 5, 17, 63};
    TempFolder folder;
    write_shards(folder, lengths);
    const int T = 8;
    const std::set<int> windows = all_windows(lengths, T);
    for (double part : {0.02, 0.1, 0.5, 0.9}) {
        for (bool shuffle : {true, false}) {
            LoaderSettings settings = {vocab, 1, T, 0, 1, shuffle, 3, part, false};
            Loader train = loader_create({{folder / "*.bin"}}, settings);
            settings.held_out = true;
            settings.shuffle = false;
            const Loader held = loader_create({{folder / "*.bin"}}, settings);
            const size_t out = static_cast<size_t>(std::llround(part * static_cast<double>(windows.size())));
            std::set<int> trained, held_out;
            for (size_t i = 0; i < windows.size() - out; i++) trained.insert(next(train).inputs[0]);
            std::vector<int> inputs(T), targets(T);
            for (int64_t m = 0; loader_validation_batch(held, m, inputs.data(), targets.data()); m++) {
                held_out.insert(inputs[0]);
                REQUIRE(targets[T - 1] == inputs[0] + T);
            }
            CAPTURE(part, shuffle);
            REQUIRE(held_out.size() == out);
            REQUIRE(trained.size() == windows.size() - out);
            std::set<int> all = trained;
            all.insert(held_out.begin(), held_out.end());
            REQUIRE(all == windows);
        }
    }
}

TEST_CASE("prefetcher: the loader's batches in its order, and their positions", "[loader]") {
    TempFolder folder;
    write_shards(folder, {100, 61, 12, 77});
    for (bool shuffle : {false, true}) {
        for (int slots : {2, 4}) {
            Loader plain = make_loader(folder, 2, 5, 1, 2, shuffle, 9);
            next(plain);
            Prefetcher ahead(plain, slots);
            for (int step = 0; step < 50; step++) {
                const Batch batch = ahead.next(nullptr);
                if (step % 7 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // let it run ahead
                const Tokens want = next(plain);
                std::vector<int> found(batch.count), groups(token_groups_capacity(want.inputs.size()));
                CUDA_CHECK(cudaMemcpy(found.data(), batch.device, batch.count * sizeof(int), cudaMemcpyDeviceToHost));
                groups.resize(group_tokens(groups.data(), want.inputs.data(), static_cast<int>(want.inputs.size())));
                std::vector<int> expected = want.inputs;
                expected.insert(expected.end(), want.targets.begin(), want.targets.end());
                expected.insert(expected.end(), groups.begin(), groups.end());
                REQUIRE(found == expected);
                REQUIRE(batch.after == plain.at);
            }
        }
    }
    Prefetcher unused(make_loader(folder, 2, 5, 0, 1, true, 9));  // ends without having given anything
}
