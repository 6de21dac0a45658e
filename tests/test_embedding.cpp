#include "kernels/embedding.cuh"

#include <cstring>
#include <map>

#include "test.h"

namespace {

// Tokens of three kinds: skewed as in text, all alike, all different.
std::vector<int> make_tokens(Random& random, int N, int V, int kind) {
    std::vector<int> tokens(N);
    for (int i = 0; i < N; i++) {
        double u = random.uniform();
        tokens[i] = kind == 0 ? static_cast<int>(u * u * u * V) : kind == 1 ? V - 1 : i % V;
    }
    return tokens;
}

void check_embedding(Random& random, int B, int T, int C, int V, int kind, bool positions) {
    INFO("B=" << B << " T=" << T << " C=" << C << " V=" << V << " kind=" << kind << " positions=" << positions);
    int N = B * T;
    size_t n = static_cast<size_t>(N) * C;
    std::vector<int> tokens = make_tokens(random, N, V, kind);
    auto wte = random.normals<floatX>(static_cast<size_t>(V) * C), wpe = random.normals<floatX>(static_cast<size_t>(T) * C);
    Device<int> d_tokens(tokens);
    Device<floatX> d_wte(wte), d_wpe(wpe), x(n);
    x.poison();
    embedding_forward(x.data, d_tokens.data, d_wte.data, positions ? d_wpe.data : nullptr, B, T, C, nullptr);
    std::vector<double> want(n);
    for (int i = 0; i < N; i++)
        for (int c = 0; c < C; c++)
            want[static_cast<size_t>(i) * C + c] =
                static_cast<double>(to_float(wte[static_cast<size_t>(tokens[i]) * C + c])) +
                (positions ? static_cast<double>(to_float(wpe[static_cast<size_t>(i % T) * C + c])) : 0.0);
    // One addition, rounded once (twice in bf16: to fp32 first).
    CHECK(worst_error(to_double(x.read()), want, 0, 1.01 * unit_roundoff) <= 1);

    auto dx = random.normals<floatX>(n);
    auto dwte0 = random.normals<float>(static_cast<size_t>(V) * C), dwpe0 = random.normals<float>(static_cast<size_t>(T) * C);
    std::vector<double> want_dwte = to_double(dwte0), want_dwpe = to_double(dwpe0);
    for (int i = 0; i < N; i++)
        for (int c = 0; c < C; c++) {
            double d = to_float(dx[static_cast<size_t>(i) * C + c]);
            want_dwte[static_cast<size_t>(tokens[i]) * C + c] += d;
            want_dwpe[static_cast<size_t>(i % T) * C + c] += d;
        }
    std::vector<int> groups(token_groups_capacity(static_cast<size_t>(N)));
    groups.resize(group_tokens(groups.data(), tokens.data(), N));
    Device<int> d_groups(groups);
    Device<floatX> d_dx(dx);
    std::vector<float> first;
    for (int run = 0; run < 2; run++) {  // twice: the same bits
        Device<float> dwte(dwte0), dwpe(dwpe0);
        embedding_backward_tokens(dwte.data, d_dx.data, d_groups.data, N, V, C, nullptr);
        embedding_backward_positions(dwpe.data, d_dx.data, B, T, C, nullptr);
        auto got = dwte.read();
        // Sums of up to N fp32 terms: errors grow at random, as sqrt(N) * 2^-24; at worst in a row of N equal signs.
        double tolerance = 0x1p-23 * (2 + std::sqrt(N));
        CHECK(relative_error(to_double(got), want_dwte) < tolerance);
        CHECK(relative_error(to_double(dwpe.read()), want_dwpe) < tolerance);
        if (run == 0) first = got;
        else CHECK(memcmp(first.data(), got.data(), got.size() * sizeof(float)) == 0);
    }
}

}  // namespace

TEST_CASE("embedding forward and backward") {
    Random random(1);
    for (int C : {PackX::size, 16, 128, 264, 760, 1128}) {
        check_embedding(random, 1, 1, C, 1, 0, true);
        check_embedding(random, 3, 5, C, 11, 0, true);
        check_embedding(random, 1, 199, C, 61, 0, false);
    }
    check_embedding(random, 2, 600, 136, 256, 0, true);  // a few frequent tokens among rare ones
    check_embedding(random, 2, 300, 1600, 61, 1, true);  // one token only
    check_embedding(random, 1, 64, 4096, 64, 2, false);  // no token twice
    check_embedding(random, 1, 65, 264, 3, 1, false);    // around the limit between rare and frequent
    check_embedding(random, 1, 64, 264, 3, 1, false);
    check_embedding(random, 4, 100, 16, 50257, 0, true);
}

TEST_CASE("grouping of tokens") {
    Random random(2);
    for (int N : {1, 5, 199, 5000}) {
        for (int V : {1, 61, 256, 50257, 200000}) {
            std::vector<int> tokens = make_tokens(random, N, V, N % 3);
            std::vector<int> groups(token_groups_capacity(static_cast<size_t>(N)));
            const size_t used = group_tokens(groups.data(), tokens.data(), N);
            std::map<int, std::vector<int>> want;
            for (int i = 0; i < N; i++) want[tokens[i]].push_back(i);
            int U = groups[0];
            REQUIRE(U == static_cast<int>(want.size()));
            REQUIRE(used == 2 * static_cast<size_t>(U) + 2 + N);
            REQUIRE(used <= groups.size());
            const int *token = groups.data() + 1, *start = token + U, *position = start + U + 1;
            REQUIRE(start[0] == 0);
            REQUIRE(start[U] == N);
            for (int u = 0; u < U; u++) {
                std::vector<int> got(position + start[u], position + start[u + 1]);
                REQUIRE(got == want.at(token[u]));                                                // ascending
                if (u > 0) REQUIRE(start[u + 1] - start[u] <= start[u] - start[u - 1]);  // the frequent first
            }
        }
    }
}
