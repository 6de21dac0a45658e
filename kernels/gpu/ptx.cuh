// PTX instructions behind one-line names: the GPU's side. The CPU machine has the same functions in simt/ptx.cuh; no
// other source contains PTX or asks which machine it is built for. All of these run on sm_80 and later.
//
// Fragments (PTX ISA, "Matrix Fragments for mma.m16n8k16 with .bf16"), lane = 4*group + tid, two bf16 per register, the
// lower column or row in the lower half:
//     A (16x16) a[0]: row group, columns 2*tid, +1      a[1]: row group+8
//               a[2]: row group, columns 2*tid+8, +9    a[3]: row group+8, columns 2*tid+8, +9
//     B (16x8)  b[0]: column group, rows 2*tid, +1      b[1]: column group, rows 2*tid+8, +9
//     D (16x8)  d[0], d[1]: row group, columns 2*tid, +1      d[2], d[3]: row group+8
// ldmatrix reads 8x8 matrices of bf16, a row of 16 bytes from each address; lane 4*i + j receives of row i the columns
// 2j and 2j+1, or with .trans of column i the rows 2j and 2j+1.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#ifdef __CUDACC__  // host-only files see nothing

// The address of p, which lies in shared memory, as the instructions below take it.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---------------------------------------------------------------------------------------------------------------------
// Matrix products of a warp. All 32 lanes call.

// D (16*MB x 8*NB) += A (16*MB x 16) B (16 x 8*NB), bf16 products added up in fp32: MB*NB instructions in one call.
// a[4*m..] is A's m-th 16 rows, b[2*n..] are B's n-th 8 columns.
template <int MB, int NB>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[MB][NB][4], const uint32_t (&a)[4 * MB],
                                             const uint32_t (&b)[2 * NB]) {
#pragma unroll
    for (int n = 0; n < NB; n++) {
#pragma unroll
        for (int m = 0; m < MB; m++)
            asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                : "+f"(d[m][n][0]), "+f"(d[m][n][1]), "+f"(d[m][n][2]), "+f"(d[m][n][3])
                : "r"(a[4 * m]), "r"(a[4 * m + 1]), "r"(a[4 * m + 2]), "r"(a[4 * m + 3]), "r"(b[2 * n]),
                  "r"(b[2 * n + 1]));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Matrices from shared memory to fragments. All 32 lanes call. `row` is a shared_address, 16-byte aligned: lane i names
// row i%8 of matrix i/8 (x1: lanes 0..7, x2: lanes 0..15 count).

__device__ __forceinline__ void ldmatrix_x1(uint32_t (&r)[1], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];\n" : "=r"(r[0]) : "r"(row) : "memory");
}
__device__ __forceinline__ void ldmatrix_x1_trans(uint32_t (&r)[1], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];\n" : "=r"(r[0]) : "r"(row) : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(row)
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(row)
                 : "memory");
}
// N/4 instructions in one call: registers r[4*i..] from the addresses row[i].
template <int N>
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[N], const uint32_t (&row)[N / 4]) {
    static_assert(N % 4 == 0, "four registers per instruction");
#pragma unroll
    for (int i = 0; i < N; i += 4)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                     : "=r"(r[i]), "=r"(r[i + 1]), "=r"(r[i + 2]), "=r"(r[i + 3])
                     : "r"(row[i / 4])
                     : "memory");
}
template <int N>
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[N], const uint32_t (&row)[N / 4]) {
    static_assert(N % 4 == 0, "four registers per instruction");
#pragma unroll
    for (int i = 0; i < N; i += 4)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                     : "=r"(r[i]), "=r"(r[i + 1]), "=r"(r[i + 2]), "=r"(r[i + 3])
                     : "r"(row[i / 4])
                     : "memory");
}

// ---------------------------------------------------------------------------------------------------------------------
// Asynchronous copies from global to shared memory. A thread's copies form groups; what a copy brings may be read by
// the thread after cp_async_wait, by others after a barrier that follows it. Until then the 16 bytes are undefined.

// 16 bytes to `to` (a shared_address): the first `bytes` (0..16) from `from`, zeros after them. Both 16-byte aligned.
__device__ __forceinline__ void cp_async_16(uint32_t to, const void* from, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "r"(bytes)
                 : "memory");
}
// The same with 4 bytes, 4-byte aligned; `bytes` is 4 or 0.
__device__ __forceinline__ void cp_async_4(uint32_t to, const void* from, int bytes = 4) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "r"(bytes)
                 : "memory");
}
// Ends a group.
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}
// Waits until at most the newest N groups are still on their way.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

// ---------------------------------------------------------------------------------------------------------------------

// 2^x; results below 2^-126 are zero. 2^-inf = 0.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

// 1/x; results below 2^-126 are zero.
__device__ __forceinline__ float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

// Two floats rounded to bf16 in one register, `low` in the lower half: the order of fragments.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

#endif  // __CUDACC__
