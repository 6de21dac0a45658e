// Shuffles, votes, barriers and atomics: what kernels rely on, on either machine.
#include <cstring>

#include "test.h"

namespace {

enum Kind { INDEX, XOR, UP, DOWN };

template <class T>
__global__ void shuffle_once(T* out, const T* in, Kind kind, int argument, int width) {
    int i = static_cast<int>(threadIdx.x);
    T v = in[i];
    unsigned all = 0xffffffffu;
    out[i] = kind == INDEX ? __shfl_sync(all, v, argument, width)
             : kind == XOR ? __shfl_xor_sync(all, v, argument, width)
             : kind == UP  ? __shfl_up_sync(all, v, static_cast<unsigned>(argument), width)
                           : __shfl_down_sync(all, v, static_cast<unsigned>(argument), width);
}

// Which lane the CUDA C++ Programming Guide says that `lane` reads.
int source_lane(Kind kind, int lane, int argument, int width) {
    int group = lane / width * width, end = group + width;
    int source = kind == INDEX ? group + argument % width
                 : kind == XOR ? lane ^ argument
                 : kind == UP  ? lane - argument
                               : lane + argument;
    bool inside = kind == XOR ? source < end : source >= group && source < end;
    return inside ? source : lane;
}

template <class T>
void check_shuffles() {
    constexpr int threads = 96;
    std::vector<T> in(threads);
    for (int i = 0; i < threads; i++) in[i] = static_cast<T>(1000 + i);
    Device<T> x(in), y(threads);
    for (Kind kind : {INDEX, XOR, UP, DOWN}) {
        for (int width : {2, 8, 16, 32}) {
            for (int argument : {0, 1, 3, 7, 16, 31}) {
                y.poison();
                launch(shuffle_once<T>, 1, threads, 0, nullptr, y.data, x.data, kind, argument, width);
                std::vector<T> got = y.read();
                for (int i = 0; i < threads; i++) {
                    int want = i / 32 * 32 + source_lane(kind, i % 32, argument, width);
                    INFO("kind " << kind << " width " << width << " argument " << argument << " thread " << i);
                    REQUIRE(got[i] == in[want]);
                }
            }
        }
    }
}

// Many shuffles in a row, with unequal work between them: a fast lane must not overwrite what a slow one still reads.
__global__ void shuffle_chain(unsigned* out, int steps) {
    unsigned v = threadIdx.x * 2654435761u;
    for (int s = 0; s < steps; s++) {
        unsigned other = __shfl_xor_sync(0xffffffffu, v, 1 + s % 31);
        v = v * 1664525u + other;
        if ((threadIdx.x + static_cast<unsigned>(s)) % 5 == 0)
            v ^= __shfl_sync(1u << threadIdx.x % 32, v, static_cast<int>(threadIdx.x % 32)) >> 3;
    }
    out[threadIdx.x] = v;
}

// The two halves of a warp do different numbers of shuffles among themselves, then all meet.
__global__ void shuffle_halves(int* out) {
    int lane = static_cast<int>(threadIdx.x), v = lane;
    if (lane < 16) {
        for (int s = 0; s < 5; s++) v += __shfl_xor_sync(0x0000ffffu, v, 1);
    } else {
        for (int s = 0; s < 2; s++) v += __shfl_down_sync(0xffff0000u, v, 2);
    }
    __syncwarp();
    v = v * 100 + __shfl_sync(0xffffffffu, v, 31 - lane) % 100;
    out[lane] = v;
}

struct Votes {
    unsigned ballot, any, all, match, add, least, most, conjunction, disjunction, parity;
    int signed_least;
};
__global__ void votes(Votes* out) {
    unsigned lane = threadIdx.x, all = 0xffffffffu;
    Votes v;
    v.ballot = __ballot_sync(all, lane % 3 == 0);
    v.any = static_cast<unsigned>(__any_sync(all, lane == 17)) | static_cast<unsigned>(__any_sync(all, lane > 99)) << 1;
    v.all = static_cast<unsigned>(__all_sync(all, lane < 32)) | static_cast<unsigned>(__all_sync(all, lane != 4)) << 1;
    v.match = __match_any_sync(all, lane % 5);
    v.add = __reduce_add_sync(all, lane * lane);
    v.least = __reduce_min_sync(all, lane + 7);
    v.most = __reduce_max_sync(all, lane ^ 21u);
    v.conjunction = __reduce_and_sync(all, lane | 64u);
    v.disjunction = __reduce_or_sync(all, 1u << lane);
    v.parity = __reduce_xor_sync(all, lane * 3);
    v.signed_least = __reduce_min_sync(all, static_cast<int>(lane) - 20);
    out[lane] = v;
}

// Blocks that end in a partial warp: only lanes that exist are named.
__global__ void partial_warp(int* out, int threads) {
    int i = static_cast<int>(threadIdx.x);
    int lanes = min(32, threads - i / 32 * 32);
    unsigned mask = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
    int next = __shfl_sync(mask, i, (i % 32 + 1) % lanes);
    unsigned odd = __ballot_sync(mask, i % 2);
    out[i] = next + 1000 * __popc(odd);
}

struct Row {
    int v[1024];
};
__global__ void reverse_twice(int* out) {
    int* v = shared_as<Row>().v;
    int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
    v[i] = i;
    __syncthreads();
    int a = v[n - 1 - i];
    __syncthreads();
    v[i] = a * 2;
    __syncthreads();
    out[i] = v[n - 1 - i];
}
// Threads that returned do not hold up the others' barrier.
__global__ void some_return(int* out, int stay) {
    int* v = shared_as<Row>().v;
    int i = static_cast<int>(threadIdx.x);
    if (i >= stay) return;
    v[i] = i;
    __syncthreads();
    out[i] = v[stay - 1 - i];
}
__global__ void counted_barriers(int* out) {
    int i = static_cast<int>(threadIdx.x);
    int n = __syncthreads_count(i % 3 == 0);
    int any = __syncthreads_or(i == 50) + 10 * __syncthreads_or(i > 5000);
    int all = __syncthreads_and(i < 5000) + 10 * __syncthreads_and(i != 50);
    out[i] = n + 1000 * any + 100000 * all;
}

// Neighbours talk through shared memory with nothing but __syncwarp between.
__global__ void warp_exchange(int* out) {
    int* v = shared_as<Row>().v;
    int i = static_cast<int>(threadIdx.x), warp = i / 32 * 32;
    int a = i;
    for (int step = 0; step < 4; step++) {
        v[i] = a;
        __syncwarp();
        a = v[warp + (i + 1) % 32] + 1;
        __syncwarp();
    }
    out[i] = a;
}

struct Counters {
    int sum, highest, lowest;
    unsigned ticket, wrapped, bits;
    unsigned long long wide;
    unsigned claimed[64];
};
__global__ void count(Counters* c) {
    int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    atomicAdd(&c->sum, i);
    atomicMax(&c->highest, i);
    atomicMin(&c->lowest, -i);
    atomicAdd(&c->wide, 1ull << 33);
    atomicOr(&c->bits, 1u << i % 32);
    atomicInc(&c->wrapped, 9);
    unsigned mine = atomicAdd(&c->ticket, 1u);
    if (mine < 64) atomicCAS(&c->claimed[mine], 0u, 1u + mine);
}

// Each block waits for the one before it: a chain that only works if lower blocks are never behind higher ones.
__global__ void chain(int* turn, int* order) {
    int b = static_cast<int>(blockIdx.x);
    if (threadIdx.x == 0) {
        while (atomicAdd(turn, 0) != b) __nanosleep(100);
        order[b] = b * b;
        __threadfence();
        atomicAdd(turn, 1);
    }
    __syncthreads();
}

struct Big {
    int v[40];
};
__global__ void by_value(float* out, Big big, float x, const int* p) {
    big.v[threadIdx.x] += 1;  // every thread has its own copy
    int sum = 0;
    for (int v : big.v) sum += v;
    out[threadIdx.x] = static_cast<float>(sum) + x + static_cast<float>(p == nullptr);
}
__global__ void where_am_i(unsigned* out) {
    unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
}

}  // namespace

TEST_CASE("every kind of shuffle reads the lane it should", "[simt]") {
    check_shuffles<int>();
    check_shuffles<float>();
    check_shuffles<double>();
    check_shuffles<unsigned long long>();
}

TEST_CASE("a long chain of shuffles equals its simulation", "[simt]") {
    constexpr int threads = 64, steps = 400;
    Device<unsigned> out(threads);
    out.poison();
    launch(shuffle_chain, 1, threads, 0, nullptr, out.data, steps);
    std::vector<unsigned> v(threads), old;
    for (unsigned i = 0; i < threads; i++) v[i] = i * 2654435761u;
    for (int s = 0; s < steps; s++) {
        old = v;
        for (unsigned i = 0; i < threads; i++) {
            v[i] = old[i] * 1664525u + old[i ^ static_cast<unsigned>(1 + s % 31)];
            if ((i + static_cast<unsigned>(s)) % 5 == 0) v[i] ^= v[i] >> 3;
        }
    }
    REQUIRE(out.read() == v);
}

TEST_CASE("parts of a warp shuffle apart", "[simt]") {
    Device<int> out(32);
    launch(shuffle_halves, 1, 32, 0, nullptr, out.data);
    std::vector<int> v(32), want(32);
    for (int i = 0; i < 32; i++) v[i] = i;
    for (int s = 0; s < 5; s++) {
        std::vector<int> old = v;
        for (int i = 0; i < 16; i++) v[i] += old[i ^ 1];
    }
    for (int s = 0; s < 2; s++) {
        std::vector<int> old = v;
        for (int i = 16; i < 32; i++) v[i] += old[i + 2 < 32 ? i + 2 : i];
    }
    for (int i = 0; i < 32; i++) want[i] = v[i] * 100 + v[31 - i] % 100;
    REQUIRE(out.read() == want);
}

TEST_CASE("votes and integer reductions", "[simt]") {
    Device<Votes> out(32);
    launch(votes, 1, 32, 0, nullptr, out.data);
    std::vector<Votes> got = out.read();
    Votes want{};
    want.least = 7;
    want.signed_least = -20;
    want.conjunction = 64;
    want.disjunction = 0xffffffffu;
    for (unsigned i = 0; i < 32; i++) {
        want.ballot |= (i % 3 == 0 ? 1u : 0u) << i;
        want.add += i * i;
        want.most = max(want.most, i ^ 21u);
        want.parity ^= i * 3;
    }
    for (unsigned i = 0; i < 32; i++) {
        unsigned match = 0;
        for (unsigned j = 0; j < 32; j++) match |= (j % 5 == i % 5 ? 1u : 0u) << j;
        INFO("lane " << i);
        REQUIRE(got[i].ballot == want.ballot);
        REQUIRE(got[i].any == 1);
        REQUIRE(got[i].all == 1);
        REQUIRE(got[i].match == match);
        REQUIRE(got[i].add == want.add);
        REQUIRE(got[i].least == want.least);
        REQUIRE(got[i].most == want.most);
        REQUIRE(got[i].conjunction == want.conjunction);
        REQUIRE(got[i].disjunction == want.disjunction);
        REQUIRE(got[i].parity == want.parity);
        REQUIRE(got[i].signed_least == want.signed_least);
    }
}

TEST_CASE("a partial last warp works among the lanes it has", "[simt]") {
    for (int threads : {1, 7, 32, 33, 40, 63, 100}) {
        Device<int> out(static_cast<size_t>(threads));
        launch(partial_warp, 1, threads, 0, nullptr, out.data, threads);
        std::vector<int> got = out.read();
        for (int i = 0; i < threads; i++) {
            int first = i / 32 * 32, lanes = std::min(32, threads - first);
            REQUIRE(got[i] == first + (i % 32 + 1) % lanes + 1000 * (lanes / 2));
        }
    }
}

TEST_CASE("block barriers order shared memory", "[simt]") {
    for (int threads : {1, 32, 48, 256, 1000, 1024}) {
        Device<int> out(static_cast<size_t>(threads));
        out.poison();
        launch(reverse_twice, 1, threads, sizeof(Row), nullptr, out.data);
        std::vector<int> got = out.read();
        for (int i = 0; i < threads; i++) REQUIRE(got[i] == 2 * i);
    }
}

TEST_CASE("threads that returned count as arrived at a barrier", "[simt]") {
#ifdef SIMT_CHECK
    SKIP_TEST("the checking mode reports it");
#endif
    for (int stay : {1, 31, 32, 50, 64, 100}) {
        Device<int> out(128);
        out.poison();
        launch(some_return, 1, 128, sizeof(Row), nullptr, out.data, stay);
        std::vector<int> got = out.read();
        for (int i = 0; i < stay; i++) REQUIRE(got[i] == stay - 1 - i);
    }
}

TEST_CASE("counting barriers", "[simt]") {
    Device<int> out(100);
    launch(counted_barriers, 1, 100, 0, nullptr, out.data);
    for (int v : out.read()) REQUIRE(v == 34 + 1000 * 1 + 100000 * 1);
}

TEST_CASE("__syncwarp orders shared memory within a warp", "[simt]") {
    Device<int> out(128);
    launch(warp_exchange, 1, 128, sizeof(Row), nullptr, out.data);
    std::vector<int> got = out.read();
    for (int i = 0; i < 128; i++) REQUIRE(got[i] == i / 32 * 32 + (i + 4) % 32 + 4);
}

TEST_CASE("atomics from many blocks lose nothing", "[simt]") {
    Counters start{};
    Device<Counters> counters(std::vector<Counters>{start});
    constexpr int blocks = 50, threads = 96, n = blocks * threads;
    launch(count, blocks, threads, 0, nullptr, counters.data);
    Counters c = counters.read()[0];
    CHECK(c.sum == n * (n - 1) / 2);
    CHECK(c.highest == n - 1);
    CHECK(c.lowest == -(n - 1));
    CHECK(c.ticket == n);
    CHECK(c.wrapped == n % 10);
    CHECK(c.bits == 0xffffffffu);
    CHECK(c.wide == static_cast<unsigned long long>(n) << 33);
    for (unsigned i = 0; i < 64; i++) REQUIRE(c.claimed[i] == i + 1);
}

TEST_CASE("a block may wait for lower-numbered blocks", "[simt]") {
    Device<int> turn(1), order(40);
    turn.zero();
    order.poison();
    launch(chain, 40, 64, 0, nullptr, turn.data, order.data);
    std::vector<int> got = order.read();
    for (int b = 0; b < 40; b++) REQUIRE(got[b] == b * b);
}

TEST_CASE("parameters are converted and copied for every thread", "[simt]") {
    Device<float> out(32);
    Big big{};
    launch(by_value, 1, 32, 0, nullptr, out.data, big, 2, nullptr);  // int to float, null to pointer
    for (float v : out.read()) REQUIRE(v == 4.0f);
    for (int v : big.v) REQUIRE(v == 0);
}

TEST_CASE("indices in three dimensions", "[simt]") {
    dim3 grid(3, 2, 2), block(5, 3, 2);
    Device<unsigned> out(12 * 30);
    out.poison();
    launch(where_am_i, grid, block, 0, nullptr, out.data);
    std::vector<unsigned> got = out.read();
    for (unsigned b = 0; b < 12; b++)
        for (unsigned t = 0; t < 30; t++) REQUIRE(got[b * 30 + t] == b * 1000 + t);
}
