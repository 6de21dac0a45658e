// A thread owns the same N pairs of channels in up to HEADS heads of one row: it loads their cosines and sines once and
// has 2*HEADS loads of qkv in flight.
#include "kernels/rope.cuh"

#include <cmath>
#include <vector>

namespace {

constexpr int THREADS = 256;
constexpr int HEADS = 4;

// N elements that lie side by side, loaded and stored by the widest accesses that their alignment allows.
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Elements {
    T v[N];
};

// qkv (rows,stride): `heads` heads of HS channels at the start of every row. parts = HS/2 / N, the threads of a head;
// groups = ceil(heads / HEADS): a thread's heads lie `groups` apart, so that a warp's accesses stay together.
template <int N, bool BACKWARD>
__global__ void __launch_bounds__(THREADS) rope_kernel(floatX* qkv, const float* table, int rows, int T, int heads,
                                                       int HS, int stride, int parts, int groups) {
    wait_for_previous();
    using Part = Elements<floatX, N>;
    const unsigned index = blockIdx.x * THREADS + threadIdx.x;
    const unsigned part = index % parts, group = index / parts % groups, row = index / parts / groups;
    if (row >= static_cast<unsigned>(rows)) return;
    const int half = HS / 2, at = static_cast<int>(part) * N;

    const float* angles = table + static_cast<int64_t>(row % T) * HS + at;
    const auto cosine = *reinterpret_cast<const Elements<float, N>*>(angles);
    const auto sine = *reinterpret_cast<const Elements<float, N>*>(angles + half);

    floatX* first = qkv + static_cast<int64_t>(row) * stride + at;
    Part a[HEADS] = {}, b[HEADS] = {};
#pragma unroll
    for (int k = 0; k < HEADS; k++) {
        const int head = static_cast<int>(group) + k * groups;
        if (head >= heads) break;
        a[k] = *reinterpret_cast<const Part*>(first + head * HS);
        b[k] = *reinterpret_cast<const Part*>(first + head * HS + half);
    }
#pragma unroll
    for (int k = 0; k < HEADS; k++) {
        const int head = static_cast<int>(group) + k * groups;
        if (head >= heads) break;
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float x = to_float(a[k].v[i]), y = to_float(b[k].v[i]);
            const float c = cosine.v[i], s = BACKWARD ? -sine.v[i] : sine.v[i];
            a[k].v[i] = from_float<floatX>(x * c - y * s);
            b[k].v[i] = from_float<floatX>(y * c + x * s);
        }
        *reinterpret_cast<Part*>(first + head * HS) = a[k];
        *reinterpret_cast<Part*>(first + head * HS + half) = b[k];
    }
}

template <bool BACKWARD>
void rotate(floatX* qkv, const float* table, int B, int T, int NH, int NKV, int HS, cudaStream_t stream) {
    CHECK(B > 0 && T > 0 && NH > 0 && NKV > 0 && HS > 0 && HS % PackX::size == 0);
    // Half a head is 16-byte packs in every usual model; in one of 24 channels of bf16, say, it is 8-byte ones.
    const bool whole = HS / 2 % PackX::size == 0;
    const int heads = NH + NKV, parts = HS / 2 / (whole ? PackX::size : PackX::size / 2);
    const int groups = ceil_div(heads, HEADS);
    const int64_t rows = static_cast<int64_t>(B) * T, threads = rows * groups * parts;
    CHECK(threads < INT32_MAX);
    const dim3 grid(static_cast<unsigned>(ceil_div(threads, static_cast<int64_t>(THREADS))));
    auto kernel = whole ? rope_kernel<PackX::size, BACKWARD> : rope_kernel<PackX::size / 2, BACKWARD>;
    MOVES(BACKWARD ? "rope_backward" : "rope_forward",
          {updates(qkv, rows * heads * HS), reads(table, static_cast<int64_t>(T) * HS)});
    launch_early(kernel, grid, dim3(THREADS), 0, stream, qkv, table, static_cast<int>(rows), T, heads, HS,
           (NH + 2 * NKV) * HS, parts, groups);
}

}  // namespace

void rope_table(float* table, int T, int HS, double theta, cudaStream_t stream) {
    CHECK(T > 0 && HS > 0 && HS % 2 == 0 && theta > 0);
    const int half = HS / 2;
    std::vector<float> host(rope_table_count(T, HS));
    for (int i = 0; i < half; i++) {
        const double frequency = std::pow(theta, -2.0 * i / HS);
        for (int m = 0; m < T; m++) {
            const size_t row = static_cast<size_t>(m) * static_cast<size_t>(HS) + static_cast<size_t>(i);
            host[row] = static_cast<float>(std::cos(m * frequency));
            host[row + static_cast<size_t>(half)] = static_cast<float>(std::sin(m * frequency));
        }
    }
    CUDA_CHECK(cudaMemcpyAsync(table, host.data(), host.size() * sizeof(float), cudaMemcpyHostToDevice, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));  // the host's copy ends here
}

void rope_forward(floatX* qkv, const float* table, int B, int T, int NH, int NKV, int HS, cudaStream_t stream) {
    rotate<false>(qkv, table, B, T, NH, NKV, HS, stream);
}

void rope_backward(floatX* dqkv, const float* table, int B, int T, int NH, int NKV, int HS, cudaStream_t stream) {
    rotate<true>(dqkv, table, B, T, NH, NKV, HS, stream);
}
