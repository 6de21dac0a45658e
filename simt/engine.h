// Shared by the .cpp files of simt/ only.
#pragma once

#include "simt.h"

namespace simt {

constexpr size_t kSharedLimit = 227 * 1024;   // what a block of an H100 or H200 may ask for
constexpr size_t kSharedDefault = 48 * 1024;  // without cudaFuncAttributeMaxDynamicSharedMemorySize

// The launch that the calling OS thread is in, or null.
const Launch* current_launch();

// True if a report may end the block instead of the program.
bool can_abandon();
// Drops every lane of the block. Needs can_abandon() to have been true when the block began.
[[noreturn]] void abandon_block();

[[noreturn]] void report_deadlock(unsigned at_block, unsigned at_warp, unsigned exited, int first_waiter);

void drop_locals(Block& block);  // at its end

// One of `count`: at random with SIMT_SEED, else the first.
unsigned choose(unsigned count);

// What the checker wants to know of, and what it does instead.
#ifdef SIMT_CHECK
void block_begins(Block& block);
void block_ends(Block& block);
void check_exit(unsigned thread);    // a thread returns from the kernel
void* check_allocate(size_t bytes);  // device memory whose every byte is watched
void check_free(void* p, size_t bytes);
void check_copy(void* to, const void* from, size_t bytes);  // the host copies
void check_set(void* to, size_t bytes);                     // the host fills
void check_scratch_used(void* p, size_t bytes);             // a collective may have left anything there
#else
inline void block_begins(Block&) {}
inline void block_ends(Block&) {}
inline void check_exit(unsigned) {}
inline void check_copy(void*, const void*, size_t) {}
inline void check_set(void*, size_t) {}
#endif

}  // namespace simt
