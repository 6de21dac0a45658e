// SIMT_DRY=1: the machine executes nothing. Launches and products are checked as ever and then dropped, device memory
// is addresses alone, and what is copied from it is zeros. So a program that counts what it launches
// (kernels/traffic.h) goes through a step of any size in seconds.
#include "dry.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

constexpr size_t kAddresses = size_t{1} << 44;  // never used twice

// Nobody may touch them: host code that does is stopped by the hardware.
uintptr_t base() {
    static const uintptr_t start = [] {
        void* p = mmap(nullptr, kAddresses, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        return p == MAP_FAILED ? uintptr_t{0} : reinterpret_cast<uintptr_t>(p);
    }();
    return start;
}
std::atomic<size_t> used{0};

bool on_device(const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) - base() < kAddresses;
}

}  // namespace

bool simt::dry() {
    static const bool on = [] {
        const char* value = getenv("SIMT_DRY");
        return value && *value && strcmp(value, "0") != 0;
    }();
    return on;
}

void* simt::dry_allocate(size_t bytes) {
    const size_t span = (bytes + 511) / 256 * 256, at = used.fetch_add(span);
    return base() && at + span <= kAddresses ? reinterpret_cast<void*>(base() + at) : nullptr;
}

void simt::dry_copy(void* to, const void* from, size_t bytes) {
    if (on_device(to)) return;
    if (on_device(from))
        memset(to, 0, bytes);
    else
        memmove(to, from, bytes);
}

void simt::dry_set(void* to, int value, size_t bytes) {
    if (!on_device(to)) memset(to, value, bytes);
}
