// The functions that code compiled with g++ -fsanitize=thread calls at every memory access. libtsan is not linked:
// these take its place and hand the accesses to the checker. Compiled with -DSIMT_CHECK only.
#ifdef SIMT_CHECK

#include "check.h"

#define HOOK extern "C" __attribute__((noinline, used))
#define PC __builtin_return_address(0)

HOOK void __tsan_init() {}
HOOK void __tsan_func_entry(void*) {}
HOOK void __tsan_func_exit() {}
HOOK void __tsan_vptr_update(void**, void*) {}
HOOK void __tsan_vptr_read(void**) {}
HOOK void __tsan_read_range(void* p, size_t bytes) {
    simt::check_read(p, bytes, PC);
}
HOOK void __tsan_write_range(void* p, size_t bytes) {
    simt::check_write(p, bytes, PC);
}

#define ACCESS(n)                                  \
    HOOK void __tsan_read##n(void* p) {            \
        simt::check_read(p, n, PC);                \
    }                                              \
    HOOK void __tsan_write##n(void* p) {           \
        simt::check_write(p, n, PC);               \
    }                                              \
    HOOK void __tsan_unaligned_read##n(void* p) {  \
        simt::check_read(p, n, PC);                \
    }                                              \
    HOOK void __tsan_unaligned_write##n(void* p) { \
        simt::check_write(p, n, PC);               \
    }                                              \
    HOOK void __tsan_volatile_read##n(void* p) {   \
        simt::check_read(p, n, PC);                \
    }                                              \
    HOOK void __tsan_volatile_write##n(void* p) {  \
        simt::check_write(p, n, PC);               \
    }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)

// Memory orders are ignored and the strongest taken.
#define FETCH(bits, T, name)                                             \
    HOOK T __tsan_atomic##bits##_fetch_##name(volatile T* p, T v, int) { \
        simt::check_atomic(const_cast<T*>(p), sizeof(T), true, PC);      \
        return __atomic_fetch_##name(p, v, __ATOMIC_SEQ_CST);            \
    }
#define ATOMICS(bits, T)                                                                         \
    HOOK T __tsan_atomic##bits##_load(const volatile T* p, int) {                                \
        simt::check_atomic(const_cast<const T*>(p), sizeof(T), true, PC);                        \
        return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                             \
    }                                                                                            \
    HOOK void __tsan_atomic##bits##_store(volatile T* p, T v, int) {                             \
        simt::check_atomic(const_cast<T*>(p), sizeof(T), false, PC);                             \
        __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                \
    }                                                                                            \
    HOOK T __tsan_atomic##bits##_exchange(volatile T* p, T v, int) {                             \
        simt::check_atomic(const_cast<T*>(p), sizeof(T), false, PC);                             \
        return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                      \
    }                                                                                            \
    FETCH(bits, T, add)                                                                          \
    FETCH(bits, T, sub)                                                                          \
    FETCH(bits, T, and)                                                                          \
    FETCH(bits, T, or)                                                                           \
    FETCH(bits, T, xor)                                                                          \
    FETCH(bits, T, nand)                                                                         \
    HOOK int __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* e, T v, int, int) { \
        simt::check_atomic(const_cast<T*>(p), sizeof(T), true, PC);                              \
        return __atomic_compare_exchange_n(p, e, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);  \
    }                                                                                            \
    HOOK int __tsan_atomic##bits##_compare_exchange_weak(volatile T* p, T* e, T v, int, int) {   \
        simt::check_atomic(const_cast<T*>(p), sizeof(T), true, PC);                              \
        return __atomic_compare_exchange_n(p, e, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);  \
    }                                                                                            \
    HOOK T __tsan_atomic##bits##_compare_exchange_val(volatile T* p, T e, T v, int, int) {       \
        simt::check_atomic(const_cast<T*>(p), sizeof(T), true, PC);                              \
        __atomic_compare_exchange_n(p, &e, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);        \
        return e;                                                                                \
    }
ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)

HOOK void __tsan_atomic_thread_fence(int) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
HOOK void __tsan_atomic_signal_fence(int) {}

#endif
