// The CUDA runtime's contract as residual.cu relies on it: launch limits, error codes, memory, events.
#include <cstring>

#include "test.h"

namespace {

__global__ void touch(unsigned char* out, int bytes) {
    for (int i = static_cast<int>(threadIdx.x); i < bytes; i += static_cast<int>(blockDim.x)) out[i] = 1;
}
__global__ void touch_more(unsigned char* out) {
    out[0] = 2;
}

struct Whole {
    unsigned char bytes[100 * 1024];
};
// Writes every byte of shared memory and says where it begins.
__global__ void fill_shared(unsigned* out) {
    auto& shared = shared_as<Whole>();
    for (unsigned i = threadIdx.x; i < sizeof(Whole); i += blockDim.x)
        shared.bytes[i] = static_cast<unsigned char>(i * 7);
    __syncthreads();
    unsigned sum = 0;
    for (unsigned i = (threadIdx.x + 1) % blockDim.x; i < sizeof(Whole); i += blockDim.x) sum += shared.bytes[i];
    out[threadIdx.x] = sum;
    if (threadIdx.x == 0) out[blockDim.x] = static_cast<unsigned>(reinterpret_cast<uintptr_t>(&shared) % 1024);
}

template <class... P, class... A>
cudaError_t try_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... args) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    cudaError_t error = cudaLaunchKernelEx(&config, kernel, args...);
    cudaGetLastError();
    return error;
}

}  // namespace

TEST_CASE("launches beyond the limits are refused with the toolkit's codes", "[simt][runtime]") {
    Device<unsigned char> out(1);
    auto launch_more = [&](dim3 grid, dim3 block, size_t shared) {
        return try_launch(touch_more, grid, block, shared, out.data);
    };
    CHECK(launch_more(1, 1024, 0) == cudaSuccess);
    CHECK(launch_more(1, 1025, 0) != cudaSuccess);
    CHECK(launch_more(1, dim3(32, 33), 0) != cudaSuccess);
    CHECK(launch_more(1, dim3(1, 1, 65), 0) != cudaSuccess);
    CHECK(launch_more(0, 32, 0) == cudaErrorInvalidConfiguration);
    CHECK(launch_more(dim3(1, 65536), 32, 0) != cudaSuccess);
    CHECK(launch_more(1, 32, 48 * 1024) == cudaSuccess);
    CHECK(launch_more(1, 32, 48 * 1024 + 1) == cudaErrorInvalidValue);
    CHECK(cudaFuncSetAttribute(touch_more, cudaFuncAttributeMaxDynamicSharedMemorySize, 100 * 1024) == cudaSuccess);
    CHECK(launch_more(1, 32, 100 * 1024) == cudaSuccess);
    CHECK(launch_more(1, 32, 101 * 1024) == cudaErrorInvalidValue);
    CHECK(cudaFuncSetAttribute(touch_more, cudaFuncAttributeMaxDynamicSharedMemorySize, 1 << 20) != cudaSuccess);
    cudaGetLastError();
}

TEST_CASE("a cooperative grid must fit on the machine at once", "[simt][runtime]") {
    int cores = 0;
    CUDA_CHECK(cudaDeviceGetAttribute(&cores, cudaDevAttrMultiProcessorCount, 0));
    Device<unsigned char> out(1);
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    cudaLaunchConfig_t config = {};
    config.blockDim = 32;
    config.attrs = &attribute;
    config.numAttrs = 1;
    config.gridDim = static_cast<unsigned>(cores);
    CHECK(cudaLaunchKernelEx(&config, touch_more, out.data) == cudaSuccess);
    config.gridDim = static_cast<unsigned>(cores) + 1;
    CHECK(cudaLaunchKernelEx(&config, touch_more, out.data) == cudaErrorCooperativeLaunchTooLarge);
    CHECK(cudaGetLastError() == cudaErrorCooperativeLaunchTooLarge);
}

TEST_CASE("the last error stays until it is asked for", "[simt][runtime]") {
    cudaGetLastError();
    CHECK(cudaFree(reinterpret_cast<void*>(0x1234567)) == cudaErrorInvalidValue);
    CHECK(cudaPeekAtLastError() == cudaErrorInvalidValue);
    CHECK(cudaGetLastError() == cudaErrorInvalidValue);
    CHECK(cudaGetLastError() == cudaSuccess);
    CHECK(std::string(cudaGetErrorName(cudaErrorMemoryAllocation)) == "cudaErrorMemoryAllocation");
    CHECK(std::string(cudaGetErrorString(cudaErrorMemoryAllocation)) == "out of memory");
}

TEST_CASE("more memory than there is is refused, and the program goes on", "[simt][runtime]") {
    void* p = &p;
    CHECK(cudaMalloc(&p, size_t{1} << 46) == cudaErrorMemoryAllocation);
    cudaGetLastError();
    // What is reported free is what an allocation is held against: far more than it fails, a little of it does not.
    size_t free_bytes = 0, total = 0;
    CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total));
    CHECK((free_bytes > 0 && free_bytes <= total));
    CHECK(cudaMalloc(&p, total * 2) == cudaErrorMemoryAllocation);
    cudaGetLastError();
    CUDA_CHECK(cudaMalloc(&p, 1 << 20));
    CUDA_CHECK(cudaMemset(p, 1, 1 << 20));
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaFree(p));
}

TEST_CASE("device memory is 256-byte aligned", "[simt][runtime]") {
    for (size_t bytes : {size_t{1}, size_t{100}, size_t{5000}, size_t{3} << 20, (size_t{5} << 20) + 3}) {
        void *p, *q;
        CUDA_CHECK(cudaMalloc(&p, bytes));
        CUDA_CHECK(cudaMalloc(&q, bytes));
        CHECK(reinterpret_cast<uintptr_t>(p) % 256 == 0);
        CHECK(reinterpret_cast<uintptr_t>(q) % 256 == 0);
        CUDA_CHECK(cudaMemset(p, 5, bytes));
        CUDA_CHECK(cudaFree(p));
        CUDA_CHECK(cudaFree(q));
    }
    CHECK(cudaFree(nullptr) == cudaSuccess);
}

TEST_CASE("copies and fills", "[simt][runtime]") {
    std::vector<int> a(100), b(100, -1);
    for (int i = 0; i < 100; i++) a[i] = i;
    Device<int> x(a), y(100);
    CUDA_CHECK(cudaMemset(y.data, 0, 400));
    // Rows of 5 ints, 10 apart, become rows of 5 that touch.
    CUDA_CHECK(cudaMemcpy2D(y.data, 20, x.data, 40, 20, 10, cudaMemcpyDeviceToDevice));
    b = y.read();
    for (int i = 0; i < 50; i++) REQUIRE(b[i] == i / 5 * 10 + i % 5);
    for (int i = 50; i < 100; i++) REQUIRE(b[i] == 0);
    cudaPointerAttributes attributes;
    CUDA_CHECK(cudaPointerGetAttributes(&attributes, x.data + 3));
    CHECK(attributes.type == cudaMemoryTypeDevice);
    int* pinned;
    CUDA_CHECK(cudaMallocHost(&pinned, 400));
    CUDA_CHECK(cudaMemcpy(pinned, x.data, 400, cudaMemcpyDefault));
    CHECK(pinned[99] == 99);
    CUDA_CHECK(cudaFreeHost(pinned));
}

TEST_CASE("shared memory has the size that was asked for and is 1024-byte aligned", "[simt][runtime]") {
    Device<unsigned> out(129);
    launch(fill_shared, 1, 128, sizeof(Whole), nullptr, out.data);
    std::vector<unsigned> got = out.read();
    CHECK(got[128] == 0);
    for (unsigned t = 0; t < 128; t++) {
        unsigned sum = 0;
        for (unsigned i = (t + 1) % 128; i < sizeof(Whole); i += 128) sum += static_cast<unsigned char>(i * 7);
        REQUIRE(got[t] == sum);
    }
}

TEST_CASE("events measure time", "[simt][runtime]") {
    cudaEvent_t begin, end;
    cudaStream_t stream;
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreate(&begin));
    CUDA_CHECK(cudaEventCreate(&end));
    Device<unsigned char> out(1 << 20);
    CUDA_CHECK(cudaEventRecord(begin, stream));
    launch(touch, 1, 256, 0, stream, out.data, 1 << 20);
    CUDA_CHECK(cudaEventRecord(end, stream));
    CUDA_CHECK(cudaEventSynchronize(end));
    float ms = -1;
    CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    CHECK(ms > 0.0f);
    CHECK(ms < 10000.0f);
    CUDA_CHECK(cudaEventDestroy(begin));
    CUDA_CHECK(cudaEventDestroy(end));
    CUDA_CHECK(cudaStreamDestroy(stream));
}

TEST_CASE("the device describes itself", "[simt][runtime]") {
    cudaDeviceProp p;
    CUDA_CHECK(cudaGetDeviceProperties(&p, 0));
    CHECK(std::strlen(p.name) > 0);
    CHECK(p.warpSize == 32);
    CHECK(p.multiProcessorCount >= 1);
    CHECK(p.multiProcessorCount == multiprocessors());
    CHECK(p.sharedMemPerBlockOptin >= 96 * 1024);
    CHECK(p.totalGlobalMem > (size_t{1} << 28));
    int count = 0;
    CUDA_CHECK(cudaGetDeviceCount(&count));
    CHECK(count >= 1);
}
