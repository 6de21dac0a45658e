// Shared by all tests: Catch2, device arrays, reproducible random data, comparisons that say what differs.
#pragma once
#include "kernels/common.cuh"
#undef CHECK  // in tests CHECK is Catch2's: a failure is counted, not fatal
#include <catch2/catch.hpp>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

// SKIP_TEST("why"): leaves the test case and counts it as skipped in the closing line (Catch2 v2 has no skip).
void note_skip(const std::string& why);
#define SKIP_TEST(why) \
    do { \
        note_skip(why); \
        return; \
    } while (0)

// An array in device memory. Copies are synchronous.
template <class T>
struct Device {
    T* data = nullptr;
    size_t count = 0;
    explicit Device(size_t n) : count(n) { CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&data), (n ? n : 1) * sizeof(T))); }
    explicit Device(const std::vector<T>& host) : Device(host.size()) { write(host); }
    ~Device() { cudaFree(data); }
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;
    void write(const std::vector<T>& host) {
        CUDA_CHECK(cudaMemcpy(data, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
    }
    std::vector<T> read() const {
        std::vector<T> host(count);
        CUDA_CHECK(cudaDeviceSynchronize());
        CUDA_CHECK(cudaMemcpy(host.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost));
        return host;
    }
    void zero() { CUDA_CHECK(cudaMemset(data, 0, count * sizeof(T))); }
    // Fills with a NaN pattern, so that an element nobody writes is seen.
    void poison() { CUDA_CHECK(cudaMemset(data, 0xFF, count * sizeof(T))); }
};

// splitmix64: the same numbers on every machine and compiler.
struct Random {
    uint64_t state;
    explicit Random(uint64_t seed) : state(seed) {}
    uint64_t bits() {
        uint64_t z = (state += 0x9E3779B97F4A7C15ull);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        return z ^ (z >> 31);
    }
    double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
    double normal() {
        double u = 1.0 - uniform(), v = uniform();
        return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586 * v);
    }
    int below(int n) { return static_cast<int>(bits() % static_cast<uint64_t>(n)); }
    // n normal numbers, rounded to T; the float64 reference must start from these rounded values.
    template <class T>
    std::vector<T> normals(size_t n, double scale = 1.0, double mean = 0.0) {
        std::vector<T> out(n);
        for (auto& x : out) x = from_float<T>(static_cast<float>(mean + scale * normal()));
        return out;
    }
};

template <class T>
std::vector<double> to_double(const std::vector<T>& v) {
    std::vector<double> out(v.size());
    for (size_t i = 0; i < v.size(); i++) out[i] = static_cast<double>(to_float(v[i]));
    return out;
}

// ||got - want|| / ||want||; NaN and infinity in `got` give infinity, so that they never pass.
double relative_error(const std::vector<double>& got, const std::vector<double>& want);
// max |got - want| / (atol + rtol*|want|): passes when <= 1. NaN in `got` gives infinity.
double worst_error(const std::vector<double>& got, const std::vector<double>& want, double atol, double rtol);

// The unit roundoff of floatX: 2^-24 for fp32, 2^-8 for bf16 (8 significant bits).
constexpr double unit_roundoff = sizeof(floatX) == 2 ? 0x1p-8 : 0x1p-24;
