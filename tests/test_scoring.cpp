#include "kernels/scoring.cuh"

#include <cstring>
#include <limits>

#include "test.h"

namespace {

// numpy's and torch's rule: the first of the largest; a NaN is larger than everything.
bool is_arg_max(const floatX* row, int target, int V) {
    int best = 0;
    for (int i = 0; i < V; i++) {
        if (std::isnan(to_float(row[i]))) return false;
        if (static_cast<double>(to_float(row[i])) > static_cast<double>(to_float(row[best]))) best = i;
    }
    return best == target;
}

}  // namespace

TEST_CASE("greedy hits: the target is the first of the largest logits") {
    Random random(1);
    for (int V : {1, 5, 61, 256, 1000, 4097, 50257})
        for (int64_t N : {1, 7, 33}) {
            if (V > 5000 && N > 7) continue;
            for (int Vp : {static_cast<int>(round_up(V, 16)), static_cast<int>(round_up(V, 16)) + 128}) {
                INFO("V=" << V << " Vp=" << Vp << " N=" << N);
                auto logits = random.normals<floatX>(static_cast<size_t>(N) * Vp, 3.0);
                std::vector<int> targets(N), want(N);
                for (int64_t r = 0; r < N; r++) {
                    floatX* row = &logits[r * Vp];
                    for (int i = V; i < Vp; i++) row[i] = from_float<floatX>(3e38f);  // padding never wins
                    int best = 0;
                    for (int i = 1; i < V; i++)
                        if (to_float(row[i]) > to_float(row[best])) best = i;
                    const int other = random.below(V);
                    targets[r] = best;
                    if (r % 5 == 1) targets[r] = other;
                    if (r % 5 == 2) targets[r] = -1;
                    if (r % 5 == 3) row[other] = row[best];  // a tie: won or lost by its place
                    if (r % 5 == 4) row[other] = from_float<floatX>(std::numeric_limits<float>::quiet_NaN());
                    want[r] = targets[r] >= 0 && is_arg_max(row, targets[r], V);
                }
                Device<floatX> d(logits);
                Device<int> d_targets(targets);
                Device<unsigned char> hits(N);
                hits.poison();
                greedy_hits(hits.data, d.data, d_targets.data, N, V, Vp, nullptr);
                const auto got = hits.read();
                for (int64_t r = 0; r < N; r++) {
                    INFO("row " << r);
                    CHECK(static_cast<int>(got[r]) == want[r]);
                }
            }
        }
}

TEST_CASE("gather rows: any order, repeated ones too") {
    Random random(2);
    for (int C : {8, 40, 760, 4096})
        for (int64_t n : {1, 5, 199}) {
            const auto in = random.normals<floatX>(static_cast<size_t>(50) * C);
            std::vector<int> rows(n);
            for (int& row : rows) row = random.below(50);
            Device<floatX> d(in), out(static_cast<size_t>(n) * C);
            Device<int> d_rows(rows);
            out.poison();
            gather_rows(out.data, d.data, d_rows.data, n, C, nullptr);
            const auto got = out.read();
            bool same = true;
            for (int64_t r = 0; r < n; r++)
                same &= memcmp(&got[r * C], &in[static_cast<size_t>(rows[r]) * C], C * sizeof(floatX)) == 0;
            CHECK(same);
        }
}
