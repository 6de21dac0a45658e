// dbias[c] (+)= scale * SUM_n dout[n,c], in two stages: blocks of 32 packs by ROWS rows walk over the rows; then their
// partial sums, scaled, are added (kernels/partials.cuh).
#include "kernels/bias.cuh"

#include "kernels/partials.cuh"

namespace {

constexpr int ROWS = 8;
constexpr int ADD_THREADS = 256;
constexpr int SLAB = WARP * PackX::size;  // columns of a block

struct Shared {
    float sum[ROWS][SLAB];
};

// partial (gridDim.y, OC)
__global__ void __launch_bounds__(WARP* ROWS)
    column_sums_kernel(float* partial, const floatX* dout, const float* scale, int64_t N, int OC) {
    wait_for_previous();
    launch_next_early();
    Shared& shared = shared_as<Shared>();
    int c = (blockIdx.x * WARP + threadIdx.x) * PackX::size;
    float sum[PackX::size] = {};
    if (c < OC) {
#pragma unroll 4
        for (int64_t n = blockIdx.y * ROWS + threadIdx.y; n < N; n += gridDim.y * ROWS) {
            PackX pack = load_pack(dout + n * OC + c);
#pragma unroll
            for (int j = 0; j < PackX::size; j++) sum[j] += to_float(pack[j]);
        }
    }
#pragma unroll
    for (int j = 0; j < PackX::size; j++) shared.sum[threadIdx.y][threadIdx.x * PackX::size + j] = sum[j];
    __syncthreads();
    // Now one column per thread.
    const float factor = scale ? *scale : 1.0f;
    for (int i = threadIdx.y * WARP + threadIdx.x; i < SLAB; i += ROWS * WARP) {
        float total = 0.0f;
        for (int y = 0; y < ROWS; y++) total += shared.sum[y][i];
        int column = blockIdx.x * SLAB + i;
        if (column < OC) partial[static_cast<int64_t>(blockIdx.y) * OC + column] = factor * total;
    }
}

__global__ void __launch_bounds__(ADD_THREADS)
    bias_add_kernel(float* dbias, const float* sums, const float* scale, bool accumulate, int OC) {
    wait_for_previous();
    launch_next_early();
    const int c = blockIdx.x * ADD_THREADS + threadIdx.x;
    if (c >= OC) return;
    const float sum = (scale ? *scale : 1.0f) * sums[c];
    dbias[c] = accumulate ? dbias[c] + sum : sum;
}

// Row blocks: about 1024 threads on each multiprocessor, all columns together.
int max_row_blocks(int OC) { return ceil_div(multiprocessors() * 4, ceil_div(OC, SLAB)); }

}  // namespace

size_t bias_scratch_bytes(int OC) { return sizeof(float) * static_cast<size_t>(max_row_blocks(OC)) * OC; }

void bias_backward(float* dbias, const floatX* dout, float* scratch, int64_t N, int OC, bool accumulate,
                   cudaStream_t stream, const float* scale) {
    CHECK(N > 0 && OC > 0 && OC % PackX::size == 0);
    int64_t needed = ceil_div(N, static_cast<int64_t>(ROWS));
    int row_blocks = max_row_blocks(OC);
    if (needed < row_blocks) row_blocks = static_cast<int>(needed);
    dim3 grid(ceil_div(OC, SLAB), row_blocks);
    MOVES("bias_backward", {reads(dout, N * OC), writes(scratch, static_cast<int64_t>(row_blocks) * OC)});
    launch_early(column_sums_kernel, grid, dim3(WARP, ROWS), sizeof(Shared), stream, scratch, dout, scale, N,
           OC);
    PartialTargets target;
    target.total[0] = dbias;
    add_partials(target, scratch, row_blocks, 1, OC, stream, accumulate);
}

void bias_add(float* dbias, const float* sums, int OC, bool accumulate, cudaStream_t stream, const float* scale) {
    MOVES("bias_add", {reads(sums, OC), accumulate ? updates(dbias, OC) : writes(dbias, OC), reads(scale, 1)});
    launch_early(bias_add_kernel, ceil_div(OC, ADD_THREADS), ADD_THREADS, 0, stream, dbias, sums, scale, accumulate, OC);
}
