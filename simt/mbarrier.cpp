// Twins of mbarriers, named barriers and setmaxnreg: the ways in which parts of a block wait for each other. The
// contracts stand in kernels/gpu/ptx_sm90.cuh.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "async.h"
#include "report.h"

#define CALL(name)                        \
    Call {                                \
        name, __builtin_return_address(0) \
    }

namespace simt {
namespace {

constexpr int64_t kMostBytes = (1 << 20) - 1;  // of a transaction count, and of arrivals

std::string names(const std::vector<uint16_t>& threads) {
    std::string text = std::to_string(threads.size()) + (threads.size() == 1 ? " thread, " : " threads, first ");
    return text + thread_name(*std::min_element(threads.begin(), threads.end()));
}

void describe_waits(char* text, size_t size) {
    Async& a = async_state();
    std::string all;
    for (const Mbarrier& m : a.mbarriers) {
        for (unsigned parity = 0; parity < 2; parity++) {
            std::vector<uint16_t> who;
            for (const Waiter& w : m.waiting)
                if (w.parity == parity) who.push_back(static_cast<uint16_t>(w.thread));
            if (who.empty()) continue;
            char line[256];
            snprintf(line, sizeof line,
                     "\n  mbarrier at byte %u: parity %u awaited by %s; in phase %llu, %u of %u arrivals pending, %lld "
                     "bytes pending",
                     m.at, parity, names(who).c_str(), static_cast<unsigned long long>(m.phase), m.pending, m.expected,
                     static_cast<long long>(m.bytes));
            all += line;
        }
    }
    for (int id = 0; id < 16; id++) {
        const NamedBarrier& n = a.named[id];
        if (n.waiting.empty()) continue;
        all += "\n  named barrier " + std::to_string(id) + ": " + names(n.waiting) + ", wait; " +
               std::to_string(n.arrived) + " of " + std::to_string(n.threads) + " have come";
    }
    if (!a.wanting.empty())
        all += "\n  registers_raise: " + names(a.wanting) + ", wait for registers; " +
               std::to_string(a.free_registers) + " are free in the block";
    describe_products(all);
    describe_loads(all);
    snprintf(text, size, "%s", all.c_str());
}

void lane_returns() {
    const bool last = self.block->alive == 1;
    check_no_products();
    finish_stores(last);
    if (!last) return;
    const Async& a = async_state();
    const Call call{"end of the block", nullptr};
    if (!a.loads.empty()) fail(call, "%zu TMA loads are still on their way", a.loads.size());
    for (unsigned w = 0; w < self.block->num_warps; w++)
        if (a.register_calls[w] != a.register_calls[w / 4 * 4])
            fail(call, "registers were set in warp %u (%s) other than in warp %u of its warpgroup (%s)", w,
                 a.register_calls[w].c_str(), w / 4 * 4, a.register_calls[w / 4 * 4].c_str());
}

// What the 8 bytes hold: an ordinary store to a barrier is seen at its next use.
uint64_t word_of(const Mbarrier& m) {
    return m.phase << 63 | static_cast<uint64_t>(m.bytes & 0x3fffff) << 40 | static_cast<uint64_t>(m.pending) << 20 |
           m.expected;
}
void store_word(const Mbarrier& m) {
    const uint64_t word = word_of(m);
    memcpy(self.block->shared + m.at, &word, 8);
}

// What the arrivals of a round did before is known to those who wait for it. (Empty but in the checking mode.)
void end_round(Clock& done, Clock& arrived) {
    done.resize(arrived.size());
    for (size_t i = 0; i < arrived.size(); i++) done[i] = std::max(done[i], arrived[i]);
    arrived.clear();
}

void end_phase_if_complete(Async& a, Mbarrier& m) {
    if (m.pending == 0 && m.bytes == 0) {
        m.phase++;
        m.pending = m.expected;
        end_round(m.done, m.arrived);
        a.publish();
        for (const Waiter& w : m.waiting) wake_lane(w.thread);
        m.waiting.clear();
    }
    store_word(m);
}

// With SIMT_SEED loads may arrive at any of these moments.
void maybe_arrive() {
    if (choose(2)) arrive_one_load();
}

}  // namespace

void fail(Call call, const char* format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    report(std::string(call.name) + ": " + text + "\n  in " + place(self.thread) + "\n  at " + source_line(call.pc));
}

uint32_t shared_offset(Call call, const void* p, size_t bytes, unsigned alignment) {
    const Block& block = *self.block;
    const size_t offset = static_cast<size_t>(static_cast<const unsigned char*>(p) - block.shared);
    if (offset > block.shared_bytes || offset + bytes > block.shared_bytes)
        fail(call, "%zu bytes at %p do not lie in the %zu bytes of shared memory", bytes, p, block.shared_bytes);
    if (offset % alignment)
        fail(call, "the shared address %zu is %zu bytes off a multiple of %u", offset, offset % alignment, alignment);
    return static_cast<uint32_t>(offset);
}

namespace {
thread_local std::vector<unsigned char> view_memory;
}

Async::Async() : Asynchronous{arrive_one_load, lane_returns, describe_waits} {
    Block& block = *self.block;
    block.asynchronous = this;
    arriving.resize(block.shared_bytes / 16 + 1);
    reading.resize(block.shared_bytes / 16 + 1);
    check_watch_reads(reading.data());
#ifdef SIMT_CHECK
    view = block.shared;  // whatever may be read is the same in both
#else
    view_memory.assign(block.shared_bytes, 0xff);
    view = view_memory.data();
#endif
    const unsigned most = 65536 / (block.num_warps * kWarp) / 8 * 8;
    std::fill(registers, registers + kMaxThreads / kWarp, most < 256 ? most : 256);
}

void Async::copy_to_view() {
    fences = false;
#ifndef SIMT_CHECK
    memcpy(view, self.block->shared, self.block->shared_bytes);
#endif
}

Async& new_async_state() {
    return block_local<Async>();
}

// ---------------------------------------------------------------------------------------------------------------------
// mbarrier

Mbarrier& find_mbarrier(Call call, const void* barrier) {
    const uint32_t at = shared_offset(call, barrier, 8, 8);
    for (Mbarrier& m : async_state().mbarriers) {
        if (m.at != at) continue;
        uint64_t word;
        memcpy(&word, self.block->shared + at, 8);
        if (word != word_of(m)) fail(call, "the mbarrier at byte %u was overwritten", at);
        check_read(barrier, 8, call.pc);
        return m;
    }
    fail(call, "no mbarrier was initialised at byte %u", at);
}

void mbarrier_init(uint64_t* barrier, unsigned arrivals) {
    const Call call = CALL("mbarrier_init");
    const uint32_t at = shared_offset(call, barrier, 8, 8);
    Async& a = async_state();
    if (arrivals < 1 || arrivals > kMostBytes) fail(call, "%u arrivals; 1..%d can be", arrivals, int(kMostBytes));
    for (const Mbarrier& m : a.mbarriers)
        if (m.at == at) fail(call, "the mbarrier at byte %u is initialised already", at);
    check_write(barrier, 8, call.pc);
    Mbarrier m;
    m.at = at;
    m.expected = m.pending = arrivals;
    m.maker = self.thread;
    store_word(m);
    a.mbarriers.push_back(m);
}

void mbarrier_init_fence() {
    for (Mbarrier& m : async_state().mbarriers) m.fenced |= m.maker == self.thread;
}

void mbarrier_arrive(uint64_t* barrier, unsigned bytes, bool expects) {
    const Call call = CALL(expects ? "mbarrier_arrive_expect" : "mbarrier_arrive");
    Async& a = async_state();
    maybe_arrive();
    Mbarrier& m = find_mbarrier(call, barrier);
    if (m.pending == 0)
        fail(call, "the mbarrier at byte %u has all %u arrivals of phase %llu already", m.at, m.expected,
             static_cast<unsigned long long>(m.phase));
    m.bytes += bytes;
    if (m.bytes > kMostBytes) fail(call, "%lld bytes are pending; 2^20-1 can be", static_cast<long long>(m.bytes));
    m.pending--;
    check_release(m.arrived);
    end_phase_if_complete(a, m);
}

void complete_load(const Load& load) {
    Async& a = async_state();
    for (Mbarrier& m : a.mbarriers) {
        if (m.at != load.barrier) continue;
        m.bytes -= load.bytes;
        if (m.bytes < -kMostBytes) fail({"TMA load", nullptr}, "the mbarrier at byte %u counts too many bytes", m.at);
        check_load_arrived(load.to, load.bytes, load.thread, load.when, m.arrived);
        end_phase_if_complete(a, m);
    }
}

void mbarrier_wait(uint64_t* barrier, unsigned parity) {
    const Call call = CALL("mbarrier_wait");
    if (parity > 1) fail(call, "the parity is %u; 0 or 1 can be", parity);
    maybe_arrive();
    const uint32_t at = find_mbarrier(call, barrier).at;
    for (;;) {
        Mbarrier& m = find_mbarrier(call, self.block->shared + at);
        if ((m.phase & 1) != parity) return check_acquire(m.done);
        m.waiting.push_back({self.thread, parity});
        park_lane();
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Named barriers

void named_barrier(int id, int threads, bool waits) {
    const Call call = CALL(waits ? "named_barrier_sync" : "named_barrier_arrive");
    if (id < 1 || id > 15) fail(call, "barrier %d; 1..15 can be, 0 is __syncthreads", id);
    if (threads < 32 || threads % 32 || static_cast<unsigned>(threads) > self.block->num_warps * kWarp)
        fail(call, "%d threads; a multiple of 32 up to the block's %u can be", threads, self.block->threads);
    Async& a = async_state();
    NamedBarrier& n = a.named[id];
    if (n.threads && n.threads != static_cast<unsigned>(threads))
        fail(call, "barrier %d for %d threads, but thread %s came to it for %u", id, threads,
             thread_name(n.who[0]).c_str(), n.threads);
    if (std::find(n.who.begin(), n.who.end(), self.thread) != n.who.end())
        fail(call, "the thread has come to barrier %d already, which waits for %u of %u", id, n.threads - n.arrived,
             n.threads);
    n.threads = static_cast<unsigned>(threads);
    n.who.push_back(static_cast<uint16_t>(self.thread));
    check_release(n.now);
    if (++n.arrived == n.threads) {
        n.threads = n.arrived = 0;
        n.rounds++;
        n.who.clear();
        end_round(n.done, n.now);
        a.publish();
        for (uint16_t thread : n.waiting) wake_lane(thread);
        n.waiting.clear();
    } else if (waits) {
        n.waiting.push_back(static_cast<uint16_t>(self.thread));
        for (const uint64_t round = n.rounds; n.rounds == round;) park_lane();
    }
    if (waits) check_acquire(n.done);
}

// ---------------------------------------------------------------------------------------------------------------------
// setmaxnreg. The pool is what the kernel was launched with: all that threads of this number can have.

void set_registers(unsigned count, bool raise) {
    const Call call = CALL(raise ? "registers_raise" : "registers_lower");
    require_full_warp(call.name);
    struct None {
    } none;
    const auto meet = [&] { warp_collective(call.name, none, [](None* const*, uint32_t) {}); };
    meet();
    if (self.lane == 0) {
        Async& a = async_state();
        const unsigned w = self.warp->index;
        if (raise ? count < a.registers[w] : count > a.registers[w])
            fail(call, "to %u; the warp has %u registers a thread", count, a.registers[w]);
        const int more = (static_cast<int>(count) - static_cast<int>(a.registers[w])) * static_cast<int>(kWarp);
        while (more > a.free_registers) {
            a.wanting.push_back(static_cast<uint16_t>(self.thread));
            park_lane();
        }
        a.free_registers -= more;
        a.registers[w] = count;
        a.register_calls[w] += (raise ? " raise " : " lower ") + std::to_string(count);
        for (uint16_t thread : a.wanting) wake_lane(thread);
        a.wanting.clear();
    }
    meet();
}

}  // namespace simt
