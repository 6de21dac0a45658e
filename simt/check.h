// The checking mode's view of memory, for its hooks. See check.cpp.
#pragma once

#include <vector>

#include "simt.h"

namespace simt {

// Where device memory lies in the checking mode, and its shadow.
struct CheckArena {
    uintptr_t base = 0;
    size_t bytes = 0;
    unsigned char* shadow = nullptr;
};
extern CheckArena arena;

// An access to any memory; those to neither device nor shared memory are ignored. pc: a return address in the kernel.
void check_read(const void* p, size_t bytes, const void* pc);
void check_write(const void* p, size_t bytes, const void* pc);
void check_atomic(const void* p, size_t bytes, bool reads, const void* pc);

// Device memory is read or written: touched.cpp counts it.
void touch(uintptr_t p, size_t bytes, bool write);
void forget_touched(uintptr_t p, size_t bytes);  // it is freed

// For each thread, up to which of its accesses (Checker::lane_epoch) are over.
using Clock = std::vector<uint32_t>;
void check_release(Clock& clock);        // those of the running lane, and what it is ordered after
void check_acquire(const Clock& clock);  // the running lane is ordered after all of it
void check_proxy_fence();                // the running lane calls fence_proxy_async

// A load into shared memory begins: gives what check_load_arrived wants as `when`; `thread` issued it. Whoever acquires
// `clock` may read what came.
uint32_t check_load_issued(size_t offset, size_t bytes, const void* pc);
void check_load_arrived(size_t offset, size_t bytes, unsigned thread, uint32_t when, Clock& clock);
// The running lane has the async proxy read. Who may write there again is watched by check_watch_reads.
void check_async_read(size_t offset, size_t bytes, const void* pc);
void check_watch_reads(const uint16_t* reading);  // see Checker::reading
// The running lane has waited for a store or product, number `event`, that read `pieces` of 16 bytes. Who writes there
// must come after such a wait; for a product, which its warpgroup has in common, after that of any of the four warps.
void check_async_read_over(uint32_t event, bool product, const uint16_t* pieces, size_t count, const void* pc);
uint32_t check_async_event();  // the next number

}  // namespace simt
