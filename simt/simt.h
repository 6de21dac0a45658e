// The CPU machine: runs CUDA kernels as fibers. This header is for the files of simt/ and for CPU twins of PTX
// instructions; kernels see only the CUDA names of <cuda_runtime.h>, <cuda_bf16.h>, <collectives.cuh>.
//
// How a block runs. The threads of a block (lanes) run one after the other on one operating-system thread. A lane is a
// plain function call until it needs the others; only then does it keep its stack (a fiber) and switch straight to
// the next lane that can run. So a kernel without barriers costs one call per thread, and a barrier costs one switch.
//
// How to write the twin of a warp instruction (mma, ldmatrix, ...): every lane deposits a struct on its own stack, the
// last lane to arrive computes for all 32, then all go on. One wait per lane, no copying:
//
//     struct Args { uint32_t a[4], b[2]; float d[4]; };
//     inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
//         Args args{...};
//         simt::warp_collective("mma", args, [](Args* const* lanes, uint32_t mask) {
//             // lanes[i] is lane i's Args for every bit i of mask; write results into lanes[i]->d.
//         });
//         ... copy args.d to d ...
//     }
//
// `mask` defaults to the whole warp; lanes of a last, partial warp that do not exist are dropped from it (lanes[i] is
// then null: call simt::require_full_warp("mma") first where the hardware needs all 32). The name appears in reports.
// simt::block_collective is the same over the whole block and orders memory like __syncthreads. A warp collective does
// not order memory, as shuffles and mma on the GPU do not: only __syncwarp does (the checker insists).
//
// State a twin must keep per lane or per block (outstanding asynchronous copies, barriers' phases) goes into
// simt::block_local<T>() or simt::lane_local<T>(): one T per block or per lane, fresh for every block.
// simt::wait_until("what", predicate) parks a lane until another lane makes the predicate true.
// simt::park_lane() parks a lane until another calls simt::wake_lane(thread): no polling, but the twin must be entered
// in Block::asynchronous so that a deadlock can be told, and what is in flight arrive (async.h does, for ptx_sm90.cuh).
// simt::die("...") ends the program with a message that names kernel, block and thread.
//
// Compile kernels with -ffp-contract=fast -fno-math-errno -fno-trapping-math: the first as nvcc does, the others so
// that loops over simt_math.h's functions become vector code.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>

#include "context.h"
#include "simt_types.h"

#define SIMT_NOINLINE __attribute__((noinline))
#define SIMT_INLINE inline __attribute__((always_inline))
#define SIMT_TLS inline constinit thread_local __attribute__((tls_model("initial-exec")))

// The built-in variables of a kernel. Each operating-system thread has its own; a switch of lanes sets threadIdx.
SIMT_TLS uint3 threadIdx{};
SIMT_TLS uint3 blockIdx{};
SIMT_TLS dim3 blockDim{};
SIMT_TLS dim3 gridDim{};
inline constexpr int warpSize = 32;

namespace simt {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kNobody = ~0u;
constexpr uint32_t kFullMask = 0xffffffffu;
constexpr unsigned kMaxValues = 64;  // values per lane in one warp_sum or row_sum

// One warp of the block that runs on this OS thread. The masks are disjoint views of its lanes' states.
struct alignas(64) Warp {
    uint32_t exists;    // lanes that the block has in this warp
    uint32_t alive;     // lanes that have not returned from the kernel
    uint32_t ready;     // lanes that could run, started or not, except the one that runs
    uint32_t at_warp;   // lanes that wait for others of the warp
    uint32_t at_block;  // lanes that wait at a block barrier
    uint32_t parked;    // lanes that wait for wake_lane
    uint32_t phase;     // per lane: which of the two slot buffers its next whole-warp shuffle uses
    unsigned index;
    unsigned yielded;                            // the lane that last yielded
    void* args[kWarp];                           // what the lanes deposited for a collective
    uint64_t slot[2][kWarp];                     // whole-warp shuffles: double-buffered, so that one wait suffices
    uint64_t aside[kWarp];                       // shuffles of a part of the warp: two waits
    alignas(64) float value[kMaxValues][kWarp];  // sums and maxima: what the lanes deposited, and what comes back
    float result[kMaxValues];
};

// What a twin keeps for one block: a small object per type, made at first use, destroyed at the end of the block.
struct Local {
    const void* type;
    void* object;
    void (*destroy)(void*);
    Local* next;
};

// What the engine asks of twins whose effects come later, and of waits that are no meeting.
struct Asynchronous {
    bool (*arrive)();                           // no lane can run: one thing in flight arrives; false: nothing is
    void (*lane_exits)();                       // the running lane returns from the kernel
    void (*describe)(char* text, size_t size);  // who of the parked lanes waits for what
};

struct Block {
    Warp warps[kMaxThreads / kWarp];
    unsigned threads, num_warps;
    unsigned alive;     // lanes that have not returned
    unsigned waiting;   // lanes at the block barrier
    unsigned promoted;  // the waiting lane that must do the common work, or kNobody
    void* args[kMaxThreads];
    unsigned char* shared;
    size_t shared_bytes;
    Local* locals;
    Asynchronous* asynchronous;  // null: this block has nothing of the kind
};

// Where the running lane is. Null block: not inside a kernel.
struct Self {
    Block* block;
    Warp* warp;
    unsigned lane;    // 0..31 in its warp
    unsigned thread;  // linear index in the block
};
SIMT_TLS Self self{};

// Parks the running lane, which must stand in at_warp, at_block or parked, or be ready again, and runs the next one.
#if defined(__SANITIZE_ADDRESS__)
void suspend();
#else
// In two parts, so that the switch itself stands where the lane waits: a function that is entered on one lane's stack and
// returns on another's would be a mispredicted return on every switch, a third of a collective's time.
struct Departure {
    Context* from;
    Context to;  // null: the lane goes on at once
};
Departure depart();
SIMT_INLINE void suspend() {
    Departure departure = depart();
    if (departure.to) switch_context(departure.from, departure.to);
}
#endif
// Releases a block barrier: every waiting lane can run again.
void release_block(Block& block);
// Ends the program: "simt: MESSAGE" with kernel, block, thread and source line. printf-style.
[[noreturn]] void die(const char* format, ...) __attribute__((format(printf, 1, 2)));

#ifdef SIMT_CHECK
void check_arrive(const char* op, uint32_t mask);  // the running lane is about to wait; mask 0: for the whole block
void check_lane_source(unsigned source, uint32_t mask);
void check_warp_synced(Warp& warp, uint32_t mask);  // the memory accesses of these lanes are ordered now
void check_block_synced(Block& block);
void check_waited();                               // the running lane calls wait_for_previous
// For code that is not instrumented (stand-in libraries in simt/*.cpp): it read or wrote device or shared memory.
void note_read(const void* p, size_t bytes);
void note_written(const void* p, size_t bytes);
#else
SIMT_INLINE void check_arrive(const char*, uint32_t) {}
SIMT_INLINE void check_lane_source(unsigned, uint32_t) {}
SIMT_INLINE void check_warp_synced(Warp&, uint32_t) {}
SIMT_INLINE void check_block_synced(Block&) {}
SIMT_INLINE void check_waited() {}
SIMT_INLINE void note_read(const void*, size_t) {}
SIMT_INLINE void note_written(const void*, size_t) {}
#endif

// The lane arrives at a meeting of the warp's lanes in `mask`. True for the last: it does the common work, then calls
// warp_release. The others must call suspend() and find the work done when it returns.
SIMT_INLINE bool warp_arrive(Warp& warp, uint32_t mask) {
    warp.at_warp |= 1u << self.lane;
    return (warp.at_warp & mask) == mask;
}
SIMT_INLINE void warp_release(Warp& warp, uint32_t mask) {
    warp.at_warp &= ~mask;
    warp.ready |= mask & ~(1u << self.lane);
}
SIMT_INLINE void warp_sync(Warp& warp, uint32_t mask) {
    if (warp_arrive(warp, mask))
        warp_release(warp, mask);
    else
        suspend();
}
// The lane arrives at a meeting of the whole block and waits. True for the one that does the common work and then calls
// release_block: the last to arrive or, if the others returned from the kernel meanwhile, one of those that waited.
SIMT_INLINE bool block_meet(Block& block) {
    self.warp->at_block |= 1u << self.lane;
    if (++block.waiting == block.alive) return true;
    suspend();
    if (block.promoted != self.thread) [[likely]]
        return false;
    block.promoted = kNobody;
    return true;
}

// See the top of the file.
template <class Args, class Work>
SIMT_INLINE void warp_collective(const char* name, Args& args, Work&& work, uint32_t mask = kFullMask) {
    Warp& warp = *self.warp;
    mask &= warp.exists;
    check_arrive(name, mask);
    warp.args[self.lane] = &args;
    if (warp_arrive(warp, mask)) {
        work(reinterpret_cast<Args* const*>(warp.args), mask);
        warp_release(warp, mask);
    } else {
        suspend();
    }
}

// Every thread of the block deposits `args`; the last to arrive calls work(Args* const* threads, unsigned count) with
// null for threads that have returned.
template <class Args, class Work>
SIMT_INLINE void block_collective(const char* name, Args& args, Work&& work) {
    Block& block = *self.block;
    check_arrive(name, 0);
    block.args[self.thread] = &args;
    if (block_meet(block)) {
        work(reinterpret_cast<Args* const*>(block.args), block.threads);
        release_block(block);
    }
}

SIMT_INLINE void require_full_warp(const char* name) {
    if (self.warp->alive != kFullMask) die("%s needs all 32 lanes of the warp", name);
}

// Lets every other lane that can run go first. With wait_until, the way to wait for something that is not a meeting. If
// `what` is not null, only lanes of this block can end the wait: when none of them does, it is reported as a deadlock.
void yield_lane(const char* what);
SIMT_INLINE void park_lane() {
    self.warp->parked |= 1u << self.lane;
    suspend();
}
SIMT_INLINE void wake_lane(unsigned thread) {
    Warp& warp = self.block->warps[thread / kWarp];
    warp.parked &= ~(1u << thread % kWarp);
    warp.ready |= 1u << thread % kWarp;
}
template <class Predicate>
SIMT_INLINE void wait_until(const char* what, Predicate&& predicate) {
    while (!predicate()) yield_lane(what);
}

Local* find_local(const void* type);
Local* add_local(const void* type, void* object, void (*destroy)(void*));
template <class T>
inline constexpr char local_tag = 0;
// One T per block, value-initialised at its first use in each block.
template <class T>
T& block_local() {
    Local* local = find_local(&local_tag<T>);
    if (!local) local = add_local(&local_tag<T>, new T(), [](void* p) { delete static_cast<T*>(p); });
    return *static_cast<T*>(local->object);
}
template <class T>
struct PerLane {
    T* items = new T[self.block->threads]();
    ~PerLane() { delete[] items; }
};
// One T per thread of the block.
template <class T>
T& lane_local() {
    return block_local<PerLane<T>>().items[self.thread];
}

// ---------------------------------------------------------------------------------------------------------------------
// For the host side

struct Launch {
    void (*body)(void* args);  // calls the kernel once, for the lane that runs
    void* args;
    const void* kernel;
    dim3 grid, block;
    size_t shared_bytes;
    bool early = false;  // may begin before the launch before it has ended: see grid_order.cuh
};
// Runs the grid to its end. False: a report was made, its handler returned, and the rest of the grid was dropped.
bool run(const Launch& launch);

// Takes the text of a report instead of stderr and abort(); null restores that. The launch then returns
// cudaErrorLaunchFailure. For tests.
using ReportHandler = void (*)(const char* report);
void set_report_handler(ReportHandler handler);

}  // namespace simt

// The block's dynamic shared memory as an S: exactly the bytes that the launch asked for, 1024-byte aligned. The same
// function exists for the GPU in kernels/gpu/collectives.cuh.
template <class S>
SIMT_INLINE S& shared_as() {
    if (sizeof(S) > simt::self.block->shared_bytes) [[unlikely]]
        simt::die("shared_as: the struct has %zu bytes, the launch gave %zu", sizeof(S),
                  simt::self.block->shared_bytes);
    return *reinterpret_cast<S*>(simt::self.block->shared);
}
