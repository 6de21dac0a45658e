// What every kernel file includes: the activation type, 16-byte packs, checked calls, and the one launch helper.
//
// The same source is compiled by nvcc for the GPU and by g++ against simt/ for the CPU machine. The include path alone
// decides which <cuda_runtime.h>, <collectives.cuh> and <ptx.cuh> are found; no kernel asks which machine it is on.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <collectives.cuh>  // shared_as, warp_sum, row_sum, block_sum
#include <cstdint>
#include <grid_order.cuh>  // wait_for_previous, launch_next_early
#include <utility>

#include "kernels/error.h"
#include "kernels/traffic.h"

// The activation type of this build. Parameters have a working copy in floatX and an fp32 master; gradients of
// parameters are always fp32; statistics and reductions are always fp32.
#if defined(PRECISION_BF16)
using floatX = __nv_bfloat16;
#elif defined(PRECISION_FP32)
using floatX = float;
#else
#error "define PRECISION_FP32 or PRECISION_BF16"
#endif

constexpr int WARP = 32;

// ---------------------------------------------------------------------------------------------------------------------
// Conversions

__host__ __device__ __forceinline__ float to_float(float x) { return x; }
__host__ __device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T>
__host__ __device__ __forceinline__ T from_float(float x);
template <>
__host__ __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__host__ __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// ---------------------------------------------------------------------------------------------------------------------
// Packs: 16 bytes, the widest load a thread can make. Addresses must be 16-byte aligned; rows of floatX are, since
// channel counts are multiples of 16 bytes.

template <class T>
struct alignas(16) Pack {
    static constexpr int size = 16 / sizeof(T);
    T v[size];
    __host__ __device__ __forceinline__ T& operator[](int i) { return v[i]; }
    __host__ __device__ __forceinline__ const T& operator[](int i) const { return v[i]; }
};
using PackX = Pack<floatX>;  // 8 bf16 or 4 fp32

template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* p) {
    return *reinterpret_cast<const Pack<T>*>(p);
}
template <class T>
__device__ __forceinline__ void store_pack(T* p, const Pack<T>& pack) {
    *reinterpret_cast<Pack<T>*>(p) = pack;
}

// ---------------------------------------------------------------------------------------------------------------------
// Checked calls

// What a call on a capturing stream throws when it cannot be part of a graph: whoever captures goes on without one.
struct CaptureFailed : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline void cuda_check(cudaError_t status, const char* call, const char* file, int line) {
    if (status == cudaSuccess) return;
    if (status >= cudaErrorStreamCaptureUnsupported && status <= cudaErrorStreamCaptureWrongThread)
        throw CaptureFailed(format("%s:%d: %s: %s", file, line, call, cudaGetErrorString(status)));
    programming_error(call, cudaGetErrorString(status), file, line);
}
#define CUDA_CHECK(call) cuda_check((call), #call, __FILE__, __LINE__)

// launch(kernel, grid, block, shared_bytes, stream, args...): the only way a kernel is started. A MOVES in front of it
// declares what it moves (kernels/traffic.h).
// Arguments are converted to the kernel's parameter types, as in a direct call.
// launch_together, for a grid whose blocks wait for each other: it runs when all of them fit on the card at once.
// launch_early, for short kernels: the grid may begin while what was launched before it still runs, which hides the cost
// of a launch. Every thread of such a kernel calls wait_for_previous() first of all, without a condition and before it
// touches device memory or returns. That all of them do is what makes chains safe: a grid that has ended has waited for
// the one before it, so whoever waits for its end waits for all earlier ones too. A kernel may call
// launch_next_early() to let an early launch behind it begin; without, that happens when its blocks end.
template <class... Params, class... Args>
void launch_as(cudaLaunchAttributeID how, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
               cudaStream_t stream, Args&&... args) {
    if (shared_bytes > 48 * 1024) {  // more than the default must be asked for, once per kernel; asking again is cheap
        CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    cudaLaunchAttribute attribute = {};
    attribute.id = how;
    if (how == cudaLaunchAttributeCooperative) attribute.val.cooperative = 1;
    if (how == cudaLaunchAttributeProgrammaticStreamSerialization)
        attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = how == cudaLaunchAttributeIgnore ? 0 : 1;
    const traffic::Launch counted(stream);
    CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            Args&&... args) {
    launch_as(cudaLaunchAttributeIgnore, kernel, grid, block, shared_bytes, stream, std::forward<Args>(args)...);
}
template <class... Params, class... Args>
void launch_together(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                     Args&&... args) {
    launch_as(cudaLaunchAttributeCooperative, kernel, grid, block, shared_bytes, stream, std::forward<Args>(args)...);
}
template <class... Params, class... Args>
void launch_early(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                  Args&&... args) {
    static const bool early = can_launch_early(reinterpret_cast<const void*>(kernel));
    launch_as(early ? cudaLaunchAttributeProgrammaticStreamSerialization : cudaLaunchAttributeIgnore, kernel, grid,
              block, shared_bytes, stream, std::forward<Args>(args)...);
}

// Zeros, counted like a launch.
inline void set_zero(void* data, size_t bytes, cudaStream_t stream) {
    MOVES("set_zero", {writes(static_cast<char*>(data), static_cast<int64_t>(bytes))});
    const traffic::Launch counted(stream);
    CUDA_CHECK(cudaMemsetAsync(data, 0, bytes, stream));
}

// Multiprocessors of the current device (OpenMP threads on the CPU machine): sizes persistent grids.
inline int multiprocessors() {
    static const int count = [] {
        int device = 0, n = 0;
        CUDA_CHECK(cudaGetDevice(&device));
        CUDA_CHECK(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device));
        return n;
    }();
    return count;
}
