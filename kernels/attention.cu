// Attention: checks shapes, computes delta, and calls the implementation of this build's precision:
// attention_fp32.cu (exact fp32) or attention_mma_*.cu (bf16 on tensor cores). The mathematics is in
// attention_impl.cuh.
#include "kernels/attention.cuh"

#include "kernels/attention_impl.cuh"

namespace {

AttentionShape checked_shape(int B, int T, int NH, int NKV, int HS) {
    CHECK(B > 0 && T > 0 && NH > 0 && NKV > 0 && NH % NKV == 0);
    CHECK(HS > 0 && HS <= 256 && HS % PackX::size == 0);
    return {B, T, NH, NKV, HS, 1.0f / sqrtf(static_cast<float>(HS))};
}

// Rows (b,t,h) of dout and out follow each other without gaps, so a block reads DELTA_ROWS of them as one run of packs;
// each pack's share of the dot product waits in shared memory for the thread that adds up its row.
constexpr int DELTA_ROWS = 64, DELTA_THREADS = 128;

struct DeltaShared {
    float part[DELTA_ROWS * 256 / PackX::size];  // (rows, packs of a row)
};

// delta (B,NH,T) = sum over channels of dout * out;  dout, out (B,T,NH*HS)
__global__ void __launch_bounds__(DELTA_THREADS)
    attention_delta_kernel(float* delta, const floatX* dout, const floatX* out, AttentionShape s) {
    DeltaShared& shared = shared_as<DeltaShared>();
    const int64_t first = static_cast<int64_t>(blockIdx.x) * DELTA_ROWS;
    const int64_t left = static_cast<int64_t>(s.B) * s.T * s.NH - first;
    const int rows = left < DELTA_ROWS ? static_cast<int>(left) : DELTA_ROWS;
    const int packs = s.HS / PackX::size;
    const int t = static_cast<int>(threadIdx.x);
    for (int i = t; i < rows * packs; i += DELTA_THREADS) {
        const int64_t at = first * s.HS + static_cast<int64_t>(i) * PackX::size;
        const PackX a = load_pack(dout + at), b = load_pack(out + at);
        float sum = 0.0f;
#pragma unroll
        for (int e = 0; e < PackX::size; e++) sum += to_float(a[e]) * to_float(b[e]);
        shared.part[i] = sum;
    }
    __syncthreads();
    if (t < rows) {
        float sum = 0.0f;
        for (int i = 0; i < packs; i++) sum += shared.part[t * packs + i];
        const int64_t row = first + t, n = row / s.NH;
        const int h = static_cast<int>(row % s.NH);
        delta[s.row(static_cast<int>(n / s.T), h) + n % s.T] = sum;
    }
}

}  // namespace

void attention_forward(floatX* out, float* lse, const floatX* qkv, int B, int T, int NH, int NKV, int HS,
                       cudaStream_t stream) {
    attention_forward_tiles(out, lse, qkv, checked_shape(B, T, NH, NKV, HS), stream);
}

size_t attention_scratch_bytes(int B, int T, int NH, int NKV, int HS) {
    const AttentionShape s = checked_shape(B, T, NH, NKV, HS);
    return static_cast<size_t>(round_up(s.row(B, 0) * static_cast<int64_t>(sizeof(float)), 256));  // delta
}

void attention_backward(floatX* dqkv, void* scratch, const floatX* dout, const floatX* qkv, const floatX* out,
                        const float* lse, int B, int T, int NH, int NKV, int HS, cudaStream_t stream) {
    const AttentionShape s = checked_shape(B, T, NH, NKV, HS);
    float* delta = static_cast<float*>(scratch);
    const int64_t rows = s.row(B, 0);
    launch(attention_delta_kernel, dim3(static_cast<unsigned>(ceil_div(rows, int64_t{DELTA_ROWS}))),
           dim3(DELTA_THREADS), sizeof(DeltaShared), stream, delta, dout, out, s);
    attention_backward_tiles(dqkv, dout, qkv, lse, delta, s, stream);
}
