// Tensor maps on the CPU machine: refused where the driver refuses, and where the contract asks for more.
#include "tensor_map.h"

#include <cstring>

#include "kernels/error.h"

namespace simt {

const char* tensor_map_fault(const void* base, int rank, const uint64_t* size, const uint64_t* stride_bytes,
                             const uint32_t* box, Swizzle swizzle, Element element) {
    const uint64_t bytes = element == Element::bf16 ? 2 : 4;
    if (rank < 2 || rank > 5) return "the rank is not 2..5";
    if (!base || reinterpret_cast<uintptr_t>(base) % 16) return "the address is not a multiple of 16";
    for (int i = 0; i < rank; i++) {
        if (size[i] < 1 || size[i] > uint64_t{1} << 32) return "a size is not 1..2^32";
        if (box[i] < 1 || box[i] > 256) return "a box is not 1..256";
    }
    for (int i = 0; i + 1 < rank; i++)
        if (stride_bytes[i] % 16 || stride_bytes[i] >= uint64_t{1} << 40)
            return "a stride is not a multiple of 16 below 2^40";
    const uint64_t row = box[0] * bytes;
    if (row % 16) return "the box's rows are not a multiple of 16 bytes";
    if (swizzle != Swizzle::none && row != 16u << static_cast<unsigned>(swizzle))
        return "the box's rows are not as wide as the swizzle";
    return nullptr;
}

}  // namespace simt

TensorMap make_tensor_map(const void* base, int rank, const uint64_t* size, const uint64_t* stride_bytes,
                          const uint32_t* box, Swizzle swizzle, Element element) {
    if (const char* fault = simt::tensor_map_fault(base, rank, size, stride_bytes, box, swizzle, element))
        programming_error("make_tensor_map", fault, __FILE__, __LINE__);
    TensorMap map;
    map.mark = simt::kTensorMapMark;
    map.rank = rank;
    map.base = static_cast<const unsigned char*>(base);
    map.stride[0] = element == Element::bf16 ? 2 : 4;
    for (int i = 0; i < 5; i++) {
        map.size[i] = i < rank ? size[i] : 1;
        map.box[i] = i < rank ? box[i] : 1;
        if (i > 0 && i < rank) map.stride[i] = stride_bytes[i - 1];
    }
    map.swizzle = swizzle;
    return map;
}
