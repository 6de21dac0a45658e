// Hopper's instructions against the tables and figures of the PTX ISA, written out here. On the CPU machine this tests
// the twins, on a GPU of compute capability 9.0 the wrappers.
#include "test.h"

#include <algorithm>
#include <cstring>
#include <ptx_sm90.cuh>

#include "schedule.h"
#include "test_sm90.h"

namespace {

// ---------------------------------------------------------------------------------------------------------------------
// mbarrier

constexpr int STAGES = 2, ROUNDS = 7;
struct PipeShared {
    float tile[STAGES][32];
    uint64_t full[STAGES], empty[STAGES];
};

// A warp produces 32 floats a round, four warps consume them: sums (4 warps,ROUNDS), through two stages.
__global__ void pipeline_kernel(float* sums) {
    PipeShared& shared = shared_as<PipeShared>();
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            mbarrier_init(&shared.full[s], 32);
            mbarrier_init(&shared.empty[s], 4);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    for (int round = 0; round < ROUNDS; round++) {
        const int s = round % STAGES;
        const unsigned parity = static_cast<unsigned>(round / STAGES % 2);
        if (warp == 4) {
            mbarrier_wait(&shared.empty[s], parity ^ 1);  // a fresh barrier's phase before the first counts as ended
            shared.tile[s][lane] = static_cast<float>(1000 * static_cast<int>(blockIdx.x) + 100 * round + lane);
            mbarrier_arrive(&shared.full[s]);
        } else {
            mbarrier_wait(&shared.full[s], parity);
            float sum = 0.0f;
            for (int i = 0; i < 32; i++) sum += shared.tile[s][i] * static_cast<float>(warp + 1);
            __syncwarp();
            if (lane == 0) {
                mbarrier_arrive(&shared.empty[s]);
                sums[(static_cast<int>(blockIdx.x) * 4 + warp) * ROUNDS + round] = sum;
            }
        }
    }
}

struct HandShared {
    float value[96];
};
// Warps 0 and 1 sync on barrier 3 for 64 threads; then warp 2 waits on barrier 15 to which these only arrive. out (96)
__global__ void named_barrier_kernel(float* out) {
    float* value = shared_as<HandShared>().value;
    const int i = static_cast<int>(threadIdx.x);
    for (int round = 0; round < 3; round++) {
        if (i < 64) {
            value[i] = static_cast<float>(i + round);
            named_barrier_sync(3, 64);
            const float other = value[63 - i];
            named_barrier_sync(3, 64);
            value[i] = other;
            named_barrier_arrive(15, 96);
        } else {
            named_barrier_sync(15, 96);
            out[i] = value[i - 64] + value[i - 32];
        }
        __syncthreads();
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// TMA

struct BoxShared {
    alignas(1024) uint32_t tile[4096];
    uint64_t barrier;
};
struct Corner {
    int c[4];
};

// One box of `bytes` to shared memory, then as it lies there to out.
template <int RANK>
__global__ void load_kernel(uint32_t* out, const __grid_constant__ TensorMap map, Corner corner, int bytes) {
    BoxShared& shared = shared_as<BoxShared>();
    if (threadIdx.x == 0) {
        tma_prefetch(map);
        mbarrier_init(&shared.barrier, 1);
        mbarrier_init_fence();
        const int* c = corner.c;
        mbarrier_arrive_expect(&shared.barrier, static_cast<unsigned>(bytes));
        if constexpr (RANK == 2) tma_load_2d(shared.tile, map, &shared.barrier, c[0], c[1]);
        if constexpr (RANK == 3) tma_load_3d(shared.tile, map, &shared.barrier, c[0], c[1], c[2]);
        if constexpr (RANK == 4) tma_load_4d(shared.tile, map, &shared.barrier, c[0], c[1], c[2], c[3]);
    }
    __syncthreads();
    mbarrier_wait(&shared.barrier, 0);
    for (int i = static_cast<int>(threadIdx.x); i < bytes / 4; i += static_cast<int>(blockDim.x))
        out[i] = shared.tile[i];
}
// `in`, as it shall lie in shared memory, to a box of the tensor.
template <int RANK>
__global__ void store_kernel(const uint32_t* in, const __grid_constant__ TensorMap map, Corner corner, int bytes) {
    BoxShared& shared = shared_as<BoxShared>();
    for (int i = static_cast<int>(threadIdx.x); i < bytes / 4; i += static_cast<int>(blockDim.x))
        shared.tile[i] = in[i];
    fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        const int* c = corner.c;
        if constexpr (RANK == 2) tma_store_2d(map, shared.tile, c[0], c[1]);
        if constexpr (RANK == 3) tma_store_3d(map, shared.tile, c[0], c[1], c[2]);
        if constexpr (RANK == 4) tma_store_4d(map, shared.tile, c[0], c[1], c[2], c[3]);
        tma_store_commit();
        tma_store_wait_read<0>();
        tma_store_wait<0>();
    }
}

// A tensor of T, rows padded beyond size[0], and a box in it.
template <class T, int RANK>
void test_box(Swizzle swizzle, const uint64_t (&size)[RANK], const uint32_t (&box)[RANK], Corner corner) {
    uint64_t stride[RANK - 1];  // bytes
    stride[0] = (size[0] * sizeof(T) + 15) / 16 * 16 + 16;
    for (int i = 1; i < RANK - 1; i++) stride[i] = stride[i - 1] * size[i] + 32;
    const size_t count = stride[RANK - 2] * size[RANK - 1] / sizeof(T);
    std::vector<T> tensor(count);
    for (size_t i = 0; i < count; i++) tensor[i] = from_float<T>(static_cast<float>(i % 251) + 1);
    Device<T> tensor_d(tensor);
    const Element element = sizeof(T) == 2 ? Element::bf16 : Element::fp32;
    const TensorMap map = make_tensor_map(tensor_d.data, RANK, size, stride, box, swizzle, element);
    size_t elements = 1;
    for (uint32_t b : box) elements *= b;
    const int bytes = static_cast<int>(elements * sizeof(T));

    // For each element of the box, in order: its index in the tensor, or none.
    std::vector<int64_t> index(elements);
    for (size_t e = 0; e < elements; e++) {
        int64_t at = 0;
        size_t rest = e;
        for (int d = 0; d < RANK; d++) {
            const int64_t x = corner.c[d] + static_cast<int64_t>(rest % box[d]);
            rest /= box[d];
            if (x < 0 || x >= static_cast<int64_t>(size[d])) at = -1;
            if (at >= 0) at += x * static_cast<int64_t>(d == 0 ? sizeof(T) : stride[d - 1]);
        }
        index[e] = at < 0 ? -1 : at / static_cast<int64_t>(sizeof(T));
    }
    std::vector<T> want(elements), got(elements);
    for (size_t e = 0; e < elements; e++)
        want[swizzled(swizzle, e * sizeof(T)) / sizeof(T)] = index[e] < 0 ? from_float<T>(0.0f) : tensor[index[e]];
    Device<uint32_t> out(static_cast<size_t>(bytes) / 4);
    launch(load_kernel<RANK>, 1, 64, sizeof(BoxShared), nullptr, out.data, map, corner, bytes);
    const std::vector<uint32_t> raw = out.read();
    memcpy(static_cast<void*>(got.data()), raw.data(), static_cast<size_t>(bytes));
    CHECK(to_double(got) == to_double(want));

    // Back again, with other values: only what lies inside changes.
    std::vector<uint32_t> tile(static_cast<size_t>(bytes) / 4);
    std::vector<T> after = tensor, image(elements);
    for (size_t e = 0; e < elements; e++) {
        const T x = from_float<T>(-static_cast<float>(e % 113) - 1);
        image[swizzled(swizzle, e * sizeof(T)) / sizeof(T)] = x;
        if (index[e] >= 0) after[index[e]] = x;
    }
    memcpy(tile.data(), image.data(), static_cast<size_t>(bytes));
    Device<uint32_t> in(tile);
    launch(store_kernel<RANK>, 1, 64, sizeof(BoxShared), nullptr, in.data, map, corner, bytes);
    CHECK(to_double(tensor_d.read()) == to_double(after));
}

// ---------------------------------------------------------------------------------------------------------------------
// wgmma

constexpr int K = 64, STEPS = K / 16;
struct Operands {  // how the images in shared memory are to be read
    Swizzle a_swizzle, b_swizzle;
    unsigned a_leading, a_stride, b_leading, b_stride;
    int a_step[STEPS], b_step[STEPS];  // bytes from the first 16 k to the others
    int restart;                       // the step that overwrites D; -1: none
};
struct ProductShared {
    alignas(1024) uint32_t a[64 * K / 2];
    alignas(1024) uint32_t b[256 * K / 2];
};

// d (128 threads,N/2) = or += A B; a_registers (STEPS,128,4) if A comes in registers
template <int N, bool A_TRANSPOSED, bool B_TRANSPOSED, bool REGISTERS>
__global__ void __launch_bounds__(128) product_kernel(float* out, const uint32_t* a_image, const uint32_t* b_image,
                                                      const uint32_t* a_registers, Operands o, int b_words) {
    ProductShared& shared = shared_as<ProductShared>();
    const int t = static_cast<int>(threadIdx.x);
    for (int i = t; i < 64 * K / 2; i += 128) shared.a[i] = a_image[i];
    for (int i = t; i < b_words; i += 128) shared.b[i] = b_image[i];
    fence_proxy_async();
    __syncthreads();
    float d[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) d[i] = out[t * (N / 2) + i];
    uint32_t a_regs[STEPS][4];
#pragma unroll
    for (int k = 0; k < STEPS; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) a_regs[k][i] = REGISTERS ? a_registers[(k * 128 + t) * 4 + i] : 0;
    const uint64_t a = wgmma_descriptor(shared.a, o.a_swizzle, o.a_leading, o.a_stride);
    const uint64_t b = wgmma_descriptor(shared.b, o.b_swizzle, o.b_leading, o.b_stride);
    wgmma_hold(d);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        const uint64_t b_k = wgmma_advance(b, static_cast<unsigned>(o.b_step[k]));
        if constexpr (REGISTERS)
            wgmma_rs<N, B_TRANSPOSED>(d, a_regs[k], b_k, k != o.restart);
        else
            wgmma_ss<N, A_TRANSPOSED, B_TRANSPOSED>(d, wgmma_advance(a, static_cast<unsigned>(o.a_step[k])), b_k,
                                                    k != o.restart);
        if (k == 1) wgmma_commit();  // two groups
    }
    wgmma_commit();
    wgmma_wait<1>();  // of the first group: d is still on its way
    wgmma_wait<0>();
    wgmma_hold(d);
#pragma unroll
    for (int i = 0; i < N / 2; i++) out[t * (N / 2) + i] = d[i];
}

template <int N, bool A_TRANSPOSED, bool B_TRANSPOSED, bool REGISTERS>
void test_product(Swizzle a_swizzle, Swizzle b_swizzle, bool accumulate, unsigned spread = 1, int restart = 0) {
    CAPTURE(N, A_TRANSPOSED, B_TRANSPOSED, REGISTERS, static_cast<int>(a_swizzle), static_cast<int>(b_swizzle),
            accumulate, spread, restart);
    Random random(static_cast<uint64_t>(N) * 8 + static_cast<uint64_t>(a_swizzle) * 3 +
                  static_cast<uint64_t>(b_swizzle));
    const std::vector<__nv_bfloat16> A = random.normals<__nv_bfloat16>(64 * K),
                                     B = random.normals<__nv_bfloat16>(N * K);
    const OperandImage a(A, 64, K, a_swizzle, A_TRANSPOSED), b(B, N, K, b_swizzle, B_TRANSPOSED, spread);
    Operands o{a_swizzle, b_swizzle, a.leading, a.stride, b.leading, b.stride, {}, {}, accumulate ? -1 : restart};
    for (int k = 0; k < STEPS; k++) {
        o.a_step[k] = a.step(k);
        o.b_step[k] = b.step(k);
    }
    std::vector<uint32_t> registers(STEPS * 128 * 4);
    for (int k = 0; k < STEPS; k++)
        for (int t = 0; t < 128; t++)
            for (int i = 0; i < 8; i++)
                registers[static_cast<size_t>((k * 128 + t) * 4 + i / 2)] |=
                    static_cast<uint32_t>(
                        __bfloat16_as_ushort(A[static_cast<size_t>(a_row(t, i) * K + 16 * k + a_column(t, i))]))
                    << i % 2 * 16;
    std::vector<float> d(128 * N / 2);
    for (float& x : d) x = accumulate ? static_cast<float>(random.normal()) : NAN;
    Device<float> out(d);
    Device<uint32_t> a_d(a.words), b_d(b.words), registers_d(registers);
    launch(product_kernel<N, A_TRANSPOSED, B_TRANSPOSED, REGISTERS>, 1, 128, sizeof(ProductShared), nullptr, out.data,
           a_d.data, b_d.data, registers_d.data, o, static_cast<int>(b.words.size()));
    const std::vector<float> got = out.read();
    double worst = 0;
    for (int t = 0; t < 128; t++) {
        for (int i = 0; i < N / 2; i++) {
            const size_t at = static_cast<size_t>(t * (N / 2) + i);
            double want = accumulate ? static_cast<double>(d[at]) : 0, magnitude = std::fabs(want);
            for (int k = accumulate ? 0 : 16 * restart; k < K; k++) {
                const double x = to_float(A[static_cast<size_t>(d_row(t, i) * K + k)]),
                             y = to_float(B[static_cast<size_t>(d_column(t, i) * K + k)]);
                want += x * y;
                magnitude += std::fabs(x * y);
            }
            const double error = std::fabs(static_cast<double>(got[at]) - want) / magnitude;
            worst = error <= worst ? worst : error;  // NaN counts
            if (std::isnan(error)) worst = INFINITY;
        }
    }
    // bf16 products are exact in fp32. Tensor cores cut off rather than round: at most 2^-23 of the partial sum each
    // time a product is added, 64 times at most.
    CHECK(worst <= K * 0x1p-23);
}

}  // namespace

TEST_CASE("mbarriers hand tiles from a warp to others", "[ptx][sm90]") {
    if (!has_hopper()) SKIP_TEST(NO_HOPPER);
    Device<float> sums(2 * 4 * ROUNDS);
    std::vector<float> want;
    for (int b = 0; b < 2; b++)
        for (int w = 0; w < 4; w++)
            for (int r = 0; r < ROUNDS; r++)
                want.push_back(static_cast<float>((32 * (1000 * b + 100 * r) + 496) * (w + 1)));
    for (const char* seed : {static_cast<const char*>(nullptr), "1", "2", "3", "4", "5", "6", "7", "8"}) {
        sums.poison();
        with_seed(seed, [&] { launch(pipeline_kernel, 2, 160, sizeof(PipeShared), nullptr, sums.data); });
        CHECK(sums.read() == want);
    }
}

TEST_CASE("named barriers hold some of the warps", "[ptx][sm90]") {
    if (!has_hopper()) SKIP_TEST(NO_HOPPER);
    Device<float> out(96);
    launch(named_barrier_kernel, 1, 96, sizeof(HandShared), nullptr, out.data);
    const std::vector<float> got = out.read();
    for (int i = 64; i < 96; i++)
        CHECK(got[static_cast<size_t>(i)] == static_cast<float>(63 - (i - 64) + 31 - (i - 64) + 4));
}

TEST_CASE("TMA moves boxes, with every swizzle, inside and outside the tensor", "[ptx][sm90]") {
    if (!has_hopper()) SKIP_TEST(NO_HOPPER);
    using bf16 = __nv_bfloat16;
    for (int mode = 0; mode < 4; mode++) {
        const auto swizzle = static_cast<Swizzle>(mode);
        const uint32_t wide = mode ? 8u << mode : 40u;  // bf16 in a row of the box
        CAPTURE(mode);
        test_box<bf16, 2>(swizzle, {200, 50}, {wide, 24}, {{64, 8, 0, 0}});
        test_box<bf16, 2>(swizzle, {200, 50}, {wide, 24}, {{195, 40, 0, 0}});  // beyond both ends
        test_box<bf16, 2>(swizzle, {200, 50}, {wide, 3}, {{-3, -1, 0, 0}});    // before both
        test_box<bf16, 2>(swizzle, {200, 50}, {wide, 16}, {{0, 50, 0, 0}});    // wholly outside
        test_box<bf16, 3>(swizzle, {100, 9, 6}, {wide, 5, 3}, {{96, 6, 4, 0}});
        test_box<bf16, 4>(swizzle, {72, 5, 7, 3}, {wide, 1, 8, 2}, {{8, 3, -2, 1}});
        test_box<float, 2>(swizzle, {77, 20}, {wide / 2, 8}, {{70, 3, 0, 0}});
        test_box<float, 4>(swizzle, {40, 4, 4, 4}, {wide / 2, 2, 3, 2}, {{-4, 3, 2, -1}});
    }
    test_box<float, 2>(Swizzle::none, {300, 8}, {256, 4}, {{17, 5, 0, 0}});  // the widest row
}

TEST_CASE("wgmma follows the PTX figures, with every swizzle and both majors", "[ptx][sm90]") {
    if (!has_hopper()) SKIP_TEST(NO_HOPPER);
    for (int mode = 0; mode < 4; mode++) {
        const auto s = static_cast<Swizzle>(mode), other = static_cast<Swizzle>((mode + 1) % 4);
        test_product<64, false, false, false>(s, s, false);
        test_product<64, true, false, false>(s, other, true);
        test_product<64, false, true, false>(s, other, false);
        test_product<64, true, true, false>(s, s, true);
        test_product<64, false, false, true>(s, s, true);
        test_product<64, false, true, true>(s, s, false);
        test_product<64, false, false, false>(s, s, false, 2);
        test_product<64, false, true, true>(s, s, false, 2);
    }
    for (int restart : {1, 3}) test_product<64, false, false, false>(Swizzle::b128, Swizzle::b128, false, 1, restart);
    const Swizzle s = Swizzle::b128;
    test_product<16, false, false, false>(s, s, false);
    test_product<32, false, true, false>(s, s, true);
    test_product<96, false, false, true>(s, s, false);
    test_product<128, true, false, false>(s, s, true);
    test_product<176, false, true, true>(s, s, true);
    test_product<176, false, false, false>(s, s, false);
    test_product<192, false, true, false>(s, s, false);
    test_product<256, false, false, true>(s, s, false);
    test_product<256, true, true, false>(s, s, true);
}
