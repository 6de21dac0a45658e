// The texts of wgmma.mma_async.m64nNk16 for every N: part of ptx_sm90.cuh, where the contract stands. PTX wants every
// register by its number, so the lists are spelled out, eight at a time.
#pragma once

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

#define WGMMA_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WGMMA_NAMES_16 WGMMA_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_NAMES_24 WGMMA_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define WGMMA_NAMES_32 WGMMA_NAMES_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_NAMES_40 WGMMA_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define WGMMA_NAMES_48 WGMMA_NAMES_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_NAMES_56 WGMMA_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define WGMMA_NAMES_64 WGMMA_NAMES_56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_NAMES_72 WGMMA_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define WGMMA_NAMES_80 WGMMA_NAMES_72 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_NAMES_88 WGMMA_NAMES_80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define WGMMA_NAMES_96 WGMMA_NAMES_88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_NAMES_104 WGMMA_NAMES_96 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define WGMMA_NAMES_112 WGMMA_NAMES_104 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define WGMMA_NAMES_120 WGMMA_NAMES_112 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define WGMMA_NAMES_128 WGMMA_NAMES_120 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_EIGHT(i) WGMMA_FOUR(i), WGMMA_FOUR(i + 4)
#define WGMMA_REGISTERS_8 WGMMA_EIGHT(0)
#define WGMMA_REGISTERS_16 WGMMA_REGISTERS_8, WGMMA_EIGHT(8)
#define WGMMA_REGISTERS_24 WGMMA_REGISTERS_16, WGMMA_EIGHT(16)
#define WGMMA_REGISTERS_32 WGMMA_REGISTERS_24, WGMMA_EIGHT(24)
#define WGMMA_REGISTERS_40 WGMMA_REGISTERS_32, WGMMA_EIGHT(32)
#define WGMMA_REGISTERS_48 WGMMA_REGISTERS_40, WGMMA_EIGHT(40)
#define WGMMA_REGISTERS_56 WGMMA_REGISTERS_48, WGMMA_EIGHT(48)
#define WGMMA_REGISTERS_64 WGMMA_REGISTERS_56, WGMMA_EIGHT(56)
#define WGMMA_REGISTERS_72 WGMMA_REGISTERS_64, WGMMA_EIGHT(64)
#define WGMMA_REGISTERS_80 WGMMA_REGISTERS_72, WGMMA_EIGHT(72)
#define WGMMA_REGISTERS_88 WGMMA_REGISTERS_80, WGMMA_EIGHT(80)
#define WGMMA_REGISTERS_96 WGMMA_REGISTERS_88, WGMMA_EIGHT(88)
#define WGMMA_REGISTERS_104 WGMMA_REGISTERS_96, WGMMA_EIGHT(96)
#define WGMMA_REGISTERS_112 WGMMA_REGISTERS_104, WGMMA_EIGHT(104)
#define WGMMA_REGISTERS_120 WGMMA_REGISTERS_112, WGMMA_EIGHT(112)
#define WGMMA_REGISTERS_128 WGMMA_REGISTERS_120, WGMMA_EIGHT(120)

// n: N. r0 = N/2, r1 = N/2 + 1, ...: the numbers of the operands after D.
#define WGMMA_SS(n, r0, r1, r2, r3, r4, r5, r6)                                                          \
    if constexpr (N == n)                                                                                \
        asm volatile(                                                                                    \
            "{\n.reg .pred p;\nsetp.ne.b32 p, %" #r2 ", 0;\n"                                            \
            "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" WGMMA_NAMES_##r0 "}, "          \
            "%" #r0 ", %" #r1 ", p, 1, 1, %" #r3 ", %" #r4 ";\n}\n"                                      \
            : WGMMA_REGISTERS_##r0                                                                       \
            : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(A_transposed ? 1 : 0), "n"(B_transposed ? 1 : 0))
#define WGMMA_RS(n, r0, r1, r2, r3, r4, r5, r6)                                                          \
    if constexpr (N == n)                                                                                \
        asm volatile(                                                                                    \
            "{\n.reg .pred p;\nsetp.ne.b32 p, %" #r5 ", 0;\n"                                            \
            "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" WGMMA_NAMES_##r0 "}, "          \
            "{%" #r0 ", %" #r1 ", %" #r2 ", %" #r3 "}, %" #r4 ", p, 1, 1, %" #r6 ";\n}\n"                \
            : WGMMA_REGISTERS_##r0                                                                       \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)),     \
              "n"(B_transposed ? 1 : 0))
#define WGMMA_ALL(form) \
    form(16, 8, 9, 10, 11, 12, 13, 14); \
    form(32, 16, 17, 18, 19, 20, 21, 22); \
    form(48, 24, 25, 26, 27, 28, 29, 30); \
    form(64, 32, 33, 34, 35, 36, 37, 38); \
    form(80, 40, 41, 42, 43, 44, 45, 46); \
    form(96, 48, 49, 50, 51, 52, 53, 54); \
    form(112, 56, 57, 58, 59, 60, 61, 62); \
    form(128, 64, 65, 66, 67, 68, 69, 70); \
    form(144, 72, 73, 74, 75, 76, 77, 78); \
    form(160, 80, 81, 82, 83, 84, 85, 86); \
    form(176, 88, 89, 90, 91, 92, 93, 94); \
    form(192, 96, 97, 98, 99, 100, 101, 102); \
    form(208, 104, 105, 106, 107, 108, 109, 110); \
    form(224, 112, 113, 114, 115, 116, 117, 118); \
    form(240, 120, 121, 122, 123, 124, 125, 126); \
    form(256, 128, 129, 130, 131, 132, 133, 134);
#else
#define WGMMA_ALL(form) __trap()
#endif

template <int N, bool A_transposed = false, bool B_transposed = false>
__device__ __forceinline__ void wgmma_ss(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    static_assert(N % 16 == 0 && N >= 16 && N <= 256, "a multiple of 16 up to 256");
    WGMMA_ALL(WGMMA_SS);
}
template <int N, bool B_transposed = false>
__device__ __forceinline__ void wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    static_assert(N % 16 == 0 && N >= 16 && N <= 256, "a multiple of 16 up to 256");
    WGMMA_ALL(WGMMA_RS);
}
