#include "kernels/upload.cuh"

#include <algorithm>
#include <cstring>

namespace {

constexpr size_t WORDS = 960;  // a kernel has 4 KiB of arguments
struct Words {
    uint32_t v[WORDS];
};

__global__ void __launch_bounds__(WARP) upload_kernel(uint32_t* to, int count, Words words) {
    wait_for_previous();
    for (int i = static_cast<int>(threadIdx.x); i < count; i += WARP) to[i] = words.v[i];
}

}  // namespace

void upload_values(void* device, const void* host, size_t bytes, cudaStream_t stream) {
    CHECK(bytes % sizeof(uint32_t) == 0);
    const size_t count = bytes / sizeof(uint32_t);
    uint32_t* to = static_cast<uint32_t*>(device);
    for (size_t first = 0; first < count; first += WORDS) {
        const size_t n = std::min(WORDS, count - first);
        Words words;
        memcpy(words.v, static_cast<const uint32_t*>(host) + first, n * sizeof(uint32_t));
        memset(words.v + n, 0, (WORDS - n) * sizeof(uint32_t));
        MOVES("upload", {writes(to + first, static_cast<int64_t>(n))});
        launch_early(upload_kernel, 1, WARP, 0, stream, to + first, static_cast<int>(n), words);
    }
}
