// Sums and sums of squares of activations against float64.
#include "model/moments.cuh"

#include "test.h"

TEST_CASE("moments", "[moments]") {
    const int64_t pack = PackX::size;
    // One pack, less than a block's threads, a ragged last block, several rounds of the largest grid.
    for (int64_t packs : {int64_t{1}, int64_t{3}, int64_t{255}, int64_t{1025}, int64_t{4096 + 7}, int64_t{512 * 256 * 5 + 77}}) {
        CAPTURE(packs);
        Random random(static_cast<uint64_t>(packs));
        const size_t count = static_cast<size_t>(packs * pack);
        const std::vector<floatX> x = random.normals<floatX>(count, 1.5, 0.25);
        std::vector<floatX> more = x;  // what lies behind is not counted
        more.resize(count + static_cast<size_t>(pack), from_float<floatX>(1e4f));
        Device<floatX> d_x(more);
        Device<float> sums(std::vector<float>{5, 6, 7}), scratch(moments_scratch_bytes() / 4);
        scratch.poison();
        double sum = 0, square = 0, size = 0;
        for (double v : to_double(x)) sum += v, square += v * v, size += std::fabs(v);
        std::vector<float> got[2];
        for (std::vector<float>& each : got) {
            moments(sums.data, d_x.data, packs * pack, scratch.data, nullptr);
            each = sums.read();
        }
        // A thread adds up to 6 packs of at most 8, its block 10 numbers, and the blocks' lines are added last: below 128
        // roundings of the terms' absolute sum.
        CHECK(std::fabs(got[0][0] - sum) <= 128 * 0x1p-24 * size);
        CHECK(std::fabs(got[0][1] - square) <= 128 * 0x1p-24 * square);
        CHECK(got[0][2] == 7);
        CHECK(got[0] == got[1]);
    }
}
