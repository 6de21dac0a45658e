// The engine of the CPU machine by itself: what twins of instructions are built from, the random schedule, denormals.
#include <set>
#include <string>

#include "schedule.h"
#include "test.h"

#if __has_include(<simt.h>)  // the CPU machine's include path
#include <simt.h>

namespace {

__global__ void turns(int* order, int* next) {
    int mine = atomicAdd(next, 1);
    order[mine] = static_cast<int>(threadIdx.x);
    __syncthreads();
    mine = atomicAdd(next, 1);
    order[mine] = static_cast<int>(threadIdx.x);
}

// The order in which the lanes of one block run, before and behind a barrier.
std::vector<int> turns_with_seed(const char* seed) {
    Device<int> order(256), next(1);
    next.zero();
    with_seed(seed, [&] { launch(turns, 1, 128, 0, nullptr, order.data, next.data); });
    return order.read();
}

__global__ void denormals(float* out, float small) {
    out[blockIdx.x * blockDim.x + threadIdx.x] = small * 0.5f;
}

struct Args {
    int in, out;
};
// A collective in which every lane gets the sum of the lanes below it.
__global__ void prefix(int* out, unsigned mask) {
    Args args{static_cast<int>(threadIdx.x) + 1, 0};
    if (mask >> threadIdx.x % 32 & 1) {
        simt::warp_collective(
            "prefix", args,
            [](Args* const* lanes, uint32_t present) {
                int sum = 0;
                for (unsigned i = 0; i < 32; i++) {
                    if (!(present >> i & 1)) continue;
                    lanes[i]->out = sum;
                    sum += lanes[i]->in;
                }
            },
            mask);
    }
    out[threadIdx.x] = args.out;
}
__global__ void block_prefix(int* out, int stay) {
    int i = static_cast<int>(threadIdx.x);
    if (i >= stay) return;
    Args args{i + 1, 0};
    simt::block_collective("block_prefix", args, [](Args* const* threads, unsigned count) {
        int sum = 0;
        for (unsigned t = 0; t < count; t++) {
            if (!threads[t]) continue;
            threads[t]->out = sum;
            sum += threads[t]->in;
        }
    });
    out[i] = args.out;
}

struct Counter {
    int n = 0;
};
__global__ void locals(int* out) {
    int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    for (int k = 0; k <= static_cast<int>(threadIdx.x) % 3; k++) simt::lane_local<Counter>().n++;
    simt::block_local<Counter>().n++;
    __syncthreads();
    out[i] = simt::lane_local<Counter>().n + 100 * simt::block_local<Counter>().n;
}

// Lanes wait for a value that only the last lane sets.
__global__ void wait_for_last(int* out) {
    int& flag = simt::block_local<Counter>().n;
    if (threadIdx.x == blockDim.x - 1) flag = 7;
    simt::wait_until("flag", [&] { return flag == 7; });
    out[threadIdx.x] = flag;
}

__global__ void wait_for_nobody(int* out) {
    if (threadIdx.x == 3) return;
    simt::wait_until("the bus", [] { return false; });
    out[threadIdx.x] = 1;
}

}  // namespace

TEST_CASE("SIMT_SEED permutes warps and lanes, reproducibly", "[simt][engine]") {
    std::vector<int> plain = turns_with_seed(nullptr), one = turns_with_seed("1"), two = turns_with_seed("2");
    for (int i = 0; i < 128; i++) REQUIRE(plain[i] == i);
    CHECK(one != plain);
    CHECK(one != two);
    CHECK(one == turns_with_seed("1"));
    for (const auto& order : {plain, one, two})
        for (int half : {0, 128}) CHECK(std::set<int>(order.begin() + half, order.begin() + half + 128).size() == 128);
    // Not only within warps: somewhere early a lane of another warp runs.
    CHECK(std::set<int>{one[0] / 32, one[1] / 32, one[2] / 32, one[3] / 32, one[4] / 32, one[5] / 32}.size() > 1);
}

TEST_CASE("denormals are flushed in kernels, on every thread, and not outside", "[simt][engine]") {
    Device<float> out(64 * 32);
    volatile float small = 1.5e-38f;
    launch(denormals, 64, 32, 0, nullptr, out.data, small);
    for (float v : out.read()) REQUIRE(v == 0.0f);
    CHECK(small * 0.5f > 0.0f);
}

TEST_CASE("a warp collective sees every lane's arguments", "[simt][engine]") {
    Device<int> out(70);
    for (unsigned mask : {0xffffffffu, 0x0000ffffu, 0x80000001u, 0x5a5a5a5au}) {
        launch(prefix, 1, 64, 0, nullptr, out.data, mask);
        std::vector<int> got = out.read();
        for (int w = 0; w < 2; w++) {
            int sum = 0;
            for (int i = 0; i < 32; i++) {
                REQUIRE(got[32 * w + i] == (mask >> i & 1 ? sum : 0));
                if (mask >> i & 1) sum += 32 * w + i + 1;
            }
        }
    }
    launch(prefix, 1, 70, 0, nullptr, out.data, 0xffffffffu);  // a partial last warp
    CHECK(out.read()[69] == 65 + 66 + 67 + 68 + 69);
}

TEST_CASE("a block collective goes on without threads that have returned", "[simt][engine]") {
#ifdef SIMT_CHECK
    SKIP_TEST("the checking mode reports it");
#endif
    Device<int> out(128);
    for (int stay : {1, 32, 50, 127, 128}) {
        launch(block_prefix, 1, 128, 0, nullptr, out.data, stay);
        std::vector<int> got = out.read();
        for (int i = 0; i < stay; i++) REQUIRE(got[i] == i * (i + 1) / 2);
    }
}

TEST_CASE("locals of a lane and of a block are fresh for every block", "[simt][engine]") {
    Device<int> out(20 * 50);
    launch(locals, 20, 50, 0, nullptr, out.data);
    std::vector<int> got = out.read();
    for (int i = 0; i < 1000; i++) REQUIRE(got[i] == i % 50 % 3 + 1 + 100 * 50);
}

TEST_CASE("a lane can wait for another's doing", "[simt][engine]") {
    Device<int> out(100);
    launch(wait_for_last, 1, 100, 0, nullptr, out.data);
    for (int v : out.read()) REQUIRE(v == 7);
}

TEST_CASE("a wait that nobody ends is reported", "[simt][engine]") {
    static std::string reported;
    simt::set_report_handler([](const char* text) { reported = text; });
    Device<int> out(64);
    cudaLaunchConfig_t config = {};
    config.gridDim = 1;
    config.blockDim = 64;
    CHECK(cudaLaunchKernelEx(&config, wait_for_nobody, out.data) == cudaErrorLaunchFailure);
    simt::set_report_handler(nullptr);
    cudaGetLastError();
    INFO(reported);
    CHECK(reported.find("deadlock: every thread that is left waits for the bus") != std::string::npos);
    CHECK(reported.find("wait_for_nobody") != std::string::npos);
}

#endif
