// Sums over ranks for nccl.cpp.
#pragma once
#include <cstddef>

#include "nccl.h"

namespace simt::nccl {

size_t size_of(ncclDataType_t type);  // 0: not supported
// Some operations are not meant for some types: bf16 takes sum and average, as the tree needs.
bool can_reduce(ncclDataType_t type, ncclRedOp_t op);
// out (count) = op over parts[0], parts[1], ... (ranks of them, count each), in that order; out may be one of the
// parts.
void reduce_parts(void* out, const void* const* parts, int ranks, size_t count, ncclDataType_t type, ncclRedOp_t op);

}  // namespace simt::nccl
