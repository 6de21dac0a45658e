// Misused Hopper instructions: each fault is planted in a kernel that is sound without it, and the CPU machine must
// report it, or show stale data, as hardware would. What only the checking mode sees is said so.
#include "test_sm90.h"

#if __has_include(<simt.h>)  // the CPU machine's include path
#include "simt_report.h"

namespace {

enum Fault {
    SOUND,
    // mbarriers
    NOT_INITIALISED,
    INITIALISED_TWICE,
    MISALIGNED_BARRIER,
    TOO_MANY_ARRIVALS,
    OVERWRITTEN_BARRIER,
    BAD_PARITY,
    ARRIVAL_MISSING,
    BYTES_MISSING,
    READ_WITHOUT_WAIT,
    // TMA
    NO_INIT_FENCE,
    MISALIGNED_TILE,
    OTHER_RANK,
    FOREIGN_MAP,
    LOAD_TWICE,
    LOAD_NOT_AWAITED,
    BYTES_UNEXPECTED,
    STORE_WITHOUT_FENCE,
    STORE_NOT_COMMITTED,
    STORE_NOT_AWAITED,
    STORE_OVERWRITTEN,
    STORE_REUSED,
    STORE_REUSED_LATER,
    STORE_REUSED_IN_PART,
    ODD_BULK,
    MISALIGNED_BULK,
    // wgmma
    NO_WGMMA_FENCE,
    NO_PROXY_FENCE,
    TOUCHED_D,
    TOUCHED_A,
    OTHER_DESCRIPTOR,
    OTHER_GROUP,
    NOT_AWAITED,
    THREE_WARPS,
    TILE_OFF_PATTERN,
    BEYOND_SHARED,
    ODD_STRIDE,
    OPERAND_ARRIVES,
    OPERAND_LOADED_OVER,
    OPERAND_STORED_OVER,
    OPERAND_REUSED,
    // named barriers, registers
    BARRIER_ZERO,
    ODD_THREADS,
    OTHER_THREADS,
    COME_TWICE,
    WARP_MISSING,
    NO_REGISTERS,
    RAISED_TO_FEWER,
    ONE_WARP_LOWERS,
};

struct Shared {
    alignas(1024) uint32_t a[64 * 64 / 2];
    alignas(1024) uint32_t b[64 * 64 / 2];
    uint64_t barrier[2];
};

// A warp writes, arrives; the other waits and reads. out (32)
__global__ void barrier_kernel(float* out, Fault fault) {
    Shared& shared = shared_as<Shared>();
    auto* values = reinterpret_cast<float*>(shared.a);
    const int i = static_cast<int>(threadIdx.x);
    uint64_t* barrier = shared.barrier;
    if (i == 0) {
        if (fault != NOT_INITIALISED) mbarrier_init(barrier, 32);
        if (fault == INITIALISED_TWICE) mbarrier_init(barrier, 32);
        if (fault == MISALIGNED_BARRIER) mbarrier_init(reinterpret_cast<uint64_t*>(values + 1), 32);
        mbarrier_init_fence();
    }
    __syncthreads();
    if (i < 32) {
        values[i] = static_cast<float>(i);
        if (fault == TOO_MANY_ARRIVALS && i == 5) mbarrier_arrive_expect(barrier, 16);
        if (fault == OVERWRITTEN_BARRIER && i == 5) reinterpret_cast<volatile uint64_t*>(barrier)[0] = 0;
        if (fault == ARRIVAL_MISSING && i == 5) return;
        if (fault == BYTES_MISSING && i == 5)
            mbarrier_arrive_expect(barrier, 48);
        else
            mbarrier_arrive(barrier);
    } else {
        if (fault != READ_WITHOUT_WAIT) mbarrier_wait(barrier, fault == BAD_PARITY ? 2 : 0);
        out[i - 32] = values[63 - i];
    }
}

// Long enough for the others to come to their end, without a word from them.
__device__ void rest() {
    for (int i = 0; i < 1000; i++) __nanosleep(1);
}

// Loads a box of 8 rows of 128 bytes, adds 1 to each value, stores it again.
__global__ void copy_kernel(float* seen, const __grid_constant__ TensorMap map, Fault fault) {
    Shared& shared = shared_as<Shared>();
    auto* values = reinterpret_cast<float*>(shared.a);
    const int i = static_cast<int>(threadIdx.x);
    if (i == 0) {
        mbarrier_init(shared.barrier, 1);
        if (fault != NO_INIT_FENCE) mbarrier_init_fence();
        mbarrier_arrive_expect(shared.barrier, fault == BYTES_UNEXPECTED ? 512 : 1024);
        if (fault == OTHER_RANK)
            tma_load_3d(shared.a, map, shared.barrier, 0, 0, 0);
        else if (fault == FOREIGN_MAP)
            tma_load_2d(shared.a, TensorMap{}, shared.barrier, 0, 0);
        else
            tma_load_2d(shared.a + (fault == MISALIGNED_TILE ? 32 : 0), map, shared.barrier, 0, 0);
        if (fault == LOAD_TWICE) tma_load_2d(shared.a, map, shared.barrier, 0, 0);
    }
    __syncthreads();
    if (fault == LOAD_NOT_AWAITED) {
        seen[i] = values[i];
        return;
    }
    mbarrier_wait(shared.barrier, 0);
    for (int j = i; j < 256; j += 64) values[j] += 1.0f;
    for (int j = i; j < 4; j += 64) shared.b[j] = 0;
    if (fault != STORE_WITHOUT_FENCE) fence_proxy_async();
    __syncthreads();
    if (i == 0) {
        tma_store_2d(map, shared.a, 0, 0);
        if (fault == ODD_BULK) bulk_store(seen, shared.a, 24);
        if (fault == MISALIGNED_BULK) bulk_add(seen + 1, values, 16);
        if (fault != STORE_NOT_COMMITTED) tma_store_commit();
        if (fault == STORE_OVERWRITTEN) values[9] = 0.0f;
        if (fault != STORE_NOT_AWAITED) tma_store_wait<0>();
    }
    // Only thread 0 knows when it is over.
    if ((fault == STORE_REUSED || fault == STORE_REUSED_LATER) && i == 40) {
        rest();
        if (fault == STORE_REUSED_LATER) {  // another store, its own
            bulk_store(seen, shared.b, 16);
            tma_store_commit();
            tma_store_wait<0>();
        }
        values[40] = 0.0f;
    }
    if (fault == STORE_REUSED_IN_PART && i == 0) values[40] = 0.0f;
    if (fault == STORE_REUSED_IN_PART && i == 42) {
        rest();
        values[42] = 0.0f;
    }
}

// D (64,64) = A B of ones, K = 16. d (128,32)
__global__ void product_kernel(float* out, const __grid_constant__ TensorMap map, Fault fault) {
    Shared& shared = shared_as<Shared>();
    const int t = static_cast<int>(threadIdx.x);
    if (t == 0) {
        mbarrier_init(shared.barrier, 1);
        mbarrier_init_fence();
    }
    for (int i = t; i < 64 * 64 / 2; i += static_cast<int>(blockDim.x)) shared.a[i] = shared.b[i] = 0x3f803f80u;
    if (fault != NO_PROXY_FENCE) fence_proxy_async();
    __syncthreads();
    if (fault == OPERAND_ARRIVES) {
        if (t == 0) {
            mbarrier_arrive_expect(shared.barrier, 1024);
            tma_load_2d(shared.b, map, shared.barrier, 0, 0);
        }
        __syncthreads();
    }
    if (fault == THREE_WARPS && t >= 96) return;
    if (t >= 128) {  // of another warpgroup, which knows nothing of the product
        rest();
        if (fault == OPERAND_REUSED) shared.b[t] = 0;
        return;
    }
    const uint64_t a = wgmma_descriptor(shared.a + (fault == TILE_OFF_PATTERN ? 32 : 0), Swizzle::b128, 16, 1024);
    const uint64_t b = wgmma_descriptor(shared.b, Swizzle::b128, 16,
                                        fault == BEYOND_SHARED ? 8192
                                        : fault == ODD_STRIDE  ? 8
                                                               : 1024);
    float d[32];
    uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
    for (float& x : d) x = 1.0f;
    if (fault != NO_WGMMA_FENCE) wgmma_fence();
    wgmma_ss<64>(d, wgmma_advance(a, fault == OTHER_DESCRIPTOR && t == 40 ? 32 : 0), b, true);
    if (fault == OTHER_GROUP && t == 40) wgmma_commit();
    wgmma_rs<64>(d, ones, b, true);
    wgmma_commit();
    if (fault == TOUCHED_D && t == 77) d[3] *= 2.0f;
    if (fault == TOUCHED_A && t == 77) ones[1] = 0;
    if (fault == OPERAND_STORED_OVER && t == 77) shared.b[0] = 0;
    if (fault == OPERAND_LOADED_OVER && t == 127) {
        mbarrier_arrive_expect(shared.barrier, 1024);
        tma_load_2d(shared.b, map, shared.barrier, 0, 0);
    }
    if (fault != NOT_AWAITED) wgmma_wait<0>();
    for (int i = 0; i < 32; i++) out[t * 32 + i] = d[i];
}

// Of three warpgroups the first gives registers to the second; barrier 1 joins the first 64 threads.
__global__ void split_kernel(float* out, Fault fault) {
    const int t = static_cast<int>(threadIdx.x), warp = t / 32;
    if (warp < 2 && !(fault == WARP_MISSING && warp == 1)) {
        if (fault == BARRIER_ZERO) named_barrier_sync(0, 64);
        if (fault == ODD_THREADS) named_barrier_sync(1, 60);
        for (int i = 0; fault == COME_TWICE && t == 7 && i < 2; i++) named_barrier_arrive(2, 64);
        named_barrier_sync(1, fault == OTHER_THREADS && warp == 1 ? 96 : 64);
    }
    if (warp < 4) {
        if (fault != NO_REGISTERS && !(fault == ONE_WARP_LOWERS && warp > 0)) registers_lower<40>();
        if (fault == RAISED_TO_FEWER) registers_raise<32>();
    } else if (warp < 8 && fault != ONE_WARP_LOWERS) {
        registers_raise<256>();
    }
    out[t] = 1.0f;
}

struct Fixture {
    Device<float> out{4096}, tensor{256};
    TensorMap map;
    Fixture() {
        std::vector<float> values(256);
        for (size_t i = 0; i < values.size(); i++) values[i] = static_cast<float>(i);
        tensor.write(values);
        const uint64_t size[2] = {32, 8}, stride[1] = {128};
        const uint32_t box[2] = {32, 8};
        map = make_tensor_map(tensor.data, 2, size, stride, box, Swizzle::b128, Element::fp32);
        out.poison();
    }
    std::string barrier(Fault fault) { return report_of(barrier_kernel, 1, 64, sizeof(Shared), out.data, fault); }
    std::string copy(Fault fault) { return report_of(copy_kernel, 1, 64, sizeof(Shared), out.data, map, fault); }
    std::string product(Fault fault, unsigned threads = 128) {
        return report_of(product_kernel, 1, threads, sizeof(Shared), out.data, map, fault);
    }
    std::string split(Fault fault) { return report_of(split_kernel, 1, 384, 0, out.data, fault); }
};

const std::string HERE = "test_simt_sm90.cu:";

}  // namespace

TEST_CASE("misused mbarriers are reported", "[simt][faults][sm90]") {
    Fixture f;
    CHECK(f.barrier(SOUND) == "");
    CHECK(f.out.read()[3] == 28.0f);
    const std::string kernel = "kernel (anonymous namespace)::barrier_kernel(";
    require(f.barrier(NOT_INITIALISED), {"no mbarrier was initialised at byte 16384", kernel, "block (0,0,0)", HERE});
    require(f.barrier(INITIALISED_TWICE), {"mbarrier_init: the mbarrier at byte 16384 is initialised already", HERE});
    require(f.barrier(MISALIGNED_BARRIER),
            {"mbarrier_init: the shared address 4 is 4 bytes off a multiple of 8", HERE});
    require(f.barrier(TOO_MANY_ARRIVALS), {"has all 32 arrivals of phase 0 already", kernel, HERE});
    require(f.barrier(OVERWRITTEN_BARRIER), {CHECKING ? "race" : "the mbarrier at byte 16384 was overwritten", HERE});
    require(f.barrier(BAD_PARITY), {"mbarrier_wait: the parity is 2; 0 or 1 can be", HERE});
    require(f.barrier(ARRIVAL_MISSING),
            {"deadlock", "mbarrier at byte 16384: parity 0 awaited by 32 threads, first (32,0,0)",
             "in phase 0, 1 of 32 arrivals pending, 0 bytes pending", kernel});
    require(f.barrier(BYTES_MISSING), {"deadlock", "0 of 32 arrivals pending, 48 bytes pending"});
    if (CHECKING) require(f.barrier(READ_WITHOUT_WAIT), {kernel, HERE});
}

TEST_CASE("misused TMA copies are reported or give stale data", "[simt][faults][sm90]") {
    Fixture f;
    CHECK(f.copy(SOUND) == "");
    CHECK(f.tensor.read()[77] == 78.0f);
    const std::string kernel = "kernel (anonymous namespace)::copy_kernel(", block = "block (0,0,0), thread (0,0,0)";
    require(f.copy(NO_INIT_FENCE), {"tma_load_2d: no mbarrier_init_fence after", kernel, block, HERE});
    require(f.copy(MISALIGNED_TILE),
            {"tma_load_2d: the shared address 128 is 128 bytes off a multiple of 1024", block, HERE});
    require(f.copy(OTHER_RANK), {"tma_load_3d: the map is of a tensor of rank 2", block, HERE});
    require(f.copy(FOREIGN_MAP), {"not a map that make_tensor_map made", block, HERE});
    require(f.copy(LOAD_TWICE), {"another load to byte 0 of shared memory is on its way", block, HERE});
    require(f.copy(BYTES_UNEXPECTED), {"deadlock", "0 of 1 arrivals pending, -512 bytes pending"});
    const std::string early = f.copy(LOAD_NOT_AWAITED);
    if (CHECKING)
        require(early, {"uninitialised", kernel, HERE});
    else
        require(early, {"1 TMA loads are still on their way", kernel});
    if (!CHECKING) CHECK(std::isnan(f.out.read()[5]));  // read before it came

    const std::vector<float> before = f.tensor.read();
    const std::string unfenced = f.copy(STORE_WITHOUT_FENCE);
    if (CHECKING)
        require(unfenced,
                {"missing fence: the async proxy reads 1 bytes of shared memory", "without a fence_proxy_async", HERE});
    else
        CHECK((unfenced == "" && f.tensor.read() == before));  // what the load brought, without the additions
    require(f.copy(STORE_NOT_COMMITTED), {"a TMA store was not committed", kernel});
    require(f.copy(STORE_NOT_AWAITED), {"a TMA store may still read shared memory", kernel, block});
    require(f.copy(ODD_BULK), {"bulk_store: 24 bytes are not a multiple of 16", block, HERE});
    require(f.copy(MISALIGNED_BULK), {"bulk_add: the global address", "is not a multiple of 16", block, HERE});
    if (CHECKING) {
        require(f.copy(STORE_OVERWRITTEN), {"which a product or copy on its way still reads", block, HERE});
        require(f.copy(STORE_REUSED), {"race: thread (40,0,0) writes 4 bytes of shared memory at offset 160, thread "
                                       "(0,0,0) waited for an asynchronous read of it",
                                       HERE});
        require(f.copy(STORE_REUSED_LATER), {"thread (40,0,0) writes 4 bytes of shared memory at offset 160", HERE});
        require(f.copy(STORE_REUSED_IN_PART), {"thread (42,0,0) writes 4 bytes of shared memory at offset 168", HERE});
    }
}

TEST_CASE("tensor maps that the driver would refuse are refused", "[simt][faults][sm90]") {
    const uint64_t size[2] = {64, 8}, stride[1] = {128}, odd[1] = {136};
    const uint32_t box[2] = {64, 8}, wide[2] = {72, 8}, large[2] = {64, 257}, narrow[2] = {4, 8};
    alignas(16) static const char base[32] = {};
    const auto fault = [&](const void* at, int rank, const uint64_t* strides, const uint32_t* b, Swizzle swizzle) {
        const char* text = simt::tensor_map_fault(at, rank, size, strides, b, swizzle, Element::bf16);
        return std::string(text ? text : "");
    };
    CHECK(fault(base, 2, stride, box, Swizzle::b128) == "");
    CHECK(fault(base + 8, 2, stride, box, Swizzle::b128) == "the address is not a multiple of 16");
    CHECK(fault(base, 1, stride, box, Swizzle::b128) == "the rank is not 2..5");
    CHECK(fault(base, 2, odd, box, Swizzle::b128) == "a stride is not a multiple of 16 below 2^40");
    CHECK(fault(base, 2, stride, large, Swizzle::b128) == "a box is not 1..256");
    CHECK(fault(base, 2, stride, wide, Swizzle::b128) == "the box's rows are not as wide as the swizzle");
    CHECK(fault(base, 2, stride, narrow, Swizzle::none) == "the box's rows are not a multiple of 16 bytes");
}

TEST_CASE("misused wgmma is reported or gives stale data", "[simt][faults][sm90]") {
    Fixture f;
    CHECK(f.product(SOUND) == "");
    CHECK(f.out.read() == std::vector<float>(4096, 33.0f));
    const std::string kernel = "kernel (anonymous namespace)::product_kernel(";
    require(f.product(NO_WGMMA_FENCE), {"wgmma_ss: no wgmma_fence", kernel, HERE});
    require(f.product(TOUCHED_D), {"wgmma_wait: accumulators were touched", kernel, "thread (77,0,0)", HERE});
    require(f.product(TOUCHED_A), {"wgmma_wait: registers of A were changed", kernel, "thread (77,0,0)", HERE});
    require(f.product(OTHER_DESCRIPTOR), {"wgmma_ss: other arguments than thread (", kernel, HERE});
    require(f.product(OTHER_GROUP), {"wgmma_rs: in another group than for thread (", kernel, HERE});
    require(f.product(NOT_AWAITED), {"a wgmma product was never waited for", kernel});
    require(f.product(THREE_WARPS),
            {"deadlock", "wgmma_wait: 96 threads, first (", "that 96 of 128 threads have issued", HERE});
    require(f.product(SOUND, 96), {"wgmma_fence: needs a warpgroup of 128 threads; the block's last has 96", HERE});
    require(f.product(TILE_OFF_PATTERN), {"wgmma_ss: A: the tile at byte 128 does not begin in the first row", HERE});
    require(f.product(BEYOND_SHARED), {"B: reads byte 24576 of 17408 bytes of shared memory", kernel, HERE});
    require(f.product(ODD_STRIDE), {"wgmma_descriptor: strides of 16 and 8 bytes; multiples of 16", HERE});
    require(f.product(OPERAND_ARRIVES), {"B: a TMA load to byte ", "of shared memory is on its way", HERE});
    require(f.product(OPERAND_LOADED_OVER), {"tma_load_2d: a product or store on its way still reads byte 8192", HERE});
    f.out.poison();
    const std::string unfenced = f.product(NO_PROXY_FENCE);
    if (CHECKING) {
        require(unfenced, {"missing fence: the async proxy reads", "without a fence_proxy_async", kernel, HERE});
        require(f.product(OPERAND_STORED_OVER),
                {"which a product or copy on its way still reads", "thread (77,0,0)", HERE});
        require(f.product(OPERAND_REUSED, 160), {"race: thread (144,0,0) writes 4 bytes of shared memory",
                                                 "waited for an asynchronous read of it", HERE});
    } else {
        CHECK(unfenced == "");
        for (float x : f.out.read()) REQUIRE(std::isnan(x));
    }
}

TEST_CASE("misused named barriers and registers are reported", "[simt][faults][sm90]") {
    Fixture f;
    CHECK(f.split(SOUND) == "");
    const std::string kernel = "kernel (anonymous namespace)::split_kernel(";
    require(f.split(BARRIER_ZERO), {"named_barrier_sync: barrier 0; 1..15 can be, 0 is __syncthreads", kernel, HERE});
    require(f.split(ODD_THREADS), {"named_barrier_sync: 60 threads; a multiple of 32", kernel, HERE});
    require(f.split(OTHER_THREADS), {"named_barrier_sync: barrier 1 for ", ", but thread (", kernel, HERE});
    require(f.split(COME_TWICE), {"the thread has come to barrier 2 already", "thread (7,0,0)", HERE});
    require(f.split(WARP_MISSING),
            {"deadlock", "named barrier 1: 32 threads, first (0,0,0), wait; 32 of 64 have come"});
    require(f.split(NO_REGISTERS), {"deadlock", "registers_raise: 4 threads, first (128,0,0), wait", "0 are free"});
    require(f.split(RAISED_TO_FEWER), {"registers_raise: to 32; the warp has 40 registers a thread", kernel, HERE});
    require(f.split(ONE_WARP_LOWERS), {"registers were set in warp 1", "other than in warp 0", kernel});
}

#endif
