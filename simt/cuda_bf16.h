// Stands in for <cuda_bf16.h>: storage in 16 bits, arithmetic in fp32, results rounded to nearest even.
#pragma once

#include "simt_math.h"
#include "simt_types.h"
#include "simt_warp.h"

struct __nv_bfloat16_raw {
    unsigned short x;
};

struct __nv_bfloat16;
constexpr __forceinline__ float __bfloat162float(__nv_bfloat16 a);
constexpr __forceinline__ __nv_bfloat16 __float2bfloat16_rn(float a);

struct alignas(2) __nv_bfloat16 {
    unsigned short __x;
    __nv_bfloat16() = default;
    constexpr __nv_bfloat16(__nv_bfloat16_raw raw) : __x(raw.x) {}
    constexpr __nv_bfloat16(float f);
    constexpr __nv_bfloat16(double f) : __nv_bfloat16(static_cast<float>(f)) {}
    constexpr __nv_bfloat16(int i) : __nv_bfloat16(static_cast<float>(i)) {}
    constexpr __nv_bfloat16(unsigned i) : __nv_bfloat16(static_cast<float>(i)) {}
    constexpr operator float() const { return __bfloat162float(*this); }
    constexpr operator __nv_bfloat16_raw() const { return {__x}; }
};
using nv_bfloat16 = __nv_bfloat16;

constexpr __forceinline__ float __bfloat162float(__nv_bfloat16 a) {
    return __builtin_bit_cast(float, static_cast<unsigned>(a.__x) << 16);
}
// NaN becomes 0x7fff, as on the GPU: rounding its bits could give infinity.
constexpr __forceinline__ __nv_bfloat16 __float2bfloat16_rn(float a) {
    unsigned bits = __builtin_bit_cast(unsigned, a);
    unsigned rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
    unsigned magnitude = bits & 0x7fffffffu;
    return __nv_bfloat16_raw{static_cast<unsigned short>(magnitude > 0x7f800000u ? 0x7fffu : rounded)};
}
constexpr __nv_bfloat16::__nv_bfloat16(float f) : __x(__float2bfloat16_rn(f).__x) {}
constexpr __forceinline__ __nv_bfloat16 __float2bfloat16(float a) {
    return __float2bfloat16_rn(a);
}
constexpr __forceinline__ __nv_bfloat16 __float2bfloat16_rz(float a) {
    unsigned bits = __builtin_bit_cast(unsigned, a);
    return __nv_bfloat16_raw{static_cast<unsigned short>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : bits >> 16)};
}
// Through fp32 with round-to-odd, so that rounding twice gives what rounding once would.
__forceinline__ __nv_bfloat16 __double2bfloat16(double a) {
    float f = static_cast<float>(a);
    double back = f;
    if (back != a && a == a) {
        unsigned bits = __builtin_bit_cast(unsigned, f);
        bool away = (a < 0 ? -back : back) > (a < 0 ? -a : a);
        bits = (away ? bits - 1 : bits) | 1;
        f = __builtin_bit_cast(float, bits);
    }
    return __float2bfloat16_rn(f);
}
constexpr __forceinline__ unsigned short __bfloat16_as_ushort(__nv_bfloat16 a) {
    return a.__x;
}
constexpr __forceinline__ short __bfloat16_as_short(__nv_bfloat16 a) {
    return static_cast<short>(a.__x);
}
constexpr __forceinline__ __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) {
    return __nv_bfloat16_raw{x};
}

#define SIMT_BF16(op)                                                                            \
    constexpr __forceinline__ __nv_bfloat16 operator op(__nv_bfloat16 a, __nv_bfloat16 b) {      \
        return __float2bfloat16_rn(__bfloat162float(a) op __bfloat162float(b));                  \
    }                                                                                            \
    constexpr __forceinline__ __nv_bfloat16& operator op##=(__nv_bfloat16& a, __nv_bfloat16 b) { \
        return a = a op b;                                                                       \
    }
SIMT_BF16(+)
SIMT_BF16(-)
SIMT_BF16(*)
SIMT_BF16(/)
#undef SIMT_BF16
constexpr __forceinline__ __nv_bfloat16 operator-(__nv_bfloat16 a) {
    return __nv_bfloat16_raw{static_cast<unsigned short>(a.__x ^ 0x8000u)};
}
#define SIMT_BF16(op)                                                              \
    constexpr __forceinline__ bool operator op(__nv_bfloat16 a, __nv_bfloat16 b) { \
        return __bfloat162float(a) op __bfloat162float(b);                         \
    }
SIMT_BF16(==)
SIMT_BF16(!=)
SIMT_BF16(<)
SIMT_BF16(>)
SIMT_BF16(<=)
SIMT_BF16(>=)
#undef SIMT_BF16

constexpr __forceinline__ __nv_bfloat16 __hadd(__nv_bfloat16 a, __nv_bfloat16 b) {
    return a + b;
}
constexpr __forceinline__ __nv_bfloat16 __hsub(__nv_bfloat16 a, __nv_bfloat16 b) {
    return a - b;
}
constexpr __forceinline__ __nv_bfloat16 __hmul(__nv_bfloat16 a, __nv_bfloat16 b) {
    return a * b;
}
constexpr __forceinline__ __nv_bfloat16 __hneg(__nv_bfloat16 a) {
    return -a;
}
constexpr __forceinline__ bool __hisnan(__nv_bfloat16 a) {
    return (a.__x & 0x7fff) > 0x7f80;
}

struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
    __nv_bfloat162() = default;
    constexpr __nv_bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) : x(a), y(b) {}
};
using nv_bfloat162 = __nv_bfloat162;

constexpr __forceinline__ __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) {
    return {a, b};
}
constexpr __forceinline__ __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 a) {
    return {a, a};
}
constexpr __forceinline__ __nv_bfloat162 __floats2bfloat162_rn(float a, float b) {
    return {__float2bfloat16_rn(a), __float2bfloat16_rn(b)};
}
constexpr __forceinline__ __nv_bfloat162 __float2bfloat162_rn(float a) {
    return __floats2bfloat162_rn(a, a);
}
constexpr __forceinline__ __nv_bfloat162 __float22bfloat162_rn(float2 a) {
    return __floats2bfloat162_rn(a.x, a.y);
}
constexpr __forceinline__ float2 __bfloat1622float2(__nv_bfloat162 a) {
    return {__bfloat162float(a.x), __bfloat162float(a.y)};
}
constexpr __forceinline__ float __low2float(__nv_bfloat162 a) {
    return __bfloat162float(a.x);
}
constexpr __forceinline__ float __high2float(__nv_bfloat162 a) {
    return __bfloat162float(a.y);
}
constexpr __forceinline__ __nv_bfloat16 __low2bfloat16(__nv_bfloat162 a) {
    return a.x;
}
constexpr __forceinline__ __nv_bfloat16 __high2bfloat16(__nv_bfloat162 a) {
    return a.y;
}
constexpr __forceinline__ __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return {a.x + b.x, a.y + b.y};
}
constexpr __forceinline__ __nv_bfloat162 __hsub2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return {a.x - b.x, a.y - b.y};
}
constexpr __forceinline__ __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return {a.x * b.x, a.y * b.y};
}
__forceinline__ __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
    return __float2bfloat16_rn(__builtin_fmaf(__bfloat162float(a), __bfloat162float(b), __bfloat162float(c)));
}
__forceinline__ __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
