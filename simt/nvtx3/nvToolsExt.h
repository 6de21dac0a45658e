// Stands in for NVTX, the toolkit's named ranges. Nobody listens here: only the nesting is kept, and what the calls
// return is what NVTX documents.
#pragma once

namespace simt {
inline thread_local int nvtx_depth = 0;
}

// The level of the new range, from 0.
inline int nvtxRangePushA(const char*) {
    return simt::nvtx_depth++;
}
// The level of the range that ends; negative if there is none.
inline int nvtxRangePop() {
    return simt::nvtx_depth > 0 ? --simt::nvtx_depth : -1;
}
