#include "nccl_reduce.h"

#include <cstdint>

#include "gemm.h"

namespace simt::nccl {

namespace {

using gemm::bf16;

// What a type is summed in: bf16 in fp32, everything else in itself.
template <class T, bool is_bf16>
struct Element {
    using Sum = T;
    static Sum load(T x) { return x; }
    static T store(Sum x) { return x; }
};
template <>
struct Element<bf16, true> {
    using Sum = float;
    static float load(bf16 x) { return gemm::to_float(x); }
    static bf16 store(float x) { return gemm::rounded<bf16>(x); }
};

template <ncclRedOp_t op, class Sum>
Sum combine(Sum a, Sum b) {
    if constexpr (op == ncclProd) return static_cast<Sum>(a * b);
    if constexpr (op == ncclMax) return b > a ? b : a;
    if constexpr (op == ncclMin) return b < a ? b : a;
    return static_cast<Sum>(a + b);
}

template <class T, bool is_bf16, ncclRedOp_t op>
void reduce(void* out_, const void* const* parts, int ranks, size_t count) {
    using E = Element<T, is_bf16>;
    using Sum = typename E::Sum;
    constexpr int64_t kBlock = 1024;  // partial results of a block stay in the first cache
    T* out = static_cast<T*>(out_);
    const int64_t total = static_cast<int64_t>(count);
#pragma omp parallel for schedule(static) if (total > 65536)
    for (int64_t begin = 0; begin < total; begin += kBlock) {
        const int64_t n = total - begin < kBlock ? total - begin : kBlock;
        Sum sum[kBlock];
        const T* first = static_cast<const T*>(parts[0]) + begin;
#pragma omp simd
        for (int64_t i = 0; i < n; i++) sum[i] = E::load(first[i]);
        for (int r = 1; r < ranks; r++) {
            const T* part = static_cast<const T*>(parts[r]) + begin;
#pragma omp simd
            for (int64_t i = 0; i < n; i++) sum[i] = combine<op>(sum[i], E::load(part[i]));
        }
        if constexpr (op == ncclAvg) {
#pragma omp simd
            for (int64_t i = 0; i < n; i++) sum[i] = sum[i] / static_cast<Sum>(ranks);
        }
#pragma omp simd
        for (int64_t i = 0; i < n; i++) out[begin + i] = E::store(sum[i]);
    }
}

template <class T, bool is_bf16 = false>
void reduce_type(void* out, const void* const* parts, int ranks, size_t count, ncclRedOp_t op) {
    switch (op) {
        case ncclAvg:
            return reduce<T, is_bf16, ncclAvg>(out, parts, ranks, count);
        case ncclProd:
            return reduce<T, is_bf16, ncclProd>(out, parts, ranks, count);
        case ncclMax:
            return reduce<T, is_bf16, ncclMax>(out, parts, ranks, count);
        case ncclMin:
            return reduce<T, is_bf16, ncclMin>(out, parts, ranks, count);
        default:
            return reduce<T, is_bf16, ncclSum>(out, parts, ranks, count);
    }
}

}  // namespace

size_t size_of(ncclDataType_t type) {
    switch (type) {
        case ncclInt8:
        case ncclUint8:
            return 1;
        case ncclBfloat16:
            return 2;
        case ncclInt32:
        case ncclUint32:
        case ncclFloat32:
            return 4;
        case ncclInt64:
        case ncclUint64:
        case ncclFloat64:
            return 8;
        default:
            return 0;
    }
}

bool can_reduce(ncclDataType_t type, ncclRedOp_t op) {
    if (size_of(type) == 0 || op < ncclSum || op > ncclAvg) return false;
    return type != ncclBfloat16 || op == ncclSum || op == ncclAvg;
}

void reduce_parts(void* out, const void* const* parts, int ranks, size_t count, ncclDataType_t type, ncclRedOp_t op) {
    switch (type) {
        case ncclInt8:
            return reduce_type<int8_t>(out, parts, ranks, count, op);
        case ncclUint8:
            return reduce_type<uint8_t>(out, parts, ranks, count, op);
        case ncclInt32:
            return reduce_type<int32_t>(out, parts, ranks, count, op);
        case ncclUint32:
            return reduce_type<uint32_t>(out, parts, ranks, count, op);
        case ncclInt64:
            return reduce_type<int64_t>(out, parts, ranks, count, op);
        case ncclUint64:
            return reduce_type<uint64_t>(out, parts, ranks, count, op);
        case ncclFloat32:
            return reduce_type<float>(out, parts, ranks, count, op);
        case ncclFloat64:
            return reduce_type<double>(out, parts, ranks, count, op);
        case ncclBfloat16:
            return reduce_type<bf16, true>(out, parts, ranks, count, op);
        default:
            return;
    }
}

}  // namespace simt::nccl
