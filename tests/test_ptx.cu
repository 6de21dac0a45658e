// PTX wrappers against the layout tables of the PTX ISA, written out here per lane and register. On the CPU machine
// this tests the twins, on a GPU the wrappers.
#include "test.h"

#include <cstring>
#include <ptx.cuh>

namespace {

// "Matrix Fragments for mma.m16n8k16": element i of a lane's 8 elements of A, 4 of B, 4 of D; i counts bf16, two to a
// register. groupID = lane >> 2, threadID_in_group = lane % 4.
int a_row(int lane, int i) {
    return (lane >> 2) + ((i >= 2 && i < 4) || i >= 6 ? 8 : 0);
}
int a_column(int lane, int i) {
    return (lane % 4) * 2 + (i & 1) + (i >= 4 ? 8 : 0);
}
int b_row(int lane, int i) {
    return (lane % 4) * 2 + (i & 1) + (i >= 2 ? 8 : 0);
}
int b_column(int lane) {
    return lane >> 2;
}
int d_row(int lane, int i) {
    return (lane >> 2) + (i >= 2 ? 8 : 0);
}
int d_column(int lane, int i) {
    return (lane % 4) * 2 + (i & 1);
}

uint32_t bits_of(float x) {
    const __nv_bfloat16 rounded = __float2bfloat16_rn(x);
    unsigned short bits;
    memcpy(&bits, &rounded, 2);
    return bits;
}
// Small integers: every product and sum is exact, so a wrong place cannot hide in a tolerance.
float small(Random& random) {
    return static_cast<float>(random.below(17) - 8);
}

// a (32 lanes,MB,4), b (32,2*NB), d (32,MB,NB,4), all per-lane registers
template <int MB, int NB>
__global__ void mma_kernel(float* d, const uint32_t* a, const uint32_t* b) {
    const int lane = threadIdx.x;
    uint32_t ra[4 * MB], rb[2 * NB];
    float rd[MB][NB][4];
    for (int i = 0; i < 4 * MB; i++) ra[i] = a[lane * 4 * MB + i];
    for (int i = 0; i < 2 * NB; i++) rb[i] = b[lane * 2 * NB + i];
    for (int m = 0; m < MB; m++)
        for (int n = 0; n < NB; n++)
            for (int i = 0; i < 4; i++) rd[m][n][i] = d[((lane * MB + m) * NB + n) * 4 + i];
    mma_m16n8k16<MB, NB>(rd, ra, rb);
    for (int m = 0; m < MB; m++)
        for (int n = 0; n < NB; n++)
            for (int i = 0; i < 4; i++) d[((lane * MB + m) * NB + n) * 4 + i] = rd[m][n][i];
}

template <int MB, int NB>
void test_mma() {
    Random random(7 + MB * 100 + NB);
    std::vector<float> A(16 * MB * 16), B(16 * 8 * NB), D(16 * MB * 8 * NB);
    for (auto* v : {&A, &B, &D})
        for (float& x : *v) x = small(random);
    std::vector<uint32_t> a(32 * MB * 4), b(32 * 2 * NB);
    std::vector<float> d(32 * MB * NB * 4), want(d.size());
    for (int lane = 0; lane < 32; lane++) {
        for (int m = 0; m < MB; m++)
            for (int i = 0; i < 8; i++)
                a[(lane * MB + m) * 4 + i / 2] |= bits_of(A[(16 * m + a_row(lane, i)) * 16 + a_column(lane, i)])
                                                  << (i % 2 * 16);
        for (int n = 0; n < NB; n++)
            for (int i = 0; i < 4; i++)
                b[lane * 2 * NB + 2 * n + i / 2] |= bits_of(B[b_row(lane, i) * 8 * NB + 8 * n + b_column(lane)])
                                                    << (i % 2 * 16);
        for (int m = 0; m < MB; m++) {
            for (int n = 0; n < NB; n++) {
                for (int i = 0; i < 4; i++) {
                    const int row = 16 * m + d_row(lane, i), column = 8 * n + d_column(lane, i);
                    float sum = D[row * 8 * NB + column];
                    d[((lane * MB + m) * NB + n) * 4 + i] = sum;
                    for (int k = 0; k < 16; k++) sum += A[row * 16 + k] * B[k * 8 * NB + column];
                    want[((lane * MB + m) * NB + n) * 4 + i] = sum;
                }
            }
        }
    }
    Device<float> d_d(d);
    Device<uint32_t> a_d(a), b_d(b);
    launch(mma_kernel<MB, NB>, 1, 32, 0, nullptr, d_d.data, a_d.data, b_d.data);
    CHECK(d_d.read() == want);
}

struct Rows {
    alignas(16) uint16_t x[32][24];  // 8 columns used; the padding shows that rows may lie anywhere
};

// out (32,registers); which: 1, 2, 4 matrices, 8: two x4 in one call
__global__ void ldmatrix_kernel(uint32_t* out, const uint16_t* in, int which, bool trans) {
    Rows& shared = shared_as<Rows>();
    const int lane = threadIdx.x;
    for (int c = 0; c < 8; c++) shared.x[lane][c] = in[lane * 8 + c];
    __syncwarp();
    const uint32_t row = shared_address(shared.x[lane]);
    uint32_t r[8] = {};
    if (which == 1) {
        uint32_t one[1];
        if (trans)
            ldmatrix_x1_trans(one, row);
        else
            ldmatrix_x1(one, row);
        r[0] = one[0];
    } else if (which == 2) {
        uint32_t two[2];
        if (trans)
            ldmatrix_x2_trans(two, row);
        else
            ldmatrix_x2(two, row);
        r[0] = two[0];
        r[1] = two[1];
    } else if (which == 4) {
        uint32_t four[4];
        const uint32_t rows[1] = {row};
        if (trans)
            ldmatrix_x4_trans(four, rows);
        else
            ldmatrix_x4(four, rows);
        for (int i = 0; i < 4; i++) r[i] = four[i];
    } else {
        const uint32_t rows[2] = {row, shared_address(shared.x[31 - lane])};
        if (trans)
            ldmatrix_x4_trans(r, rows);
        else
            ldmatrix_x4(r, rows);
    }
    for (int i = 0; i < 8; i++) out[lane * 8 + i] = r[i];
}

struct CopyShared {
    alignas(16) uint32_t x[3][32][4];
    uint32_t word[32];
};

// Three groups of copies, each thread its own 16 bytes; what is seen after waiting for all but 2, 1, 0 groups.
// out (3 waits,3 groups,32,4), in (3,32,4); the third group copies only `bytes`.
__global__ void cp_async_kernel(uint32_t* out, const uint32_t* in, int bytes) {
    CopyShared& shared = shared_as<CopyShared>();
    const int lane = threadIdx.x;
    for (int g = 0; g < 3; g++) {
        cp_async_16(shared_address(shared.x[g][lane]), in + (g * 32 + lane) * 4, g == 2 ? bytes : 16);
        cp_async_commit();
    }
    for (int wait = 0; wait < 3; wait++) {
        if (wait == 0)
            cp_async_wait<2>();
        else if (wait == 1)
            cp_async_wait<1>();
        else
            cp_async_wait<0>();
        __syncwarp();
        for (int g = 0; g < 3; g++) {
            // Another lane's bytes. Groups still on their way are looked at on the CPU machine only, where it is
            // defined.
            for (int i = 0; i < 4; i++) out[((wait * 3 + g) * 32 + lane) * 4 + i] = shared.x[g][lane ^ 5][i];
        }
        __syncwarp();
    }
}

// Without any wait. stale (32,4)
__global__ void cp_async_unwaited_kernel(uint32_t* stale, const uint32_t* in) {
    CopyShared& shared = shared_as<CopyShared>();
    const int lane = threadIdx.x;
    cp_async_16(shared_address(shared.x[0][lane]), in + lane * 4);
    cp_async_commit();
    __syncthreads();
    for (int i = 0; i < 4; i++) stale[lane * 4 + i] = shared.x[0][lane][i];
}

// out (32): in (32) shifted by a word, zero in odd lanes
__global__ void cp_async_4_kernel(uint32_t* out, const uint32_t* in) {
    CopyShared& shared = shared_as<CopyShared>();
    const int lane = threadIdx.x;
    cp_async_4(shared_address(&shared.word[lane]), in + 1 + lane, lane % 2 ? 0 : 4);
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
    out[lane] = shared.word[31 - lane];
}

// out (n): 2^x; inverse (n): 1/x; packed (n): x and x/3 as bf16
__global__ void scalar_kernel(float* out, float* inverse, uint32_t* packed, const float* x, int n) {
    const int i = threadIdx.x;
    if (i < n) {
        out[i] = exp2_approx(x[i]);
        inverse[i] = reciprocal_approx(x[i]);
        packed[i] = pack_bf16(x[i], x[i] / 3.0f);
    }
}

// A CPU machine reports 0xff for bytes on their way; a GPU may show anything there.
bool on_cpu_machine() {
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
    return std::string(properties.name).find("NVIDIA") == std::string::npos;
}

}  // namespace

TEST_CASE("mma_m16n8k16 follows the PTX fragment tables", "[ptx]") {
    test_mma<1, 1>();
    test_mma<1, 4>();
    test_mma<1, 8>();
    test_mma<2, 3>();
    test_mma<2, 8>();
    test_mma<1, 16>();
}

TEST_CASE("ldmatrix follows the PTX layout, plain and transposed", "[ptx]") {
    Random random(3);
    std::vector<uint16_t> in(32 * 8);
    for (auto& x : in) x = static_cast<uint16_t>(random.bits());
    Device<uint16_t> in_d(in);
    Device<uint32_t> out(32 * 8);
    for (int which : {1, 2, 4, 8}) {
        for (bool trans : {false, true}) {
            CAPTURE(which, trans);
            launch(ldmatrix_kernel, 1, 32, sizeof(Rows), nullptr, out.data, in_d.data, which, trans);
            const std::vector<uint32_t> got = out.read();
            for (int lane = 0; lane < 32; lane++) {
                for (int m = 0; m < which; m++) {
                    // Row i of matrix m came from lane 8*m + i; of the second x4 from the lanes in reverse order.
                    auto element = [&](int row, int column) {
                        const int source = m < 4 ? 8 * m + row : 31 - (8 * (m - 4) + row);
                        return static_cast<uint32_t>(in[static_cast<size_t>(source * 8 + column)]);
                    };
                    const int r = lane / 4, c = lane % 4 * 2;
                    const uint32_t want =
                        trans ? element(c, r) | element(c + 1, r) << 16 : element(r, c) | element(r, c + 1) << 16;
                    CHECK(got[static_cast<size_t>(lane * 8 + m)] == want);
                }
            }
        }
    }
}

TEST_CASE("cp.async arrives with the wait for its group, zero-filled", "[ptx]") {
    Random random(5);
    std::vector<uint32_t> in(3 * 32 * 4);
    for (auto& x : in) x = static_cast<uint32_t>(random.bits()) | 1;
    Device<uint32_t> in_d(in), out(3 * in.size());
    for (int bytes : {16, 12, 4, 0}) {
        launch(cp_async_kernel, 1, 32, sizeof(CopyShared), nullptr, out.data, in_d.data, bytes);
        const std::vector<uint32_t> got = out.read();
        int wrong = 0, early = 0;
        for (int wait = 0; wait < 3; wait++) {
            for (int g = 0; g < 3; g++) {
                for (int lane = 0; lane < 32; lane++) {
                    for (int i = 0; i < 4; i++) {
                        const uint32_t x = got[static_cast<size_t>(((wait * 3 + g) * 32 + lane) * 4 + i)];
                        const bool filled = g == 2 && 4 * i >= bytes;
                        const uint32_t want = filled ? 0 : in[static_cast<size_t>((g * 32 + (lane ^ 5)) * 4 + i)];
                        if (g <= wait)
                            wrong += x != want;
                        else
                            early += x != 0xffffffffu;
                    }
                }
            }
        }
        CHECK(wrong == 0);
        if (on_cpu_machine()) CHECK(early == 0);
    }
}

TEST_CASE("cp.async without a wait leaves stale bytes on the CPU machine", "[ptx]") {
    if (!on_cpu_machine()) SKIP_TEST("undefined on a GPU");
    std::vector<uint32_t> in(32 * 4, 42u);
    Device<uint32_t> in_d(in), stale(in.size());
    launch(cp_async_unwaited_kernel, 1, 32, sizeof(CopyShared), nullptr, stale.data, in_d.data);
    CHECK(stale.read() == std::vector<uint32_t>(in.size(), 0xffffffffu));
}

TEST_CASE("cp.async of single words", "[ptx]") {
    std::vector<uint32_t> in(33), want(32);
    for (uint32_t i = 0; i < 33; i++) in[i] = 1000 + i;
    for (uint32_t i = 0; i < 32; i++) want[i] = (31 - i) % 2 ? 0 : 1000 + 32 - i;
    Device<uint32_t> in_d(in), out(32);
    launch(cp_async_4_kernel, 1, 32, sizeof(CopyShared), nullptr, out.data, in_d.data);
    CHECK(out.read() == want);
}

TEST_CASE("exp2_approx, reciprocal_approx and pack_bf16", "[ptx]") {
    std::vector<float> x = {0.0f,    1.0f,    -1.0f,     0.3f,  -7.25f, 100.5f,   -100.5f,
                            -125.9f, -200.0f, -INFINITY, 1e-9f, 3e38f,  0x1p126f, INFINITY};
    Device<float> x_d(x), out(x.size()), inverse(x.size());
    Device<uint32_t> packed(x.size());
    launch(scalar_kernel, 1, 32, 0, nullptr, out.data, inverse.data, packed.data, x_d.data, static_cast<int>(x.size()));
    const std::vector<float> got = out.read(), inverses = inverse.read();
    const std::vector<uint32_t> pairs = packed.read();
    for (size_t i = 0; i < x.size(); i++) {
        const double want = x[i] < -126 ? 0 : std::exp2(static_cast<double>(x[i]));
        if (x[i] < 128) CHECK(got[i] == Approx(want).epsilon(4e-7));  // ex2.approx: 2 ulp
        const double quotient = 1 / static_cast<double>(x[i]);
        if (std::fabs(quotient) < 0x1p-126)
            CHECK(inverses[i] == 0);
        else
            CHECK(inverses[i] == Approx(quotient).epsilon(2e-7));  // rcp.approx: 1 ulp
        CHECK(pairs[i] == (bits_of(x[i]) | bits_of(x[i] / 3.0f) << 16));
    }
}
