// Tensor maps: what a TMA copy must know of a tensor in device memory. The GPU's side, made by the driver; the CPU
// machine has the same in simt/tensor_map.h.
#pragma once
#include <cuda.h>  // types only: the driver's one function is asked for at run time, so nothing links with -lcuda
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/error.h"

// How a tile lies in shared memory. With b32, b64, b128 a row of the box has exactly 32, 64, 128 bytes, and the 16-byte
// pieces of it change places: bits 4.. of a piece's address are XORed with bits 7.. (1, 2, 3 bits). So 8 rows that a
// matrix product reads at once lie in different banks.
enum class Swizzle { none, b32, b64, b128 };
enum class Element { bf16, fp32 };

// Given to a kernel as `const __grid_constant__ TensorMap`, never copied on the device.
struct TensorMap {
    CUtensorMap map;  // aligned as the hardware asks
};

// The tensor at `base` (device memory, 16-byte aligned) of `rank` dimensions (2..5), innermost first: size[i] elements,
// of dimensions 1.. at stride_bytes[i - 1] (multiples of 16, below 2^40); the innermost is contiguous. A copy moves
// box[0] x box[1] x ... elements (each 1..256): box[0] spans a multiple of 16 bytes, with a swizzle exactly its width.
// In shared memory the box is dense, innermost first. What of a box lies outside the tensor is read as zero and not
// written. A map that the driver refuses is a programming error.
inline TensorMap make_tensor_map(const void* base, int rank, const uint64_t* size, const uint64_t* stride_bytes,
                                 const uint32_t* box, Swizzle swizzle, Element element = Element::bf16) {
    using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
    static const Encode encode = [] {
        void* found = nullptr;
        cudaDriverEntryPointQueryResult status = cudaDriverEntryPointSymbolNotFound;
        cudaError_t error =
            cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status);
        if (error != cudaSuccess || status != cudaDriverEntryPointSuccess)
            programming_error("cuTensorMapEncodeTiled", "this driver does not have it", __FILE__, __LINE__);
        return reinterpret_cast<Encode>(found);
    }();
    const CUtensorMapSwizzle patterns[] = {CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_32B,
                                           CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_SWIZZLE_128B};
    const cuuint32_t steps[] = {1, 1, 1, 1, 1};
    TensorMap result;
    const CUresult refused = encode(
        &result.map, element == Element::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        static_cast<cuuint32_t>(rank), const_cast<void*>(base), size, stride_bytes, box, steps,
        CU_TENSOR_MAP_INTERLEAVE_NONE, patterns[static_cast<int>(swizzle)], CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (refused != CUDA_SUCCESS)
        programming_error("make_tensor_map", "a size, stride, box or address that TMA does not take", __FILE__,
                          __LINE__);
    return result;
}
