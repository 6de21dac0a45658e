// CUDA's small device functions: bits, casts, cached loads and stores, atomics, fences.
#pragma once

#include <sched.h>

#include <cstdlib>

#include "simt.h"

// ---------------------------------------------------------------------------------------------------------------------
// Minimum and maximum, for every pair of types that CUDA has them for

#define SIMT_MINMAX(T)                          \
    constexpr __forceinline__ T min(T a, T b) { \
        return b < a ? b : a;                   \
    }                                           \
    constexpr __forceinline__ T max(T a, T b) { \
        return a < b ? b : a;                   \
    }
SIMT_MINMAX(int)
SIMT_MINMAX(unsigned)
SIMT_MINMAX(long)
SIMT_MINMAX(unsigned long)
SIMT_MINMAX(long long)
SIMT_MINMAX(unsigned long long)
#undef SIMT_MINMAX
#define SIMT_MINMAX(A, B, T)                              \
    constexpr __forceinline__ T min(A a, B b) {           \
        return min(static_cast<T>(a), static_cast<T>(b)); \
    }                                                     \
    constexpr __forceinline__ T max(A a, B b) {           \
        return max(static_cast<T>(a), static_cast<T>(b)); \
    }
SIMT_MINMAX(int, unsigned, unsigned)
SIMT_MINMAX(unsigned, int, unsigned)
SIMT_MINMAX(long, unsigned long, unsigned long)
SIMT_MINMAX(unsigned long, long, unsigned long)
SIMT_MINMAX(long long, unsigned long long, unsigned long long)
SIMT_MINMAX(unsigned long long, long long, unsigned long long)
#undef SIMT_MINMAX

// ---------------------------------------------------------------------------------------------------------------------
// Bits

__forceinline__ int __popc(unsigned x) {
    return __builtin_popcount(x);
}
__forceinline__ int __popcll(unsigned long long x) {
    return __builtin_popcountll(x);
}
__forceinline__ int __clz(int x) {
    return x ? __builtin_clz(static_cast<unsigned>(x)) : 32;
}
__forceinline__ int __clzll(long long x) {
    return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}
__forceinline__ int __ffs(int x) {
    return __builtin_ffs(x);
}
__forceinline__ int __ffsll(long long x) {
    return __builtin_ffsll(x);
}
__forceinline__ unsigned __brev(unsigned x) {
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0F0F0F0Fu) | (x & 0x0F0F0F0Fu) << 4;
    return __builtin_bswap32(x);
}
__forceinline__ unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    uint64_t both = static_cast<uint64_t>(b) << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned s = selector >> (4 * i) & 0xF;
        auto byte = static_cast<unsigned>(both >> (8 * (s & 7)) & 0xFF);
        if (s & 8) byte = byte & 0x80 ? 0xFF : 0;  // the sign of the byte, repeated
        result |= byte << (8 * i);
    }
    return result;
}
__forceinline__ unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
__forceinline__ unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
__forceinline__ unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
__forceinline__ int __mulhi(int a, int b) {
    return static_cast<int>(static_cast<int64_t>(a) * b >> 32);
}
__forceinline__ unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

__forceinline__ unsigned __float_as_uint(float x) {
    return __builtin_bit_cast(unsigned, x);
}
__forceinline__ int __float_as_int(float x) {
    return __builtin_bit_cast(int, x);
}
__forceinline__ float __uint_as_float(unsigned x) {
    return __builtin_bit_cast(float, x);
}
__forceinline__ float __int_as_float(int x) {
    return __builtin_bit_cast(float, x);
}
__forceinline__ long long __double_as_longlong(double x) {
    return __builtin_bit_cast(long long, x);
}
__forceinline__ double __longlong_as_double(long long x) {
    return __builtin_bit_cast(double, x);
}

// ---------------------------------------------------------------------------------------------------------------------
// Loads and stores with a cache policy: plain ones here

#define SIMT_LOAD(name)                  \
    template <class T>                   \
    __forceinline__ T name(const T* p) { \
        return *p;                       \
    }
SIMT_LOAD(__ldg)
SIMT_LOAD(__ldcg)
SIMT_LOAD(__ldca)
SIMT_LOAD(__ldcs)
SIMT_LOAD(__ldlu)
SIMT_LOAD(__ldcv)
#undef SIMT_LOAD
#define SIMT_STORE(name)                                             \
    template <class T>                                               \
    __forceinline__ void name(T* p, std::type_identity_t<T> value) { \
        *p = value;                                                  \
    }
SIMT_STORE(__stwb)
SIMT_STORE(__stcg)
SIMT_STORE(__stcs)
SIMT_STORE(__stwt)
#undef SIMT_STORE

// ---------------------------------------------------------------------------------------------------------------------
// Atomics and fences. Blocks run on several OS threads, so these are real ones.

namespace simt {
template <class T, class F>
__forceinline__ T atomic_update(T* p, F&& f) {
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(p, &old, f(old), true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
// float and double have no __atomic_compare_exchange_n: go by their bits.
template <class T, class Bits, class F>
__forceinline__ T atomic_update_bits(T* p, F&& f) {
    return __builtin_bit_cast(T, atomic_update(reinterpret_cast<Bits*>(p), [&](Bits old) {
                                  return __builtin_bit_cast(Bits, f(__builtin_bit_cast(T, old)));
                              }));
}
}  // namespace simt

#define SIMT_ATOMICS(T)                                                                          \
    __forceinline__ T atomicAdd(T* p, T v) {                                                     \
        return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);                                       \
    }                                                                                            \
    __forceinline__ T atomicExch(T* p, T v) {                                                    \
        return __atomic_exchange_n(p, v, __ATOMIC_RELAXED);                                      \
    }                                                                                            \
    __forceinline__ T atomicCAS(T* p, T expected, T v) {                                         \
        __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED); \
        return expected;                                                                         \
    }                                                                                            \
    __forceinline__ T atomicMin(T* p, T v) {                                                     \
        return simt::atomic_update(p, [v](T old) { return v < old ? v : old; });                 \
    }                                                                                            \
    __forceinline__ T atomicMax(T* p, T v) {                                                     \
        return simt::atomic_update(p, [v](T old) { return v > old ? v : old; });                 \
    }                                                                                            \
    __forceinline__ T atomicAnd(T* p, T v) {                                                     \
        return __atomic_fetch_and(p, v, __ATOMIC_RELAXED);                                       \
    }                                                                                            \
    __forceinline__ T atomicOr(T* p, T v) {                                                      \
        return __atomic_fetch_or(p, v, __ATOMIC_RELAXED);                                        \
    }                                                                                            \
    __forceinline__ T atomicXor(T* p, T v) {                                                     \
        return __atomic_fetch_xor(p, v, __ATOMIC_RELAXED);                                       \
    }
SIMT_ATOMICS(int)
SIMT_ATOMICS(unsigned)
SIMT_ATOMICS(unsigned long long)
#undef SIMT_ATOMICS
__forceinline__ int atomicSub(int* p, int v) {
    return __atomic_fetch_sub(p, v, __ATOMIC_RELAXED);
}
__forceinline__ unsigned atomicSub(unsigned* p, unsigned v) {
    return __atomic_fetch_sub(p, v, __ATOMIC_RELAXED);
}
__forceinline__ unsigned atomicInc(unsigned* p, unsigned limit) {
    return simt::atomic_update(p, [limit](unsigned old) { return old >= limit ? 0 : old + 1; });
}
__forceinline__ unsigned atomicDec(unsigned* p, unsigned limit) {
    return simt::atomic_update(p, [limit](unsigned old) { return old == 0 || old > limit ? limit : old - 1; });
}
__forceinline__ float atomicAdd(float* p, float v) {
    return simt::atomic_update_bits<float, unsigned>(p, [v](float old) { return old + v; });
}
__forceinline__ double atomicAdd(double* p, double v) {
    return simt::atomic_update_bits<double, unsigned long long>(p, [v](double old) { return old + v; });
}
__forceinline__ float atomicExch(float* p, float v) {
    return simt::atomic_update_bits<float, unsigned>(p, [v](float) { return v; });
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpragmas"
#pragma GCC diagnostic ignored "-Wtsan"  // the checking mode does not look at fences
__forceinline__ void __threadfence() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
__forceinline__ void __threadfence_system() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
#pragma GCC diagnostic pop
// Threads of a block share an OS thread: only the compiler must not reorder.
__forceinline__ void __threadfence_block() {
    __asm__ volatile("" : : : "memory");
}

// ---------------------------------------------------------------------------------------------------------------------
// Time and faults

// Lets the other lanes, and the other blocks, go on: whoever spins on memory must call it.
inline void __nanosleep(unsigned) {
    simt::yield_lane(nullptr);
    sched_yield();
}
[[noreturn]] inline void __trap() {
    simt::die("__trap");
}
inline long long clock64() {
#if defined(__x86_64__)
    return static_cast<long long>(__builtin_ia32_rdtsc());
#else
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
#endif
}
