// Launches that begin early on the CPU machine, the twin of kernels/gpu/grid_order.cuh: here every launch runs to its
// end before the next begins, but the checking mode reports a thread of an early launch that touches device memory, or
// returns, before it has called wait_for_previous().
#pragma once
#include <cuda_runtime.h>

inline bool can_launch_early(const void*) {
    return true;
}
SIMT_INLINE void wait_for_previous() {
    simt::check_waited();
}
SIMT_INLINE void launch_next_early() {}
