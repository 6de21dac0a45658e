// The engine: stacks, the order in which lanes run, barriers, blocks over cores. See simt.h.
#include "simt.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "context.h"
#include "engine.h"
#include "flush_denormals.h"
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {
namespace {

// Stacks are carved from chunks of 32, each an odd number of pages and each starting at another cache line: if all
// stacks' tops fell into the same cache sets, every switch would miss.
#if defined(__SANITIZE_ADDRESS__) || defined(SIMT_CHECK)
constexpr size_t kStackBytes = 261 * 4096;
#else
constexpr size_t kStackBytes = 33 * 4096;
#endif
constexpr size_t kStacksPerChunk = 32;
constexpr size_t kRedZone = 4096;

struct Stack {
    Context context = nullptr;  // where this stack waits for a lane to start, while it is idle
    char* base = nullptr;       // null for the OS thread's own stack
    size_t bytes = 0;
};

// Everything that one OS thread needs to run blocks. Made at its first kernel, kept for its life.
struct Machine {
    Block block{};
    Context context[kMaxThreads] = {};  // of suspended lanes; null: the lane has not started
    Stack* stack_of[kMaxThreads] = {};
    uint3 index[kMaxThreads] = {};
    dim3 index_shape{0, 0, 0};  // the block shape that `index` was filled for

    Stack own;  // the OS thread's stack: lanes run here first, and the end of the block returns here
    Stack* running = &own;
    std::vector<std::unique_ptr<Stack>> stacks;
    std::vector<Stack*> idle;
    std::vector<void*> chunks;

    unsigned char* shared = nullptr;
    const Launch* launch = nullptr;
    bool finished = false;  // no lane is left to run: go back to the OS thread's stack
    bool abandoned = false;
    uint64_t idle_yields = 0;  // since a lane last did anything but yield
    uint64_t yields = 0;
    bool shuffled = false;     // SIMT_SEED: a random order of warps and lanes
    uint64_t random = 0;

    Machine();
    ~Machine();
    void add_chunk();
    uint64_t next_random() {
        uint64_t z = (random += 0x9E3779B97F4A7C15ull);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        return z ^ (z >> 31);
    }
};

thread_local std::unique_ptr<Machine> machine_owner;
constinit thread_local Machine* machine = nullptr;

constexpr size_t kSharedArea = kSharedLimit + 2 * kRedZone;

Machine::Machine() {
    shared = static_cast<unsigned char*>(
        mmap(nullptr, kSharedArea, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (shared == MAP_FAILED) {
        fprintf(stderr, "simt: out of memory for shared memory\n");
        abort();
    }
    shared += kRedZone;
    block.shared = shared;
    if (const char* seed = getenv("SIMT_SEED"); seed && *seed) {
        shuffled = true;
        random = strtoull(seed, nullptr, 10);
    }
}

Machine::~Machine() {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(shared - kRedZone, kSharedArea);
#endif
    munmap(shared - kRedZone, kSharedArea);
    for (void* chunk : chunks) {
#if defined(__SANITIZE_ADDRESS__)
        ASAN_UNPOISON_MEMORY_REGION(chunk, kStackBytes * kStacksPerChunk);
#endif
        munmap(chunk, kStackBytes * kStacksPerChunk);
    }
}

void run_on_pooled_stack();

void Machine::add_chunk() {
    size_t bytes = kStackBytes * kStacksPerChunk;
    void* chunk = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (chunk == MAP_FAILED) {
        fprintf(stderr, "simt: out of memory for the stacks of a block's threads\n");
        abort();
    }
    chunks.push_back(chunk);
    for (size_t i = kStacksPerChunk; i-- > 0;) {
        auto stack = std::make_unique<Stack>();
        char* low = static_cast<char*>(chunk) + i * kStackBytes;
        // An overflow must fault rather than run into the neighbour.
        mprotect(low, kRedZone, PROT_NONE);
        size_t stagger = (i * 5 % 64) * 64;
        stack->base = low + kRedZone;
        stack->bytes = kStackBytes - kRedZone - stagger;
        idle.push_back(stack.get());
        stacks.push_back(std::move(stack));
    }
}

// Goes to `target`, whose context is `to`; where we stop is stored into *from_slot.
SIMT_INLINE void jump(Stack* target, Context to, Context* from_slot) {
    machine->running = target;
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, target->base, target->bytes);
#endif
    switch_context(from_slot, to);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

// SIMT_SEED: any lane that can run, or -1.
int pick_random(Machine& m) {
    Block& b = m.block;
    unsigned candidates[kMaxThreads / kWarp], count = 0;
    for (unsigned w = 0; w < b.num_warps; w++)
        if (b.warps[w].ready) candidates[count++] = w;
    if (!count) return -1;
    unsigned w = candidates[m.next_random() % count];
    uint32_t ready = b.warps[w].ready;
    for (unsigned skip = m.next_random() % __builtin_popcount(ready); skip > 0; skip--) ready &= ready - 1;
    return static_cast<int>(w * kWarp + __builtin_ctz(ready));
}

// The first lane that can run in the warps after this one, or -1.
int pick_other_warp(Machine& m) {
    Block& b = m.block;
    if (m.shuffled) return pick_random(m);
    unsigned current = self.thread / kWarp;
    for (unsigned step = 1; step < b.num_warps; step++) {
        unsigned w = current + step;
        if (w >= b.num_warps) w -= b.num_warps;
        if (b.warps[w].ready) return static_cast<int>(w * kWarp + __builtin_ctz(b.warps[w].ready));
    }
    return -1;
}

// The next lane to run after lane `self.thread`, or -1. Lanes of the same warp first, in cyclic order: then a meeting
// of the warp costs each lane one switch.
SIMT_INLINE int pick(Machine& m) {
    uint32_t ready = self.warp->ready;
    if (!ready || m.shuffled) [[unlikely]]
        return pick_other_warp(m);
    uint32_t above = ready & (~0u << self.lane);
    return static_cast<int>(self.thread - self.lane + static_cast<unsigned>(__builtin_ctz(above ? above : ready)));
}

// Makes `thread` the running lane: the built-ins speak of it.
SIMT_INLINE void become(Machine& m, unsigned thread) {
    self.warp = &m.block.warps[thread / kWarp];
    self.lane = thread % kWarp;
    self.thread = thread;
    threadIdx = m.index[thread];
}

SIMT_INLINE void take(Machine& m, unsigned thread) {
    m.block.warps[thread / kWarp].ready &= ~(1u << (thread % kWarp));
}

[[noreturn]] void deadlock(Machine& m) {
    Block& b = m.block;
    unsigned at_block = 0, at_warp = 0;
    int first_waiter = -1;
    for (unsigned w = 0; w < b.num_warps; w++) {
        const Warp& warp = b.warps[w];
        at_block += static_cast<unsigned>(__builtin_popcount(warp.at_block));
        at_warp += static_cast<unsigned>(__builtin_popcount(warp.at_warp));
        if (uint32_t waiting = warp.at_warp | warp.parked; waiting && first_waiter < 0)
            first_waiter = static_cast<int>(w * kWarp + __builtin_ctz(waiting));
    }
    report_deadlock(at_block, at_warp, b.threads - b.alive, first_waiter);
}

// As pick. When no lane can run, what is in flight arrives until one can.
unsigned pick_or_die(Machine& m) {
    m.idle_yields = 0;
    int next = pick(m);
    while (next < 0) [[unlikely]] {
        if (!m.block.asynchronous || !m.block.asynchronous->arrive()) deadlock(m);
        next = pick(m);
    }
    return static_cast<unsigned>(next);
}

// All that are left wait at a block barrier: the first of them completes it.
void promote(Block& b) {
    Warp* warp = b.warps;
    while (!warp->at_block) warp++;
    unsigned lane = static_cast<unsigned>(__builtin_ctz(warp->at_block));
    warp->ready |= 1u << lane;
    b.promoted = warp->index * kWarp + lane;
}

SIMT_INLINE void exit_lane(Machine& m) {
    Block& b = m.block;
    check_exit(self.thread);
    if (b.asynchronous) b.asynchronous->lane_exits();
    m.idle_yields = 0;
    self.warp->alive &= ~(1u << self.lane);
    b.alive--;
    // A thread that has returned counts as arrived, as on the GPU.
    if (b.waiting && b.waiting == b.alive) promote(b);
}

// Where a suspended lane goes on; null if it has not started. Asking makes it a running lane.
SIMT_INLINE Context take_context(Machine& m, unsigned thread) {
    return std::exchange(m.context[thread], nullptr);
}

// Runs lanes that have not started, one after the other, until the next one to run is suspended on another stack.
// On a pooled stack it never returns; on the OS thread's stack it returns when the block is done.
void run_lanes(Machine& m) {
    Stack* mine = m.running;
    for (;;) {
        m.launch->body(m.launch->args);
        exit_lane(m);
        for (;;) {
            if (m.finished || m.block.alive == 0) {
                if (mine == &m.own) return;
                m.finished = true;
                m.idle.push_back(mine);
                jump(&m.own, m.own.context, &mine->context);
            } else {
                unsigned next = pick_or_die(m);
                take(m, next);
                become(m, next);
                Context to = take_context(m, next);
                if (!to) break;
                if (mine != &m.own) m.idle.push_back(mine);
                jump(m.stack_of[next], to, &mine->context);
            }
            // Woken: either the block is done, or self is a lane to start on this stack.
            if (!m.finished) break;
        }
    }
}

void run_on_pooled_stack() {
#if defined(__SANITIZE_ADDRESS__)
    const void* bottom = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
    // The first switch of all comes from the OS thread's own stack.
    if (!machine->own.base) {
        machine->own.base = static_cast<char*>(const_cast<void*>(bottom));
        machine->own.bytes = bytes;
    }
#endif
    run_lanes(*machine);
    abort();  // not reached
}

// A stack that will run the lane `self` when jumped to.
Stack* stack_for_new_lane(Machine& m) {
    if (m.idle.empty()) m.add_chunk();
    Stack* stack = m.idle.back();
    m.idle.pop_back();
    if (!stack->context) {
#if defined(__SANITIZE_ADDRESS__)
        ASAN_UNPOISON_MEMORY_REGION(stack->base, stack->bytes);
#endif
        stack->context = make_context(stack->base, stack->bytes, run_on_pooled_stack);
    }
    return stack;
}

// After a block was abandoned, its suspended lanes are dropped: every stack starts anew.
void reset_stacks(Machine& m) {
    m.idle.clear();
    for (auto& stack : m.stacks) {
        stack->context = nullptr;
        m.idle.push_back(stack.get());
    }
    memset(m.context, 0, sizeof m.context);
    memset(m.stack_of, 0, sizeof m.stack_of);
    m.running = &m.own;
}

void fill_indices(Machine& m, dim3 shape) {
    unsigned i = 0;
    for (unsigned z = 0; z < shape.z; z++)
        for (unsigned y = 0; y < shape.y; y++)
            for (unsigned x = 0; x < shape.x; x++) m.index[i++] = {x, y, z};
    m.index_shape = shape;
}

void start_launch(Machine& m, const Launch& launch) {
    Block& b = m.block;
    m.launch = &launch;
    b.threads = launch.block.x * launch.block.y * launch.block.z;
    b.num_warps = (b.threads + kWarp - 1) / kWarp;
    b.shared_bytes = launch.shared_bytes;
    const dim3& shape = launch.block;
    if (m.index_shape.x != shape.x || m.index_shape.y != shape.y || m.index_shape.z != shape.z) fill_indices(m, shape);
    for (unsigned w = 0; w < b.num_warps; w++) {
        unsigned lanes = b.threads - w * kWarp;
        b.warps[w].exists = lanes >= kWarp ? kFullMask : (1u << lanes) - 1;
        b.warps[w].index = w;
        memset(b.warps[w].args, 0, sizeof b.warps[w].args);
    }
    memset(b.args, 0, b.threads * sizeof b.args[0]);
    blockDim = launch.block;
    gridDim = launch.grid;
    self.block = &b;
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(m.shared, b.shared_bytes);
    ASAN_POISON_MEMORY_REGION(m.shared - kRedZone, kRedZone);
    size_t redzone = kSharedLimit + kRedZone - b.shared_bytes;
    ASAN_POISON_MEMORY_REGION(m.shared + b.shared_bytes, redzone);
#endif
}

// False: abandoned after a report.
bool run_block(Machine& m, uint64_t linear) {
    const Launch& launch = *m.launch;
    Block& b = m.block;
    unsigned gx = launch.grid.x, gy = launch.grid.y;
    blockIdx = {static_cast<unsigned>(linear % gx), static_cast<unsigned>(linear / gx % gy),
                static_cast<unsigned>(linear / gx / gy)};
    b.alive = b.threads;
    b.waiting = 0;
    b.promoted = kNobody;
    b.asynchronous = nullptr;
    for (unsigned w = 0; w < b.num_warps; w++) {
        Warp& warp = b.warps[w];
        warp.alive = warp.ready = warp.exists;
        warp.at_warp = warp.at_block = warp.parked = warp.phase = warp.yielded = 0;
    }
    m.finished = m.abandoned = false;
    m.running = &m.own;
    block_begins(b);
    unsigned first = m.shuffled ? static_cast<unsigned>(pick_random(m)) : 0;
    take(m, first);
    become(m, first);
    if (can_abandon()) {  // a block can be abandoned only from another stack than this one
        Stack* stack = stack_for_new_lane(m);
        jump(stack, stack->context, &m.own.context);
    } else {
        run_lanes(m);
    }
    if (b.locals) drop_locals(b);
    if (m.abandoned) reset_stacks(m);
    block_ends(b);
    return !m.abandoned;
}

// Takes blocks in increasing order until none is left, so that a block may wait for lower-numbered ones.
void run_blocks(const Launch& launch, std::atomic<uint64_t>& next, uint64_t blocks, std::atomic<bool>& abandoned) {
    uint64_t i = next.fetch_add(1, std::memory_order_relaxed);
    if (i >= blocks) return;
    if (!machine) {
        machine_owner = std::make_unique<Machine>();
        machine = machine_owner.get();
    }
    FlushDenormals flush;
    start_launch(*machine, launch);
    for (; i < blocks && !abandoned; i = next.fetch_add(1, std::memory_order_relaxed))
        if (!run_block(*machine, i)) abandoned = true;
    self = {};
}

// Makes `next` the running lane: the stack to go on with, and its context; null when it is the one that runs already.
SIMT_INLINE Context prepare_switch(Machine& m, unsigned next, Stack*& target) {
    unsigned me = self.thread;
    take(m, next);
    if (next == me) return nullptr;  // it was ready again, and no other lane was
    become(m, next);
    m.stack_of[me] = m.running;
    target = m.stack_of[next];
    Context to = take_context(m, next);
    if (!to) {
        target = stack_for_new_lane(m);
        to = target->context;
    }
    return to;
}

// Leaves the running lane and runs `next`. Whoever comes back here has already made this the running lane again.
SIMT_INLINE void switch_to(Machine& m, unsigned next) {
    unsigned me = self.thread;
    Stack* target = nullptr;
    Context to = prepare_switch(m, next, target);
    if (to) jump(target, to, &m.context[me]);
}

}  // namespace

#if defined(__SANITIZE_ADDRESS__)
void suspend() {
    Machine& m = *machine;
    switch_to(m, pick_or_die(m));
}
#else
Departure depart() {
    Machine& m = *machine;
    unsigned me = self.thread;
    Stack* target = nullptr;
    Context to = prepare_switch(m, pick_or_die(m), target);
    if (to) m.running = target;
    return {&m.context[me], to};
}
#endif

// Warp after warp, and within each warp lane after lane: nobody who waits by yielding starves another.
void yield_lane(const char* what) {
    Machine& m = *machine;
    Block& b = m.block;
    self.warp->ready |= 1u << self.lane;
    self.warp->yielded = self.lane;
    // While lanes only yield, what is in flight goes on.
    if (b.asynchronous && ++m.yields % b.threads == 0) b.asynchronous->arrive();
    // A wait that nobody in the block ends is a deadlock; __nanosleep may wait for other blocks.
    if (what && ++m.idle_yields > 100000 + 1000ull * b.threads)
        die("deadlock: every thread that is left waits for %s", what);
    if (m.shuffled) return switch_to(m, static_cast<unsigned>(pick_random(m)));
    for (unsigned step = 1; step <= b.num_warps; step++) {
        Warp& warp = b.warps[(self.warp->index + step) % b.num_warps];
        if (!warp.ready) continue;
        uint32_t after = warp.ready & (~1u << warp.yielded);
        return switch_to(m, warp.index * kWarp + static_cast<unsigned>(__builtin_ctz(after ? after : warp.ready)));
    }
}

void abandon_block() {
    Machine& m = *machine;
    Context nowhere = nullptr;
    m.finished = m.abandoned = true;
    jump(&m.own, m.own.context, &nowhere);
    abort();  // not reached
}

unsigned choose(unsigned count) {
    return machine->shuffled ? static_cast<unsigned>(machine->next_random() % count) : 0;
}

const Launch* current_launch() {
    return machine && self.block ? machine->launch : nullptr;
}

bool run(const Launch& launch) {
    if (self.block) die("a kernel cannot launch a kernel");
    uint64_t blocks = static_cast<uint64_t>(launch.grid.x) * launch.grid.y * launch.grid.z;
    std::atomic<uint64_t> next{0};
    std::atomic<bool> abandoned{false};
#ifdef _OPENMP
    // A parallel region costs microseconds: not for one block.
    int threads = omp_get_max_threads();
    if (static_cast<uint64_t>(threads) > blocks) threads = static_cast<int>(blocks);
    if (threads > 1 && !omp_in_parallel()) {
#pragma omp parallel num_threads(threads)
        run_blocks(launch, next, blocks, abandoned);
        return !abandoned;
    }
#endif
    run_blocks(launch, next, blocks, abandoned);
    return !abandoned;
}

}  // namespace simt
