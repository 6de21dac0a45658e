// Launches that begin before the one before them has ended (programmatic dependent launch, sm_90 and later; PTX ISA,
// griddepcontrol). The rule that makes it safe stands at launch_early() in kernels/common.cuh; the CPU machine's side is
// simt/grid_order.cuh.
#pragma once
#include <cuda_runtime.h>

// Whether this build's machine code for the current card has the instructions: any kernel of the build answers. Code
// translated from PTX for an older card has not, whatever the card is.
inline bool can_launch_early(const void* kernel) {
    cudaFuncAttributes attributes = {};
    return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.ptxVersion >= 90;
}

#ifdef __CUDACC__  // host-only files see nothing

// Returns when everything that was launched before this grid has ended, and all that it wrote can be seen.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Once every block of this grid has called it or ended, an early launch behind it may begin (and wait).
__device__ __forceinline__ void launch_next_early() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#endif  // __CUDACC__
