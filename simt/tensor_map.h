// Tensor maps on the CPU machine: the twin of kernels/gpu/tensor_map.h, where the contract stands.
#pragma once
#include <cuda_runtime.h>

enum class Swizzle { none, b32, b64, b128 };
enum class Element { bf16, fp32 };

struct alignas(64) TensorMap {
    uint32_t mark = 0;  // simt::kTensorMapMark in a map that make_tensor_map made
    int rank = 0;
    const unsigned char* base = nullptr;
    uint64_t size[5] = {};    // elements
    uint64_t stride[5] = {};  // bytes; [0]: of an element
    uint32_t box[5] = {};
    Swizzle swizzle = Swizzle::none;
};

TensorMap make_tensor_map(const void* base, int rank, const uint64_t* size, const uint64_t* stride_bytes,
                          const uint32_t* box, Swizzle swizzle, Element element = Element::bf16);

namespace simt {
constexpr uint32_t kTensorMapMark = 0x7e4507;
// What of the contract is broken, or null.
const char* tensor_map_fault(const void* base, int rank, const uint64_t* size, const uint64_t* stride_bytes,
                             const uint32_t* box, Swizzle swizzle, Element element);
}  // namespace simt
