// Sums and maxima over warps, rows and blocks. Both machines must give the bits of the butterfly below.
#include <algorithm>
#include <limits>

#include "test.h"

namespace {

// v[i] op v[i + n/2], halved until one is left.
template <class T, class Op>
T fold(std::vector<T> v, Op op) {
    for (size_t n = v.size() / 2; n > 0; n /= 2)
        for (size_t i = 0; i < n; i++) v[i] = op(v[i], v[i + n]);
    return v[0];
}
// Warps first, then the warps' results, filled up to a power of two.
template <class T, class Op>
T fold_row(const T* v, int threads, T neutral, Op op) {
    std::vector<T> partial;
    for (int w = 0; w < threads / 32; w++) partial.push_back(fold(std::vector<T>(v + 32 * w, v + 32 * w + 32), op));
    while (partial.size() & (partial.size() - 1)) partial.push_back(neutral);
    return fold(partial, op);
}
auto plus = [](auto a, auto b) { return a + b; };
auto larger = [](auto a, auto b) { return std::max(a, b); };
constexpr float LOWEST = -std::numeric_limits<float>::infinity();

__device__ int linear_thread() {
    return static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
}

__global__ void warp_folds(float* sum, float* most, float* three, const float* in) {
    int i = linear_thread();
    sum[i] = warp_sum(in[i]);
    most[i] = warp_max(in[i]);
    float v[3] = {in[i], 2 * in[i], -in[i]};
    warp_sum(v);
    for (int k = 0; k < 3; k++) three[3 * i + k] = v[k];
    warp_max(v);
}

struct RowShared {
    float scratch[4 * 32 * 32];
};
__global__ void row_folds(float* sums, float* most, float* again, const float* in) {
    float* scratch = shared_as<RowShared>().scratch;
    int i = linear_thread();
    float v[4] = {in[i], in[i] * in[i], 1.0f, -in[i]};
    row_sum(v, scratch);
    for (int k = 0; k < 4; k++) sums[4 * i + k] = v[k];
    most[i] = row_max(in[i], scratch);
    // The same scratch, at once and often.
    float x = in[i];
    for (int s = 0; s < 5; s++) x = row_sum(x, scratch) * 0.01f + in[i];
    again[i] = x;
}

struct BlockShared {
    float scratch[32];
    double wide[32];
};
__global__ void block_folds(float* sum, float* most, double* wide, const float* in) {
    auto& shared = shared_as<BlockShared>();
    int i = linear_thread();
    sum[i] = block_sum(in[i], shared.scratch);
    most[i] = block_max(in[i], shared.scratch);
    wide[i] = block_sum(static_cast<double>(in[i]) * 1e-3, shared.wide);
    sum[i] = block_sum(sum[i], shared.scratch) - block_sum(sum[i], shared.scratch) + sum[i];
}

}  // namespace

TEST_CASE("warp_sum and warp_max", "[simt][collectives]") {
    constexpr int threads = 96;
    Random random(1);
    std::vector<float> in = random.normals<float>(threads);
    Device<float> x(in), sum(threads), most(threads), three(3 * threads);
    launch(warp_folds, 1, threads, 0, nullptr, sum.data, most.data, three.data, x.data);
    std::vector<float> got = sum.read(), top = most.read(), many = three.read();
    for (int i = 0; i < threads; i++) {
        const float* warp = in.data() + i / 32 * 32;
        float want = fold(std::vector<float>(warp, warp + 32), plus);
        REQUIRE(got[i] == want);
        REQUIRE(top[i] == *std::max_element(warp, warp + 32));
        REQUIRE(many[3 * i] == want);
        REQUIRE(many[3 * i + 1] == 2 * want);
        REQUIRE(many[3 * i + 2] == -want);
    }
}

TEST_CASE("row_sum and row_max over rows of every width", "[simt][collectives]") {
    struct Shape {
        unsigned x, y;
    };
    for (Shape shape : {Shape{32, 1}, {32, 4}, {64, 3}, {96, 2}, {192, 1}, {192, 5}, {256, 4}, {1024, 1}, {32, 32}}) {
        unsigned threads = shape.x * shape.y;
        INFO("block " << shape.x << " x " << shape.y);
        Random random(threads);
        std::vector<float> in = random.normals<float>(threads);
        Device<float> x(in), sums(4 * threads), most(threads), again(threads);
        sums.poison(), most.poison(), again.poison();
        launch(row_folds, 1, dim3(shape.x, shape.y), sizeof(RowShared), nullptr, sums.data, most.data, again.data,
               x.data);
        std::vector<float> got = sums.read(), top = most.read(), last = again.read();
        int width = static_cast<int>(shape.x);
        for (unsigned y = 0; y < shape.y; y++) {
            const float* row = in.data() + y * shape.x;
            std::vector<float> squares(row, row + width), state(row, row + width);
            for (float& s : squares) s *= s;
            float sum = fold_row(row, width, 0.0f, plus);
            for (int s = 0; s < 5; s++) {
                float total = fold_row(state.data(), width, 0.0f, plus);
                for (int i = 0; i < width; i++) state[i] = std::fma(total, 0.01f, row[i]);
            }
            for (int i = 0; i < width; i++) {
                size_t at = y * shape.x + static_cast<unsigned>(i);
                REQUIRE(got[4 * at] == sum);
                REQUIRE(got[4 * at + 1] == fold_row(squares.data(), width, 0.0f, plus));
                REQUIRE(got[4 * at + 2] == static_cast<float>(width));
                REQUIRE(got[4 * at + 3] == -sum);
                REQUIRE(top[at] == fold_row(row, width, LOWEST, larger));
                // With or without a contracted multiply-add: one rounding in five sums.
                REQUIRE(last[at] == Approx(state[i]).epsilon(1e-5).margin(1e-6));
            }
        }
    }
}

TEST_CASE("block_sum and block_max, in fp32 and fp64", "[simt][collectives]") {
    for (dim3 shape : {dim3(32), dim3(96), dim3(64, 2), dim3(512), dim3(8, 8, 2), dim3(1024)}) {
        unsigned threads = shape.x * shape.y * shape.z;
        INFO(threads << " threads");
        Random random(threads);
        std::vector<float> in = random.normals<float>(threads);
        Device<float> x(in), sum(threads), most(threads);
        Device<double> wide(threads);
        sum.poison(), most.poison(), wide.poison();
        launch(block_folds, 1, shape, sizeof(BlockShared), nullptr, sum.data, most.data, wide.data, x.data);
        std::vector<double> doubles(threads);
        for (unsigned i = 0; i < threads; i++) doubles[i] = static_cast<double>(in[i]) * 1e-3;
        int n = static_cast<int>(threads);
        std::vector<float> got = sum.read(), top = most.read();
        std::vector<double> got_wide = wide.read();
        for (unsigned i = 0; i < threads; i++) {
            REQUIRE(got[i] == fold_row(in.data(), n, 0.0f, plus));
            REQUIRE(top[i] == fold_row(in.data(), n, LOWEST, larger));
            REQUIRE(got_wide[i] == fold_row(doubles.data(), n, 0.0, plus));
        }
    }
}
