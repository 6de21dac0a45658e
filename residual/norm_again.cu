// N_in a second time, from its saved input and statistics: no row is reduced, so only loads and stores cost anything.
#include "residual/row.cuh"

namespace {

template <NormKind KIND, int PACKS>
__global__ void __launch_bounds__(MAX_ROW_THREADS, 1)
    norm_again_kernel(const floatX* x, floatX* y, Fp8Input y8, SeamNorm norm, SeamShape shape) {
    RowLane<PACKS> lane(shape, shared_as<RowShared>());
    const Row<PACKS> gain = lane.load_channels(norm.gain);
    const Row<PACKS> bias = lane.load_channels(norm.bias, norm.bias != nullptr);
    InputRows input{y, y8};
    const float scale = norm.factor != nullptr ? norm.scale * *norm.factor : norm.scale;
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y; first < lane.N;
         first += gridDim.x * blockDim.y) {
        lane.row = first + threadIdx.y;
        float rstd;
        Row<PACKS> z = norm_apply<KIND>(norm_input<KIND>(lane, lane.load(x), norm, rstd), gain, bias, scale);
        input.store(lane, z);
    }
    input.finish(lane.shared);
}

}  // namespace

void norm_rows_again(const floatX* x, floatX* y, const SeamNorm& norm, const SeamShape& shape, cudaStream_t stream,
                     const Fp8Input& y8) {
    if (shape.N == 0) return;
    const RowGrid grid = row_grid(shape.C, true);
    const bool layer = shape.kind == NormKind::layer;
    auto kernel = layer ? norm_again_kernel<NormKind::layer, 1> : norm_again_kernel<NormKind::rms, 1>;
    if (grid.wide)
        kernel = layer ? norm_again_kernel<NormKind::layer, WIDE_PACKS> : norm_again_kernel<NormKind::rms, WIDE_PACKS>;
    const int64_t size = shape.N * shape.C;
    MOVES("norm_again", {reads(x, size), reads(layer ? norm.mean : nullptr, shape.N), reads(norm.rstd, shape.N),
                         reads(norm.gain, shape.C), reads(norm.bias, shape.C)});
    input_moves(y, y8, size);
    launch(kernel, row_blocks(grid, shape.N), grid.block, sizeof(RowShared), stream, x, y, y8, norm, shape);
}
