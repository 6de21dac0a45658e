// Hopper's instructions on the CPU machine: the twins of kernels/gpu/ptx_sm90.cuh, where the contracts stand. What they
// do is in mbarrier.cpp, tma.cpp, wgmma.cpp and wgmma_product.cpp; async.h says how.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <ptx.cuh>

#include "tensor_map.h"

constexpr bool HOPPER_CODE = true;

namespace simt {

void mbarrier_init(uint64_t* barrier, unsigned arrivals);
void mbarrier_init_fence();
void mbarrier_arrive(uint64_t* barrier, unsigned bytes, bool expects);
void mbarrier_wait(uint64_t* barrier, unsigned parity);
void tma_load(void* to, const TensorMap& map, uint64_t* barrier, const int* c, int rank);
void tma_store(const TensorMap& map, const void* from, const int* c, int rank);
void bulk_copy(void* to, const void* from, unsigned bytes, bool add);
void tma_store_commit();
void tma_store_wait(unsigned newest, bool read_only);
void tma_prefetch(const TensorMap& map);
void fence_proxy_async();
void named_barrier(int id, int threads, bool waits);
void set_registers(unsigned count, bool raise);
uint64_t wgmma_descriptor(const void* tile, Swizzle swizzle, unsigned leading_bytes, unsigned stride_bytes);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(unsigned newest);
// D (64,n) in d[n/2]; A by descriptor, or in registers if these are given.
void wgmma(float* d, unsigned n, uint64_t a, const uint32_t* a_registers, uint64_t b, bool a_transposed,
           bool b_transposed, bool accumulate);

}  // namespace simt

SIMT_INLINE void mbarrier_init(uint64_t* barrier, unsigned arrivals) {
    simt::mbarrier_init(barrier, arrivals);
}
SIMT_INLINE void mbarrier_init_fence() {
    simt::mbarrier_init_fence();
}
SIMT_INLINE void mbarrier_arrive(uint64_t* barrier) {
    simt::mbarrier_arrive(barrier, 0, false);
}
SIMT_INLINE void mbarrier_arrive_expect(uint64_t* barrier, unsigned bytes) {
    simt::mbarrier_arrive(barrier, bytes, true);
}
SIMT_INLINE void mbarrier_wait(uint64_t* barrier, unsigned parity) {
    simt::mbarrier_wait(barrier, parity);
}

SIMT_INLINE void tma_load_2d(void* to, const TensorMap& map, uint64_t* barrier, int c0, int c1) {
    const int c[] = {c0, c1};
    simt::tma_load(to, map, barrier, c, 2);
}
SIMT_INLINE void tma_load_3d(void* to, const TensorMap& map, uint64_t* barrier, int c0, int c1, int c2) {
    const int c[] = {c0, c1, c2};
    simt::tma_load(to, map, barrier, c, 3);
}
SIMT_INLINE void tma_load_4d(void* to, const TensorMap& map, uint64_t* barrier, int c0, int c1, int c2, int c3) {
    const int c[] = {c0, c1, c2, c3};
    simt::tma_load(to, map, barrier, c, 4);
}
SIMT_INLINE void tma_store_2d(const TensorMap& map, const void* from, int c0, int c1) {
    const int c[] = {c0, c1};
    simt::tma_store(map, from, c, 2);
}
SIMT_INLINE void tma_store_3d(const TensorMap& map, const void* from, int c0, int c1, int c2) {
    const int c[] = {c0, c1, c2};
    simt::tma_store(map, from, c, 3);
}
SIMT_INLINE void tma_store_4d(const TensorMap& map, const void* from, int c0, int c1, int c2, int c3) {
    const int c[] = {c0, c1, c2, c3};
    simt::tma_store(map, from, c, 4);
}
SIMT_INLINE void bulk_store(void* to, const void* from, unsigned bytes) {
    simt::bulk_copy(to, from, bytes, false);
}
SIMT_INLINE void bulk_add(float* to, const float* from, unsigned bytes) {
    simt::bulk_copy(to, from, bytes, true);
}
SIMT_INLINE void tma_store_commit() {
    simt::tma_store_commit();
}
template <int N>
SIMT_INLINE void tma_store_wait() {
    simt::tma_store_wait(N, false);
}
template <int N>
SIMT_INLINE void tma_store_wait_read() {
    simt::tma_store_wait(N, true);
}
SIMT_INLINE void tma_prefetch(const TensorMap& map) {
    simt::tma_prefetch(map);
}
SIMT_INLINE void fence_proxy_async() {
    simt::fence_proxy_async();
}

SIMT_INLINE void flag_wait(const unsigned* flag, unsigned value) {
    const std::atomic_ref<unsigned> shared(*const_cast<unsigned*>(flag));
    simt::wait_until(nullptr, [&] { return shared.load(std::memory_order_acquire) == value; });
}
SIMT_INLINE void flag_raise(unsigned* flag) {
    std::atomic_ref<unsigned>(*flag).fetch_add(1, std::memory_order_release);
}

SIMT_INLINE uint64_t wgmma_descriptor(const void* tile, Swizzle swizzle, unsigned leading_bytes,
                                      unsigned stride_bytes) {
    return simt::wgmma_descriptor(tile, swizzle, leading_bytes, stride_bytes);
}
SIMT_INLINE uint64_t wgmma_advance(uint64_t descriptor, unsigned bytes) {
    return descriptor + (bytes >> 4);
}
SIMT_INLINE void wgmma_fence() {
    simt::wgmma_fence();
}
SIMT_INLINE void wgmma_commit() {
    simt::wgmma_commit();
}
template <int N>
SIMT_INLINE void wgmma_wait() {
    simt::wgmma_wait(N);
}
template <int N>
SIMT_INLINE void wgmma_wait_behind(float) {
    simt::wgmma_wait(N);
}
template <int N>
SIMT_INLINE void wgmma_hold(float (&)[N]) {}
template <int N>
SIMT_INLINE void wgmma_hold(uint32_t (&)[N]) {}

template <int N, bool A_transposed = false, bool B_transposed = false>
SIMT_INLINE void wgmma_ss(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    static_assert(N % 16 == 0 && N >= 16 && N <= 256, "a multiple of 16 up to 256");
    simt::wgmma(d, N, a, nullptr, b, A_transposed, B_transposed, accumulate);
}
template <int N, bool B_transposed = false>
SIMT_INLINE void wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    static_assert(N % 16 == 0 && N >= 16 && N <= 256, "a multiple of 16 up to 256");
    simt::wgmma(d, N, 0, a, b, false, B_transposed, accumulate);
}

SIMT_INLINE void named_barrier_sync(int id, int threads) {
    simt::named_barrier(id, threads, true);
}
SIMT_INLINE void named_barrier_arrive(int id, int threads) {
    simt::named_barrier(id, threads, false);
}
template <int R>
SIMT_INLINE void registers_raise() {
    static_assert(R % 8 == 0 && R >= 24 && R <= 256, "a multiple of 8 in 24..256");
    simt::set_registers(R, true);
}
template <int R>
SIMT_INLINE void registers_lower() {
    static_assert(R % 8 == 0 && R >= 24 && R <= 256, "a multiple of 8 in 24..256");
    simt::set_registers(R, false);
}
