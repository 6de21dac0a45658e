// Hopper's instructions behind one-line names: the GPU's side. The CPU machine has the same functions in
// simt/ptx_sm90.cuh. Compiled for other cards than sm_90a they trap: ask for compute capability 9.0 before a launch.
//
// Who sees what. Ordinary loads and stores go through the generic proxy; TMA and wgmma's reads of shared memory through
// the async proxy. What threads stored to shared memory is seen by the async proxy after each writing thread has called
// fence_proxy_async and a barrier has followed. What TMA loads bring is seen by both, once mbarrier_wait has returned.
// Sources: PTX ISA 8.x, "Asynchronous Warpgroup Level Matrix Instructions", "Tensor copies", "mbarrier".
#pragma once
#include <cuda_runtime.h>
#include <tensor_map.h>

#include <cstdint>
#include <ptx.cuh>

#ifdef __CUDACC__  // host-only files see the tensor maps alone

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SM90_ASM(...) asm volatile(__VA_ARGS__)
#else
#define SM90_ASM(...) __trap()
#endif

// False where this file's functions trap: `if constexpr (HOPPER_CODE)` around a kernel's body keeps it out of the code for
// other cards.
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool HOPPER_CODE = false;
#else
constexpr bool HOPPER_CODE = true;
#endif

// ---------------------------------------------------------------------------------------------------------------------
// mbarrier: 8 bytes in shared memory, 8-byte aligned. A phase ends when `arrivals` threads have arrived and all bytes
// announced with mbarrier_arrive_expect have come; the next begins at once. Phases count from 0.

// By one thread; then mbarrier_init_fence by it and a __syncthreads before others use the barrier. arrivals: 1..2^20-1
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, unsigned arrivals) {
    SM90_ASM("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to the async proxy.
__device__ __forceinline__ void mbarrier_init_fence() {
    SM90_ASM("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
// What the thread did before is seen by those who wait for the phase.
__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
    SM90_ASM("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives and announces `bytes` of TMA loads for this phase: whole boxes count, parts outside the tensor too.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, unsigned bytes) {
    SM90_ASM("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(bytes)
             : "memory");
}
// Returns once the current or previous phase, the one whose number has this parity (0 or 1), has ended: on a fresh
// barrier parity 1 returns at once.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, unsigned parity) {
    SM90_ASM(
        "{\n"
        ".reg .pred done;\n"
        "AGAIN:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra DONE;\n"
        "bra AGAIN;\n"
        "DONE:\n"
        "}\n" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

// ---------------------------------------------------------------------------------------------------------------------
// TMA: one thread issues a copy of a whole box. Addresses in shared memory are 128-byte aligned; tiles with a swizzle
// begin at a multiple of its pattern, 8 rows: 256 (b32), 512 (b64), 1024 bytes (b128). c0.. are the coordinates of the
// box's first element in the tensor, innermost first; they may be negative or beyond the end.

// Asynchronous: `to` must not be touched until a wait on `barrier`, which counts the box's bytes.
__device__ __forceinline__ void tma_load_2d(void* to, const TensorMap& map, uint64_t* barrier, int c0, int c1) {
    SM90_ASM(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], "
        "[%2];\n" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(barrier)), "r"(c0), "r"(c1)
        : "memory");
}
__device__ __forceinline__ void tma_load_3d(void* to, const TensorMap& map, uint64_t* barrier, int c0, int c1, int c2) {
    SM90_ASM(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5}], [%2];\n" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2)
        : "memory");
}
__device__ __forceinline__ void tma_load_4d(void* to, const TensorMap& map, uint64_t* barrier, int c0, int c1, int c2,
                                            int c3) {
    SM90_ASM(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2];\n" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
        : "memory");
}

// Reads the box through the async proxy: fence_proxy_async by the threads that wrote it and a barrier come first. A
// thread's stores form groups; the thread that issued them commits and waits, before the block ends at the latest.
__device__ __forceinline__ void tma_store_2d(const TensorMap& map, const void* from, int c0, int c1) {
    SM90_ASM("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];\n" ::"l"(&map),
             "r"(shared_address(from)), "r"(c0), "r"(c1)
             : "memory");
}
__device__ __forceinline__ void tma_store_3d(const TensorMap& map, const void* from, int c0, int c1, int c2) {
    SM90_ASM("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];\n" ::"l"(&map),
             "r"(shared_address(from)), "r"(c0), "r"(c1), "r"(c2)
             : "memory");
}
__device__ __forceinline__ void tma_store_4d(const TensorMap& map, const void* from, int c0, int c1, int c2, int c3) {
    SM90_ASM("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];\n" ::"l"(&map),
             "r"(shared_address(from)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
             : "memory");
}
// `bytes` (a multiple of 16) of shared memory to global memory, both 16-byte aligned: copied, or added up in fp32. Groups
// and waits are those of the stores above.
__device__ __forceinline__ void bulk_store(void* to, const void* from, unsigned bytes) {
    SM90_ASM("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n" ::"l"(__cvta_generic_to_global(to)),
             "r"(shared_address(from)), "r"(bytes)
             : "memory");
}
__device__ __forceinline__ void bulk_add(float* to, const float* from, unsigned bytes) {
    SM90_ASM("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;\n" ::"l"(
                 __cvta_generic_to_global(to)),
             "r"(shared_address(from)), "r"(bytes)
             : "memory");
}
// Ends a group.
__device__ __forceinline__ void tma_store_commit() {
    SM90_ASM("cp.async.bulk.commit_group;\n" ::: "memory");
}
// Until at most the newest N groups are still writing: what older ones stored can be read by this thread.
template <int N>
__device__ __forceinline__ void tma_store_wait() {
    SM90_ASM("cp.async.bulk.wait_group %0;\n" ::"n"(N) : "memory");
}
// Until at most the newest N groups still read shared memory: the tiles of older ones may be used again.
template <int N>
__device__ __forceinline__ void tma_store_wait_read() {
    SM90_ASM("cp.async.bulk.wait_group.read %0;\n" ::"n"(N) : "memory");
}
// Brings the map itself near: the first copy starts sooner.
__device__ __forceinline__ void tma_prefetch(const TensorMap& map) {
    SM90_ASM("prefetch.tensormap [%0];\n" ::"l"(&map) : "memory");
}

// What this thread stored to shared memory is seen by the async proxy afterwards.
__device__ __forceinline__ void fence_proxy_async() {
    SM90_ASM("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// ---------------------------------------------------------------------------------------------------------------------
// Flags in global memory, between blocks that are on the card together. One thread waits, one raises by 1: what the raiser
// has done before (stores whose tma_store_wait<0> has returned too) is seen behind the wait.
__device__ __forceinline__ void flag_wait(const unsigned* flag, unsigned value) {
    unsigned now = value;
    do {
        SM90_ASM("ld.acquire.gpu.global.u32 %0, [%1];\n" : "=r"(now) : "l"(__cvta_generic_to_global(flag)) : "memory");
    } while (now != value);
    SM90_ASM("fence.proxy.async;\n" ::: "memory");
}
__device__ __forceinline__ void flag_raise(unsigned* flag) {
    SM90_ASM("fence.proxy.async;\n" ::: "memory");
    SM90_ASM("red.release.gpu.global.add.u32 [%0], 1;\n" ::"l"(__cvta_generic_to_global(flag)) : "memory");
}

// ---------------------------------------------------------------------------------------------------------------------
// wgmma: matrix products of a warpgroup, 4 warps from a multiple of 4. All 128 threads call all of these with the same
// arguments. D (64 x N, fp32) += A (64 x 16) B (16 x N), bf16; N a multiple of 16 up to 256.
//
// Asynchronous: from wgmma_ss or wgmma_rs until a wgmma_wait that covers its group, D and an A in registers must be
// neither read nor written, the variables must stay alive, and A and B in shared memory must not change. Products of
// the same D follow each other without waiting. Before the first product, and before each one whose registers ordinary
// code has touched since, comes a wgmma_fence.
//
// Thread t = 32*warp + lane of the warpgroup holds of D, for j < N/8, i < 2, e < 2:
//     d[4*j + 2*i + e] = D[16*warp + lane/4 + 8*i][8*j + 2*(lane%4) + e]
// and of an A in registers the same rows: a[2*h + i] = columns 8*h + 2*(lane%4) (low half), + 1 of row
// 16*warp + lane/4 + 8*i, for h < 2: so pack_bf16 of d[8*k..8*k+7] in pairs is A for the k-th 16 columns of D.

// The descriptor of A or B in shared memory. "Rows" are A's rows and B's columns, "k" is what the product sums over. W
// is 32, 64, or 128: the swizzle's width in bytes. tile is 16-byte aligned and begins a swizzle's pattern (see TMA).
//   K-major (not transposed; k is contiguous)
//     none:  8 rows x 8 k lie in 128 bytes, row after row; the next 8 k at leading_bytes,
//            the next 8 rows at stride_bytes
//     W:     rows of W bytes; the next 8 rows at stride_bytes (8*W where dense); leading_bytes is not used
//   MN-major (transposed; rows are contiguous)
//     none:  8 k x 8 rows lie in 128 bytes, k after k; the next 8 k at leading_bytes,
//            the next 8 rows at stride_bytes
//     W:     k after k, of each W/2 rows in W bytes; the next W/2 rows at leading_bytes,
//            the next 8 k at stride_bytes (8*W where dense)
__device__ __forceinline__ uint64_t wgmma_descriptor(const void* tile, Swizzle swizzle, unsigned leading_bytes,
                                                     unsigned stride_bytes) {
    const unsigned mode = swizzle == Swizzle::none ? 0 : 4 - static_cast<unsigned>(swizzle);  // 1: b128, 2: b64, 3: b32
    return static_cast<uint64_t>((shared_address(tile) & 0x3ffffu) >> 4) |
           static_cast<uint64_t>((leading_bytes & 0x3ffffu) >> 4) << 16 |
           static_cast<uint64_t>((stride_bytes & 0x3ffffu) >> 4) << 32 | static_cast<uint64_t>(mode) << 62;
}
// The same matrix `bytes` (a multiple of 16) further on: 32 for the next 16 k within a swizzled K-major row, 2 *
// stride_bytes for the next 16 k of a dense MN-major tile, a multiple of 8 rows for other rows of a K-major one.
__device__ __forceinline__ uint64_t wgmma_advance(uint64_t descriptor, unsigned bytes) {
    return descriptor + (bytes >> 4);
}

__device__ __forceinline__ void wgmma_fence() {
    SM90_ASM("wgmma.fence.sync.aligned;\n" ::: "memory");
}
// Ends a group of products.
__device__ __forceinline__ void wgmma_commit() {
    SM90_ASM("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Until at most the newest N groups are on their way.
template <int N>
__device__ __forceinline__ void wgmma_wait() {
    SM90_ASM("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory");
}
// The same, but not before x >= 0 is known. Between a wait and arithmetic on other registers ptxas sees no order, and it
// moves the wait up: what should run beside the products would run behind them. So x asks for a store that never is.
template <int N>
__device__ __forceinline__ void wgmma_wait_behind(float x) {
    SM90_ASM("{ .reg .pred p; setp.lt.f32 p, %0, 0f00000000; @p st.shared.f32 [%1], %0; }\n" ::"f"(x), "r"(0)
             : "memory");
    wgmma_wait<N>();
}
// Keeps the compiler from moving registers across this point: use on D (or A) before wgmma_fence and after wgmma_wait.
template <int N>
__device__ __forceinline__ void wgmma_hold(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N>
__device__ __forceinline__ void wgmma_hold(uint32_t (&a)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(a[i])::"memory");
}

// wgmma_ss<N, A_transposed, B_transposed>(d, a, b, accumulate): A and B in shared memory, by descriptors.
// wgmma_rs<N, B_transposed>(d, a, b, accumulate): A in registers. Without `accumulate` D is overwritten.
#include "wgmma.cuh"

// ---------------------------------------------------------------------------------------------------------------------
// Named barriers 1..15 (0 is __syncthreads): a multiple of 32 threads, whole warps, all of which sync or arrive.

__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
    SM90_ASM("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}
// Arrives without waiting.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
    SM90_ASM("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

// Registers per thread, by a whole warpgroup: R a multiple of 8 in 24..256. The kernel has a bound at entry,
// __launch_bounds__(threads, 1), and no more than threads * that are given out; raising waits until others have
// lowered.
template <int R>
__device__ __forceinline__ void registers_raise() {
    static_assert(R % 8 == 0 && R >= 24 && R <= 256, "a multiple of 8 in 24..256");
    SM90_ASM("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(R));
}
template <int R>
__device__ __forceinline__ void registers_lower() {
    static_assert(R % 8 == 0 && R >= 24 && R <= 256, "a multiple of 8 in 24..256");
    SM90_ASM("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(R));
}

#undef SM90_ASM
#endif  // __CUDACC__
