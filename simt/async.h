// What instructions that finish by themselves have on their way: shared by the twins of ptx_sm90.cuh (mbarrier.cpp,
// tma.cpp, wgmma.cpp). One Async per block, made at the first such instruction.
//
// The async proxy has a view of shared memory of its own, filled with 0xff. fence_proxy_async publishes what threads
// have stored; TMA loads write both views. In the checking mode, which knows every store, a thread's fence covers
// exactly its own stores and a read of anything else is a report. Elsewhere a fence copies all of shared memory at the
// next moment that another thread could profit from it: a missing fence shows as stale data unless another thread's
// covers for it.
//
// Everything arrives as late as it may: a load when no lane can run (at random moments too with SIMT_SEED), a product
// when its group is waited for, a store reads and writes when that is waited for.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "check.h"
#include "engine.h"
#include "ptx_sm90.cuh"

namespace simt {

#ifdef SIMT_CHECK
constexpr bool kChecking = true;
#else
constexpr bool kChecking = false;
inline void check_release(Clock&) {}
inline void check_acquire(const Clock&) {}
inline void check_proxy_fence() {}
inline uint32_t check_load_issued(size_t, size_t, const void*) {
    return 0;
}
inline void check_load_arrived(size_t, size_t, unsigned, uint32_t, Clock&) {}
inline void check_async_read(size_t, size_t, const void*) {}
inline void check_watch_reads(const uint16_t*) {}
inline void check_async_read_over(uint32_t, bool, const uint16_t*, size_t, const void*) {}
inline uint32_t check_async_event() { return 0; }
inline void check_read(const void*, size_t, const void*) {}
inline void check_write(const void*, size_t, const void*) {}
#endif

// The instruction that the running lane executes, for reports.
struct Call {
    const char* name;
    const void* pc;
};
// "simt: NAME: MESSAGE" with kernel, block, thread and source line; ends the block. printf-style.
[[noreturn]] void fail(Call call, const char* format, ...) __attribute__((format(printf, 2, 3)));

struct Waiter {
    unsigned thread, parity;
};

struct Mbarrier {
    uint32_t at;  // offset in shared memory
    unsigned expected, pending;
    int64_t bytes = 0;
    uint64_t phase = 0;
    bool fenced = false;  // mbarrier_init_fence came after the initialisation
    unsigned maker;
    std::vector<Waiter> waiting;
    Clock arrived, done;  // what this phase's arrivals did before; what those of ended phases did
};

struct NamedBarrier {
    unsigned threads = 0, arrived = 0;  // 0 threads: nobody has come
    uint64_t rounds = 0;
    std::vector<uint16_t> who;  // arrived in this round
    std::vector<uint16_t> waiting;
    Clock now, done;
};

struct Load {
    TensorMap map;  // a copy: the lane may return before its load arrives
    int c[5];
    uint32_t to, bytes, barrier;
    unsigned thread;
    uint32_t when;
};

struct Warpgroups;  // wgmma.cpp

struct Async : Asynchronous {
    std::vector<Mbarrier> mbarriers;
    NamedBarrier named[16];
    std::vector<Load> loads;
    // Per 16 bytes of shared memory.
    std::vector<uint8_t> arriving;  // a load is on its way there
    std::vector<uint16_t> reading;  // products and stores that still read there
    unsigned char* view;            // of the async proxy
    bool fences = false;            // fences whose stores are not in `view` yet
    // setmaxnreg
    unsigned registers[kMaxThreads / kWarp];  // per thread of each warp
    std::string register_calls[kMaxThreads / kWarp];
    int free_registers = 0;
    std::vector<uint16_t> wanting;
    Warpgroups* warpgroups = nullptr;  // made at the first wgmma

    Async();
    Async(const Async&) = delete;
    Async& operator=(const Async&) = delete;
    void publish() {
        if (fences) copy_to_view();
    }
    void copy_to_view();
};
Async& new_async_state();
// Of the running block.
SIMT_INLINE Async& async_state() {
    Asynchronous* present = self.block->asynchronous;
    return present ? static_cast<Async&>(*present) : new_async_state();
}

// tma.cpp
bool arrive_one_load();
void describe_loads(std::string& text);
void finish_stores(bool last_lane);  // the running lane returns
// wgmma.cpp
void check_no_products();  // the running lane returns
void describe_products(std::string& text);
// mbarrier.cpp
Mbarrier& find_mbarrier(Call call, const void* barrier);
void complete_load(const Load& load);

// Shared memory: the offset of p, which must have `bytes` there and be a multiple of `alignment`.
uint32_t shared_offset(Call call, const void* p, size_t bytes, unsigned alignment);
// The bits that a swizzle XORs into an address.
constexpr uint32_t swizzle_bits(Swizzle swizzle, uint32_t address) {
    return (address >> 7 & ((1u << static_cast<unsigned>(swizzle)) - 1)) << 4;
}

}  // namespace simt
