// Denormals become zero on the calling OS thread for the life of this object.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace simt {

// Denormals are flushed while kernels run, as fast GPU code does, and because they cost the CPU a hundred cycles each.
struct FlushDenormals {
#if defined(__x86_64__)
    unsigned saved = _mm_getcsr();
    FlushDenormals() {
        _mm_setcsr(saved | 0x8040);
    }
    ~FlushDenormals() {
        _mm_setcsr(saved);
    }
#elif defined(__aarch64__)
    uint64_t saved = 0;
    FlushDenormals() {
        asm volatile("mrs %0, fpcr" : "=r"(saved));
        asm volatile("msr fpcr, %0" : : "r"(saved | (1ull << 24)));
    }
    ~FlushDenormals() {
        asm volatile("msr fpcr, %0" : : "r"(saved));
    }
#endif
};

}  // namespace simt
