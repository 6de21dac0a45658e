// Attention backward in bf16 for Hopper (sm_90a); the mathematics is in attention_impl.cuh, the roles and barriers are
// those of attention_sm90_forward.cu.
//
// A piece of work is a tile of BK = 128 keys of one key head. Two consumers own 64 keys each: scores are computed
// transposed, S^T = K Q^T and dP^T = V dO^T (keys x queries), so that P^T and dS^T stand in registers just as the left
// matrices of dV += P^T dO and dK += dS^T Q want them. Only dS goes through shared memory, for dQ = dS K, whose sum
// runs over the keys of both consumers. Query tiles come from the last to the diagonal one.
//
// dQ of a query tile is summed over key tiles, in fp32 in global memory, always in the order of the keys: the piece of
// key tile i waits until a flag of the query tile says i. Pieces of low i start first (they are the longest), and all
// go through the query tiles in the same order, so the wait is short; a warp of the producer group does it, with the
// copy engine adding up, and the consumers go on. A last kernel scales dQ and rounds it.
//
//     producer warp 0   K V | Q dO lse delta (2 slots) ...
//     producer warp 1   waits for dQ in shared memory and for its turn, sends it off
//     consumers         S^T, dP^T -> P^T, dS^T -> dV, dK, barrier, dQ
//
// scale: S is scaled in the exponent, dK and dQ at the end.
//
// dK and dV leave by way of the K and V they belong to. At head size 64 there is room for a second K and V, which the
// producer fills during the last query tiles of the piece before.
#include "kernels/attention_sm90.cuh"

#if defined(PRECISION_BF16)

namespace {

constexpr int CONSUMERS = 2, BK = 64 * CONSUMERS, THREADS = GROUP_THREADS * (CONSUMERS + 1), STAGES = 2;
[[maybe_unused]] constexpr int DQ_BARRIER = 5, DONE_BARRIER = 6;

template <int D_, int BQ_>
struct BackwardTile {
    static constexpr int D = D_, BQ = BQ_, HALVES = D / 64, BLOCKS = BQ / 64;
    static constexpr int KV_STAGES = D == 64 ? 2 : 1;
    // Each consumer computes 64 x 64 of dQ: of its own query block, or of its own half of the columns.
    static_assert(BQ * D == CONSUMERS * 64 * 64);
    struct Shared {
        alignas(1024) __nv_bfloat16 k[KV_STAGES][HALVES][BK * 64], v[KV_STAGES][HALVES][BK * 64];
        alignas(1024) __nv_bfloat16 q[STAGES][HALVES][BQ * 64], dout[STAGES][HALVES][BQ * 64];
        alignas(1024) __nv_bfloat16 ds[STAGES][BLOCKS][BK * 64];  // dS^T: (keys, 64 queries) per block
        alignas(1024) float dq[BQ * D];                           // in the order of dq_offset
        float lse2[STAGES][BQ], delta[STAGES][BQ];                // lse*log2(e); infinity beyond T: P is zero there
        uint64_t kv_full[KV_STAGES], kv_empty[KV_STAGES], q_full[STAGES], q_empty[STAGES], dq_full, dq_empty;
    };
    static_assert(sizeof(Shared) <= 227 * 1024, "what a block may have");
};

// Where fragment elements 4*c..4*c+3 of a thread of a consumer lie in a tile of dQ, in shared and in global memory.
__host__ __device__ constexpr int dq_offset(int consumer, int c, int thread) {
    return ((consumer * 8 + c) * GROUP_THREADS + thread) * 4;
}

struct BackwardMaps {
    TensorMap kv, q, dout;  // qkv in boxes of (BK,64) and (BQ,64), dout in boxes of (BQ,64)
    TensorMap dqkv;         // in boxes of (64,64)
};
struct BackwardArgs {
    const float *lse, *delta;  // (B,NH,T)
    float* dq;                 // (B,NH,query tiles) of BQ*D, in the order of dq_offset
    unsigned* turns;           // (B,NH,query tiles), zero: key tiles that have been added to dq
    AttentionWork work;        // tiles of keys of key heads
    AttentionShape s;
};

// What a piece goes through: query tiles of every query head of its key head.
template <class Tile>
struct Queries {
    int first_tile, tiles, h0, heads;
    __device__ __forceinline__ Queries(const AttentionShape& s, const AttentionBlock& piece)
        : first_tile(piece.tile * BK / Tile::BQ),
          tiles(ceil_div(s.T, Tile::BQ)),
          h0(piece.h * s.group()),
          heads(s.group()) {}
    __device__ __forceinline__ int count() const { return (tiles - first_tile) * heads; }
    __device__ __forceinline__ int head(int n) const { return h0 + n / (tiles - first_tile); }
    __device__ __forceinline__ int tile(int n) const { return tiles - 1 - n % (tiles - first_tile); }
};

template <class Tile>
__device__ __forceinline__ void load_tiles(typename Tile::Shared& shared, const BackwardMaps& maps,
                                           const BackwardArgs& args) {
    constexpr int D = Tile::D, BQ = Tile::BQ;
    const AttentionShape& s = args.s;
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    int use = 0, pieces = 0;
    for (int i = 0; args.work.piece(i) < args.work.count(); i++, pieces++) {
        const AttentionBlock piece = args.work.decode(args.work.piece(i));
        const int kv = pieces % Tile::KV_STAGES;
        mbarrier_wait(&shared.kv_empty[kv], (pieces / Tile::KV_STAGES + 1) % 2);
        if (lane == 0) {
            mbarrier_arrive_expect(&shared.kv_full[kv], 2 * BK * D * 2);
            for (int half = 0; half < Tile::HALVES; half++) {
                tma_load_3d(shared.k[kv][half], maps.kv, &shared.kv_full[kv], (s.NH + piece.h) * D + 64 * half,
                            piece.tile * BK, piece.b);
                tma_load_3d(shared.v[kv][half], maps.kv, &shared.kv_full[kv], (s.NH + s.NKV + piece.h) * D + 64 * half,
                            piece.tile * BK, piece.b);
            }
        }
        const Queries<Tile> queries(s, piece);
        for (int n = 0; n < queries.count(); n++, use++) {
            const int slot = use % STAGES, h = queries.head(n), q0 = queries.tile(n) * BQ;
            mbarrier_wait(&shared.q_empty[slot], (use / STAGES + 1) % 2);
            if (lane == 0) {
                mbarrier_arrive_expect(&shared.q_full[slot], 2 * BQ * D * 2);
                for (int half = 0; half < Tile::HALVES; half++) {
                    tma_load_3d(shared.q[slot][half], maps.q, &shared.q_full[slot], h * D + 64 * half, q0, piece.b);
                    tma_load_3d(shared.dout[slot][half], maps.dout, &shared.q_full[slot], h * D + 64 * half, q0,
                                piece.b);
                }
            }
            for (int r = lane; r < BQ; r += WARP) {
                const bool there = q0 + r < s.T;
                shared.lse2[slot][r] = there ? args.lse[s.row(piece.b, h) + q0 + r] * LOG2E : INFINITY;
                shared.delta[slot][r] = there ? args.delta[s.row(piece.b, h) + q0 + r] : 0.0f;
            }
            mbarrier_arrive(&shared.q_full[slot]);
        }
    }
}

// One thread: adds dQ to global memory when its turn has come.
template <class Tile>
__device__ __forceinline__ void send_dq(typename Tile::Shared& shared, const BackwardArgs& args) {
    constexpr int SIZE = Tile::BQ * Tile::D;
    int use = 0;
    for (int i = 0; args.work.piece(i) < args.work.count(); i++) {
        const AttentionBlock piece = args.work.decode(args.work.piece(i));
        const Queries<Tile> queries(args.s, piece);
        for (int n = 0; n < queries.count(); n++, use++) {
            const int64_t at =
                (static_cast<int64_t>(piece.b) * args.s.NH + queries.head(n)) * queries.tiles + queries.tile(n);
            mbarrier_wait(&shared.dq_full, use % 2);
            flag_wait(args.turns + at, static_cast<unsigned>(piece.tile));
            if (piece.tile == 0)
                bulk_store(args.dq + at * SIZE, shared.dq, SIZE * 4);
            else
                bulk_add(args.dq + at * SIZE, shared.dq, SIZE * 4);
            tma_store_commit();
            tma_store_wait_read<0>();
            mbarrier_arrive(&shared.dq_empty);
            tma_store_wait<0>();
            flag_raise(args.turns + at);
        }
    }
}

template <class Tile>
struct BackwardConsumer {
    static constexpr int D = Tile::D, BQ = Tile::BQ;
    typename Tile::Shared& shared;
    int group, thread, lane;
    float dk[D / 2], dv[D / 2];  // of this consumer's 64 keys

    __device__ __forceinline__ BackwardConsumer(typename Tile::Shared& memory, int consumer, int thread_of_group)
        : shared(memory), group(consumer), thread(thread_of_group), lane(thread_of_group % WARP) {}

    // acc (64 keys x BQ) = own 64 rows of left, times right^T.
    __device__ __forceinline__ void start_transposed(float (&acc)[BQ / 2],
                                                     const __nv_bfloat16 (&left)[Tile::HALVES][BK * 64],
                                                     const __nv_bfloat16 (&right)[Tile::HALVES][BQ * 64]) {
        wgmma_hold(acc);
        wgmma_fence();
#pragma unroll
        for (int c = 0; c < D; c += 16) {
            const uint64_t a = wgmma_descriptor(left[c / 64] + group * 64 * 64, Swizzle::b128, 16, 1024);
            const uint64_t b = wgmma_descriptor(right[c / 64], Swizzle::b128, 16, 1024);
            wgmma_ss<BQ>(acc, wgmma_advance(a, c % 64 * 2), wgmma_advance(b, c % 64 * 2), c > 0);
        }
        wgmma_commit();
    }
    // acc (64 keys x D) += left (64 x BQ) right (BQ x D).
    __device__ __forceinline__ void start_gradient(float (&acc)[D / 2], uint32_t (&left)[BQ / 16][4],
                                                   const __nv_bfloat16 (&right)[Tile::HALVES][BQ * 64],
                                                   bool accumulate) {
        wgmma_hold(acc);
#pragma unroll
        for (int r = 0; r < BQ / 16; r++) wgmma_hold(left[r]);
        wgmma_fence();
        const uint64_t b = wgmma_descriptor(right[0], Swizzle::b128, BQ * 128, 1024);
#pragma unroll
        for (int r = 0; r < BQ; r += 16)
            wgmma_rs<D, true>(acc, left[r / 16], wgmma_advance(b, r * 128), accumulate || r > 0);
        wgmma_commit();
    }
    // dq (64 x 64) = dS (64 queries x BK) K (BK x 64): of query block `group` or column half `group`.
    __device__ __forceinline__ void start_dq(float (&dq)[32], const __nv_bfloat16 (&ds)[Tile::BLOCKS][BK * 64],
                                             const __nv_bfloat16 (&k)[Tile::HALVES][BK * 64]) {
        wgmma_hold(dq);
        wgmma_fence();
        const uint64_t a = wgmma_descriptor(ds[Tile::BLOCKS == 1 ? 0 : group], Swizzle::b128, 16, 1024);
        const uint64_t b = wgmma_descriptor(k[Tile::HALVES == 1 ? 0 : group], Swizzle::b128, 16, 1024);
#pragma unroll
        for (int r = 0; r < BK; r += 16)
            wgmma_ss<64, true, true>(dq, wgmma_advance(a, r * 128), wgmma_advance(b, r * 128), r > 0);
        wgmma_commit();
    }
    __device__ __forceinline__ void release(uint64_t* barrier) const {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(barrier);
    }
    __device__ __forceinline__ int row() const {
        return 64 * group + thread / WARP * 16 + lane / 4;
    }  // + 8: the other

    // The copy engine has read this consumer's last dK and dV: the memory is the producer's again.
    __device__ __forceinline__ void gradients_sent(uint64_t* kv_empty) const {
        if (thread == 0) {
            tma_store_wait_read<0>();
            mbarrier_arrive(kv_empty);
        }
    }
    // No probability for queries before the key (first: the key's place among the tile's queries).
    __device__ __forceinline__ void mask(float (&st)[BQ / 2], int first) const {
#pragma unroll
        for (int j = 0; j < BQ / 2; j++) {
            const int q = j / 4 * 8 + lane % 4 * 2 + j % 2;
            if (first + j % 4 / 2 * 8 > q) st[j] = 0.0f;
        }
    }
    // A fragment (64 rows x 64*BLOCKS columns) to tiles of 64 columns with the 128-byte swizzle.
    template <int BLOCKS, int SIZE>
    __device__ __forceinline__ void to_tiles(__nv_bfloat16 (&tiles)[BLOCKS][SIZE],
                                             const uint32_t (&pairs)[4 * BLOCKS][4]) const {
#pragma unroll
        for (int i = 0; i < 16 * BLOCKS; i++) {  // pair i: columns 8*(i/2) + 2*(lane%4), row + 8*(i%2)
            const int r = row() + i % 2 * 8, unit = i / 2 % 8;
            unsigned char* to = reinterpret_cast<unsigned char*>(tiles[i / 16] + r * 64);
            *reinterpret_cast<uint32_t*>(to + ((unit ^ r % 8) << 4) + lane % 4 * 4) = pairs[i / 4][i % 4];
        }
    }
    __device__ __forceinline__ void store_gradient(const float (&acc)[D / 2], float scale,
                                                   __nv_bfloat16 (&tiles)[Tile::HALVES][BK * 64]) const {
        uint32_t pairs[D / 16][4];
#pragma unroll
        for (int i = 0; i < D / 4; i++) pairs[i / 4][i % 4] = pack_bf16(acc[2 * i] * scale, acc[2 * i + 1] * scale);
        to_tiles(tiles, pairs);
    }
};

template <class Tile>
__device__ __forceinline__ void differentiate(typename Tile::Shared& shared, const BackwardMaps& maps,
                                              const BackwardArgs& args) {
    constexpr int D = Tile::D, BQ = Tile::BQ, KV_STAGES = Tile::KV_STAGES;
    const AttentionShape& s = args.s;
    BackwardConsumer<Tile> c(shared, static_cast<int>(threadIdx.x) / GROUP_THREADS - 1,
                             static_cast<int>(threadIdx.x) % GROUP_THREADS);
    const float factor2 = s.scale * LOG2E;
    int use = 0, pieces = 0;
    for (int i = 0; args.work.piece(i) < args.work.count(); i++, pieces++) {
        const AttentionBlock piece = args.work.decode(args.work.piece(i));
        const Queries<Tile> queries(s, piece);
        const int key = piece.tile * BK + c.row();
        const int kv = pieces % KV_STAGES;
        mbarrier_wait(&shared.kv_full[kv], pieces / KV_STAGES % 2);
        for (int n = 0; n < queries.count(); n++, use++) {
            const int slot = use % STAGES, q0 = queries.tile(n) * BQ;
            float st[BQ / 2], dpt[BQ / 2];
            uint32_t left[BQ / 16][4];
            mbarrier_wait(&shared.q_full[slot], use / STAGES % 2);
            c.start_transposed(st, shared.k[kv], shared.q[slot]);
            c.start_transposed(dpt, shared.v[kv], shared.dout[slot]);
            if constexpr (KV_STAGES > 1)  // by now the copy engine has read the last piece's dK and dV
                if (n == 0 && pieces > 0) c.gradients_sent(&shared.kv_empty[1 - kv]);
            wgmma_wait<1>();
            wgmma_hold(st);
#pragma unroll
            for (int j = 0; j < BQ / 2; j++)
                st[j] = exp2_approx(st[j] * factor2 - shared.lse2[slot][j / 4 * 8 + c.lane % 4 * 2 + j % 2]);
            // Behind the exponentials: they need no mask, and no assembler moves the wait for dP up past this branch.
            if (q0 < piece.tile * BK + BK - 1) c.mask(st, key - q0);
#pragma unroll
            for (int j = 0; j < BQ / 4; j++) left[j / 4][j % 4] = pack_bf16(st[2 * j], st[2 * j + 1]);
            wgmma_wait<0>();
            wgmma_hold(dpt);
            uint32_t ds[BQ / 16][4];
#pragma unroll
            for (int j = 0; j < BQ / 4; j++) {  // P as rounded: its fp32 registers are free again
                const float2 delta = *reinterpret_cast<const float2*>(&shared.delta[slot][j / 2 * 8 + c.lane % 4 * 2]);
                const uint32_t pair = left[j / 4][j % 4];
                ds[j / 4][j % 4] =
                    pack_bf16(low_bf16(pair) * (dpt[2 * j] - delta.x), high_bf16(pair) * (dpt[2 * j + 1] - delta.y));
            }
            c.start_gradient(c.dv, left, shared.dout[slot], n > 0);
            c.to_tiles(shared.ds[slot], ds);
            fence_proxy_async();
            c.start_gradient(c.dk, ds, shared.q[slot], n > 0);
            // Both halves of dS are there. The other slot's may be overwritten from now on: a consumer comes here only
            // after its dQ of the last round.
            named_barrier_sync(DQ_BARRIER, CONSUMERS * GROUP_THREADS);
            float dq[32];
            c.start_dq(dq, shared.ds[slot], shared.k[kv]);
            wgmma_wait<0>();
            wgmma_hold(c.dv);
            wgmma_hold(c.dk);
            wgmma_hold(dq);
            c.release(&shared.q_empty[slot]);
            mbarrier_wait(&shared.dq_empty, (use + 1) % 2);
#pragma unroll
            for (int j = 0; j < 8; j++)
                *reinterpret_cast<float4*>(shared.dq + dq_offset(c.group, j, c.thread)) =
                    make_float4(dq[4 * j], dq[4 * j + 1], dq[4 * j + 2], dq[4 * j + 3]);
            fence_proxy_async();
            c.release(&shared.dq_full);
        }
        named_barrier_sync(DONE_BARRIER, CONSUMERS * GROUP_THREADS);  // both have read all of K for dQ
        c.store_gradient(c.dk, s.scale, shared.k[kv]);
        c.store_gradient(c.dv, 1.0f, shared.v[kv]);
        fence_proxy_async();
        named_barrier_sync(STORE_BARRIER + c.group, GROUP_THREADS);
        if (c.thread == 0) {
            for (int half = 0; half < Tile::HALVES; half++) {
                const int first = piece.tile * BK + 64 * c.group;
                tma_store_3d(maps.dqkv, shared.k[kv][half] + c.group * 64 * 64, (s.NH + piece.h) * D + 64 * half, first,
                             piece.b);
                tma_store_3d(maps.dqkv, shared.v[kv][half] + c.group * 64 * 64,
                             (s.NH + s.NKV + piece.h) * D + 64 * half, first, piece.b);
            }
            tma_store_commit();
        }
        if constexpr (KV_STAGES == 1) c.gradients_sent(&shared.kv_empty[kv]);
    }
    if (c.thread == 0) tma_store_wait_read<0>();  // the block's shared memory stays until then
}

template <class Tile>
__global__ void __launch_bounds__(THREADS, 1)
    attention_backward_sm90_kernel(const __grid_constant__ BackwardMaps maps, BackwardArgs args) {
    if constexpr (HOPPER_CODE) {
        auto& shared = shared_as<typename Tile::Shared>();
        if (threadIdx.x == 0) {
            for (int i = 0; i < Tile::KV_STAGES; i++) {
                mbarrier_init(&shared.kv_full[i], 1);
                mbarrier_init(&shared.kv_empty[i], CONSUMERS);
            }
            for (int i = 0; i < STAGES; i++) {
                mbarrier_init(&shared.q_full[i], 1 + WARP);
                mbarrier_init(&shared.q_empty[i], 4 * CONSUMERS);
            }
            mbarrier_init(&shared.dq_full, 4 * CONSUMERS);
            mbarrier_init(&shared.dq_empty, 1);
            mbarrier_init_fence();
        }
        __syncthreads();
        if (threadIdx.x < GROUP_THREADS) {
            registers_lower<40>();
            if (threadIdx.x < WARP)
                load_tiles<Tile>(shared, maps, args);
            else if (threadIdx.x == WARP)
                send_dq<Tile>(shared, args);
        } else {
            registers_raise<232>();
            differentiate<Tile>(shared, maps, args);
        }
    }
}

// dQ from its sums: scaled, rounded, in dqkv's layout. A block per tile.
template <class Tile>
__global__ void __launch_bounds__(CONSUMERS* GROUP_THREADS)
    attention_dq_sm90_kernel(__nv_bfloat16* dqkv, const float* sums, AttentionShape s) {
    constexpr int D = Tile::D, BQ = Tile::BQ, PITCH = D + 8;  // in shared memory: rows start in different banks
    struct Shared {
        alignas(16) __nv_bfloat16 tile[BQ * PITCH];
    };
    auto& shared = shared_as<Shared>();
    const auto [tile, h, b] = attention_block(ceil_div(s.T, BQ), s.NH);
    const int t = static_cast<int>(threadIdx.x), group = t / GROUP_THREADS, thread = t % GROUP_THREADS;
    const float* from = sums + static_cast<int64_t>(blockIdx.x) * BQ * D;
    const int row = (Tile::BLOCKS == 1 ? 0 : 64 * group) + thread / WARP * 16 + thread % WARP / 4;
    const int column = (Tile::HALVES == 1 ? 0 : 64 * group) + thread % 4 * 2;
#pragma unroll
    for (int c = 0; c < 8; c++) {
        const float4 x = *reinterpret_cast<const float4*>(from + dq_offset(group, c, thread));
        __nv_bfloat16* to = shared.tile + row * PITCH + column + 8 * c;
        *reinterpret_cast<uint32_t*>(to) = pack_bf16(x.x * s.scale, x.y * s.scale);
        *reinterpret_cast<uint32_t*>(to + 8 * PITCH) = pack_bf16(x.z * s.scale, x.w * s.scale);
    }
    __syncthreads();
    constexpr int PACKS = D / 8;
    for (int i = t; i < BQ * PACKS; i += CONSUMERS * GROUP_THREADS) {
        const int q = tile * BQ + i / PACKS;
        if (q < s.T)
            store_pack(dqkv + s.query(b, h) + q * s.stride() + i % PACKS * 8,
                       load_pack(shared.tile + i / PACKS * PITCH + i % PACKS * 8));
    }
}

template <class Tile>
void backward(__nv_bfloat16* dqkv, void* scratch, const __nv_bfloat16* dout, const __nv_bfloat16* qkv, const float* lse,
              const float* delta, const AttentionShape& s, cudaStream_t stream) {
    constexpr int BQ = Tile::BQ, D = Tile::D;
    const int64_t tiles = s.row(s.B, 0) / s.T * ceil_div(s.T, BQ);
    float* dq = static_cast<float*>(scratch);
    unsigned* turns = reinterpret_cast<unsigned*>(dq + tiles * BQ * D);
    set_zero(turns, static_cast<size_t>(tiles) * sizeof(unsigned), stream);
    AttentionShape keys = s;
    keys.NH = s.NKV;
    const BackwardMaps maps = {attention_map(qkv, s.stride(), s, BK), attention_map(qkv, s.stride(), s, BQ),
                               attention_map(dout, s.out_stride(), s, BQ), attention_map(dqkv, s.stride(), s, 64)};
    const BackwardArgs args = {lse, delta, dq, turns, attention_work(BK, keys, false), s};
    const int blocks = args.work.count() < multiprocessors() ? args.work.count() : multiprocessors();
    MOVES(
        "attention_backward",
        {reads(qkv, s.qkv_count()), reads(dout, s.out_count()), reads(lse, s.row_count()), reads(delta, s.row_count()),
         updates(turns, tiles), writes(dqkv, 2 * s.key_count()), writes(dq, tiles * BQ * D)},
        5 * s.product_flops());
    launch_together(attention_backward_sm90_kernel<Tile>, dim3(static_cast<unsigned>(blocks)), dim3(THREADS),
                    sizeof(typename Tile::Shared), stream, maps, args);
    MOVES("attention_dq", {reads(dq, tiles * BQ * D), writes(dqkv, s.out_count())});
    launch(attention_dq_sm90_kernel<Tile>, dim3(static_cast<unsigned>(tiles)), dim3(CONSUMERS * GROUP_THREADS),
           static_cast<size_t>(BQ * (D + 8) * 2), stream, dqkv, dq, s);
}

}  // namespace

size_t attention_sm90_scratch_bytes(const AttentionShape& s) {
    const int BQ = s.HS == 64 ? 128 : 64;
    const int64_t tiles = static_cast<int64_t>(s.B) * s.NH * ceil_div(s.T, BQ);
    return static_cast<size_t>(tiles * (BQ * s.HS * 4 + 4));
}

void attention_backward_sm90(__nv_bfloat16* dqkv, void* scratch, const __nv_bfloat16* dout, const __nv_bfloat16* qkv,
                             const float* lse, const float* delta, AttentionShape s, cudaStream_t stream) {
    if (s.HS == 64)
        backward<BackwardTile<64, 128>>(dqkv, scratch, dout, qkv, lse, delta, s, stream);
    else
        backward<BackwardTile<128, 64>>(dqkv, scratch, dout, qkv, lse, delta, s, stream);
}

#endif
