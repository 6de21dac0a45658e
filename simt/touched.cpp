// See touched.h. For every byte of device memory two epochs, of its last read and its last write: what carries the
// present one has been counted.
#include "touched.h"

#ifdef SIMT_CHECK

#include <sys/mman.h>

#include <atomic>
#include <initializer_list>

#include "check.h"

namespace simt {

namespace {

struct Epochs {
    std::atomic<uint32_t>*read = nullptr, *written = nullptr;
};
Epochs epochs;
uint32_t present = 0;  // 0: nobody counts
std::atomic<int64_t> bytes_read{0}, bytes_written{0};

std::atomic<uint32_t>* reserve(size_t count) {  // addresses; zeros where touched
    void* p = mmap(nullptr, count * sizeof(uint32_t), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : static_cast<std::atomic<uint32_t>*>(p);
}

}  // namespace

void touch(uintptr_t p, size_t bytes, bool write) {
    if (!present) return;
    const size_t first = p - arena.base;
    int64_t fresh = 0;
    for (size_t i = first; i < first + bytes; i++) {
        if (write) {
            fresh += epochs.written[i].exchange(present, std::memory_order_relaxed) != present;
        } else if (epochs.written[i].load(std::memory_order_relaxed) != present) {
            fresh += epochs.read[i].exchange(present, std::memory_order_relaxed) != present;
        }
    }
    if (fresh) (write ? bytes_written : bytes_read).fetch_add(fresh, std::memory_order_relaxed);
}

// Addresses are not used again: the epochs' memory goes back.
void forget_touched(uintptr_t p, size_t bytes) {
    constexpr uintptr_t page = 4096;
    for (std::atomic<uint32_t>* of : {epochs.read, epochs.written}) {
        if (!of) continue;
        const auto begin = reinterpret_cast<uintptr_t>(of + (p - arena.base));
        const uintptr_t first = (begin + page - 1) / page * page, last = (begin + 4 * bytes) / page * page;
        if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
    }
}

Touched take_touched() {
    if (!arena.bytes) return {};
    if (!epochs.read) epochs = {reserve(arena.bytes), reserve(arena.bytes)};
    if (!epochs.read || !epochs.written) return {};
    present++;
    return {bytes_read.exchange(0), bytes_written.exchange(0)};
}

}  // namespace simt

#else

simt::Touched simt::take_touched() {
    return {};
}

#endif
