// Attention forward in bf16 for Hopper (sm_90a): the same sums as attention_mma_forward.cu, in the chip's own way.
// FlashAttention-3's scheme (Shah et al. 2024); the mathematics is in attention_impl.cuh.
//
// A block is one producer and two or three consumers, each a warp group (four warps). The producer's first thread asks
// the copy engine (TMA) for tiles: Q of BQ = 64*CONSUMERS rows once per piece of work, then K and V of BK rows each,
// the last (on the diagonal) first, into STAGES slots. A consumer owns 64 query rows and never loads: its tensor core
// instructions (wgmma) read Q, K and V from shared memory and keep scores and output in registers.
//
//     producer    Q  K3 V3 K2 V2 K1 V1 K0 V0 | Q' ...          slots are refilled as soon as all consumers are through
//     consumer    S3 · S2 ·· S1 ·· S0 ··  · store             S: scores Q K^T
//        cores         O3    O2    O1   O0                     O: output += P V
//        others    max,exp 3  .. 2  .. 1  .. 0                 beside the cores' next S and this O
//
// Per key tile j: start S(j-1), start O += P(j) V(j), wait for S(j-1) alone, do its softmax while O still runs, wait
// for O, rescale it. With PING_PONG the consumers take turns in starting products, so that one's softmax runs beside
// the other's products even where both would drift into step.
//
// Who waits for whom (barriers in shared memory, full: the copy has arrived, empty: everyone has read):
//     q_full, k_full[], v_full[]       1 arrival + the bytes of the copy
//     q_empty, k_empty[], v_empty[]    a lane of each consumer warp
// Q is empty after the last scores, so that the next piece's Q and K arrive while this one's output is finished; the
// output leaves by memory of its own, and the copy engine may take until the next output to read it.
// A use count tells slot and parity: use n of a slot waits for parity n/STAGES % 2.
//
// The grid is persistent: a block per multiprocessor, and pieces of work (query tile, head, batch row) dealt out
// longest first and in alternating direction, so that all blocks end together; within groups of heads whose keys and
// values stay in L2.
#include "kernels/attention_sm90.cuh"

#if defined(PRECISION_BF16)

namespace {

template <int D_, int CONSUMERS_, int BK_, int STAGES_, bool PING_PONG_>
struct ForwardTile {
    static constexpr int D = D_, CONSUMERS = CONSUMERS_, BK = BK_, STAGES = STAGES_;
    static constexpr bool PING_PONG = PING_PONG_;
    static constexpr int BQ = 64 * CONSUMERS, HALVES = D / 64, THREADS = GROUP_THREADS * (CONSUMERS + 1);
    // Registers a thread has when the roles have parted; three consumers share what two have.
    static constexpr int CONSUMER_REGISTERS = CONSUMERS == 2 ? 240 : 160, PRODUCER_REGISTERS = CONSUMERS == 2 ? 24 : 32;
    static_assert(GROUP_THREADS * (CONSUMERS * CONSUMER_REGISTERS + PRODUCER_REGISTERS) <= 65536);
    static_assert(!PING_PONG || CONSUMERS <= 3, "a turn barrier each");
    struct Shared {
        // Columns in halves of 64 (128 bytes, the swizzle's width).
        alignas(1024) __nv_bfloat16 q[HALVES][BQ * 64];
        alignas(1024) __nv_bfloat16 k[STAGES][HALVES][BK * 64];
        alignas(1024) __nv_bfloat16 v[STAGES][HALVES][BK * 64];
        alignas(1024) __nv_bfloat16 out[HALVES][BQ * 64];
        uint64_t q_full, q_empty, k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
    };
    static_assert(sizeof(Shared) <= 227 * 1024, "what a block may have");
};

struct ForwardMaps {
    TensorMap q, kv;  // qkv (B,T,(NH+2*NKV)*HS) in boxes of (BQ,64) and (BK,64)
    TensorMap out;    // out (B,T,NH*HS) in boxes of (64,64)
};

// The producer's side: one thread.
template <class Tile>
__device__ __forceinline__ void produce(typename Tile::Shared& shared, const ForwardMaps& maps,
                                        const AttentionWork& work, const AttentionShape& s) {
    constexpr int D = Tile::D, BK = Tile::BK, STAGES = Tile::STAGES;
    constexpr unsigned Q_BYTES = Tile::BQ * D * 2, KV_BYTES = BK * D * 2;
    int use = 0, pieces = 0;
    for (int i = 0; work.piece(i) < work.count(); i++, pieces++) {
        const auto [tile, h, b] = work.decode(work.piece(i));
        const int q0 = tile * Tile::BQ, kv = h / s.group();
        mbarrier_wait(&shared.q_empty, (pieces + 1) % 2);
        mbarrier_arrive_expect(&shared.q_full, Q_BYTES);
        for (int half = 0; half < Tile::HALVES; half++)
            tma_load_3d(shared.q[half], maps.q, &shared.q_full, h * D + 64 * half, q0, b);
#pragma unroll 1
        for (int j = key_tiles<Tile::BQ, BK>(q0, s.T) - 1; j >= 0; j--, use++) {
            const int slot = use % STAGES;
            const unsigned empty = use / STAGES % 2 + 1;
            mbarrier_wait(&shared.k_empty[slot], empty % 2);
            mbarrier_arrive_expect(&shared.k_full[slot], KV_BYTES);
            for (int half = 0; half < Tile::HALVES; half++)
                tma_load_3d(shared.k[slot][half], maps.kv, &shared.k_full[slot], (s.NH + kv) * D + 64 * half, j * BK,
                            b);
            mbarrier_wait(&shared.v_empty[slot], empty % 2);
            mbarrier_arrive_expect(&shared.v_full[slot], KV_BYTES);
            for (int half = 0; half < Tile::HALVES; half++)
                tma_load_3d(shared.v[slot][half], maps.kv, &shared.v_full[slot], (s.NH + s.NKV + kv) * D + 64 * half,
                            j * BK, b);
        }
    }
}

// One consumer warp group's state for a piece of work.
template <class Tile>
struct Consumer {
    static constexpr int D = Tile::D, BK = Tile::BK;
    typename Tile::Shared& shared;
    int group, lane;  // which consumer; lane of the warp
    int row;          // first of this thread's two query rows, of the sequence: row, row + 8
    float factor2;    // scale * log2(e)
    float o[D / 2];
    float maximum[2], sum[2];  // per row; sum: this lane's share
    uint32_t p[BK / 16][4];    // P as the left matrix of the next product

    __device__ __forceinline__ Consumer(typename Tile::Shared& memory, int consumer, int lane_of_warp, float factor)
        : shared(memory), group(consumer), lane(lane_of_warp), factor2(factor) {}

    // Starts S = Q K^T (64 x BK).
    __device__ __forceinline__ void start_scores(float (&acc)[BK / 2], int slot) {
        wgmma_hold(acc);
        wgmma_fence();
#pragma unroll
        for (int c = 0; c < D; c += 16) {
            const uint64_t q = wgmma_descriptor(shared.q[c / 64] + group * 64 * 64, Swizzle::b128, 16, 1024);
            const uint64_t k = wgmma_descriptor(shared.k[slot][c / 64], Swizzle::b128, 16, 1024);
            wgmma_ss<BK>(acc, wgmma_advance(q, c % 64 * 2), wgmma_advance(k, c % 64 * 2), c > 0);
        }
        wgmma_commit();
    }
    // Starts O += P V.
    __device__ __forceinline__ void start_output(int slot, bool accumulate) {
        wgmma_hold(o);
#pragma unroll
        for (int r = 0; r < BK / 16; r++) wgmma_hold(p[r]);
        wgmma_fence();
        const uint64_t v = wgmma_descriptor(shared.v[slot][0], Swizzle::b128, BK * 128, 1024);
#pragma unroll
        for (int r = 0; r < BK; r += 16)
            wgmma_rs<D, true>(o, p[r / 16], wgmma_advance(v, r * 128), accumulate || r > 0);
        wgmma_commit();
    }
    // Masks keys beyond the query (k0: first key of the tile).
    __device__ __forceinline__ void mask(float (&acc)[BK / 2], int k0) const {
#pragma unroll
        for (int i = 0; i < BK / 2; i++) {
            const int key = k0 + i / 4 * 8 + lane % 4 * 2 + i % 2;
            if (key > row + i % 4 / 2 * 8) acc[i] = -INFINITY;
        }
    }
    // Turns scores into exponentials; factor: what the output so far is to be multiplied with.
    __device__ __forceinline__ void softmax(float (&acc)[BK / 2], float (&factor)[2]) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float high = maximum[r];
#pragma unroll
            for (int i = 2 * r; i < BK / 2; i += 4) high = fmaxf(high, fmaxf(acc[i], acc[i + 1]));
            high = fmaxf(high, __shfl_xor_sync(FULL_WARP, high, 1));
            high = fmaxf(high, __shfl_xor_sync(FULL_WARP, high, 2));
            // The first tiles may lie beyond a row altogether: no maximum yet, and every exponential is zero.
            const float shift = high == -INFINITY ? 0.0f : high * factor2;
            factor[r] = exp2_approx(maximum[r] * factor2 - shift);
            maximum[r] = high;
            float total = 0.0f;
#pragma unroll
            for (int i = 2 * r; i < BK / 2; i += 4) {
                acc[i] = exp2_approx(acc[i] * factor2 - shift);
                acc[i + 1] = exp2_approx(acc[i + 1] * factor2 - shift);
                total += acc[i] + acc[i + 1];
            }
            sum[r] = sum[r] * factor[r] + total;
        }
    }
    // The scores' layout, rounded, is by the layout of the fragments that of a left matrix.
    __device__ __forceinline__ void keep_probabilities(const float (&acc)[BK / 2]) {
#pragma unroll
        for (int i = 0; i < BK / 4; i++) p[i / 4][i % 4] = pack_bf16(acc[2 * i], acc[2 * i + 1]);
    }
    __device__ __forceinline__ void scale_output(const float (&factor)[2]) {
#pragma unroll
        for (int i = 0; i < D / 2; i++) o[i] *= factor[i % 4 / 2];
    }
    __device__ __forceinline__ void release(uint64_t* empty) const {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(empty);
    }
    // PING_PONG: before and after starting products.
    __device__ __forceinline__ void take_turn() const {
        if constexpr (Tile::PING_PONG) named_barrier_sync(TURN_BARRIER + group, 2 * GROUP_THREADS);
    }
    __device__ __forceinline__ void pass_turn(bool to_first) const {
        if constexpr (Tile::PING_PONG) {
            const bool last = group == Tile::CONSUMERS - 1;
            if (!last || to_first) named_barrier_arrive(TURN_BARRIER + (last ? 0 : group + 1), 2 * GROUP_THREADS);
        }
    }
};

// Divides by the sum, and sends off 64 rows of output.
template <class Tile>
__device__ __forceinline__ void store_output(Consumer<Tile>& c, const ForwardMaps& maps, float* lse,
                                             const AttentionShape& s, int h, int b, int first) {
    constexpr int D = Tile::D;
    const int thread = static_cast<int>(threadIdx.x) % GROUP_THREADS, inside = thread / WARP * 16 + c.lane / 4;
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        c.sum[r] += __shfl_xor_sync(FULL_WARP, c.sum[r], 1);
        c.sum[r] += __shfl_xor_sync(FULL_WARP, c.sum[r], 2);
        factor[r] = 1.0f / c.sum[r];
        const int q = c.row + 8 * r;
        if (c.lane % 4 == 0 && q < s.T) lse[s.row(b, h) + q] = c.maximum[r] * s.scale + logf(c.sum[r]);
    }
    c.scale_output(factor);
    if (thread == 0) tma_store_wait_read<0>();  // the last output has left
    named_barrier_sync(STORE_BARRIER + c.group, GROUP_THREADS);
#pragma unroll
    for (int i = 0; i < D / 2; i += 2) {
        const int half = i / 32, unit = i % 32 / 4, row = inside + i % 4 / 2 * 8;
        // 16-byte unit u of row r lies where unit u ^ r%8 would: TMA's 128-byte swizzle.
        unsigned char* to = reinterpret_cast<unsigned char*>(c.shared.out[half] + (c.group * 64 + row) * 64);
        *reinterpret_cast<uint32_t*>(to + ((unit ^ row % 8) << 4) + c.lane % 4 * 4) = pack_bf16(c.o[i], c.o[i + 1]);
    }
    fence_proxy_async();
    named_barrier_sync(STORE_BARRIER + c.group, GROUP_THREADS);
    if (thread == 0) {
#pragma unroll
        for (int half = 0; half < Tile::HALVES; half++)
            tma_store_3d(maps.out, c.shared.out[half] + c.group * 64 * 64, h * D + 64 * half, first, b);
        tma_store_commit();
    }
}

template <class Tile>
__device__ __forceinline__ void consume(typename Tile::Shared& shared, const ForwardMaps& maps, float* lse,
                                        const AttentionWork& work, const AttentionShape& s) {
    constexpr int BK = Tile::BK, STAGES = Tile::STAGES;
    const int thread = static_cast<int>(threadIdx.x) % GROUP_THREADS;
    const int group = static_cast<int>(threadIdx.x) / GROUP_THREADS - 1, lane = thread % WARP, warp = thread / WARP;
    Consumer<Tile> c(shared, group, lane, s.scale * LOG2E);
    int use = 0, pieces = 0;
    for (int i = 0; work.piece(i) < work.count(); i++, pieces++) {
        const auto [tile, h, b] = work.decode(work.piece(i));
        const int q0 = tile * Tile::BQ, first = q0 + 64 * group;
        c.row = first + 16 * warp + lane / 4;
        c.maximum[0] = c.maximum[1] = -INFINITY;
        c.sum[0] = c.sum[1] = 0.0f;
        int j = key_tiles<Tile::BQ, BK>(q0, s.T) - 1;
        float acc[BK / 2], factor[2];

        if (group == Tile::CONSUMERS - 1) c.pass_turn(j > 0);
        mbarrier_wait(&shared.q_full, pieces % 2);
        mbarrier_wait(&shared.k_full[use % STAGES], use / STAGES % 2);
        c.start_scores(acc, use % STAGES);
        wgmma_wait<0>();
        wgmma_hold(acc);
        c.release(&shared.k_empty[use % STAGES]);
        if (j == 0) c.release(&shared.q_empty);
        c.mask(acc, j * BK);
        c.softmax(acc, factor);
        c.keep_probabilities(acc);

        for (bool accumulate = false; j > 0; j--, use++, accumulate = true) {
            const int next = use + 1;
            mbarrier_wait(&shared.k_full[next % STAGES], next / STAGES % 2);
            c.take_turn();
            c.start_scores(acc, next % STAGES);
            mbarrier_wait(&shared.v_full[use % STAGES], use / STAGES % 2);
            c.start_output(use % STAGES, accumulate);
            c.pass_turn(j > 1);
            wgmma_wait<1>();
            wgmma_hold(acc);
            c.release(&shared.k_empty[next % STAGES]);
            if (j == 1) c.release(&shared.q_empty);
            if ((j - 1) * BK + BK - 1 > first) c.mask(acc, (j - 1) * BK);
            c.softmax(acc, factor);
            wgmma_wait_behind<0>(c.sum[0] + c.sum[1]);  // all of them, while O runs
            wgmma_hold(c.o);
            c.release(&shared.v_empty[use % STAGES]);
            c.scale_output(factor);
            c.keep_probabilities(acc);
        }
        mbarrier_wait(&shared.v_full[use % STAGES], use / STAGES % 2);
        c.start_output(use % STAGES, key_tiles<Tile::BQ, BK>(q0, s.T) > 1);
        wgmma_wait<0>();
        wgmma_hold(c.o);
        c.release(&shared.v_empty[use % STAGES]);
        use++;
        store_output(c, maps, lse, s, h, b, first);
    }
    if (thread == 0) tma_store_wait_read<0>();  // the block's shared memory stays until then
}

template <class Tile>
__global__ void __launch_bounds__(Tile::THREADS, 1)
    attention_forward_sm90_kernel(const __grid_constant__ ForwardMaps maps, float* lse, AttentionWork work,
                                  AttentionShape s) {
    if constexpr (HOPPER_CODE) {
        auto& shared = shared_as<typename Tile::Shared>();
        if (threadIdx.x == 0) {
            mbarrier_init(&shared.q_full, 1);
            mbarrier_init(&shared.q_empty, 4 * Tile::CONSUMERS);
            for (int i = 0; i < Tile::STAGES; i++) {
                mbarrier_init(&shared.k_full[i], 1);
                mbarrier_init(&shared.v_full[i], 1);
                mbarrier_init(&shared.k_empty[i], 4 * Tile::CONSUMERS);
                mbarrier_init(&shared.v_empty[i], 4 * Tile::CONSUMERS);
            }
            mbarrier_init_fence();
        }
        __syncthreads();
        if (threadIdx.x < GROUP_THREADS) {
            registers_lower<Tile::PRODUCER_REGISTERS>();
            if (threadIdx.x == 0) produce<Tile>(shared, maps, work, s);
        } else {
            registers_raise<Tile::CONSUMER_REGISTERS>();
            consume<Tile>(shared, maps, lse, work, s);
        }
    }
}

template <class Tile>
void forward(__nv_bfloat16* out, float* lse, const __nv_bfloat16* qkv, const AttentionShape& s, cudaStream_t stream) {
    const ForwardMaps maps = {attention_map(qkv, s.stride(), s, Tile::BQ), attention_map(qkv, s.stride(), s, Tile::BK),
                              attention_map(out, s.out_stride(), s, 64)};
    const AttentionWork work = attention_work(Tile::BQ, s, true);
    const int blocks = work.count() < multiprocessors() ? work.count() : multiprocessors();
    MOVES("attention_forward", {reads(qkv, s.qkv_count()), writes(out, s.out_count()), writes(lse, s.row_count())},
          2 * s.product_flops());
    launch(attention_forward_sm90_kernel<Tile>, dim3(static_cast<unsigned>(blocks)), dim3(Tile::THREADS),
           sizeof(typename Tile::Shared), stream, maps, lse, work, s);
}

__global__ void compiled_kernel(int* answer) {
    *answer = HOPPER_CODE ? 1 : 0;
}

}  // namespace

bool attention_sm90_compiled() {
    int *device = nullptr, answer = 0;
    CUDA_CHECK(cudaMalloc(&device, sizeof answer));
    MOVES("attention_sm90_compiled", {writes(device, 1)});
    launch(compiled_kernel, dim3(1), dim3(1), 0, nullptr, device);
    CUDA_CHECK(cudaMemcpy(&answer, device, sizeof answer, cudaMemcpyDeviceToHost));
    CUDA_CHECK(cudaFree(device));
    return answer != 0;
}

void attention_forward_sm90(__nv_bfloat16* out, float* lse, const __nv_bfloat16* qkv, AttentionShape s,
                            cudaStream_t stream) {
    // Three consumers at head size 64 keep the tensor cores busier, but their tiles waste more on the diagonal.
    if (s.HS == 128)
        forward<ForwardTile<128, 2, 128, 2, true>>(out, lse, qkv, s, stream);
    else if (s.T >= 2048)
        forward<ForwardTile<64, 3, 112, 2, true>>(out, lse, qkv, s, stream);
    else
        forward<ForwardTile<64, 2, 128, 2, true>>(out, lse, qkv, s, stream);
}

#endif
