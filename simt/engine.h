// Shared by the .cpp files of simt/ only.
#pragma once

#include "simt.h"

namespace simt {

constexpr size_t kSharedLimit = 227 * 1024;    // what a block of an H100 or H200 may ask for
constexpr size_t kSharedDefault = 48 * 1024;   // without cudaFuncAttributeMaxDynamicSharedMemorySize

// The launch that the calling OS thread is in, or null.
const Launch* current_launch();

// True if a report may end the block instead of the program.
bool can_abandon();
// Drops every lane of the block. Needs can_abandon() to have been true when the block began.
[[noreturn]] void abandon_block();

[[noreturn]] void report_deadlock(unsigned at_block, unsigned at_warp, unsigned exited, int first_warp_waiter);

// What the checker wants to know of.
#ifdef SIMT_CHECK
void block_begins(Block& block);
void block_ends(Block& block);
void memory_allocated(void* p, size_t bytes);
void memory_freed(void* p, size_t bytes);
void memory_written(void* p, size_t bytes);                    // by the host
void memory_copied(void* to, const void* from, size_t bytes);
void check_scratch_used(void* p, size_t bytes);  // a collective may have overwritten it
#else
inline void block_begins(Block&) {}
inline void block_ends(Block&) {}
inline void memory_allocated(void*, size_t) {}
inline void memory_freed(void*, size_t) {}
inline void memory_written(void*, size_t) {}
inline void memory_copied(void*, const void*, size_t) {}
#endif

}  // namespace simt
