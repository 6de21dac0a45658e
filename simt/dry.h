// A machine that executes nothing: see dry.cpp.
#pragma once

#include <cstddef>

namespace simt {

bool dry();
constexpr size_t kDryMemory = size_t{1} << 40;  // what it says it has
void* dry_allocate(size_t bytes);               // 256-byte aligned; null: no addresses are left
void dry_copy(void* to, const void* from, size_t bytes);
void dry_set(void* to, int value, size_t bytes);

}  // namespace simt
