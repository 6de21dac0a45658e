// Memory of the CUDA runtime stand-in: allocation, copies, fills, how much is left.
#include <cuda_runtime.h>

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <string>

#include "dry.h"
#include "engine.h"
#include "runtime.h"

using simt::done;
using simt::read_number;

size_t simt::read_number(const char* path) {
    std::ifstream file(path);
    unsigned long long n = 0;
    return file >> n ? static_cast<size_t>(n) : 0;
}

namespace {

struct Allocation {
    size_t bytes;   // as asked for
    size_t mapped;  // of the mapping; 0: from the heap
    cudaMemoryType type;
};
std::mutex memory_mutex;
std::map<uintptr_t, Allocation> allocations;
size_t allocated = 0;

size_t meminfo(const char* key) {
    std::ifstream file("/proc/meminfo");
    for (std::string name, unit; file >> name;) {
        size_t kib = 0;
        file >> kib;
        std::getline(file, unit);
        if (name == key) return kib * 1024;
    }
    return 0;
}

// What this process may still take: the machine's free memory or what is left of the container's limit.
size_t available_memory() {
    size_t available = meminfo("MemAvailable:");
    size_t limit = read_number("/sys/fs/cgroup/memory.max"), used = read_number("/sys/fs/cgroup/memory.current");
    if (!limit) {
        limit = read_number("/sys/fs/cgroup/memory/memory.limit_in_bytes");
        used = read_number("/sys/fs/cgroup/memory/memory.usage_in_bytes");
    }
    if (limit && limit > used && limit - used < available) available = limit - used;
    return available;
}

}  // namespace

size_t simt::total_memory() {
    if (dry()) return kDryMemory;
    size_t total = meminfo("MemTotal:");
    size_t limit = read_number("/sys/fs/cgroup/memory.max");
    if (!limit) limit = read_number("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    return limit && limit < total ? limit : total;
}

namespace {

// Pages count as used only when touched, so what was given out and not touched yet must be subtracted by hand.
size_t free_memory_locked() {
    if (simt::dry()) return simt::kDryMemory - allocated;
    static const size_t at_start = available_memory();
    size_t by_account = at_start > allocated ? at_start - allocated : 0;
    return std::min(by_account, available_memory());
}

constexpr size_t kHugePage = 2 << 20;

cudaError_t allocate(void** pointer, size_t bytes, cudaMemoryType type) {
    SIMT_REFUSE_IN_CAPTURE();
    if (!pointer) return done(cudaErrorInvalidValue);
    *pointer = nullptr;
    if (bytes == 0) return cudaSuccess;
    std::lock_guard lock(memory_mutex);
    // Asking the system costs microseconds: only where it could matter.
    if (bytes >= kHugePage && bytes > free_memory_locked()) return done(cudaErrorMemoryAllocation);
    Allocation allocation{bytes, 0, type};
    void* p = nullptr;
    const bool dry = simt::dry() && type == cudaMemoryTypeDevice;
    if (dry && !(p = simt::dry_allocate(bytes))) return done(cudaErrorMemoryAllocation);
#if defined(SIMT_CHECK)
    if (!dry && type == cudaMemoryTypeDevice && !(p = simt::check_allocate(bytes))) return done(cudaErrorMemoryAllocation);
#elif !defined(__SANITIZE_ADDRESS__)
    if (!dry && bytes >= kHugePage) {
        // Aligned to huge pages by mapping more and giving the ends back.
        allocation.mapped = (bytes + kHugePage - 1) / kHugePage * kHugePage;
        void* map = mmap(nullptr, allocation.mapped + kHugePage, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (map == MAP_FAILED) return done(cudaErrorMemoryAllocation);
        uintptr_t low = reinterpret_cast<uintptr_t>(map), start = (low + kHugePage - 1) / kHugePage * kHugePage;
        if (start > low) munmap(map, start - low);
        size_t tail = low + kHugePage - start;
        if (tail) munmap(reinterpret_cast<void*>(start + allocation.mapped), tail);
        p = reinterpret_cast<void*>(start);
        madvise(p, allocation.mapped, MADV_HUGEPAGE);
    }
#endif
    if (!p && posix_memalign(&p, 256, bytes)) return done(cudaErrorMemoryAllocation);
    allocations[reinterpret_cast<uintptr_t>(p)] = allocation;
    allocated += bytes;
    *pointer = p;
    return cudaSuccess;
}

cudaError_t release(void* pointer, cudaMemoryType type) {
    SIMT_REFUSE_IN_CAPTURE();
    if (!pointer) return cudaSuccess;
    std::lock_guard lock(memory_mutex);
    auto found = allocations.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == allocations.end() || found->second.type != type) return done(cudaErrorInvalidValue);
    const Allocation gone = found->second;
    allocations.erase(found);
    allocated -= gone.bytes;
    if (simt::dry() && type == cudaMemoryTypeDevice) return cudaSuccess;
#if defined(SIMT_CHECK)
    if (type == cudaMemoryTypeDevice) return simt::check_free(pointer, gone.bytes), cudaSuccess;
#endif
    if (gone.mapped)
        munmap(pointer, gone.mapped);
    else
        free(pointer);
    return cudaSuccess;
}

}  // namespace

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
    return allocate(pointer, bytes, cudaMemoryTypeDevice);
}
cudaError_t cudaFree(void* pointer) {
    return release(pointer, cudaMemoryTypeDevice);
}
cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t) {
    return cudaMalloc(pointer, bytes);
}
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) {
    return cudaFree(pointer);
}
cudaError_t cudaMallocHost(void** pointer, size_t bytes, unsigned) {
    return allocate(pointer, bytes, cudaMemoryTypeHost);
}
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
    return allocate(pointer, bytes, cudaMemoryTypeHost);
}
cudaError_t cudaFreeHost(void* pointer) {
    return release(pointer, cudaMemoryTypeHost);
}
cudaError_t cudaHostRegister(void* pointer, size_t bytes, unsigned) {
    return done(pointer && bytes ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaHostUnregister(void* pointer) {
    return done(pointer ? cudaSuccess : cudaErrorInvalidValue);
}

namespace {

cudaError_t copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    if (bytes == 0) return cudaSuccess;
    if (!to || !from) return done(cudaErrorInvalidValue);
    if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return done(cudaErrorInvalidMemcpyDirection);
    if (simt::dry()) return simt::dry_copy(to, from, bytes), cudaSuccess;
    simt::check_copy(to, from, bytes);
    memmove(to, from, bytes);
    return cudaSuccess;
}
cudaError_t copy_rows(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                      cudaMemcpyKind kind) {
    if (width > to_pitch || width > from_pitch) return done(cudaErrorInvalidValue);
    for (size_t i = 0; i < height; i++) {
        cudaError_t error = copy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch,
                                 width, kind);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}
cudaError_t set(void* to, int value, size_t bytes) {
    if (bytes == 0) return cudaSuccess;
    if (!to) return done(cudaErrorInvalidValue);
    if (simt::dry()) return simt::dry_set(to, value, bytes), cudaSuccess;
    simt::check_set(to, bytes);
    memset(to, value, bytes);
    return cudaSuccess;
}
cudaError_t set_rows(void* to, size_t pitch, int value, size_t width, size_t height) {
    for (size_t i = 0; i < height; i++) {
        cudaError_t error = set(static_cast<char*>(to) + i * pitch, value, width);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

// A copy of memory that is not pinned passes through a buffer of the library's, which a graph cannot repeat.
bool copy_is_refused(const void* to, const void* from, cudaStream_t stream) {
    if (!simt::is_capturing(stream)) return false;
    for (const void* p : {to, from}) {
        cudaPointerAttributes attributes;
        cudaPointerGetAttributes(&attributes, p);
        if (attributes.type == cudaMemoryTypeUnregistered) return true;
    }
    return false;
}

}  // namespace

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    SIMT_REFUSE_IN_CAPTURE();
    return copy(to, from, bytes, kind);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    if (copy_is_refused(to, from, stream)) return simt::spoil(stream, cudaErrorStreamCaptureUnsupported);
    return simt::enqueue(stream, [=] { return copy(to, from, bytes, kind); });
}
cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                         cudaMemcpyKind kind) {
    SIMT_REFUSE_IN_CAPTURE();
    return copy_rows(to, to_pitch, from, from_pitch, width, height, kind);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
    if (copy_is_refused(to, from, stream)) return simt::spoil(stream, cudaErrorStreamCaptureUnsupported);
    return simt::enqueue(stream, [=] { return copy_rows(to, to_pitch, from, from_pitch, width, height, kind); });
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
    SIMT_REFUSE_IN_CAPTURE();
    return set(to, value, bytes);
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
    return simt::enqueue(stream, [=] { return set(to, value, bytes); });
}
cudaError_t cudaMemset2DAsync(void* to, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream) {
    return simt::enqueue(stream, [=] { return set_rows(to, pitch, value, width, height); });
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
    std::lock_guard lock(memory_mutex);
    *free_bytes = free_memory_locked();
    *total_bytes = simt::total_memory();
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
    *attributes = {cudaMemoryTypeUnregistered, 0, nullptr, const_cast<void*>(pointer)};
    std::lock_guard lock(memory_mutex);
    auto at = reinterpret_cast<uintptr_t>(pointer);
    auto next = allocations.upper_bound(at);
    if (next == allocations.begin()) return cudaSuccess;
    const auto& [start, allocation] = *std::prev(next);
    if (at >= start + allocation.bytes) return cudaSuccess;
    attributes->type = allocation.type;
    attributes->devicePointer = const_cast<void*>(pointer);
    return cudaSuccess;
}
