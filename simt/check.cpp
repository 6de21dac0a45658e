// The checking mode: what threads may not do, and in which order they did it. Compiled with -DSIMT_CHECK only.
//
// Kernels are compiled with -fsanitize=thread, so that every load and store calls a hook (tsan_hooks.cpp), which comes
// to check_memory.cpp. Device memory has a shadow byte per byte: not ours, allocated, written. Shared memory has a cell
// per byte that remembers who wrote and who read it last, and when. "When" is the number of the block barrier before it
// and the number of the lane's last __syncwarp: two accesses by different threads, one of them a write, with the same
// block number and without a __syncwarp that both lanes took part in, are a race, in whatever order they happened.
// Barriers of other kinds (mbarrier, named) hand on a Clock: for each thread, up to which number its accesses are over.
#ifdef SIMT_CHECK

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include "check_state.h"

namespace simt {

namespace {

thread_local std::unique_ptr<Checker> owner;

const char* const text_base = [] {
    extern const char here asm("__executable_start");
    return &here;
}();

}  // namespace

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

std::string where(const void* pc) {
    return "\n  in " + place(self.thread) + "\n  at " + line_of(pc);
}

namespace {

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

void check_waited() {
    checker->waited[self.thread] = true;
}

void check_exit(unsigned thread) {
    Checker& c = *checker;
    if (!c.waited[thread])
        report("early launch: thread " + thread_name(thread) + " returns without wait_for_previous()\n  in " +
               place(thread));
    const Block& block = *self.block;
    if (c.first_exited == kNobody) c.first_exited = thread;
    const Warp& warp = *self.warp;
    for (uint32_t m = warp.at_warp; m; m &= m - 1) {
        unsigned other = thread - self.lane + static_cast<unsigned>(__builtin_ctz(m));
        if (c.waiting[other].mask >> self.lane & 1)
            report(std::string(c.waiting[other].op) + ": the mask names thread " + thread_name(thread) +
                   ", which has returned from the kernel; " + waits(other) + "\n  in " + place(other) + "\n  at " +
                   line_of(c.waiting[other].pc));
    }
    if (block.waiting)
        report("divergent barrier: thread " + thread_name(thread) + " returns from the kernel, but " +
               waits(c.first_at_barrier) + where(c.waiting[c.first_at_barrier].pc));
}

void report_deadlock(unsigned at_block, unsigned at_warp, unsigned exited, int first_waiter) {
    Block& block = *self.block;
    std::string text = "deadlock: " + std::to_string(at_block) + " threads wait at a barrier of the block, " +
                       std::to_string(at_warp) + " at a warp operation, " + std::to_string(exited) + " have returned";
    const Waiting* last = nullptr;
    unsigned shown = 0, thread = first_waiter >= 0 ? static_cast<unsigned>(first_waiter) : self.thread;
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
    report(text + parked_waits() + "\n  in " + place(thread));
}

// ---------------------------------------------------------------------------------------------------------------------
// Order

void check_warp_synced(Warp& warp, uint32_t mask) {
    Checker& c = *checker;
    // Of other warps' threads a lane knows something only in a block with other barriers.
    const unsigned first = c.cross ? 0 : warp.index * kWarp, count = c.cross ? self.block->threads : kWarp;
    uint32_t all[kMaxThreads] = {};
    for (uint32_t m = mask; m; m &= m - 1) {
        const uint32_t* seen = c.row(warp.index * kWarp + static_cast<unsigned>(__builtin_ctz(m))) + first;
        for (unsigned i = 0; i < count; i++) all[i] = all[i] > seen[i] ? all[i] : seen[i];
    }
    const uint32_t next = ++c.warp_syncs[warp.index];
    for (uint32_t m = mask; m; m &= m - 1) {
        unsigned thread = warp.index * kWarp + static_cast<unsigned>(__builtin_ctz(m));
        uint32_t& mine = all[thread - first];
        mine = mine > c.lane_epoch[thread] ? mine : c.lane_epoch[thread];
    }
    for (uint32_t m = mask; m; m &= m - 1) {
        unsigned thread = warp.index * kWarp + static_cast<unsigned>(__builtin_ctz(m));
        memcpy(c.row(thread) + first, all, count * sizeof all[0]);
        c.lane_epoch[thread] = next;
    }
}

void check_release(Clock& clock) {
    Checker& c = *checker;
    c.cross = true;
    clock.resize(self.block->threads);
    const uint32_t* seen = c.row(self.thread);
    for (size_t i = 0; i < clock.size(); i++) clock[i] = clock[i] > seen[i] ? clock[i] : seen[i];
    uint32_t& mine = clock[self.thread];
    mine = mine > c.lane_epoch[self.thread] ? mine : c.lane_epoch[self.thread];
    c.lane_epoch[self.thread] = ++c.warp_syncs[self.warp->index];
}

void check_acquire(const Clock& clock) {
    Checker& c = *checker;
    c.cross = true;
    uint32_t* seen = c.row(self.thread);
    for (size_t i = 0; i < clock.size(); i++) seen[i] = clock[i] > seen[i] ? clock[i] : seen[i];
}

void check_proxy_fence() {
    Checker& c = *checker;
    c.fenced[self.thread] = c.lane_epoch[self.thread];
    c.lane_epoch[self.thread] = ++c.warp_syncs[self.warp->index];
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
    checker->cross = false;
    checker->readers.clear();
    checker->reading = nullptr;
    memset(checker->waited, !current_launch()->early, sizeof checker->waited);
    memset(block.shared, 0xFF, block.shared_bytes);
}

void block_ends(Block&) {}

}  // namespace simt

#endif
