// The checking mode: what threads may not do, and which bytes have been written. Compiled with -DSIMT_CHECK only.
//
// Kernels are compiled with -fsanitize=thread, so that every load and store calls a hook (tsan_hooks.cpp), which comes
// here. Device memory has a shadow byte per byte: not ours, allocated, written. Shared memory has a cell per byte that
// remembers who wrote and who read it last, and when. "When" is the number of the block barrier before it and, among
// lanes of one warp, the number of the __syncwarp: two accesses by different threads, one of them a write, with the
// same block number and without a __syncwarp that both lanes took part in, are a race, in whatever order they happened.
#ifdef SIMT_CHECK

#include "check.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine.h"
#include "report.h"

namespace simt {

CheckArena arena;

namespace {

// One byte of shared memory. Epochs count from 1 and never go back, so nothing needs clearing between blocks.
struct Cell {
    uint32_t write_epoch, write_lane, write_pc;  // 0 in write_epoch: never written
    uint32_t read_epoch, read_lane, read_pc;
    uint16_t writer, reader;
    uint16_t other_reader;  // another thread that read in the same block epoch, or kNoThread
    uint16_t other_warp;    // 1: threads of more than one warp read in this block epoch
};
constexpr uint16_t kNoThread = 0xffff;

struct Waiting {
    const char* op;
    const void* pc;
    uint32_t mask;
};

struct Checker {
    std::vector<Cell> cells = std::vector<Cell>(kSharedLimit);
    uint32_t epoch = 1;        // of the block: grows at every block barrier and at every new block
    uint32_t block_start = 1;  // the epoch in which this block began
    // Per lane: the number of its last __syncwarp, and the last accesses of each other lane that it is ordered after.
    uint32_t lane_epoch[kMaxThreads] = {};
    uint32_t seen[kMaxThreads / kWarp][kWarp][kWarp] = {};
    uint32_t warp_syncs[kMaxThreads / kWarp] = {};
    Waiting waiting[kMaxThreads] = {};
    unsigned first_at_barrier = kNobody;
    unsigned first_exited = kNobody;
};
thread_local std::unique_ptr<Checker> owner;
constinit thread_local Checker* checker = nullptr;

const char* const text_base = [] {
    extern const char here asm("__executable_start");
    return &here;
}();
uint32_t pack_pc(const void* pc) {
    return static_cast<uint32_t>(static_cast<const char*>(pc) - text_base);
}
const void* unpack_pc(uint32_t pc) {
    return text_base + pc;
}

// Asking for a line is slow; barriers at several addresses ask again and again.
const std::string& line_of(const void* pc) {
    static std::mutex mutex;
    static std::map<const void*, std::string> known;
    std::lock_guard lock(mutex);
    auto found = known.find(pc);
    if (found == known.end()) found = known.emplace(pc, source_line(pc)).first;
    return found->second;
}

std::string at(const void* pc) {
    return "\n  at " + line_of(pc);
}
std::string where(const void* pc) {
    return "\n  in " + place(self.thread) + at(pc);
}

std::string waits(unsigned thread) {
    const Waiting& w = checker->waiting[thread];
    return "thread " + thread_name(thread) + " waits at " + w.op + ", " + line_of(w.pc);
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Meetings

void check_arrive(const char* op, uint32_t mask) {
    const void* pc = __builtin_return_address(0);
    Checker& c = *checker;
    const Block& block = *self.block;
    const Warp& warp = *self.warp;
    Waiting& mine = c.waiting[self.thread];
    mine = {op, pc, mask};
    if (!mask) {  // a barrier of the block
        if (block.alive < block.threads)
            report("divergent barrier: thread " + thread_name(c.first_exited) + " has returned from the kernel, " +
                   waits(self.thread) + where(pc));
        if (!block.waiting) {
            c.first_at_barrier = self.thread;
        } else {
            const Waiting& first = c.waiting[c.first_at_barrier];
            bool same = !strcmp(first.op, op) && (first.pc == pc || line_of(first.pc) == line_of(pc));
            if (!same)
                report("divergent barrier: " + waits(c.first_at_barrier) + ", but " + waits(self.thread) + where(pc));
        }
        return;
    }
    if (!(mask >> self.lane & 1)) report(std::string(op) + ": the mask does not name the calling lane" + where(pc));
    if (uint32_t gone = mask & ~warp.alive) {
        unsigned other = self.thread - self.lane + static_cast<unsigned>(__builtin_ctz(gone));
        report(std::string(op) + ": the mask names thread " + thread_name(other) +
               ", which has returned from the kernel" + where(pc));
    }
    // A lane that waits elsewhere may still come, unless what it waits for needs us.
    uint32_t elsewhere = mask & warp.at_block;
    for (uint32_t m = mask & warp.at_warp; m; m &= m - 1) {
        unsigned lane = static_cast<unsigned>(__builtin_ctz(m));
        const Waiting& other = c.waiting[self.thread - self.lane + lane];
        bool needs_us = other.mask >> self.lane & 1;
        if (needs_us && (strcmp(other.op, op) || other.mask != mask)) elsewhere |= 1u << lane;
    }
    if (elsewhere) {
        unsigned other = self.thread - self.lane + static_cast<unsigned>(__builtin_ctz(elsewhere));
        char masks[64];
        snprintf(masks, sizeof masks, " (masks %#x and %#x)", mask, c.waiting[other].mask);
        report(std::string(op) + ": lanes of its mask meet elsewhere: " + waits(other) +
               (c.waiting[other].mask ? masks : "") + where(pc));
    }
}

void check_lane_source(unsigned source, uint32_t mask) {
    if (!(mask >> source & 1)) {
        const Waiting& mine = checker->waiting[self.thread];
        report(std::string(mine.op) + ": reads lane " + std::to_string(source) + ", which its mask does not name" +
               where(mine.pc));
    }
}

void check_exit(unsigned thread) {
    Checker& c = *checker;
    const Block& block = *self.block;
    if (c.first_exited == kNobody) c.first_exited = thread;
    const Warp& warp = *self.warp;
    for (uint32_t m = warp.at_warp; m; m &= m - 1) {
        unsigned other = thread - self.lane + static_cast<unsigned>(__builtin_ctz(m));
        if (c.waiting[other].mask >> self.lane & 1)
            report(std::string(c.waiting[other].op) + ": the mask names thread " + thread_name(thread) +
                   ", which has returned from the kernel; " + waits(other) + "\n  in " + place(other) +
                   at(c.waiting[other].pc));
    }
    if (block.waiting)
        report("divergent barrier: thread " + thread_name(thread) + " returns from the kernel, but " +
               waits(c.first_at_barrier) + where(c.waiting[c.first_at_barrier].pc));
}

void report_deadlock(unsigned at_block, unsigned at_warp, unsigned exited, int) {
    Block& block = *self.block;
    std::string text = "deadlock: " + std::to_string(at_block) + " threads wait at a barrier of the block, " +
                       std::to_string(at_warp) + " at a warp operation, " + std::to_string(exited) + " have returned";
    const Waiting* last = nullptr;
    unsigned shown = 0, thread = self.thread;
    for (unsigned t = 0; t < block.threads && shown < 8; t++) {
        const Warp& warp = block.warps[t / kWarp];
        if (!((warp.at_block | warp.at_warp) >> (t % kWarp) & 1)) continue;
        const Waiting& w = checker->waiting[t];
        if (last && last->op == w.op && last->pc == w.pc && last->mask == w.mask) continue;
        last = &w;
        if (!shown++) thread = t;
        char mask[32] = "";
        if (w.mask) snprintf(mask, sizeof mask, ", mask %#x", w.mask);
        text += "\n  " + waits(t) + mask;
    }
    report(text + "\n  in " + place(thread));
}

// ---------------------------------------------------------------------------------------------------------------------
// Order

void check_warp_synced(Warp& warp, uint32_t mask) {
    Checker& c = *checker;
    auto& seen = c.seen[warp.index];
    uint32_t* epoch = c.lane_epoch + warp.index * kWarp;
    uint32_t all[kWarp] = {};
    for (uint32_t m = mask; m; m &= m - 1) {
        unsigned lane = static_cast<unsigned>(__builtin_ctz(m));
        for (unsigned i = 0; i < kWarp; i++) all[i] = all[i] > seen[lane][i] ? all[i] : seen[lane][i];
    }
    for (uint32_t m = mask; m; m &= m - 1) {
        unsigned lane = static_cast<unsigned>(__builtin_ctz(m));
        all[lane] = all[lane] > epoch[lane] ? all[lane] : epoch[lane];
    }
    uint32_t next = ++c.warp_syncs[warp.index];
    for (uint32_t m = mask; m; m &= m - 1) {
        unsigned lane = static_cast<unsigned>(__builtin_ctz(m));
        memcpy(seen[lane], all, sizeof all);
        epoch[lane] = next;
    }
}

void check_block_synced(Block&) {
    checker->epoch++;
}

void block_begins(Block& block) {
    if (!checker) {
        owner = std::make_unique<Checker>();
        checker = owner.get();
        // Lane epochs start above what "seen" starts with.
        for (uint32_t& e : checker->lane_epoch) e = 1;
        for (uint32_t& s : checker->warp_syncs) s = 1;
    }
    checker->block_start = ++checker->epoch;
    checker->first_at_barrier = checker->first_exited = kNobody;
    memset(block.shared, 0xFF, block.shared_bytes);
}

void block_ends(Block&) {}

// ---------------------------------------------------------------------------------------------------------------------
// Shared memory

namespace {

bool is_shared(uintptr_t p) {
    return self.block && p - reinterpret_cast<uintptr_t>(self.block->shared) < kSharedLimit;
}

std::string shared_place(size_t offset, size_t bytes) {
    return std::to_string(bytes) + " bytes of shared memory at offset " + std::to_string(offset);
}

void race(const char* what, unsigned other, const char* did, uint32_t other_pc, size_t offset, size_t bytes,
          const void* pc) {
    report("race: thread " + thread_name(self.thread) + " " + what + " " + shared_place(offset, bytes) + ", thread " +
           thread_name(other) + " " + did + " it at " + line_of(unpack_pc(other_pc)) + ", no barrier between" +
           where(pc));
}

// True if the access of `other` at `lane_epoch`, in the same block epoch, happened before what the running lane does.
SIMT_INLINE bool ordered_after(const Checker& c, unsigned other, uint32_t lane_epoch) {
    if (other == self.thread) return true;
    if (other / kWarp != self.thread / kWarp) return false;
    return c.seen[self.thread / kWarp][self.lane][other % kWarp] >= lane_epoch;
}

size_t shared_offset(uintptr_t p, size_t bytes, const char* what, const void* pc) {
    size_t offset = p - reinterpret_cast<uintptr_t>(self.block->shared);
    if (offset + bytes > self.block->shared_bytes)
        report(std::string(what) + " beyond shared memory: " + shared_place(offset, bytes) + " of " +
               std::to_string(self.block->shared_bytes) + where(pc));
    return offset;
}

void read_shared(uintptr_t p, size_t bytes, const void* pc) {
    Checker& c = *checker;
    size_t offset = shared_offset(p, bytes, "read", pc);
    auto me = static_cast<uint16_t>(self.thread);
    for (size_t i = 0; i < bytes; i++) {
        Cell& cell = c.cells[offset + i];
        if (cell.write_epoch < c.block_start) [[unlikely]]
            report("uninitialised: reads " + shared_place(offset + i, bytes) + ", which this block has not written" +
                   where(pc));
        if (cell.write_epoch == c.epoch && cell.writer != kNoThread && !ordered_after(c, cell.writer, cell.write_lane))
            [[unlikely]]
            race("reads", cell.writer, "wrote", cell.write_pc, offset + i, bytes, pc);
        if (cell.read_epoch != c.epoch) {
            cell.other_reader = kNoThread;
            cell.other_warp = 0;
        } else if (cell.reader != me) {
            cell.other_reader = cell.reader;
            cell.other_warp |= cell.reader / kWarp != me / kWarp;
        }
        cell.reader = me;
        cell.read_epoch = c.epoch;
        cell.read_lane = c.lane_epoch[me];
        cell.read_pc = pack_pc(pc);
    }
}

void write_shared(uintptr_t p, size_t bytes, const void* pc) {
    Checker& c = *checker;
    size_t offset = shared_offset(p, bytes, "write", pc);
    auto me = static_cast<uint16_t>(self.thread);
    for (size_t i = 0; i < bytes; i++) {
        Cell& cell = c.cells[offset + i];
        if (cell.write_epoch == c.epoch && cell.writer != kNoThread && !ordered_after(c, cell.writer, cell.write_lane))
            [[unlikely]]
            race("writes", cell.writer, "wrote", cell.write_pc, offset + i, bytes, pc);
        if (cell.read_epoch == c.epoch) {
            uint16_t other = cell.reader;
            bool ordered = ordered_after(c, other, cell.read_lane);
            if (ordered && cell.other_reader != kNoThread) {
                // Of several readers the last is known exactly, of the others that they read no later than it.
                other = cell.other_reader;
                ordered = !cell.other_warp && ordered_after(c, other, cell.read_lane);
            }
            if (!ordered) [[unlikely]]
                race("writes", other, "read", cell.read_pc, offset + i, bytes, pc);
        }
        cell.writer = me;
        cell.write_epoch = c.epoch;
        cell.write_lane = c.lane_epoch[me];
        cell.write_pc = pack_pc(pc);
    }
}

}  // namespace

void check_scratch_used(void* p, size_t bytes) {
    size_t offset = static_cast<size_t>(static_cast<unsigned char*>(p) - self.block->shared);
    memset(p, 0xFF, bytes);
    memset(static_cast<void*>(&checker->cells[offset]), 0, bytes * sizeof(Cell));
}

// ---------------------------------------------------------------------------------------------------------------------
// Device memory

namespace {

enum : unsigned char { kForeign = 0, kFresh = 1, kWritten = 2 };

constexpr size_t kArenaBytes = size_t{1} << 38;  // addresses, not memory
constexpr size_t kGap = 256;                     // between allocations: what runs over an end is seen
std::mutex arena_mutex;
std::map<uintptr_t, size_t> arena_blocks;  // start, bytes
uintptr_t arena_next = 0;

std::string device_place(uintptr_t p, size_t bytes) {
    std::lock_guard lock(arena_mutex);
    char text[160];
    auto next = arena_blocks.upper_bound(p);
    if (next == arena_blocks.begin()) {
        snprintf(text, sizeof text, "%zu bytes at %#zx, in no allocation", bytes, p);
        return text;
    }
    auto [start, size] = *std::prev(next);
    snprintf(text, sizeof text, "%zu bytes at byte %zu of an allocation of %zu", bytes, p - start, size);
    return text;
}

std::string scene(const void* pc) {
    return self.block ? where(pc) : std::string(", by host code") + at(pc);
}
void fault(const std::string& text) {
    if (self.block) report(text);
    report_from_host(text);
}

void read_device(uintptr_t p, size_t bytes, const void* pc) {
    const unsigned char* shadow = arena.shadow + (p - arena.base);
    for (size_t i = 0; i < bytes; i++) {
        if (shadow[i] == kWritten) [[likely]]
            continue;
        if (shadow[i] == kForeign) return fault("out of bounds: reads " + device_place(p, bytes) + scene(pc));
        return fault("uninitialised: reads " + device_place(p, bytes) + ", which nobody has written" + scene(pc));
    }
}

void write_device(uintptr_t p, size_t bytes, const void* pc) {
    unsigned char* shadow = arena.shadow + (p - arena.base);
    for (size_t i = 0; i < bytes; i++) {
        if (shadow[i] == kForeign) [[unlikely]]
            return fault("out of bounds: writes " + device_place(p, bytes) + scene(pc));
        shadow[i] = kWritten;
    }
}

bool in_arena(const void* p) {
    return reinterpret_cast<uintptr_t>(p) - arena.base < arena.bytes;
}

}  // namespace

void* check_allocate(size_t bytes) {
    std::lock_guard lock(arena_mutex);
    if (!arena.bytes) {
        void* memory =
            mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        void* shadow =
            mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED || shadow == MAP_FAILED) return nullptr;
        arena.base = arena_next = reinterpret_cast<uintptr_t>(memory);
        arena.shadow = static_cast<unsigned char*>(shadow);
        arena.bytes = kArenaBytes;
    }
    // Addresses are not used again, so that a pointer kept after cudaFree is seen: 256 GiB last for any test.
    size_t span = (bytes + kGap + 255) / 256 * 256;
    if (arena_next + span > arena.base + arena.bytes) return nullptr;
    uintptr_t p = arena_next;
    arena_next += span;
    arena_blocks[p] = bytes;
    memset(reinterpret_cast<void*>(p), 0xFF, bytes);
    memset(arena.shadow + (p - arena.base), kFresh, bytes);
    return reinterpret_cast<void*>(p);
}

void check_free(void* pointer, size_t bytes) {
    auto p = reinterpret_cast<uintptr_t>(pointer);
    std::lock_guard lock(arena_mutex);
    arena_blocks.erase(p);
    memset(arena.shadow + (p - arena.base), kForeign, bytes);
    uintptr_t first = (p + 4095) & ~uintptr_t{4095}, last = (p + bytes) & ~uintptr_t{4095};
    if (last > first) {
        madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
        madvise(arena.shadow + (first - arena.base), last - first, MADV_DONTNEED);
    }
}

void check_set(void* to, size_t bytes) {
    if (in_arena(to)) write_device(reinterpret_cast<uintptr_t>(to), bytes, __builtin_return_address(0));
}

void check_copy(void* to, const void* from, size_t bytes) {
    const void* pc = __builtin_return_address(0);
    auto source = reinterpret_cast<uintptr_t>(from);
    if (in_arena(from)) {
        const unsigned char* shadow = arena.shadow + (source - arena.base);
        if (memchr(shadow, kForeign, bytes))
            return fault("out of bounds: copies " + device_place(source, bytes) + scene(pc));
    }
    if (!in_arena(to)) return;
    auto target = reinterpret_cast<uintptr_t>(to);
    unsigned char* shadow = arena.shadow + (target - arena.base);
    if (memchr(shadow, kForeign, bytes))
        return fault("out of bounds: copies to " + device_place(target, bytes) + scene(pc));
    // Bytes nobody wrote stay so in the copy.
    if (in_arena(from))
        memmove(shadow, arena.shadow + (source - arena.base), bytes);
    else
        memset(shadow, kWritten, bytes);
}

// ---------------------------------------------------------------------------------------------------------------------
// Every access comes here

void check_read(const void* p, size_t bytes, const void* pc) {
    auto a = reinterpret_cast<uintptr_t>(p);
    if (a - arena.base < arena.bytes)
        read_device(a, bytes, pc);
    else if (is_shared(a))
        read_shared(a, bytes, pc);
}
void check_write(const void* p, size_t bytes, const void* pc) {
    auto a = reinterpret_cast<uintptr_t>(p);
    if (a - arena.base < arena.bytes)
        write_device(a, bytes, pc);
    else if (is_shared(a))
        write_shared(a, bytes, pc);
}
// Atomics never race with each other; what they add to must have been written.
void check_atomic(const void* p, size_t bytes, bool reads, const void* pc) {
    auto a = reinterpret_cast<uintptr_t>(p);
    if (a - arena.base < arena.bytes) {
        if (reads) read_device(a, bytes, pc);
        write_device(a, bytes, pc);
    } else if (is_shared(a)) {
        Checker& c = *checker;
        size_t offset = shared_offset(a, bytes, "atomic operation", pc);
        for (size_t i = 0; i < bytes; i++) {
            Cell& cell = c.cells[offset + i];
            if (reads && cell.write_epoch < c.block_start)
                report("uninitialised: an atomic operation reads " + shared_place(offset + i, bytes) +
                       ", which this block has not written" + where(pc));
            cell.writer = kNoThread;
            cell.write_epoch = c.epoch;
        }
    }
}

void note_read(const void* p, size_t bytes) {
    check_read(p, bytes, __builtin_return_address(0));
}
void note_written(const void* p, size_t bytes) {
    check_write(p, bytes, __builtin_return_address(0));
}

}  // namespace simt

#endif
