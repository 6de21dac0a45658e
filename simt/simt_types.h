// CUDA's keywords and vector types for g++.
#pragma once

#include <cstdint>

#define __host__
#define __device__
#define __global__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(n) alignas(n)
// __noinline__ cannot be a macro: libstdc++ 12 writes __attribute__((__noinline__)). Write [[gnu::noinline]].

#define SIMT_VECTORS(T, name, align2, align4)                              \
    struct name##1 {                                                       \
        T x;                                                               \
    };                                                                     \
    struct alignas(align2) name##2 {                                       \
        T x, y;                                                            \
    };                                                                     \
    struct name##3 {                                                       \
        T x, y, z;                                                         \
    };                                                                     \
    struct alignas(align4) name##4 {                                       \
        T x, y, z, w;                                                      \
    };                                                                     \
    constexpr __forceinline__ name##1 make_##name##1(T x) {                \
        return {x};                                                        \
    }                                                                      \
    constexpr __forceinline__ name##2 make_##name##2(T x, T y) {           \
        return {x, y};                                                     \
    }                                                                      \
    constexpr __forceinline__ name##3 make_##name##3(T x, T y, T z) {      \
        return {x, y, z};                                                  \
    }                                                                      \
    constexpr __forceinline__ name##4 make_##name##4(T x, T y, T z, T w) { \
        return {x, y, z, w};                                               \
    }

SIMT_VECTORS(char, char, 2, 4)
SIMT_VECTORS(unsigned char, uchar, 2, 4)
SIMT_VECTORS(short, short, 4, 8)
SIMT_VECTORS(unsigned short, ushort, 4, 8)
SIMT_VECTORS(int, int, 8, 16)
SIMT_VECTORS(unsigned, uint, 8, 16)
SIMT_VECTORS(long long, longlong, 16, 16)
SIMT_VECTORS(unsigned long long, ulonglong, 16, 16)
SIMT_VECTORS(float, float, 8, 16)
SIMT_VECTORS(double, double, 16, 16)
#undef SIMT_VECTORS

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return {x, y, z}; }
};
