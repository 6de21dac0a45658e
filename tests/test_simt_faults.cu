// Faults planted in kernels, each of which the CPU machine must report with kernel, block, thread and line. What only
// the checking mode sees (VARIANT=check) is skipped in other builds; a deadlock and a misused collective are seen in
// all.
#include <cstdlib>
#include <string>

#include "test.h"

#if __has_include(<simt.h>)  // the CPU machine's include path
#include "simt_report.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace {

// With SIMT_SEED another thread may be the first to be caught.
std::string thread_text(const std::string& thread) {
    return std::getenv("SIMT_SEED") ? "thread (" : "thread " + thread;
}
// The report says all of this, and where.
#define REQUIRE_REPORT(report, what, kernel, block, thread)                               \
    do {                                                                                  \
        const std::string said = report;                                                  \
        INFO(said);                                                                       \
        REQUIRE(has(said, what));                                                         \
        REQUIRE(has(said, std::string("kernel (anonymous namespace)::") + kernel + "(")); \
        REQUIRE(has(said, std::string("block ") + block));                                \
        REQUIRE(has(said, thread_text(thread)));                                          \
    } while (0)
#define REQUIRE_LINE(line) REQUIRE(has(reported + "\n", "test_simt_faults.cu:" + std::to_string(line) + "\n"))

struct Tile {
    float v[256];
};

// One kernel per fault; `fault` is false for the same kernel without it, which must pass.

constexpr int BARRIER_LINE = __LINE__ + 2;
__global__ void barrier_in_branch(int* out, bool fault) {
    if (!fault || threadIdx.x < 40) __syncthreads();
    out[threadIdx.x] = 1;
}
__global__ void two_barriers(int* out, bool fault) {
    if (fault && threadIdx.x % 2) {
        __syncthreads();
        out[threadIdx.x] = 3;
    } else {
        __syncthreads_count(fault ? 1 : 0);
        out[threadIdx.x] = 2;
    }
}
__global__ void two_lines(int* out, bool fault) {
    int i = static_cast<int>(threadIdx.x);
    if (fault && i >= 32) {
        out[i] = 1;
        __syncthreads();
        out[i] += 1;
    } else {
        out[i] = 2;
        __syncthreads();
        out[i] += 2;
    }
}
__global__ void shuffle_with_exited(int* out, bool fault) {
    int i = static_cast<int>(threadIdx.x);
    if (fault && i == 5) return;
    out[i] = __shfl_xor_sync(0xffffffffu, i, 1);
}
__global__ void shuffle_against_barrier(int* out, bool fault) {
    int i = static_cast<int>(threadIdx.x);
    if (fault && i % 32 == 9) {
        __syncthreads();
        out[i] = __shfl_xor_sync(0xffffffffu, i, 1);
    } else {
        out[i] = __shfl_xor_sync(0xffffffffu, i, 1);
        __syncthreads();
    }
}
__global__ void mask_without_self(int* out, bool fault) {
    int i = static_cast<int>(threadIdx.x);
    out[i] = __shfl_sync(fault && i == 3 ? 0xfffffff0u : 0xffffffffu, i, 4);
}
__global__ void source_outside_mask(int* out, bool fault) {
    int i = static_cast<int>(threadIdx.x);
    if (i < 16)
        out[i] = __shfl_sync(0x0000ffffu, i, fault && i == 2 ? 20 : 4);
    else
        out[i] = 0;
}

constexpr int ORDER_LINE = __LINE__ + 3;
__global__ void read_before_wait(int* out, bool fault) {
    if (!fault || threadIdx.x != 5) wait_for_previous();
    int before = out[threadIdx.x];
    if (fault) wait_for_previous();
    out[threadIdx.x] = before + 1;
}
__global__ void write_before_wait(int* out, bool fault) {
    if (!fault) wait_for_previous();
    out[threadIdx.x] = 1;
    wait_for_previous();
}
__global__ void return_without_wait(int* out, bool fault) {
    if (fault && threadIdx.x == 40) return;
    wait_for_previous();
    launch_next_early();
    out[threadIdx.x] = 1;
}

__global__ void write_then_read(float* out, bool fault) {
    float* v = shared_as<Tile>().v;
    int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
    v[i] = 0.0f;
    __syncthreads();
    v[i] = 1.0f;
    if (!fault) __syncthreads();
    out[i] = v[n - 1 - i];
}
__global__ void read_then_write(float* out, bool fault) {
    float* v = shared_as<Tile>().v;
    int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
    v[i] = 1.0f;
    __syncthreads();
    out[i] = v[(i + 40) % n];
    if (!fault) __syncthreads();
    v[i] = 2.0f;
}
// Every thread reads, then one of them writes: the last to read must not hide the others.
__global__ void all_read_one_writes(float* out, bool fault) {
    float* v = shared_as<Tile>().v;
    int i = static_cast<int>(threadIdx.x);
    if (i == 0) v[0] = 1.0f;
    __syncthreads();
    out[i] = v[0];
    if (!fault) __syncthreads();
    if (i == static_cast<int>(blockDim.x) - 1) v[0] = 2.0f;
}
__global__ void same_byte(bool fault) {
    auto* v = reinterpret_cast<__nv_bfloat16*>(shared_as<Tile>().v);
    int i = static_cast<int>(threadIdx.x);
    v[fault ? i / 2 : i] = __float2bfloat16_rn(1.0f);  // neighbours in one word are no fault
}
__global__ void warp_without_sync(float* out, bool fault) {
    float* v = shared_as<Tile>().v;
    int i = static_cast<int>(threadIdx.x);
    v[i] = 0.0f;
    __syncthreads();
    v[i] = 1.0f;
    if (fault)
        __shfl_sync(0xffffffffu, i, 0);  // brings lanes together, but orders no memory
    else
        __syncwarp();
    out[i] = v[i ^ 1];
}
// __syncwarp does not order one warp against another.
__global__ void warp_sync_too_small(float* out, bool fault) {
    float* v = shared_as<Tile>().v;
    int i = static_cast<int>(threadIdx.x);
    v[i] = 0.0f;
    __syncthreads();
    v[i] = 1.0f;
    __syncwarp();
    out[i] = v[fault ? i ^ 32 : i ^ 16];
}
// Only half of the warp synchronises.
__global__ void half_warp_sync(float* out, bool fault) {
    float* v = shared_as<Tile>().v;
    int i = static_cast<int>(threadIdx.x);
    v[i] = 0.0f;
    __syncthreads();
    v[i] = 1.0f;
    if (i < 16) __syncwarp(0x0000ffffu);
    if (i < 16)
        out[i] = v[fault ? i + 16 : i ^ 1];
    else
        out[i] = 0;
}

__global__ void read_unwritten_shared(float* out, bool fault) {
    float* v = shared_as<Tile>().v;
    int i = static_cast<int>(threadIdx.x);
    if (!fault || i != 7) v[i] = 1.0f;
    __syncthreads();
    out[i] = v[(i + 1) % static_cast<int>(blockDim.x)];
}
// What an earlier block left in shared memory is not this block's.
__global__ void read_earlier_block(float* out, bool fault) {
    float* v = shared_as<Tile>().v;
    int i = static_cast<int>(threadIdx.x);
    if (!fault || blockIdx.x == 0) v[i] = 1.0f;
    out[i] = v[i];
}
__global__ void read_scratch_after(float* out, bool fault) {
    float* v = shared_as<Tile>().v;
    int i = static_cast<int>(threadIdx.x);
    v[i] = 1.0f;
    __syncthreads();
    float sum = row_sum(1.0f, v + (fault ? 0 : 64));  // 32 floats of scratch
    out[i] = v[i % 32] + sum;
}
__global__ void beyond_shared(float* out, bool fault) {
    float* v = shared_as<Tile>().v;
    int i = static_cast<int>(threadIdx.x);
    v[i + (fault && i == 3 ? 253 : 0)] = 1.0f;
    out[i] = 0;
}

__global__ void copy_one(float* out, const float* in, int offset) {
    int i = static_cast<int>(threadIdx.x);
    out[i] = in[i + offset];
}
__global__ void write_one(float* out, int offset) {
    int i = static_cast<int>(threadIdx.x);
    out[i + offset] = 1.0f;
}

struct Scratch {
    float v[32];
};
__global__ void sum_of_part(float* out) {
    int i = static_cast<int>(threadIdx.x);
    if (i < 20) out[i] = warp_sum(1.0f);
}
__global__ void scratch_elsewhere(float* out) {
    out[threadIdx.x] = row_sum(1.0f, out);
}
__global__ void struct_too_large(float* out) {
    out[threadIdx.x] = shared_as<Tile>().v[0];
}
__global__ void waits_for_nobody(int* out) {
    int i = static_cast<int>(threadIdx.x);
    if (i < 16)
        out[i] = __shfl_sync(0x0003ffffu, i, 0);
    else
        out[i] = 0;
}
__global__ void uses_atomics(int* out) {
    auto* v = reinterpret_cast<int*>(shared_as<Tile>().v);
    if (threadIdx.x == 0) v[0] = 0;
    __syncthreads();
    atomicAdd(v, 1);
    atomicMax(v, 5);
    __syncthreads();
    out[threadIdx.x] = v[0];
}

}  // namespace

TEST_CASE("divergent barriers are reported", "[simt][faults]") {
    ONLY_CHECKING;
    Device<int> out(64);
    out.zero();
    const char* first = "(0,0,0)";
    CHECK(report_of(barrier_in_branch, 1, 64, 0, out.data, false) == "");
    REQUIRE_REPORT(report_of(barrier_in_branch, 1, 64, 0, out.data, true), "divergent barrier", "barrier_in_branch",
                   first, "(40,0,0) returns");
    REQUIRE_LINE(BARRIER_LINE);
    CHECK(report_of(two_barriers, 1, 64, 0, out.data, false) == "");
    REQUIRE_REPORT(report_of(two_barriers, 1, 64, 0, out.data, true), "waits at __syncthreads_count", "two_barriers",
                   first, "(1,0,0)");
    CHECK(report_of(two_lines, 1, 64, 0, out.data, false) == "");
    REQUIRE_REPORT(report_of(two_lines, 3, 64, 0, out.data, true), "divergent barrier", "two_lines", "(", "(32,0,0)");
}

TEST_CASE("warp operations with absent lanes are reported", "[simt][faults]") {
    ONLY_CHECKING;
    Device<int> out(64);
    out.zero();
    std::string text;
    CHECK(report_of(shuffle_with_exited, 1, 64, 0, out.data, false) == "");
    text = report_of(shuffle_with_exited, 1, 64, 0, out.data, true);
    REQUIRE_REPORT(text, "names thread (5,0,0), which has returned", "shuffle_with_exited", "(0,0,0)", "(");
    CHECK(report_of(shuffle_against_barrier, 1, 64, 0, out.data, false) == "");
    text = report_of(shuffle_against_barrier, 1, 64, 0, out.data, true);
    REQUIRE_REPORT(text, ") waits at __syncthreads", "shuffle_against_barrier", "(0,0,0)", "(9,0,0)");
    CHECK(report_of(mask_without_self, 1, 64, 0, out.data, false) == "");
    REQUIRE_REPORT(report_of(mask_without_self, 1, 64, 0, out.data, true), "does not name the calling lane",
                   "mask_without_self", "(0,0,0)", "(3,0,0)");
    CHECK(report_of(source_outside_mask, 1, 32, 0, out.data, false) == "");
    REQUIRE_REPORT(report_of(source_outside_mask, 1, 32, 0, out.data, true), "reads lane 20", "source_outside_mask",
                   "(0,0,0)", "(2,0,0)");
}

TEST_CASE("races in shared memory are reported", "[simt][faults]") {
    ONLY_CHECKING;
    Device<float> out(256);
    out.zero();
    size_t bytes = sizeof(Tile);
    using Kernel = void (*)(float*, bool);
    struct Case {
        Kernel kernel;
        const char* name;
        unsigned threads;
    };
    for (Case c :
         {Case{write_then_read, "write_then_read", 64}, Case{write_then_read, "write_then_read", 32},
          Case{read_then_write, "read_then_write", 96}, Case{all_read_one_writes, "all_read_one_writes", 32},
          Case{all_read_one_writes, "all_read_one_writes", 128}, Case{warp_without_sync, "warp_without_sync", 64},
          Case{warp_sync_too_small, "warp_sync_too_small", 64}, Case{half_warp_sync, "half_warp_sync", 32}}) {
        INFO(c.name << ", " << c.threads << " threads");
        CHECK(report_of(c.kernel, 2, c.threads, bytes, out.data, false) == "");
        REQUIRE_REPORT(report_of(c.kernel, 1, c.threads, bytes, out.data, true), "race: thread (", c.name, "(0,0,0)",
                       "(");
        REQUIRE(has(reported, "test_simt_faults.cu:"));
    }
    CHECK(report_of(same_byte, 1, 64, bytes, false) == "");
    REQUIRE_REPORT(report_of(same_byte, 1, 64, bytes, true), "race", "same_byte", "(0,0,0)", "(1,0,0)");
}

TEST_CASE("a thread of an early launch that does not wait first is reported", "[simt][faults]") {
    ONLY_CHECKING;
    Device<int> out(64);
    out.zero();
    CHECK(report_as(true, read_before_wait, 2, 64, 0, out.data, false) == "");
    CHECK(report_of(read_before_wait, 2, 64, 0, out.data, true) == "");  // in order it may
    REQUIRE_REPORT(report_as(true, read_before_wait, 1, 64, 0, out.data, true), "early launch: reads 4 bytes",
                   "read_before_wait", "(0,0,0)", "(5,0,0)");
    REQUIRE_LINE(ORDER_LINE);
    CHECK(report_as(true, write_before_wait, 2, 64, 0, out.data, false) == "");
    REQUIRE_REPORT(report_as(true, write_before_wait, 1, 64, 0, out.data, true), "early launch: writes 4 bytes",
                   "write_before_wait", "(0,0,0)", "(0,0,0)");
    CHECK(report_as(true, return_without_wait, 2, 64, 0, out.data, false) == "");
    REQUIRE_REPORT(report_as(true, return_without_wait, 1, 64, 0, out.data, true), "returns without wait_for_previous",
                   "return_without_wait", "(0,0,0)", "(40,0,0)");
}

TEST_CASE("shared memory that this block has not written is reported", "[simt][faults]") {
    ONLY_CHECKING;
    Device<float> out(256);
    out.zero();
    CHECK(report_of(read_unwritten_shared, 1, 64, sizeof(Tile), out.data, false) == "");
    REQUIRE_REPORT(report_of(read_unwritten_shared, 1, 64, sizeof(Tile), out.data, true), "uninitialised",
                   "read_unwritten_shared", "(0,0,0)", "(6,0,0)");
    CHECK(report_of(read_earlier_block, 6, 64, sizeof(Tile), out.data, false) == "");
    REQUIRE_REPORT(report_of(read_earlier_block, 6, 64, sizeof(Tile), out.data, true), "uninitialised",
                   "read_earlier_block", "(", "(0,0,0)");
    CHECK(report_of(read_scratch_after, 1, 64, sizeof(Tile), out.data, false) == "");
    REQUIRE_REPORT(report_of(read_scratch_after, 1, 64, sizeof(Tile), out.data, true), "uninitialised",
                   "read_scratch_after", "(0,0,0)", "(");
    CHECK(report_of(beyond_shared, 1, 64, sizeof(Tile), out.data, false) == "");
    REQUIRE_REPORT(report_of(beyond_shared, 1, 64, sizeof(Tile), out.data, true), "beyond shared memory",
                   "beyond_shared", "(0,0,0)", "(3,0,0)");
}

TEST_CASE("device memory that nobody has written, and what lies outside, is reported", "[simt][faults]") {
    ONLY_CHECKING;
    Device<float> in(100), out(64);
    CUDA_CHECK(cudaMemset(in.data, 0, 70 * sizeof(float)));
    CHECK(report_of(copy_one, 1, 64, 0, out.data, in.data, 6) == "");
    REQUIRE_REPORT(report_of(copy_one, 1, 64, 0, out.data, in.data, 7), "uninitialised", "copy_one", "(0,0,0)",
                   "(63,0,0)");
    in.zero();
    CHECK(report_of(copy_one, 1, 64, 0, out.data, in.data, 36) == "");
    REQUIRE_REPORT(report_of(copy_one, 1, 64, 0, out.data, in.data, 37), "out of bounds: reads", "copy_one", "(0,0,0)",
                   "(63,0,0)");
    REQUIRE_REPORT(report_of(write_one, 2, 64, 0, out.data, 1), "out of bounds: writes", "write_one", "(", "(63,0,0)");
    REQUIRE_REPORT(report_of(write_one, 1, 64, 0, out.data, -1), "out of bounds: writes", "write_one", "(0,0,0)",
                   "(0,0,0)");
    float* gone;
    CUDA_CHECK(cudaMalloc(&gone, 4096));
    CUDA_CHECK(cudaFree(gone));
    REQUIRE_REPORT(report_of(write_one, 1, 64, 0, gone, 0), "out of bounds", "write_one", "(0,0,0)", "(0,0,0)");
}

TEST_CASE("copies carry along which bytes were written", "[simt][faults]") {
    ONLY_CHECKING;
    Device<float> a(64), b(64), out(64);
    b.zero();
    CUDA_CHECK(cudaMemcpy(b.data, a.data, 256, cudaMemcpyDeviceToDevice));
    CHECK(has(report_of(copy_one, 1, 64, 0, out.data, b.data, 0), "uninitialised"));
    a.zero();
    CUDA_CHECK(cudaMemcpy(b.data, a.data, 256, cudaMemcpyDeviceToDevice));
    CHECK(report_of(copy_one, 1, 64, 0, out.data, b.data, 0) == "");
    reports = 0;
    simt::set_report_handler(record);
    CUDA_CHECK(cudaMemset(a.data, 0, 257));
    CHECK(reports == 1);
    CHECK(has(reported, "out of bounds"));
    simt::set_report_handler(nullptr);
}

TEST_CASE("host code that touches device memory is reported", "[simt][faults]") {
    ONLY_CHECKING;
    Device<float> a(64);
    reports = 0;
    simt::set_report_handler(record);
    float volatile* p = a.data;
    float x = p[3];
    simt::set_report_handler(nullptr);
    CHECK(reports == 1);
    CHECK(std::isnan(x));
}

TEST_CASE("atomics do not race", "[simt][faults]") {
    Device<int> out(64);
    CHECK(report_of(uses_atomics, 1, 64, sizeof(Tile), out.data) == "");
    for (int v : out.read()) REQUIRE(v >= 64);
}

TEST_CASE("a deadlock is reported in every build, and the machine lives on", "[simt][faults]") {
    Device<int> out(64);
    for (int again = 0; again < 3; again++) {
        std::string text = report_of(waits_for_nobody, 1, 32, 0, out.data);
        INFO(text);
        REQUIRE(has(text, "waits_for_nobody"));
        REQUIRE(has(text, "block (0,0,0)"));
        REQUIRE(
            (CHECKING
                 ? has(text, "returned")
                 : has(text, "deadlock: 0 threads wait at __syncthreads, 16 at a warp operation, 16 have returned")));
        // A sound kernel right after.
        CHECK(report_of(uses_atomics, 4, 64, sizeof(Tile), out.data) == "");
    }
}

TEST_CASE("misused collectives are reported in every build", "[simt][faults]") {
    Device<float> out(64);
    std::string part = report_of(sum_of_part, 1, 32, 0, out.data);
    INFO(part);
    CHECK((has(part, "warp_sum: the mask names thread") || has(part, "warp_sum needs all 32 lanes") ||
           has(part, "deadlock")));
    CHECK(has(part, "sum_of_part"));
    CHECK(has(report_of(scratch_elsewhere, 1, 64, 128, out.data), "does not lie in the block's shared memory"));
    CHECK(has(report_of(struct_too_large, 1, 32, 64, out.data), "the struct has 1024 bytes, the launch gave 64"));
}

#if defined(__SANITIZE_ADDRESS__)
namespace {
__global__ void shared_ends(int* out, int bytes) {
    auto* p = reinterpret_cast<unsigned char*>(&shared_as<unsigned char>());
    out[threadIdx.x] = __asan_address_is_poisoned(p - 1) + 2 * __asan_address_is_poisoned(p) +
                       4 * __asan_address_is_poisoned(p + bytes - 1) + 8 * __asan_address_is_poisoned(p + bytes);
}
}  // namespace
TEST_CASE("AddressSanitizer sees both ends of shared memory", "[simt][faults]") {
    Device<int> out(64);
    for (int bytes : {1, 7, 8, 1000, 1028, 40000, 100}) {
        launch(shared_ends, 3, 64, static_cast<size_t>(bytes), nullptr, out.data, bytes);
        for (int v : out.read()) REQUIRE(v == 9);
    }
}
#endif

#endif
