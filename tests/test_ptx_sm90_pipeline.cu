// Hopper's instructions together, as real kernels use them: a producer warp that loads by TMA, warpgroups that multiply
// and store, and the two products of attention. Against float64, on both machines.
#include "schedule.h"
#include "test_sm90.h"

namespace {

using bf16 = __nv_bfloat16;

// Where element (row, column) of a tile with rows of 128 bytes and swizzle b128 lies, in bytes: piece (16 bytes) number
// p of row r stands at p ^ r%8.
__device__ __forceinline__ int b128_byte(int row, int column) {
    return row * 128 + ((column / 8) ^ (row % 8)) * 16 + column % 8 * 2;
}

// ---------------------------------------------------------------------------------------------------------------------
// C = A B^T: 128 x 128 tiles by a block of three warpgroups, K in steps of 64 through a ring of three stages.

constexpr int STAGES = 3, BM = 128, BN = 128, BK = 64, HALF = 64;
struct GemmShared {
    alignas(1024) bf16 a[STAGES][BM * BK];
    alignas(1024) bf16 b[STAGES][BN * BK];
    alignas(1024) bf16 c[2][2][HALF * HALF];  // (warpgroup, half of the columns)
    uint64_t full[STAGES], empty[STAGES];
};

__global__ void __launch_bounds__(384, 1)
    gemm_kernel(const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap b_map,
                const __grid_constant__ TensorMap c_map, int steps) {
    GemmShared& shared = shared_as<GemmShared>();
    const int t = static_cast<int>(threadIdx.x), group = t / 128 - 1, m0 = static_cast<int>(blockIdx.x) * BM,
              n0 = static_cast<int>(blockIdx.y) * BN;
    if (t == 0) {
        for (int s = 0; s < STAGES; s++) {
            mbarrier_init(&shared.full[s], 1);
            mbarrier_init(&shared.empty[s], 2);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    if (group < 0) {
        registers_lower<24>();
        if (t == 0) {
            for (int k = 0; k < steps; k++) {
                const int s = k % STAGES;
                mbarrier_wait(&shared.empty[s], static_cast<unsigned>(k / STAGES % 2) ^ 1);
                mbarrier_arrive_expect(&shared.full[s], (BM + BN) * BK * 2);
                tma_load_2d(shared.a[s], a_map, &shared.full[s], k * BK, m0);
                tma_load_2d(shared.b[s], b_map, &shared.full[s], k * BK, n0);
            }
        }
    } else {
        registers_raise<240>();
        float d[BN / 2];
        for (int k = 0; k < steps; k++) {
            const int s = k % STAGES;
            mbarrier_wait(&shared.full[s], static_cast<unsigned>(k / STAGES % 2));
            const uint64_t a = wgmma_descriptor(shared.a[s] + group * HALF * BK, Swizzle::b128, 16, 1024);
            const uint64_t b = wgmma_descriptor(shared.b[s], Swizzle::b128, 16, 1024);
            wgmma_hold(d);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < BK / 16; i++)
                wgmma_ss<BN>(d, wgmma_advance(a, static_cast<unsigned>(32 * i)),
                             wgmma_advance(b, static_cast<unsigned>(32 * i)), k > 0 || i > 0);
            wgmma_commit();
            wgmma_wait<1>();  // the step before is over
            if (k > 0 && t % 128 == 0) mbarrier_arrive(&shared.empty[(k - 1) % STAGES]);
        }
        wgmma_wait<0>();
        wgmma_hold(d);
        const int row = t % 128 / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
#pragma unroll
        for (int j = 0; j < BN / 8; j++) {
            auto* tile = reinterpret_cast<unsigned char*>(shared.c[group][j / 8]);
#pragma unroll
            for (int i = 0; i < 2; i++)
                *reinterpret_cast<uint32_t*>(tile + b128_byte(row + 8 * i, j % 8 * 8 + column)) =
                    pack_bf16(d[4 * j + 2 * i], d[4 * j + 2 * i + 1]);
        }
        fence_proxy_async();
        named_barrier_sync(1 + group, 128);
        if (t % 128 == 0) {
            for (int half = 0; half < 2; half++)
                tma_store_2d(c_map, shared.c[group][half], n0 + half * HALF, m0 + group * HALF);
            tma_store_commit();
            tma_store_wait_read<0>();
        }
    }
}

TensorMap matrix_map(const bf16* p, int rows, int columns, int stride, uint32_t box_rows) {
    const uint64_t size[2] = {static_cast<uint64_t>(columns), static_cast<uint64_t>(rows)},
                   strides[1] = {static_cast<uint64_t>(stride) * 2};
    const uint32_t box[2] = {64, box_rows};
    return make_tensor_map(p, 2, size, strides, box, Swizzle::b128);
}

void test_gemm(int M, int N, int K) {
    CAPTURE(M, N, K);
    Random random(static_cast<uint64_t>(M * N + K));
    const int stride = (K + 7) / 8 * 8, pitch = (N + 7) / 8 * 8 + 8;
    const std::vector<bf16> A = random.normals<bf16>(static_cast<size_t>(M * stride)),
                            B = random.normals<bf16>(static_cast<size_t>(N * stride));
    Device<bf16> a(A), b(B), c(static_cast<size_t>(M * pitch));
    c.poison();
    launch(gemm_kernel, dim3(static_cast<unsigned>(ceil_div(M, BM)), static_cast<unsigned>(ceil_div(N, BN))), 384,
           sizeof(GemmShared), nullptr, matrix_map(a.data, M, K, stride, BM), matrix_map(b.data, N, K, stride, BN),
           matrix_map(c.data, M, N, pitch, HALF), ceil_div(K, BK));
    const std::vector<double> got = to_double(c.read()), x = to_double(A), y = to_double(B);
    double worst = 0;
    int spilled = 0;
    for (int m = 0; m < M; m++) {
        for (int n = 0; n < pitch; n++) {
            const double value = got[static_cast<size_t>(m * pitch + n)];
            if (n >= N) {
                spilled += !std::isnan(value);  // the poison beyond the rows stays
                continue;
            }
            double want = 0, magnitude = 0;
            for (int k = 0; k < K; k++) {
                const double product = x[static_cast<size_t>(m * stride + k)] * y[static_cast<size_t>(n * stride + k)];
                want += product;
                magnitude += std::fabs(product);
            }
            // Sums as in test_ptx_sm90.cu, then rounding to bf16.
            const double error = std::fabs(value - want) / (K * 0x1p-23 * magnitude + 0x1p-8 * std::fabs(want));
            worst = error <= worst ? worst : std::isnan(error) ? INFINITY : error;
        }
    }
    CHECK(worst <= 1);
    CHECK(spilled == 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Attention's products by one warpgroup: S = Q K^T, P = scale S in registers, O = P V with V as it lies in memory.

constexpr int KEYS = 128;
template <int HS>
struct AttentionShared {
    alignas(1024) bf16 q[HS / 64][64 * 64];
    alignas(1024) bf16 k[HS / 64][KEYS * 64];
    alignas(1024) bf16 v[HS / 64][KEYS * 64];
    uint64_t barrier;
};

// o (64,HS); q (64,HS), k and v (KEYS,HS), as maps of boxes 64 columns wide
template <int HS>
__global__ void __launch_bounds__(128, 1)
    two_products_kernel(float* o, const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
                        const __grid_constant__ TensorMap v_map, float scale) {
    auto& shared = shared_as<AttentionShared<HS>>();
    const int t = static_cast<int>(threadIdx.x);
    if (t == 0) {
        mbarrier_init(&shared.barrier, 1);
        mbarrier_init_fence();
        mbarrier_arrive_expect(&shared.barrier, (64 + 2 * KEYS) * HS * 2);
        for (int half = 0; half < HS / 64; half++) {
            tma_load_2d(shared.q[half], q_map, &shared.barrier, 64 * half, 0);
            tma_load_2d(shared.k[half], k_map, &shared.barrier, 64 * half, 0);
            tma_load_2d(shared.v[half], v_map, &shared.barrier, 64 * half, 0);
        }
    }
    __syncthreads();
    mbarrier_wait(&shared.barrier, 0);
    float s[KEYS / 2], sum[HS / 2];
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < HS / 16; i++) {  // K-major: 16 k are 32 bytes, 64 k a half
        const uint64_t q = wgmma_descriptor(shared.q[i / 4], Swizzle::b128, 16, 1024);
        const uint64_t k = wgmma_descriptor(shared.k[i / 4], Swizzle::b128, 16, 1024);
        wgmma_ss<KEYS>(s, wgmma_advance(q, static_cast<unsigned>(i % 4 * 32)),
                       wgmma_advance(k, static_cast<unsigned>(i % 4 * 32)), i > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(s);
    uint32_t p[KEYS / 16][4];
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++)
#pragma unroll
        for (int r = 0; r < 4; r++) p[i][r] = pack_bf16(s[8 * i + 2 * r] * scale, s[8 * i + 2 * r + 1] * scale);
    const uint64_t v =
        wgmma_descriptor(shared.v[0], Swizzle::b128, KEYS * 128, 1024);  // MN-major: halves KEYS*128 apart
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++)
        wgmma_rs<HS, true>(sum, p[i], wgmma_advance(v, static_cast<unsigned>(i * 2048)), i > 0);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(sum);
    const int row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
#pragma unroll
    for (int i = 0; i < HS / 2; i++) o[(row + i / 2 % 2 * 8) * HS + i / 4 * 8 + column + i % 2] = sum[i];
}

template <int HS>
void test_two_products() {
    Random random(HS);
    const std::vector<bf16> Q = random.normals<bf16>(64 * HS), K = random.normals<bf16>(KEYS * HS),
                            V = random.normals<bf16>(KEYS * HS);
    Device<bf16> q(Q), k(K), v(V);
    Device<float> o(64 * HS);
    const float scale = 0.125f;
    launch(two_products_kernel<HS>, 1, 128, sizeof(AttentionShared<HS>), nullptr, o.data,
           matrix_map(q.data, 64, HS, HS, 64), matrix_map(k.data, KEYS, HS, HS, KEYS),
           matrix_map(v.data, KEYS, HS, HS, KEYS), scale);
    const std::vector<float> got = o.read();
    const std::vector<double> x = to_double(Q), y = to_double(K), z = to_double(V);
    double worst = 0;
    for (size_t m = 0; m < 64; m++) {
        std::vector<double> want(HS), magnitude(HS);
        for (size_t n = 0; n < KEYS; n++) {
            double p = 0;
            for (size_t i = 0; i < HS; i++) p += x[m * HS + i] * y[n * HS + i] * 0.125;
            for (size_t i = 0; i < HS; i++) {
                want[i] += p * z[n * HS + i];
                magnitude[i] += std::fabs(p * z[n * HS + i]);
            }
        }
        for (size_t i = 0; i < HS; i++) {
            const double error = std::fabs(static_cast<double>(got[m * HS + i]) - want[i]) / magnitude[i];
            worst = error <= worst ? worst : std::isnan(error) ? INFINITY : error;
        }
    }
    CHECK(worst <= 0x1p-8);  // P rounded to bf16, at most 2^-9 of it; the fp32 sums are far below
}

// Block b adds the floats b, b+1, ... to `sums` when b blocks have done so; the first stores them. Sums of floats that
// are not exact depend on the order.
constexpr int PIECE = 512;
struct PieceShared {
    alignas(16) float piece[PIECE];
};
__global__ void ordered_sum_kernel(float* sums, unsigned* turn) {
    auto& shared = shared_as<PieceShared>();
    const int b = static_cast<int>(blockIdx.x);
    for (int i = static_cast<int>(threadIdx.x); i < PIECE; i += static_cast<int>(blockDim.x))
        shared.piece[i] = 1.0f / static_cast<float>(1 + b + i);
    fence_proxy_async();
    __syncthreads();
    if (threadIdx.x != 0) return;
    flag_wait(turn, blockIdx.x);
    if (b == 0)
        bulk_store(sums, shared.piece, sizeof shared.piece);
    else
        bulk_add(sums, shared.piece, sizeof shared.piece);
    tma_store_commit();
    tma_store_wait<0>();
    flag_raise(turn);
}

}  // namespace

TEST_CASE("bulk copies store and add, and flags order blocks", "[ptx][sm90]") {
    if (!has_hopper()) SKIP_TEST(NO_HOPPER);
    for (const char* seed : {"1", "2", "3"}) {
        with_seed(seed, [] {
            const int blocks = multiprocessors() < 8 ? multiprocessors() : 8;  // all there at once
            Device<float> sums(PIECE);
            Device<unsigned> turn(std::vector<unsigned>{0});
            sums.poison();
            launch(ordered_sum_kernel, blocks, 64, sizeof(PieceShared), nullptr, sums.data, turn.data);
            const std::vector<float> got = sums.read();
            for (int i = 0; i < PIECE; i++) {
                float want = 1.0f / static_cast<float>(1 + i);
                for (int b = 1; b < blocks; b++) want += 1.0f / static_cast<float>(1 + b + i);
                CHECK(got[static_cast<size_t>(i)] == want);
            }
        });
    }
}

TEST_CASE("a producer warp and two warpgroups multiply matrices", "[ptx][sm90]") {
    if (!has_hopper()) SKIP_TEST(NO_HOPPER);
    test_gemm(128, 128, 64);
    test_gemm(256, 128, 512);
    for (const char* seed : {"1", "2", "3", "4"}) with_seed(seed, [] { test_gemm(200, 150, 328); });  // nothing divides
}

TEST_CASE("scores and their product with values, as attention forms them", "[ptx][sm90]") {
    if (!has_hopper()) SKIP_TEST(NO_HOPPER);
    test_two_products<64>();
    for (const char* seed : {"1", "2", "3", "4"}) with_seed(seed, test_two_products<128>);
}
