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

#ifdef SIMT_CHECK
void block_begins(Block& block);
void block_ends(Block& block);
#else
inline void block_begins(Block&) {}
inline void block_ends(Block&) {}
#endif

}  // namespace simt
