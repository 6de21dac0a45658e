// What the checking mode keeps of the block that runs on this OS thread. For check*.cpp only.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "check.h"
#include "engine.h"
#include "report.h"

namespace simt {

// One byte of shared memory. Epochs count from 1 and never go back, so nothing needs clearing between blocks.
struct Cell {
    uint32_t write_epoch, write_lane, write_pc;  // 0 in write_epoch: never written
    uint32_t read_epoch, read_lane, read_pc;
    uint16_t writer, reader;
    uint16_t other_reader;  // another thread that read in the same block epoch, or kNoThread
    uint8_t other_warp;     // 1: threads of more than one warp read in this block epoch
    uint8_t by_async;       // 1: the async proxy wrote it; `writer` issued the copy
};
constexpr uint16_t kNoThread = 0xffff;

struct Reader {
    uint16_t thread;
    uint32_t lane_epoch, pc;
};

// The last asynchronous read of 16 bytes that `thread` has waited for. event: the same for warps that wait for one
// product.
struct AsyncRead {
    uint32_t event, epoch, lane_epoch, pc, thread;
    bool product;
};

struct Waiting {
    const char* op;
    const void* pc;
    uint32_t mask;
};

struct Checker {
    std::vector<Cell> cells = std::vector<Cell>(kSharedLimit);
    uint32_t epoch = 1;        // of the block: grows at every block barrier and at every new block
    uint32_t block_start = 1;  // the epoch in which this block began
    // Per lane: the number of its last __syncwarp or release, and the last accesses of each other thread that it is
    // ordered after. Threads of other warps count only once the block uses mbarriers or named barriers (`cross`).
    uint32_t lane_epoch[kMaxThreads] = {};
    std::vector<uint32_t> seen = std::vector<uint32_t>(kMaxThreads * kMaxThreads);
    uint32_t warp_syncs[kMaxThreads / kWarp] = {};
    bool cross = false;
    std::unordered_map<uint32_t, std::vector<Reader>> readers;  // with `cross`, of bytes with several in this epoch
    uint32_t fenced[kMaxThreads] = {};                          // accesses before the thread's last fence_proxy_async
    const uint16_t* reading =
        nullptr;  // per 16 bytes of shared memory: asynchronous reads on their way; null: none yet
    // Those that are over: which warpgroups have waited for one of a piece of 16 bytes, and what is known of each warp.
    std::vector<uint8_t> async_groups;
    std::vector<uint16_t> async_written;  // of a piece's bytes, those written since, rightly
    std::vector<AsyncRead> async_reads;  // (pieces, warps); both are empty until the first
    uint32_t async_events = 0;
    uint32_t async_waited[kMaxThreads] = {};  // the last event that each thread has waited for itself
    bool waited[kMaxThreads] = {};            // may touch device memory: in an early launch, after wait_for_previous()
    Waiting waiting[kMaxThreads] = {};
    unsigned first_at_barrier = kNobody;
    unsigned first_exited = kNobody;

    uint32_t* row(unsigned thread) { return seen.data() + thread * kMaxThreads; }
    const uint32_t* row(unsigned thread) const { return seen.data() + thread * kMaxThreads; }
};
SIMT_TLS Checker* checker = nullptr;

uint32_t pack_pc(const void* pc);
const void* unpack_pc(uint32_t pc);
const std::string& line_of(const void* pc);
std::string where(const void* pc);  // "\n  in KERNEL, ...\n  at FILE:LINE" of the running lane

}  // namespace simt
