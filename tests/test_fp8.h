// Shared by the tests of tensors in 8 bits.
#pragma once
#include "kernels/fp8.cuh"

#include <cstring>

#include "test.h"

inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

template <class F>
struct Format;
template <>
struct Format<e4m3> {
    static constexpr const char* name = "e4m3";
    static constexpr __nv_fp8_interpretation_t kind = __NV_E4M3;
    static constexpr float largest = 448.0f;
};
template <>
struct Format<e5m2> {
    static constexpr const char* name = "e5m2";
    static constexpr __nv_fp8_interpretation_t kind = __NV_E5M2;
    static constexpr float largest = 57344.0f;
};

// Device memory for one tensor's scaling, with a given scale.
struct Scaling {
    Device<float> memory{fp8_scales_bytes(1) / sizeof(float)};
    Fp8Scales scales = fp8_scales_in(memory.data, 1);
    explicit Scaling(float scale) {
        std::vector<float> host(memory.count, 0.0f);
        host[0] = scale;
        host[1] = 1 / scale;
        memory.write(host);
    }
    float amax() const { return memory.read()[2]; }
};

inline size_t area(int rows, int cols) {
    return static_cast<size_t>(rows) * static_cast<size_t>(cols);
}

template <class F>
std::vector<int> codes(const Device<F>& device, size_t count) {
    std::vector<int> out;
    const std::vector<F> host = device.read();
    for (size_t i = 0; i < count; i++) out.push_back(host[i].__x);
    return out;
}

// dbias (S) against SUM_r of x (R,S), times factor, on top of `before`. What a number of a column goes through in fp32,
// one after the other, is fewer than 18 + R/128 roundings: 8 rows of a thread, 4 halvings of a tile's 16 threads, the
// factor, the tiles, what was there before. Each is off by at most 2^-24 of the sum of magnitudes.
inline void check_column_sums(const Device<float>& dbias, const std::vector<floatX>& x, int R, int S, double factor,
                              const std::vector<float>& before) {
    const std::vector<float> got = dbias.read();
    for (size_t s = 0; s < static_cast<size_t>(S); s++) {
        double want = before[s], size = std::fabs(before[s]);
        for (size_t r = 0; r < static_cast<size_t>(R); r++) {
            const double value = factor * to_float(x[r * static_cast<size_t>(S) + s]);
            want += value;
            size += std::fabs(value);
        }
        INFO("column " << s << ": " << got[s] << " for " << want);
        if (std::isfinite(want))
            REQUIRE(std::fabs(got[s] - want) <= (18 + R / 128) * 0x1p-24 * size);
        else
            REQUIRE(!std::isfinite(got[s]));
    }
}
