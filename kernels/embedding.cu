// Embedding, forward and backward.
//
//     x[b,t] = wte[token[b,t]] + wpe[t]
//     dwte[v] += SUM over (b,t) with token v of dx[b,t]        dwpe[t] += SUM_b dx[b,t]
//
// One warp per row, each lane a 16-byte pack, then the pack 32 further on. The sum for a token runs over its list of
// positions, made by the host: rare tokens take one warp each; a token with many positions (a byte model's space) gets
// blocks of its own, in which the warps share out the positions and add up in a fixed order.
#include "kernels/embedding.cuh"

#include <vector>

namespace {

constexpr int ROWS = 8;          // warps, each with a row, in a block
constexpr int FREQUENT = 64;     // a token with more positions than this is shared by several warps
constexpr int SLICES = 16;       // that many

__device__ __forceinline__ void add_to(float* sum, const floatX* row) {
    PackX pack = load_pack(row);
#pragma unroll
    for (int j = 0; j < PackX::size; j++) sum[j] += to_float(pack[j]);
}

// out (PackX::size) fp32 += sum
__device__ __forceinline__ void accumulate(float* out, const float* sum) {
#pragma unroll
    for (int q = 0; q < PackX::size; q += 4) {
        Pack<float> total = load_pack(out + q);
#pragma unroll
        for (int j = 0; j < 4; j++) total[j] += sum[q + j];
        store_pack(out + q, total);
    }
}

__global__ void __launch_bounds__(WARP* ROWS) forward_kernel(floatX* x, const int* tokens, const floatX* wte,
                                                             const floatX* wpe, int N, int T, int C) {
    wait_for_previous();
    int n = blockIdx.x * ROWS + threadIdx.y;
    if (n >= N) return;
    const floatX* token_row = wte + static_cast<int64_t>(tokens[n]) * C;
    const floatX* position_row = wpe ? wpe + static_cast<int64_t>(n % T) * C : nullptr;
    floatX* out = x + static_cast<int64_t>(n) * C;
    for (int c = threadIdx.x * PackX::size; c < C; c += WARP * PackX::size) {
        PackX pack = load_pack(token_row + c);
        if (position_row) {
            PackX position = load_pack(position_row + c);
#pragma unroll
            for (int j = 0; j < PackX::size; j++) pack[j] = from_float<floatX>(to_float(pack[j]) + to_float(position[j]));
        }
        store_pack(out + c, pack);
    }
}

// The parts of what group_tokens() makes.
struct Groups {
    int count;
    const int *token, *start, *position;
    __device__ __forceinline__ explicit Groups(const int* data)
        : count(data[0]), token(data + 1), start(token + count), position(start + count + 1) {}
};

__global__ void __launch_bounds__(WARP* ROWS)
    backward_rare_kernel(float* dwte, const floatX* dx, const int* groups, int C) {
    wait_for_previous();
    launch_next_early();
    const Groups g(groups);
    int u = blockIdx.x * ROWS + threadIdx.y;
    if (u >= g.count) return;
    int begin = g.start[u], end = g.start[u + 1];
    if (end - begin > FREQUENT) return;
    float* out = dwte + static_cast<int64_t>(g.token[u]) * C;
    for (int c = threadIdx.x * PackX::size; c < C; c += WARP * PackX::size) {
        float sum[PackX::size] = {};
#pragma unroll 4
        for (int i = begin; i < end; i++) add_to(sum, dx + static_cast<int64_t>(g.position[i]) * C + c);
        accumulate(out + c, sum);
    }
}

struct Shared {
    float sum[SLICES][WARP * PackX::size];
};

// Block (u, slice of 32 packs). Frequent tokens come first in groups.
__global__ void __launch_bounds__(WARP* SLICES)
    backward_frequent_kernel(float* dwte, const floatX* dx, const int* groups, int C) {
    wait_for_previous();
    launch_next_early();
    const Groups g(groups);
    if (static_cast<int>(blockIdx.x) >= g.count) return;
    int begin = g.start[blockIdx.x], end = g.start[blockIdx.x + 1];
    if (end - begin <= FREQUENT) return;
    Shared& shared = shared_as<Shared>();
    int c = (blockIdx.y * WARP + threadIdx.x) * PackX::size;
    float sum[PackX::size] = {};
    if (c < C) {
#pragma unroll 4
        for (int i = begin + static_cast<int>(threadIdx.y); i < end; i += SLICES)
            add_to(sum, dx + static_cast<int64_t>(g.position[i]) * C + c);
    }
#pragma unroll
    for (int j = 0; j < PackX::size; j++) shared.sum[threadIdx.y][threadIdx.x * PackX::size + j] = sum[j];
    __syncthreads();
    if (threadIdx.y > 0 || c >= C) return;
    for (int y = 1; y < SLICES; y++) {
#pragma unroll
        for (int j = 0; j < PackX::size; j++) sum[j] += shared.sum[y][threadIdx.x * PackX::size + j];
    }
    accumulate(dwte + static_cast<int64_t>(g.token[blockIdx.x]) * C + c, sum);
}

__global__ void __launch_bounds__(WARP* ROWS)
    backward_positions_kernel(float* dwpe, const floatX* dx, int B, int T, int C) {
    wait_for_previous();
    int t = blockIdx.x * ROWS + threadIdx.y;
    if (t >= T) return;
    float* out = dwpe + static_cast<int64_t>(t) * C;
    for (int c = threadIdx.x * PackX::size; c < C; c += WARP * PackX::size) {
        float sum[PackX::size] = {};
#pragma unroll 4
        for (int b = 0; b < B; b++) add_to(sum, dx + (static_cast<int64_t>(b) * T + t) * C + c);
        accumulate(out + c, sum);
    }
}

// order (N): what a stable sort of `order` by key brings; digits of 11 bits, as many as the largest key has.
void radix_sort(std::vector<int>& order, const std::vector<int>& key) {
    constexpr int BITS = 11, BUCKETS = 1 << BITS;
    int largest = 0;
    for (int k : key) largest = k > largest ? k : largest;
    std::vector<int> sorted(order.size());
    for (int shift = 0; shift == 0 || (shift < 31 && largest >> shift > 0); shift += BITS) {
        std::vector<int> place(BUCKETS + 1, 0);
        for (int i : order) place[(key[i] >> shift & (BUCKETS - 1)) + 1]++;
        for (int b = 0; b < BUCKETS; b++) place[b + 1] += place[b];
        for (int i : order) sorted[place[key[i] >> shift & (BUCKETS - 1)]++] = i;
        order.swap(sorted);
    }
}

}  // namespace

void embedding_forward(floatX* x, const int* tokens, const floatX* wte, const floatX* wpe, int B, int T, int C,
                       cudaStream_t stream) {
    CHECK(C % PackX::size == 0);
    int N = B * T;
    if (N == 0) return;
    const int64_t count = static_cast<int64_t>(N) * C;
    // Rows of wte that several tokens share cross the bus once; which these are is not known here.
    MOVES("embedding_forward",
          {reads(tokens, N), reads(wte, count), reads(wpe, static_cast<int64_t>(T) * C), writes(x, count)});
    launch_early(forward_kernel, ceil_div(N, ROWS), dim3(WARP, ROWS), 0, stream, x, tokens, wte, wpe, N, T, C);
}

size_t group_tokens(int* groups, const int* tokens, int N) {
    std::vector<int> key(tokens, tokens + N), position(N);
    for (int i = 0; i < N; i++) position[i] = i;
    radix_sort(position, key);

    // Runs of equal tokens; the longest first, so that the GPU starts with them.
    std::vector<int> run_start, rarity;
    for (int i = 0; i < N; i++)
        if (i == 0 || key[position[i]] != key[position[i - 1]]) run_start.push_back(i);
    int U = static_cast<int>(run_start.size());
    run_start.push_back(N);
    std::vector<int> run(U);
    for (int u = 0; u < U; u++) {
        run[u] = u;
        rarity.push_back(N - (run_start[u + 1] - run_start[u]));
    }
    radix_sort(run, rarity);

    groups[0] = U;
    int* token = groups + 1;
    int* start = token + U;
    int* out = start + U + 1;
    int filled = 0;
    for (int u = 0; u < U; u++) {
        token[u] = key[position[run_start[run[u]]]];
        start[u] = filled;
        for (int i = run_start[run[u]]; i < run_start[run[u] + 1]; i++) out[filled++] = position[i];
    }
    start[U] = filled;
    return 2 * static_cast<size_t>(U) + 2 + N;
}

void embedding_backward_tokens(float* dwte, const floatX* dx, const int* groups, int N, int V, int C,
                               cudaStream_t stream) {
    CHECK(C % PackX::size == 0);
    if (N == 0) return;
    const int tokens = N < V ? N : V, most = N / (FREQUENT + 1);  // at most so many different, and so many frequent
    const int frequent = tokens < most ? tokens : most;
    if (frequent > 0) {
        dim3 grid(frequent, ceil_div(C, WARP * PackX::size));
        // Which tokens are frequent only the device knows: all rows are counted with the rare ones, below.
        MOVES("embedding_backward_frequent", {});
        launch_early(backward_frequent_kernel, grid, dim3(WARP, SLICES), sizeof(Shared), stream, dwte, dx, groups, C);
    }
    // How many different tokens there are only the device knows: at most so many.
    MOVES("embedding_backward_rare",
          {reads(dx, static_cast<int64_t>(N) * C), reads(groups, 2 * int64_t{tokens} + 2 + N),
           updates(dwte, static_cast<int64_t>(tokens) * C)});
    launch_early(backward_rare_kernel, ceil_div(tokens, ROWS), dim3(WARP, ROWS), 0, stream, dwte, dx, groups, C);
}

void embedding_backward_positions(float* dwpe, const floatX* dx, int B, int T, int C, cudaStream_t stream) {
    CHECK(C % PackX::size == 0);
    if (B == 0 || T == 0) return;
    MOVES("embedding_backward_positions",
          {reads(dx, static_cast<int64_t>(B) * T * C), updates(dwpe, static_cast<int64_t>(T) * C)});
    launch_early(backward_positions_kernel, ceil_div(T, ROWS), dim3(WARP, ROWS), 0, stream, dwpe, dx, B, T, C);
}
