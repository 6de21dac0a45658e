// Twins of wgmma's issue, groups and waits. The contracts stand in kernels/gpu/ptx_sm90.cuh.
//
// A lane that issues a product leaves its part of D in dense accumulators, poisons its registers and goes on; the other
// 127 must issue the same. Whoever first waits for a group that all have issued multiplies it; each lane takes its part
// of D back in its own wait and sees whether its registers are still poisoned.
#include "wgmma.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "report.h"

#define CALL(name)                        \
    Call {                                \
        name, __builtin_return_address(0) \
    }

namespace simt {
namespace {

// A signalling NaN: arithmetic on it gives a quiet one, so that even x * 1 is seen.
constexpr uint32_t kPoison = 0x7fa5a5a5;
constexpr unsigned kLanes = 128;

struct HeldD {
    float* d;
    Accumulators* accumulators;
    uint64_t group;  // of the last product
};
struct HeldA {
    const uint32_t* a;
    uint32_t copy[4];
    uint64_t group;
};
struct LaneProducts {
    uint64_t issued = 0, committed = 0;
    bool fenced = false;    // since the last wait
    uint32_t observed = 0;  // event of the last product waited for
    std::vector<HeldD> d;
    std::vector<HeldA> a;
};

// For the checking mode: what a product has read, until all lanes have waited for it.
struct Finished {
    uint64_t group;
    uint32_t event;
    std::vector<uint16_t> pieces;
    unsigned lanes;  // that have
};

struct Warpgroup {
    LaneProducts lanes[kLanes];
    std::vector<Finished> finished;
    std::deque<Product> products;  // that have not been multiplied
    uint64_t done = 0;             // products before the first of these
    std::vector<uint16_t> waiting;
    ~Warpgroup();
};
}  // namespace

struct Warpgroups {
    std::unique_ptr<Warpgroup> of[kMaxThreads / kLanes];
};

namespace {

// 64 KiB each: kept for the next block.
thread_local std::vector<std::unique_ptr<Accumulators>> spare;

Accumulators* new_accumulators(unsigned n) {
    if (spare.empty()) spare.push_back(std::make_unique<Accumulators>());
    Accumulators* a = spare.back().release();
    spare.pop_back();
    a->n = n;
    a->taken = 0;
    return a;
}
void drop(Accumulators* a) {
    spare.emplace_back(a);
}

Warpgroup::~Warpgroup() {  // after a report, what is left on the way
    std::vector<Accumulators*> left;
    for (const LaneProducts& lane : lanes)
        for (const HeldD& held : lane.d) left.push_back(held.accumulators);
    std::sort(left.begin(), left.end());
    left.erase(std::unique(left.begin(), left.end()), left.end());
    for (Accumulators* a : left) drop(a);
}

Warpgroup& warpgroup(Call call) {
    const unsigned w = self.thread / kLanes;
    if ((w + 1) * kLanes > self.block->threads)
        fail(call, "needs a warpgroup of 128 threads; the block's last has %u", self.block->threads - w * kLanes);
    Async& a = async_state();
    if (!a.warpgroups) a.warpgroups = &block_local<Warpgroups>();
    std::unique_ptr<Warpgroup>& group = a.warpgroups->of[w];
    if (!group) group = std::make_unique<Warpgroup>();
    return *group;
}

unsigned row_of(unsigned lane) {
    return 16 * (lane / 32) + lane % 32 / 4;
}

// Of A (64 rows) or B (p.n). `first`: of all lanes; from now on nobody may write there.
void check_operand(Call call, const char* which, Product& p, uint64_t descriptor, bool transposed, unsigned rows,
                   bool first) {
    Async& a = async_state();
    const Operand operand(descriptor, transposed);
    const uint32_t pattern = 8 * operand.width;
    if (descriptor >> 49 & 7) fail(call, "%s: a base offset is set; tiles must begin a swizzle's pattern", which);
    if (operand.swizzle != Swizzle::none && operand.start % pattern >= operand.width)
        fail(call, "%s: the tile at byte %u does not begin in the first row of its swizzle's %u bytes", which,
             operand.start, pattern);
    if (!transposed && operand.swizzle != Swizzle::none && operand.start % operand.width + 32 > operand.width)
        fail(call, "%s: 16 k from byte %u cross the end of a row of %u bytes", which, operand.start, operand.width);
    operand.for_each_piece(rows, [&](uint32_t at) {
        if (at + 16 > self.block->shared_bytes)
            fail(call, "%s: reads byte %u of %zu bytes of shared memory", which, at, self.block->shared_bytes);
        if (a.arriving[at / 16]) fail(call, "%s: a TMA load to byte %u of shared memory is on its way", which, at);
        if (first) p.pieces.push_back(static_cast<uint16_t>(at / 16));
    });
    if (kChecking) operand.for_each_piece(rows, [&](uint32_t at) { check_async_read(at, 16, call.pc); });
}

// Multiplies the front products up to `group`, all of which every lane has issued.
void multiply_until(Warpgroup& g, uint64_t group) {
    Async& a = async_state();
    while (!g.products.empty() && g.products.front().group <= group) {
        Product* batch[16];
        unsigned count = 0;
        for (Product& p : g.products) {
            if (p.group > group || p.accumulators != g.products.front().accumulators || count == 16) break;
            batch[count++] = &p;
        }
        multiply(a.view, batch, count);
        for (; count > 0; count--, g.done++) {
            Product& p = g.products.front();
            for (uint16_t piece : p.pieces) a.reading[piece]--;
            if (kChecking) g.finished.push_back({p.group, check_async_event(), std::move(p.pieces), 0});
            g.products.pop_front();
        }
    }
}

bool still_poisoned(const HeldD& held) {
    uint32_t changed = 0;
    for (unsigned i = 0; i < held.accumulators->n / 2; i++) {
        uint32_t bits;
        memcpy(&bits, held.d + i, 4);
        changed |= bits ^ kPoison;
    }
    return !changed;
}

bool all_issued(const Warpgroup& g, uint64_t group) {
    for (const Product& p : g.products) {
        if (p.group > group) break;
        if (p.lanes < kLanes) return false;
    }
    return true;
}

}  // namespace

void wgmma(float* d, unsigned n, uint64_t a, const uint32_t* a_registers, uint64_t b, bool a_transposed,
           bool b_transposed, bool accumulate) {
    const Call call = CALL(a_registers ? "wgmma_rs" : "wgmma_ss");
    Warpgroup& g = warpgroup(call);
    const unsigned l = self.thread % kLanes;
    LaneProducts& lane = g.lanes[l];
    const auto held = std::find_if(lane.d.begin(), lane.d.end(), [&](const HeldD& h) { return h.d == d; });
    const bool on_the_way = held != lane.d.end();
    if ((!on_the_way || a_registers) && !lane.fenced)
        fail(call, "no wgmma_fence since ordinary code may have touched its registers");
    const uint64_t group = lane.committed + 1;
    const uint64_t index = lane.issued++ - g.done;
    const bool first = index == g.products.size();
    if (first) {
        if (on_the_way && held->accumulators->n != n) fail(call, "another shape of the D that is on its way");
        async_state().publish();
        g.products.push_back({a,
                              b,
                              n,
                              a_registers != nullptr,
                              a_transposed,
                              b_transposed,
                              accumulate,
                              group,
                              0,
                              self.thread,
                              call.pc,
                              on_the_way ? held->accumulators : new_accumulators(n),
                              {},
                              {}});
        if (a_registers) g.products.back().a_values.resize(64 * 16);
    }
    Product& p = g.products[index];
    if (p.a != a || p.b != b || p.n != n || p.a_registers != (a_registers != nullptr) ||
        p.a_transposed != a_transposed || p.b_transposed != b_transposed || p.accumulate != accumulate)
        fail(call, "other arguments than thread %s of the warpgroup gave at %s", thread_name(p.first).c_str(),
             source_line(p.pc).c_str());
    if (p.group != group)
        fail(call, "in another group than for thread %s of the warpgroup", thread_name(p.first).c_str());
    if (on_the_way && held->accumulators != p.accumulators)
        fail(call, "adds to another D than for thread %s of the warpgroup", thread_name(p.first).c_str());
    if (first || (kChecking && self.lane == 0)) {  // once for all, and for the order of accesses once for each warp
        if (first) p.pieces.reserve(2 * (64 + n));
        if (!a_registers) check_operand(call, "A", p, a, a_transposed, 64, first);
        check_operand(call, "B", p, b, b_transposed, n, first);
        if (first) {
            uint16_t* reading = async_state().reading.data();
            for (uint16_t piece : p.pieces) reading[piece]++;
        }
    }
    p.lanes++;
    if (a_registers) {
        HeldA copy{a_registers, {}, group};
        memcpy(copy.copy, a_registers, 16);
        for (unsigned i = 0; i < 4; i++)
            memcpy(&p.a_values[16 * (row_of(l) + i % 2 * 8) + i / 2 * 8 + l % 4 * 2], a_registers + i, 4);
        lane.a.push_back(copy);
    }
    if (on_the_way) {
        held->group = group;
    } else {
        float* dense = p.accumulators->d + row_of(l) * n + l % 4 * 2;
        if (accumulate)
            for (unsigned j = 0; j < n / 8; j++)
                for (unsigned i = 0; i < 2; i++) memcpy(dense + 8 * i * n + 8 * j, d + 4 * j + 2 * i, 8);
        const uint32_t poison = kPoison;
        for (unsigned i = 0; i < n / 2; i++) memcpy(d + i, &poison, 4);
        lane.d.push_back({d, p.accumulators, group});
    }
    if (p.lanes == kLanes) {
        for (uint16_t thread : g.waiting) wake_lane(thread);
        g.waiting.clear();
    }
}

void wgmma_fence() {
    warpgroup(CALL("wgmma_fence")).lanes[self.thread % kLanes].fenced = true;
}

void wgmma_commit() {
    warpgroup(CALL("wgmma_commit")).lanes[self.thread % kLanes].committed++;
}

void wgmma_wait(unsigned newest) {
    const Call call = CALL("wgmma_wait");
    Warpgroup& g = warpgroup(call);
    const unsigned l = self.thread % kLanes;
    LaneProducts& lane = g.lanes[l];
    const uint64_t group = lane.committed > newest ? lane.committed - newest : 0;
    while (!all_issued(g, group)) {
        g.waiting.push_back(static_cast<uint16_t>(self.thread));
        park_lane();
    }
    multiply_until(g, group);
    if (kChecking) {
        for (Finished& f : g.finished) {  // in the order of events
            if (f.group > group || f.event <= lane.observed) continue;
            check_async_read_over(f.event, true, f.pieces.data(), f.pieces.size(), call.pc);
            lane.observed = f.event;
            f.lanes++;
        }
        std::erase_if(g.finished, [](const Finished& f) { return f.lanes == kLanes; });
    }
    lane.fenced = false;
    for (const HeldA& held : lane.a)
        if (held.group <= group && memcmp(held.a, held.copy, 16))
            fail(call, "registers of A were changed while a product read them");
    std::erase_if(lane.a, [&](const HeldA& held) { return held.group <= group; });
    for (const HeldD& held : lane.d)
        if (held.group <= group && !still_poisoned(held))
            fail(call, "accumulators were touched while a product added to them");
    std::erase_if(lane.d, [&](const HeldD& held) {
        if (held.group > group) return false;
        const unsigned n = held.accumulators->n;
        const float* dense = held.accumulators->d + row_of(l) * n + l % 4 * 2;
        for (unsigned j = 0; j < n / 8; j++)
            for (unsigned i = 0; i < 2; i++) memcpy(held.d + 4 * j + 2 * i, dense + 8 * i * n + 8 * j, 8);
        if (++held.accumulators->taken == kLanes) drop(held.accumulators);
        return true;
    });
}

void check_no_products() {
    const Warpgroups* groups = async_state().warpgroups;
    const Warpgroup* g = groups ? groups->of[self.thread / kLanes].get() : nullptr;
    if (g && !g->lanes[self.thread % kLanes].d.empty())
        fail({"end of the thread", nullptr}, "a wgmma product was never waited for");
}

void describe_products(std::string& text) {
    if (!async_state().warpgroups) return;
    for (const std::unique_ptr<Warpgroup>& g : async_state().warpgroups->of) {
        if (!g || g->waiting.empty()) continue;
        for (const Product& p : g->products) {
            if (p.lanes == kLanes) continue;
            text += "\n  wgmma_wait: " + std::to_string(g->waiting.size()) + " threads, first " +
                    thread_name(g->waiting.front()) + ", wait for a product that " + std::to_string(p.lanes) +
                    " of 128 threads have issued, at " + source_line(p.pc);
            break;
        }
    }
}

uint64_t wgmma_descriptor(const void* tile, Swizzle swizzle, unsigned leading_bytes, unsigned stride_bytes) {
    const Call call = CALL("wgmma_descriptor");
    const uint32_t at = shared_offset(call, tile, 16, 16);
    if (leading_bytes % 16 || leading_bytes >= 1 << 18 || stride_bytes % 16 || stride_bytes >= 1 << 18)
        fail(call, "strides of %u and %u bytes; multiples of 16 below 2^18 can be", leading_bytes, stride_bytes);
    return static_cast<uint64_t>(at >> 4) | static_cast<uint64_t>(leading_bytes >> 4) << 16 |
           static_cast<uint64_t>(stride_bytes >> 4) << 32 |
           static_cast<uint64_t>((4 - static_cast<unsigned>(swizzle)) % 4) << 62;
}

}  // namespace simt
