#include "kernels/partials.cuh"

namespace {

constexpr int MAX_SLICES = 32;

struct Shared {
    float sum[MAX_SLICES][WARP];
};

// One column per threadIdx.x; threadIdx.y takes every blockDim.y-th row, and row 0 of the block adds the slices up.
__global__ void __launch_bounds__(WARP* MAX_SLICES)
    add_partials_kernel(const __grid_constant__ PartialTargets target, const float* partial, int rows, int M, int C, bool accumulate) {
    wait_for_previous();
    launch_next_early();
    float* total = target.total[blockIdx.y];
    if (total == nullptr) return;
    int c = blockIdx.x * WARP + threadIdx.x;
    const float* column = partial + static_cast<int64_t>(blockIdx.y) * C + c;
    int64_t stride = static_cast<int64_t>(M) * C;
    float sum = 0.0f;
    if (c < C) {
#pragma unroll 4
        for (int r = static_cast<int>(threadIdx.y); r < rows; r += blockDim.y) sum += column[r * stride];
    }
    if (blockDim.y > 1) {
        Shared& shared = shared_as<Shared>();
        shared.sum[threadIdx.y][threadIdx.x] = sum;
        __syncthreads();
        if (threadIdx.y > 0) return;
        for (unsigned y = 1; y < blockDim.y; y++) sum += shared.sum[y][threadIdx.x];
    }
    if (c < C) total[c] = accumulate ? total[c] + sum : sum;
}

}  // namespace

void add_partials(const PartialTargets& target, const float* partial, int rows, int M, int C, cudaStream_t stream,
                  bool accumulate) {
    CHECK(M <= MAX_PARTIAL_SUMS);
    if (M == 0 || C == 0 || rows == 0) return;
    // Slices shorten the chain of dependent loads; a few rows need none, and then no barrier either.
    int slices = rows >= 256 ? MAX_SLICES : rows >= 64 ? 8 : 1;
    dim3 grid(ceil_div(C, WARP), M), block(WARP, slices);
    int64_t wanted = 0;
    for (int m = 0; m < M; m++) wanted += target.total[m] != nullptr;
    const int64_t bytes = wanted * C * static_cast<int64_t>(sizeof(float));  // of the totals
    MOVES("add_partials", {reads(partial, rows * wanted * C), reads_bytes(accumulate ? bytes : 0), writes_bytes(bytes)});
    launch_early(add_partials_kernel, grid, block, slices > 1 ? sizeof(Shared) : 0, stream, target, partial, rows, M, C,
                 accumulate);
}
