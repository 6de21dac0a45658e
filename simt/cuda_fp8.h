// Stands in for <cuda_fp8.h>: the two 8-bit floats, their conversions bit for bit, no arithmetic.
//
//   e4m3   sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinity, one NaN (0x7f); largest 448, smallest 2^-9
//   e5m2   sign, 5 bits of exponent (bias 15), 2 of mantissa; infinity 0x7c, NaNs above; largest 57344, smallest 2^-16
//
// (Micikevicius et al. 2022, arXiv 2209.05433.) Narrowing rounds to nearest, ties to even. What rounds beyond the
// largest number becomes that number with __NV_SATFINITE, infinity included; with __NV_NOSAT it becomes e4m3's NaN or
// e5m2's infinity, sign kept. NaN becomes 0x7f in both, whatever its sign. Constructors saturate, as the toolkit's do.
#pragma once

#include "cuda_bf16.h"

typedef unsigned char __nv_fp8_storage_t;
typedef unsigned short __nv_fp8x2_storage_t;

typedef enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE } __nv_saturation_t;
typedef enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 } __nv_fp8_interpretation_t;

constexpr __forceinline__ __nv_fp8_storage_t __nv_cvt_float_to_fp8(float x, __nv_saturation_t saturate,
                                                                   __nv_fp8_interpretation_t format) {
    const bool e4m3 = format == __NV_E4M3;
    const unsigned bits = __builtin_bit_cast(unsigned, x), magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7f;
    const unsigned cut = e4m3 ? 20 : 21;  // bits of fp32's mantissa that go
    const unsigned smallest_normal = (127u - (e4m3 ? 6 : 14)) << 23;
    const unsigned largest = e4m3 ? 0x7e : 0x7b;
    unsigned code = 0;
    if (magnitude >= smallest_normal) {
        code = (magnitude + (1u << (cut - 1)) - 1 + (magnitude >> cut & 1)) >> cut;
        code -= (127u - (e4m3 ? 7 : 15)) << (23 - cut);
    } else {  // beside this number fp32 is spaced as the subnormal codes are: the addition rounds
        const float spacer = e4m3 ? 16384.0f : 128.0f;
        code = __builtin_bit_cast(unsigned, __builtin_bit_cast(float, magnitude) + spacer) -
               __builtin_bit_cast(unsigned, spacer);
    }
    if (code > largest) code = saturate == __NV_SATFINITE ? largest : largest + 1;
    return static_cast<__nv_fp8_storage_t>(code | (bits >> 24 & 0x80u));
}
// The first value in the low byte.
constexpr __forceinline__ __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 x, __nv_saturation_t saturate,
                                                                        __nv_fp8_interpretation_t format) {
    return static_cast<__nv_fp8x2_storage_t>(__nv_cvt_float_to_fp8(x.x, saturate, format) |
                                             __nv_cvt_float_to_fp8(x.y, saturate, format) << 8);
}
constexpr __forceinline__ __nv_fp8_storage_t __nv_cvt_bfloat16raw_to_fp8(__nv_bfloat16_raw x,
                                                                         __nv_saturation_t saturate,
                                                                         __nv_fp8_interpretation_t format) {
    return __nv_cvt_float_to_fp8(__bfloat162float(x), saturate, format);
}

namespace simt {

// Every fp8 number is an fp32 number. NaN loses its sign, as through the toolkit's half.
constexpr __forceinline__ float fp8_value(__nv_fp8_storage_t code, __nv_fp8_interpretation_t format) {
    const bool e4m3 = format == __NV_E4M3;
    const unsigned magnitude = code & 0x7fu, sign = (code & 0x80u) << 24;
    if (magnitude > (e4m3 ? 0x7eu : 0x7cu)) return __builtin_bit_cast(float, 0x7fffffffu);
    if (!e4m3 && magnitude == 0x7c) return __builtin_bit_cast(float, sign | 0x7f800000u);
    const unsigned mantissa_bits = e4m3 ? 3 : 2, bias = e4m3 ? 7 : 15;
    if (magnitude >> mantissa_bits == 0) {
        const float value = static_cast<float>(magnitude) * (e4m3 ? 0x1p-9f : 0x1p-16f);
        return sign ? -value : value;
    }
    return __builtin_bit_cast(float, sign | ((magnitude << (23 - mantissa_bits)) + ((127u - bias) << 23)));
}

}  // namespace simt

#define SIMT_FP8(name, format)                                                                                       \
    struct name {                                                                                                    \
        __nv_fp8_storage_t __x;                                                                                      \
        name() = default;                                                                                            \
        explicit constexpr name(float f) : __x(__nv_cvt_float_to_fp8(f, __NV_SATFINITE, format)) {}                  \
        explicit constexpr name(__nv_bfloat16 f) : __x(__nv_cvt_bfloat16raw_to_fp8(f, __NV_SATFINITE, format)) {}    \
        explicit constexpr operator float() const { return simt::fp8_value(__x, format); }                           \
        explicit constexpr operator __nv_bfloat16() const { return __float2bfloat16_rz(static_cast<float>(*this)); } \
    };
SIMT_FP8(__nv_fp8_e4m3, __NV_E4M3)
SIMT_FP8(__nv_fp8_e5m2, __NV_E5M2)
#undef SIMT_FP8
