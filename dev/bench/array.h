// Device memory for the life of one benchmark.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/common.cuh"

template <class T>
struct Array {
    T* data = nullptr;
    explicit Array(size_t count) {
        CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&data), (count ? count : 1) * sizeof(T)));
    }
    explicit Array(const std::vector<T>& host) : Array(host.size()) {
        CUDA_CHECK(cudaMemcpy(data, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
    }
    // Of 32 random bits each. Zeros would let a GPU run faster than real numbers do.
    Array(size_t count, T (*value)(uint32_t)) : Array(filled(count, value)) {}
    // Evenly in [-scale, scale).
    Array(size_t count, float scale)
        : Array(filled(count, [scale](uint32_t bits) {
              return from_float<T>((static_cast<float>(bits >> 8) * 0x1p-23f - 1.0f) * scale);
          })) {}
    ~Array() { cudaFree(data); }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;

  private:
    template <class Value>
    static std::vector<T> filled(size_t count, const Value& value) {
        std::vector<T> host(count);
        uint32_t state = 12345;
        for (T& x : host) x = value(state = state * 1664525u + 1013904223u);
        return host;
    }
};
