// Attention: checks shapes, computes delta, and calls the implementation of this build's precision:
// attention_fp32_*.cu (exact fp32), attention_mma_*.cu (bf16 on any tensor cores) or attention_sm90_*.cu (bf16 on
// Hopper). The mathematics is in attention_impl.cuh.
#include "kernels/attention.cuh"

#include "kernels/attention_impl.cuh"

namespace {

constexpr bool BF16 = sizeof(floatX) == 2;  // fp32 builds have no tensor core kernels
AttentionKernels chosen = AttentionKernels::best;

// Whether Hopper's kernels are to be used.
bool hopper(int HS) {
    if (!BF16 || (HS != 64 && HS != 128)) return false;
    if (chosen != AttentionKernels::best) return chosen == AttentionKernels::hopper;
    static const bool card = [] {
        int device = 0, major = 0;
        CUDA_CHECK(cudaGetDevice(&device));
        CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
        if constexpr (BF16) return major == 9 && attention_sm90_compiled();
        return false;
    }();
    return card;
}

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

void attention_choose(AttentionKernels kernels) {
    chosen = kernels;
}
bool attention_uses_hopper(int HS) {
    return hopper(HS);
}

void attention_forward(floatX* out, float* lse, const floatX* qkv, int B, int T, int NH, int NKV, int HS,
                       cudaStream_t stream) {
    const AttentionShape s = checked_shape(B, T, NH, NKV, HS);
    if constexpr (BF16)
        if (hopper(s.HS)) return attention_forward_sm90(out, lse, qkv, s, stream);
    attention_forward_tiles(out, lse, qkv, s, stream);
}

static size_t delta_bytes(const AttentionShape& s) {
    return static_cast<size_t>(round_up(s.row(s.B, 0) * static_cast<int64_t>(sizeof(float)), 256));
}

size_t attention_scratch_bytes(int B, int T, int NH, int NKV, int HS) {
    const AttentionShape s = checked_shape(B, T, NH, NKV, HS);
    size_t bytes = delta_bytes(s);
    if constexpr (BF16)
        if (hopper(s.HS)) bytes += attention_sm90_scratch_bytes(s);
    return bytes;
}

void attention_backward(floatX* dqkv, void* scratch, const floatX* dout, const floatX* qkv, const floatX* out,
                        const float* lse, int B, int T, int NH, int NKV, int HS, cudaStream_t stream) {
    const AttentionShape s = checked_shape(B, T, NH, NKV, HS);
    float* delta = static_cast<float*>(scratch);
    const int64_t rows = s.row(B, 0);
    MOVES("attention_delta", {reads(dout, s.out_count()), reads(out, s.out_count()), writes(delta, rows)});
    launch(attention_delta_kernel, dim3(static_cast<unsigned>(ceil_div(rows, int64_t{DELTA_ROWS}))),
           dim3(DELTA_THREADS), sizeof(DeltaShared), stream, delta, dout, out, s);
    if constexpr (BF16)
        if (hopper(s.HS))
            return attention_backward_sm90(dqkv, static_cast<char*>(scratch) + delta_bytes(s), dout, qkv, lse, delta, s,
                                           stream);
    attention_backward_tiles(dqkv, dout, qkv, lse, delta, s, stream);
}
