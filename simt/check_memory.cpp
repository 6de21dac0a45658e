// The checking mode: every load and store, of shared and of device memory. See check.cpp. Compiled with -DSIMT_CHECK
// only.
#ifdef SIMT_CHECK

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>

#include "check_state.h"

namespace simt {

CheckArena arena;

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
    if (other / kWarp != self.thread / kWarp && !c.cross) return false;
    return c.row(self.thread)[other] >= lane_epoch;
}

size_t shared_offset(uintptr_t p, size_t bytes, const char* what, const void* pc) {
    size_t offset = p - reinterpret_cast<uintptr_t>(self.block->shared);
    if (offset + bytes > self.block->shared_bytes)
        report(std::string(what) + " beyond shared memory: " + shared_place(offset, bytes) + " of " +
               std::to_string(self.block->shared_bytes) + where(pc));
    return offset;
}

// Barriers between some of the warps do not let one reader stand for all: the one that `cell` will forget is kept.
void remember_reader(Checker& c, uint32_t offset, const Cell& cell) {
    std::vector<Reader>& readers = c.readers[offset];
    if (cell.other_reader == kNoThread) readers.clear();
    for (Reader& r : readers)
        if (r.thread == cell.reader) return void(r = {cell.reader, cell.read_lane, cell.read_pc});
    readers.push_back({cell.reader, cell.read_lane, cell.read_pc});
}

// The running lane reads byte `offset` of `bytes`: it must have been written, and before.
SIMT_INLINE void check_written(const Checker& c, size_t offset, size_t bytes, const void* pc) {
    const Cell& cell = c.cells[offset];
    if (cell.write_epoch < c.block_start) [[unlikely]]
        report("uninitialised: reads " + shared_place(offset, bytes) + ", which this block has not written" +
               where(pc));
    if (cell.write_epoch == c.epoch && cell.writer != kNoThread && !ordered_after(c, cell.writer, cell.write_lane))
        [[unlikely]]
        race("reads", cell.writer, "wrote", cell.write_pc, offset, bytes, pc);
}

void read_shared(uintptr_t p, size_t bytes, const void* pc) {
    Checker& c = *checker;
    size_t offset = shared_offset(p, bytes, "read", pc);
    auto me = static_cast<uint16_t>(self.thread);
    for (size_t i = 0; i < bytes; i++) {
        Cell& cell = c.cells[offset + i];
        check_written(c, offset + i, bytes, pc);
        if (cell.read_epoch != c.epoch) {
            cell.other_reader = kNoThread;
            cell.other_warp = 0;
        } else if (c.cross && cell.reader != me) {
            remember_reader(c, static_cast<uint32_t>(offset + i), cell);
            cell.other_reader = cell.reader;
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

constexpr unsigned kWarps = kMaxThreads / kWarp;

// The running lane writes byte `offset`: what read there asynchronously is over, and the lane must know.
void check_async_readers(Checker& c, size_t offset, size_t bytes, const void* pc) {
    const uint16_t byte = static_cast<uint16_t>(1u << offset % 16);
    if (c.async_written[offset / 16] & byte) return;
    c.async_written[offset / 16] |= byte;
    for (unsigned groups = c.async_groups[offset / 16]; groups; groups &= groups - 1) {
        const unsigned group = static_cast<unsigned>(__builtin_ctz(groups));
        const AsyncRead* warps = &c.async_reads[offset / 16 * kWarps + 4 * group];
        const AsyncRead* last = warps;
        for (unsigned w = 1; w < 4; w++)
            if (warps[w].event > last->event) last = warps + w;
        bool ordered = last->epoch != c.epoch || (last->product && self.thread / (4 * kWarp) == group &&
                                                  c.async_waited[self.thread] >= last->event);
        for (unsigned w = 0; w < 4; w++)
            ordered |= warps[w].event == last->event && ordered_after(c, warps[w].thread, warps[w].lane_epoch);
        if (!ordered) race("writes", last->thread, "waited for an asynchronous read of", last->pc, offset, bytes, pc);
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
        if (c.reading && c.reading[(offset + i) / 16]) [[unlikely]]
            report("writes " + shared_place(offset + i, bytes) + ", which a product or copy on its way still reads" +
                   where(pc));
        if (!c.async_groups.empty()) check_async_readers(c, offset + i, bytes, pc);
        if (cell.read_epoch == c.epoch && c.cross && cell.other_reader != kNoThread) {
            for (const Reader& r : c.readers[static_cast<uint32_t>(offset + i)])
                if (!ordered_after(c, r.thread, r.lane_epoch))
                    race("writes", r.thread, "read", r.pc, offset + i, bytes, pc);
        }
        if (cell.read_epoch == c.epoch) {
            uint16_t other = cell.reader;
            bool ordered = ordered_after(c, other, cell.read_lane);
            if (ordered && cell.other_reader != kNoThread && !c.cross) {
                // Of several readers the last is known exactly, of the others that they read no later than it.
                other = cell.other_reader;
                ordered = !cell.other_warp && ordered_after(c, other, cell.read_lane);
            }
            if (!ordered) [[unlikely]]
                race("writes", other, "read", cell.read_pc, offset + i, bytes, pc);
        }
        if (c.cross) cell.read_epoch = 0;  // whoever writes next is ordered after this, and so after the readers
        cell.writer = me;
        cell.by_async = 0;
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
// The async proxy

void check_watch_reads(const uint16_t* reading) {
    checker->reading = reading;
}

uint32_t check_load_issued(size_t offset, size_t bytes, const void* pc) {
    write_shared(reinterpret_cast<uintptr_t>(self.block->shared) + offset, bytes, pc);
    for (size_t i = 0; i < bytes; i++) checker->cells[offset + i].write_epoch = 0;  // until it arrives
    return checker->lane_epoch[self.thread];
}

void check_load_arrived(size_t offset, size_t bytes, unsigned thread, uint32_t when, Clock& clock) {
    Checker& c = *checker;
    c.cross = true;
    clock.resize(self.block->threads);
    if (clock[thread] < when) clock[thread] = when;
    for (size_t i = 0; i < bytes; i++) {
        Cell& cell = c.cells[offset + i];
        cell.write_epoch = c.epoch;
        cell.write_lane = when;
        cell.writer = static_cast<uint16_t>(thread);
        cell.by_async = 1;
    }
}

void check_async_read(size_t offset, size_t bytes, const void* pc) {
    const Checker& c = *checker;
    for (size_t i = offset; i < offset + bytes; i++) {
        const Cell& cell = c.cells[i];
        check_written(c, i, 1, pc);
        if (!cell.by_async && cell.writer != kNoThread && cell.write_lane > c.fenced[cell.writer]) [[unlikely]]
            report("missing fence: the async proxy reads " + shared_place(i, 1) + ", which thread " +
                   thread_name(cell.writer) + " wrote at " + line_of(unpack_pc(cell.write_pc)) +
                   " without a fence_proxy_async after it" + where(pc));
    }
}

uint32_t check_async_event() {
    return ++checker->async_events;
}

void check_async_read_over(uint32_t event, bool product, const uint16_t* pieces, size_t count, const void* pc) {
    Checker& c = *checker;
    if (c.async_groups.empty()) {
        c.async_groups.resize(kSharedLimit / 16);
        c.async_written.resize(kSharedLimit / 16);
        c.async_reads.resize(kSharedLimit / 16 * kWarps);
    }
    if (product) c.async_waited[self.thread] = std::max(c.async_waited[self.thread], event);
    if (self.lane != 0 && event == c.async_reads[pieces[0] * kWarps + self.thread / kWarp].event) return;
    const unsigned warp = self.thread / kWarp;
    for (size_t i = 0; i < count; i++) {
        AsyncRead& known = c.async_reads[pieces[i] * kWarps + warp];
        if (known.event > event) continue;  // another lane of the warp is ahead
        known = {event, c.epoch, c.lane_epoch[self.thread], pack_pc(pc), self.thread, product};
        c.async_groups[pieces[i]] |= static_cast<uint8_t>(1u << warp / 4);
        c.async_written[pieces[i]] = 0;
    }
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
    return self.block ? where(pc) : ", by host code\n  at " + line_of(pc);
}
void fault(const std::string& text) {
    if (self.block) report(text);
    report_from_host(text);
}

// A thread of an early launch must not touch what the launch before it may still read or write.
SIMT_INLINE void check_order(const char* what, uintptr_t p, size_t bytes, const void* pc) {
    if (self.block && !checker->waited[self.thread]) [[unlikely]]
        report(std::string("early launch: ") + what + device_place(p, bytes) + " before wait_for_previous()" +
               where(pc));
}

void read_device(uintptr_t p, size_t bytes, const void* pc) {
    check_order("reads ", p, bytes, pc);
    touch(p, bytes, false);
    const unsigned char* shadow = arena.shadow + (p - arena.base);
    for (size_t i = 0; i < bytes; i++) {
        if (shadow[i] == kWritten) [[likely]]
            continue;
        if (shadow[i] == kForeign) return fault("out of bounds: reads " + device_place(p, bytes) + scene(pc));
        return fault("uninitialised: reads " + device_place(p, bytes) + ", which nobody has written" + scene(pc));
    }
}

void write_device(uintptr_t p, size_t bytes, const void* pc) {
    check_order("writes ", p, bytes, pc);
    touch(p, bytes, true);
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
    forget_touched(p, bytes);
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
            cell.by_async = 0;
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
