// The checking mode's view of memory, for its hooks. See check.cpp.
#pragma once

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

}  // namespace simt
