// Barriers, shuffles, votes: the CUDA built-ins by which threads of a block meet.
#pragma once

#include "simt.h"

namespace simt {

template <class T>
SIMT_INLINE uint64_t to_slot(T value) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    return bits;
}
template <class T>
SIMT_INLINE T from_slot(uint64_t bits) {
    T value;
    __builtin_memcpy(&value, &bits, sizeof(T));
    return value;
}

// Every lane of the mask deposits `value` and reads the deposit of lane `source`.
template <class T>
SIMT_INLINE T shuffle(const char* name, uint32_t mask, T value, unsigned source) {
    Warp& warp = *self.warp;
    unsigned lane = self.lane;
    mask &= warp.exists;
    check_arrive(name, mask);
    check_lane_source(source, mask);
    if (mask == warp.exists) [[likely]] {
        // Nobody can begin the shuffle after the next before all have read this one: two buffers are enough.
        unsigned phase = warp.phase >> lane & 1;
        warp.phase ^= 1u << lane;
        warp.slot[phase][lane] = to_slot(value);
        warp_sync(warp, mask);
        return from_slot<T>(warp.slot[phase][source]);
    }
    warp.aside[lane] = to_slot(value);
    warp_sync(warp, mask);
    T result = from_slot<T>(warp.aside[source]);
    warp_sync(warp, mask);
    return result;
}

// A vote: `work` sees every lane's value and gives the one result.
template <class T, class R, class Work>
SIMT_INLINE R vote(const char* name, uint32_t mask, T value, Work&& work) {
    struct Args {
        T value;
        R result;
    } args{value, {}};
    warp_collective(
        name, args,
        [&](Args* const* lanes, uint32_t present) {
            for (uint32_t m = present; m; m &= m - 1) {
                unsigned lane = static_cast<unsigned>(__builtin_ctz(m));
                lanes[lane]->result = work(lanes, present, lane);
            }
        },
        mask);
    return args.result;
}

template <class T, class R, class Work>
SIMT_INLINE R block_vote(const char* name, T value, Work&& work) {
    struct Args {
        T value;
        R result;
    } args{value, {}};
    block_collective(name, args, [&](Args* const* threads, unsigned count) {
        R result = work(threads, count);
        for (unsigned i = 0; i < count; i++)
            if (threads[i]) threads[i]->result = result;
    });
    return args.result;
}

}  // namespace simt

SIMT_INLINE void __syncthreads() {
    simt::Block& block = *simt::self.block;
    simt::check_arrive("__syncthreads", 0);
    if (simt::block_meet(block)) simt::release_block(block);
}
SIMT_INLINE int __syncthreads_count(int predicate) {
    return simt::block_vote<int, int>("__syncthreads_count", predicate, [](auto threads, unsigned count) {
        int sum = 0;
        for (unsigned i = 0; i < count; i++) sum += threads[i] && threads[i]->value != 0;
        return sum;
    });
}
SIMT_INLINE int __syncthreads_or(int predicate) {
    return simt::block_vote<int, int>("__syncthreads_or", predicate, [](auto threads, unsigned count) {
        int any = 0;
        for (unsigned i = 0; i < count; i++) any |= threads[i] && threads[i]->value != 0;
        return any;
    });
}
SIMT_INLINE int __syncthreads_and(int predicate) {
    return simt::block_vote<int, int>("__syncthreads_and", predicate, [](auto threads, unsigned count) {
        int all = 1;
        for (unsigned i = 0; i < count; i++) all &= !threads[i] || threads[i]->value != 0;
        return all;
    });
}

SIMT_INLINE void __syncwarp(unsigned mask = simt::kFullMask) {
    simt::Warp& warp = *simt::self.warp;
    mask &= warp.exists;
    simt::check_arrive("__syncwarp", mask);
    if (simt::warp_arrive(warp, mask)) {
        simt::warp_release(warp, mask);
        simt::check_warp_synced(warp, mask);
    } else {
        simt::suspend();
    }
}
// Which lanes happen to run together: here, those that have not returned.
SIMT_INLINE unsigned __activemask() {
    return simt::self.warp->alive;
}

template <class T>
SIMT_INLINE T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    unsigned w = static_cast<unsigned>(width), lane = simt::self.lane;
    return simt::shuffle("__shfl_sync", mask, value, (lane & ~(w - 1)) | (static_cast<unsigned>(source) & (w - 1)));
}
template <class T>
SIMT_INLINE T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
    unsigned w = static_cast<unsigned>(width), lane = simt::self.lane;
    unsigned source = lane ^ static_cast<unsigned>(lane_mask);
    // Reading from a later group of `width` lanes is not allowed and gives the lane's own value; from an earlier one it
    // is.
    if (source >= (lane & ~(w - 1)) + w) source = lane;
    return simt::shuffle("__shfl_xor_sync", mask, value, source);
}
template <class T>
SIMT_INLINE T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    unsigned w = static_cast<unsigned>(width), lane = simt::self.lane;
    return simt::shuffle("__shfl_up_sync", mask, value, (lane & (w - 1)) < delta ? lane : lane - delta);
}
template <class T>
SIMT_INLINE T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    unsigned w = static_cast<unsigned>(width), lane = simt::self.lane;
    return simt::shuffle("__shfl_down_sync", mask, value, (lane & (w - 1)) + delta >= w ? lane : lane + delta);
}

SIMT_INLINE unsigned __ballot_sync(unsigned mask, int predicate) {
    return simt::vote<int, unsigned>("__ballot_sync", mask, predicate, [](auto lanes, uint32_t present, unsigned) {
        unsigned bits = 0;
        for (unsigned i = 0; i < simt::kWarp; i++)
            if (present >> i & 1) bits |= static_cast<unsigned>(lanes[i]->value != 0) << i;
        return bits;
    });
}
SIMT_INLINE int __any_sync(unsigned mask, int predicate) {
    return simt::vote<int, int>("__any_sync", mask, predicate, [](auto lanes, uint32_t present, unsigned) {
        for (unsigned i = 0; i < simt::kWarp; i++)
            if ((present >> i & 1) && lanes[i]->value) return 1;
        return 0;
    });
}
SIMT_INLINE int __all_sync(unsigned mask, int predicate) {
    return simt::vote<int, int>("__all_sync", mask, predicate, [](auto lanes, uint32_t present, unsigned) {
        for (unsigned i = 0; i < simt::kWarp; i++)
            if ((present >> i & 1) && !lanes[i]->value) return 0;
        return 1;
    });
}
template <class T>
SIMT_INLINE unsigned __match_any_sync(unsigned mask, T value) {
    return simt::vote<uint64_t, unsigned>("__match_any_sync", mask, simt::to_slot(value),
                                          [](auto lanes, uint32_t present, unsigned lane) {
                                              unsigned bits = 0;
                                              for (unsigned i = 0; i < simt::kWarp; i++)
                                                  if ((present >> i & 1) && lanes[i]->value == lanes[lane]->value)
                                                      bits |= 1u << i;
                                              return bits;
                                          });
}
template <class T>
SIMT_INLINE unsigned __match_all_sync(unsigned mask, T value, int* all) {
    unsigned same = __match_any_sync(mask, value);
    mask &= simt::self.warp->exists;
    *all = same == mask;
    return *all ? mask : 0;
}

#define SIMT_REDUCE(name, T, expression)                                                         \
    SIMT_INLINE T name(unsigned mask, T value) {                                                 \
        return simt::vote<T, T>(#name, mask, value, [](auto lanes, uint32_t present, unsigned) { \
            T a = lanes[__builtin_ctz(present)]->value;                                          \
            for (uint32_t m = present & (present - 1); m; m &= m - 1) {                          \
                T b = lanes[__builtin_ctz(m)]->value;                                            \
                a = expression;                                                                  \
            }                                                                                    \
            return a;                                                                            \
        });                                                                                      \
    }
SIMT_REDUCE(__reduce_add_sync, int, static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)))
SIMT_REDUCE(__reduce_add_sync, unsigned, a + b)
SIMT_REDUCE(__reduce_min_sync, int, a < b ? a : b)
SIMT_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
SIMT_REDUCE(__reduce_max_sync, int, a > b ? a : b)
SIMT_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
SIMT_REDUCE(__reduce_and_sync, unsigned, a& b)
SIMT_REDUCE(__reduce_or_sync, unsigned, a | b)
SIMT_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef SIMT_REDUCE
