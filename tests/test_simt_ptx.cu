// Misused PTX wrappers: the CPU machine must stop and name instruction, kernel, block and thread.
#include <string>

#include "test.h"

#if __has_include(<simt.h>)  // the CPU machine's include path
#include <ptx.cuh>

#include "simt_report.h"

namespace {

struct Shared {
    alignas(16) unsigned char bytes[1024];
};

__global__ void misaligned_ldmatrix_kernel(uint32_t* out) {
    Shared& shared = shared_as<Shared>();
    const int t = static_cast<int>(threadIdx.x);
    for (int i = 0; i < 32; i++) shared.bytes[32 * t + i] = 0;
    __syncwarp();
    uint32_t r[1];
    ldmatrix_x1(r, shared_address(shared.bytes + 16 * (t % 8) + (t == 5 ? 8 : 0)));
    out[t] = r[0];
}
__global__ void ldmatrix_beyond_kernel(uint32_t* out) {
    if (threadIdx.x == 0)
        for (int i = 0; i < 16; i++) shared_as<Shared>().bytes[i] = 0;
    __syncwarp();
    uint32_t r[4];
    const uint32_t row[1] = {threadIdx.x == 31 ? 1024u : 0u};
    ldmatrix_x4(r, row);
    out[threadIdx.x] = r[0];
}
__global__ void partial_warp_kernel(float* out) {
    if (threadIdx.x == 7) return;
    __syncwarp(~(1u << 7));
    float d[1][1][4] = {};
    const uint32_t a[4] = {}, b[2] = {};
    mma_m16n8k16<1, 1>(d, a, b);
    out[threadIdx.x] = d[0][0][0];
}
__global__ void misaligned_copy_kernel(const float* from) {
    Shared& shared = shared_as<Shared>();
    cp_async_16(shared_address(shared.bytes + 16 * threadIdx.x), from + threadIdx.x);
}
__global__ void misaligned_word_kernel(const float* from) {
    Shared& shared = shared_as<Shared>();
    cp_async_4(shared_address(shared.bytes + 4 * threadIdx.x + (threadIdx.x == 3 ? 2 : 0)), from + threadIdx.x);
}
__global__ void copy_beyond_kernel(const float* from) {
    Shared& shared = shared_as<Shared>();
    cp_async_16(shared_address(shared.bytes) + 1024, from);
}
__global__ void foreign_address_kernel(float* out) {
    out[0] = static_cast<float>(shared_address(out));
}

template <class... P, class... A>
std::string report_of_warp(void (*kernel)(P...), A... args) {
    return report_of(kernel, 1, 32, sizeof(Shared), args...);
}

}  // namespace

TEST_CASE("misused PTX instructions are reported", "[ptx]") {
    Device<float> floats(256);
    floats.zero();
    Device<uint32_t> words(32);
    require(report_of_warp(misaligned_ldmatrix_kernel, words.data),
            {"ldmatrix_x1: the shared address is 8 bytes off a multiple of 16", "misaligned_ldmatrix_kernel",
             "block (0,0,0)", "thread (5,0,0)"});
    require(report_of_warp(ldmatrix_beyond_kernel, words.data),
            {"ldmatrix_x4: 16 bytes at 1024 of 1024", "ldmatrix_beyond_kernel", "thread (31,0,0)"});
    require(report_of_warp(partial_warp_kernel, floats.data), {"mma_m16n8k16 needs all 32 lanes", "partial_warp_kernel"});
    require(report_of_warp(misaligned_copy_kernel, floats.data),
            {"cp_async_16: the global address", "is not a multiple of 16", "misaligned_copy_kernel"});
    require(report_of_warp(misaligned_word_kernel, floats.data),
            {"cp_async_4: the shared address is 2 bytes off a multiple of 4", "thread (3,0,0)"});
    require(report_of_warp(copy_beyond_kernel, floats.data), {"cp_async_16: 16 bytes at 1024 of 1024"});
    require(report_of_warp(foreign_address_kernel, floats.data),
            {"does not lie in shared memory", "foreign_address_kernel"});
}

#endif
