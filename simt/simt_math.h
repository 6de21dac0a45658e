// Device mathematics in fp32 that g++ can inline and turn into vector code.
//
// The C library's expf, tanhf, ... are calls, 5 to 15 ns each. Here they get inline bodies by GNU's "extern inline":
// the names, types and results stay those of <math.h>, only faster. Largest errors, measured over the whole range
// against double (tests/test_simt_math.cu): expf, exp2f 1 ulp, logf 1 ulp, tanhf 2 ulp. As on the GPU with flushed
// denormals, results below 2^-126 are zero.
#pragma once

#include <math.h>

#include <cmath>
#include <cstdint>

#include "simt_types.h"

// The body is for inlining only; the symbol stays the C library's.
#define SIMT_MATH extern "C" inline __attribute__((gnu_inline, always_inline, artificial))

namespace simt {

// The polynomials are minimax fits of relative error, by Lawson's reweighted least squares.
constexpr float kLog2e = 1.44269504088896341f;

// 2^n for integral n in [-127, 128]: zero at -127, infinity at 128.
__forceinline__ float power_of_two(int n) {
    return __builtin_bit_cast(float, (n + 127) << 23);
}

// x rounded to an integer, for |x| < 2^22: adding 1.5 * 2^23 pushes the fraction out of the mantissa.
__forceinline__ float round_even(float x) {
    return (x + 12582912.0f) - 12582912.0f;
}

// e^r for |r| <= ln2/2.
__forceinline__ float exp_reduced(float r) {
    float p = 1.979034703e-4f;
    p = __builtin_fmaf(p, r, 1.394466027e-3f);
    p = __builtin_fmaf(p, r, 8.333497068e-3f);
    p = __builtin_fmaf(p, r, 4.166629494e-2f);
    p = __builtin_fmaf(p, r, 1.666666587e-1f);
    p = __builtin_fmaf(p, r, 5.000000068e-1f);
    return __builtin_fmaf(p * r, r, r) + 1.0f;
}

__forceinline__ float exp_f(float x) {
    // Beyond these the result is 0 or infinity. The comparisons are so written that NaN goes through.
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    float n = round_even(x * kLog2e);
    float r = __builtin_fmaf(n, -0.693359375f, x);  // ln2 in two parts, the first exact in few bits
    r = __builtin_fmaf(n, 2.12194440e-4f, r);
    // 2^n in two factors: n = 128 alone would overflow though the result may not.
    int half = static_cast<int>(n) >> 1;
    return exp_reduced(r) * power_of_two(half) * power_of_two(static_cast<int>(n) - half);
}

__forceinline__ float exp2_f(float x) {
    x = x > 129.0f ? 129.0f : x;
    x = x < -150.0f ? -150.0f : x;
    float n = round_even(x);
    int half = static_cast<int>(n) >> 1;
    return exp_reduced((x - n) * 0.693147180559945f) * power_of_two(half) * power_of_two(static_cast<int>(n) - half);
}

__forceinline__ float tanh_f(float x) {
    float a = __builtin_fabsf(x);
    // Small: an odd polynomial, since 1 - 2/(e^2a + 1) loses everything there.
    float s = a * a;
    float p = -5.717036579e-3f;
    p = __builtin_fmaf(p, s, 2.065057902e-2f);
    p = __builtin_fmaf(p, s, -5.374349527e-2f);
    p = __builtin_fmaf(p, s, 1.333149125e-1f);
    p = __builtin_fmaf(p, s, -3.333328392e-1f);
    float small = __builtin_fmaf(p * s, a, a);
    float big = 1.0f - 2.0f / (exp_f(2.0f * a) + 1.0f);
    return __builtin_copysignf(a < 0.625f ? small : big, x);
}

__forceinline__ float log_f(float x) {
    uint32_t bits = __builtin_bit_cast(uint32_t, x);
    // x = 2^e * m with m in [sqrt(1/2), sqrt(2)).
    int e = static_cast<int>(bits - 0x3f3504f3u) >> 23;
    float f = __builtin_bit_cast(float, bits - (static_cast<uint32_t>(e) << 23)) - 1.0f;
    float p = 6.746600742e-2f;
    p = __builtin_fmaf(p, f, -1.167564088e-1f);
    p = __builtin_fmaf(p, f, 1.188817464e-1f);
    p = __builtin_fmaf(p, f, -1.240559150e-1f);
    p = __builtin_fmaf(p, f, 1.421955091e-1f);
    p = __builtin_fmaf(p, f, -1.666799566e-1f);
    p = __builtin_fmaf(p, f, 2.000211873e-1f);
    p = __builtin_fmaf(p, f, -2.500000960e-1f);
    p = __builtin_fmaf(p, f, 3.333331260e-1f);
    float z = f * f, n = static_cast<float>(e);
    float y = f * z * p;
    y = __builtin_fmaf(n, -2.12194440e-4f, y);
    y = __builtin_fmaf(-0.5f, z, y);
    float result = __builtin_fmaf(n, 0.693359375f, f + y);
    result = x < 0x1p-126f ? -__builtin_inff() : result;  // zero and what is flushed to it
    result = x < 0 ? __builtin_nanf("") : result;
    return x < __builtin_inff() ? result : x;  // infinity and NaN
}

}  // namespace simt

SIMT_MATH float expf(float x) noexcept {
    return simt::exp_f(x);
}
SIMT_MATH float __expf(float x) noexcept {
    return simt::exp_f(x);
}
SIMT_MATH float exp2f(float x) noexcept {
    return simt::exp2_f(x);
}
SIMT_MATH float tanhf(float x) noexcept {
    return simt::tanh_f(x);
}
SIMT_MATH float logf(float x) noexcept {
    return simt::log_f(x);
}
SIMT_MATH float __logf(float x) noexcept {
    return simt::log_f(x);
}
SIMT_MATH float __log2f(float x) noexcept {
    return simt::log_f(x) * simt::kLog2e;
}
SIMT_MATH float __log10f(float x) noexcept {
    return simt::log_f(x) * 0.434294481903251828f;
}
SIMT_MATH float __sinf(float x) noexcept {
    return sinf(x);
}
SIMT_MATH float __cosf(float x) noexcept {
    return cosf(x);
}
SIMT_MATH float __powf(float x, float y) noexcept {
    return powf(x, y);
}
SIMT_MATH void __sincosf(float x, float* sine, float* cosine) noexcept {
    sincosf(x, sine, cosine);
}

// One of two NaNs gives the other operand, as IEEE-754 minNum and the GPU do.
SIMT_MATH float fmaxf(float a, float b) noexcept {
    return a > b ? a : (b == b ? b : a);
}
SIMT_MATH float fminf(float a, float b) noexcept {
    return a < b ? a : (b == b ? b : a);
}

__forceinline__ float min(float a, float b) {
    return fminf(a, b);
}
__forceinline__ float max(float a, float b) {
    return fmaxf(a, b);
}
__forceinline__ double min(double a, double b) {
    return fmin(a, b);
}
__forceinline__ double max(double a, double b) {
    return fmax(a, b);
}

__forceinline__ float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
__forceinline__ double rsqrt(double x) {
    return 1.0 / sqrt(x);
}
__forceinline__ float __frsqrt_rn(float x) {
    return 1.0f / sqrtf(x);
}
__forceinline__ float __fsqrt_rn(float x) {
    return sqrtf(x);
}
__forceinline__ float __frcp_rn(float x) {
    return 1.0f / x;
}
// 1/x; results below 2^-126 are zero.
__forceinline__ float reciprocal_ftz(float x) {
    const float r = 1.0f / x;
    return __builtin_fabsf(r) < 0x1p-126f ? 0.0f : r;
}
__forceinline__ float __fdividef(float x, float y) {
    return x / y;
}
__forceinline__ float fdividef(float x, float y) {
    return x / y;
}
__forceinline__ float __fdiv_rn(float x, float y) {
    return x / y;
}
__forceinline__ float __fmaf_rn(float x, float y, float z) {
    return __builtin_fmaf(x, y, z);
}
// These two are never contracted into a multiply-add.
__forceinline__ float __fadd_rn(float x, float y) {
    float sum = x + y;
    __asm__("" : "+x"(sum));
    return sum;
}
__forceinline__ float __fmul_rn(float x, float y) {
    float product = x * y;
    __asm__("" : "+x"(product));
    return product;
}
__forceinline__ float __saturatef(float x) {
    return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f;
}

__forceinline__ int __float2int_rn(float x) {
    return static_cast<int>(__builtin_rintf(x));
}
__forceinline__ int __float2int_rz(float x) {
    return static_cast<int>(x);
}
__forceinline__ int __float2int_rd(float x) {
    return static_cast<int>(__builtin_floorf(x));
}
__forceinline__ int __float2int_ru(float x) {
    return static_cast<int>(__builtin_ceilf(x));
}
__forceinline__ unsigned __float2uint_rn(float x) {
    return static_cast<unsigned>(__builtin_rintf(x));
}
__forceinline__ float __int2float_rn(int x) {
    return static_cast<float>(x);
}
__forceinline__ float __uint2float_rn(unsigned x) {
    return static_cast<float>(x);
}
__forceinline__ float __double2float_rn(double x) {
    return static_cast<float>(x);
}
