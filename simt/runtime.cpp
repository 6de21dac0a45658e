// The host side of the CUDA runtime stand-in: device, memory, streams, events, launch checks.
#include <cuda_runtime.h>

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>

#include "engine.h"
#ifdef _OPENMP
#include <omp.h>
#endif

struct simt_stream {
    int priority;
};
struct simt_event {
    std::chrono::steady_clock::time_point time;
    bool recorded = false;
    bool timing = true;
};

namespace {

thread_local cudaError_t last_error = cudaSuccess;
cudaError_t done(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

struct Allocation {
    size_t bytes;   // as asked for
    size_t mapped;  // of the mapping; 0: from the heap
    cudaMemoryType type;
};
std::mutex memory_mutex;
std::map<uintptr_t, Allocation> allocations;
size_t allocated = 0;

size_t read_number(const char* path) {
    std::ifstream file(path);
    unsigned long long n = 0;
    return file >> n ? static_cast<size_t>(n) : 0;
}
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
size_t total_memory() {
    size_t total = meminfo("MemTotal:");
    size_t limit = read_number("/sys/fs/cgroup/memory.max");
    if (!limit) limit = read_number("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    return limit && limit < total ? limit : total;
}

// Pages count as used only when touched, so what was given out and not touched yet must be subtracted by hand.
size_t free_memory_locked() {
    static const size_t at_start = available_memory();
    size_t by_account = at_start > allocated ? at_start - allocated : 0;
    return std::min(by_account, available_memory());
}

constexpr size_t kHugePage = 2 << 20;

cudaError_t allocate(void** pointer, size_t bytes, cudaMemoryType type) {
    if (!pointer) return done(cudaErrorInvalidValue);
    *pointer = nullptr;
    if (bytes == 0) return cudaSuccess;
    std::lock_guard lock(memory_mutex);
    // Asking the system costs microseconds: only where it could matter.
    if (bytes >= kHugePage && bytes > free_memory_locked()) return done(cudaErrorMemoryAllocation);
    Allocation allocation{bytes, 0, type};
    void* p = nullptr;
#if defined(SIMT_CHECK)
    if (type == cudaMemoryTypeDevice && !(p = simt::check_allocate(bytes))) return done(cudaErrorMemoryAllocation);
#elif !defined(__SANITIZE_ADDRESS__)
    if (bytes >= kHugePage) {
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
    if (!pointer) return cudaSuccess;
    std::lock_guard lock(memory_mutex);
    auto found = allocations.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == allocations.end() || found->second.type != type) return done(cudaErrorInvalidValue);
    allocated -= found->second.bytes;
#if defined(SIMT_CHECK)
    if (type == cudaMemoryTypeDevice) simt::check_free(pointer, found->second.bytes);
    else
#endif
        if (found->second.mapped)
        munmap(pointer, found->second.mapped);
    else
        free(pointer);
    allocations.erase(found);
    return cudaSuccess;
}

int cores() {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

std::string cpu_name() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        if (line.rfind("model name", 0) == 0 && line.find(':') != std::string::npos)
            return line.substr(line.find(':') + 2);
    }
    return "CPU";
}

int clock_khz() {
    if (size_t khz = read_number("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")) return static_cast<int>(khz);
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);)
        if (line.rfind("cpu MHz", 0) == 0 && line.find(':') != std::string::npos)
            return static_cast<int>(std::atof(line.c_str() + line.find(':') + 1) * 1000);
    return 2000000;
}

int last_level_cache() {
    for (int name : {_SC_LEVEL3_CACHE_SIZE, _SC_LEVEL2_CACHE_SIZE})
        if (long bytes = sysconf(name); bytes > 0) return static_cast<int>(std::min(bytes, 1l << 30));
    return 1 << 20;
}

std::mutex function_mutex;
std::unordered_map<const void*, int> dynamic_shared_limit;  // only kernels that asked for more than the default

size_t shared_limit_of(const void* kernel) {
    std::lock_guard lock(function_mutex);
    auto found = dynamic_shared_limit.find(kernel);
    return found == dynamic_shared_limit.end() ? simt::kSharedDefault : static_cast<size_t>(found->second);
}

}  // namespace

const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
#define SIMT_NAME(e) \
    case e: return #e;
        SIMT_NAME(cudaSuccess)
        SIMT_NAME(cudaErrorInvalidValue)
        SIMT_NAME(cudaErrorMemoryAllocation)
        SIMT_NAME(cudaErrorInitializationError)
        SIMT_NAME(cudaErrorInvalidConfiguration)
        SIMT_NAME(cudaErrorInvalidMemcpyDirection)
        SIMT_NAME(cudaErrorInvalidDeviceFunction)
        SIMT_NAME(cudaErrorNoDevice)
        SIMT_NAME(cudaErrorInvalidDevice)
        SIMT_NAME(cudaErrorInvalidResourceHandle)
        SIMT_NAME(cudaErrorNotReady)
        SIMT_NAME(cudaErrorHostMemoryAlreadyRegistered)
        SIMT_NAME(cudaErrorHostMemoryNotRegistered)
        SIMT_NAME(cudaErrorLaunchFailure)
        SIMT_NAME(cudaErrorNotSupported)
#undef SIMT_NAME
    }
    return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInitializationError: return "initialization error";
        case cudaErrorInvalidConfiguration: return "invalid configuration argument";
        case cudaErrorInvalidMemcpyDirection: return "invalid copy direction for memcpy";
        case cudaErrorInvalidDeviceFunction: return "invalid device function";
        case cudaErrorNoDevice: return "no CUDA-capable device is detected";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        case cudaErrorInvalidResourceHandle: return "invalid resource handle";
        case cudaErrorNotReady: return "device not ready";
        case cudaErrorHostMemoryAlreadyRegistered: return "part or all of the requested memory range is already mapped";
        case cudaErrorHostMemoryNotRegistered: return "pointer does not correspond to a registered memory region";
        case cudaErrorLaunchFailure: return "unspecified launch failure";
        case cudaErrorNotSupported: return "operation not supported";
    }
    return "unrecognized error code";
}
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return done(device == 0 ? cudaSuccess : cudaErrorInvalidDevice); }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaDeviceReset() { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int device) {
    if (device != 0) return done(cudaErrorInvalidDevice);
    snprintf(id, static_cast<size_t>(length), "0000:00:00.0");
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
    if (device != 0) return done(cudaErrorInvalidDevice);
    *p = {};
    snprintf(p->name, sizeof p->name, "%s", cpu_name().c_str());
    p->totalGlobalMem = total_memory();
    p->sharedMemPerBlock = simt::kSharedDefault;
    p->sharedMemPerBlockOptin = simt::kSharedLimit;
    p->sharedMemPerMultiprocessor = simt::kSharedLimit + 1024;
    p->reservedSharedMemPerBlock = 1024;
    p->totalConstMem = 64 * 1024;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = simt::kWarp;
    p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = simt::kMaxThreads;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 0x7fffffff;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->major = 8;
    p->multiProcessorCount = cores();
    p->integrated = p->unifiedAddressing = 1;
    p->l2CacheSize = last_level_cache();
    p->maxThreadsPerMultiProcessor = simt::kMaxThreads;
    p->maxBlocksPerMultiProcessor = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    if (device != 0) return done(cudaErrorInvalidDevice);
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock: *value = simt::kMaxThreads; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = simt::kSharedDefault; break;
        case cudaDevAttrWarpSize: *value = simt::kWarp; break;
        case cudaDevAttrMaxRegistersPerBlock: *value = 65536; break;
        case cudaDevAttrClockRate: *value = clock_khz(); break;
        case cudaDevAttrMultiProcessorCount: *value = cores(); break;
        case cudaDevAttrMemoryClockRate: *value = 0; break;
        case cudaDevAttrGlobalMemoryBusWidth: *value = 0; break;
        case cudaDevAttrL2CacheSize: *value = last_level_cache(); break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = simt::kMaxThreads; break;
        case cudaDevAttrComputeCapabilityMajor: *value = 8; break;
        case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = simt::kSharedLimit + 1024; break;
        case cudaDevAttrCooperativeLaunch: *value = 0; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = simt::kSharedLimit; break;
        case cudaDevAttrMemoryPoolsSupported: *value = 0; break;
        default: return done(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) { return allocate(pointer, bytes, cudaMemoryTypeDevice); }
cudaError_t cudaFree(void* pointer) { return release(pointer, cudaMemoryTypeDevice); }
cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t) { return cudaMalloc(pointer, bytes); }
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) { return cudaFree(pointer); }
cudaError_t cudaMallocHost(void** pointer, size_t bytes, unsigned) { return allocate(pointer, bytes, cudaMemoryTypeHost); }
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) { return allocate(pointer, bytes, cudaMemoryTypeHost); }
cudaError_t cudaFreeHost(void* pointer) { return release(pointer, cudaMemoryTypeHost); }
cudaError_t cudaHostRegister(void* pointer, size_t bytes, unsigned) {
    return done(pointer && bytes ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaHostUnregister(void* pointer) { return done(pointer ? cudaSuccess : cudaErrorInvalidValue); }

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    if (bytes == 0) return cudaSuccess;
    if (!to || !from) return done(cudaErrorInvalidValue);
    if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return done(cudaErrorInvalidMemcpyDirection);
    simt::check_copy(to, from, bytes);
    memmove(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
    return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                         cudaMemcpyKind kind) {
    if (width > to_pitch || width > from_pitch) return done(cudaErrorInvalidValue);
    for (size_t i = 0; i < height; i++) {
        cudaError_t error = cudaMemcpy(static_cast<char*>(to) + i * to_pitch,
                                       static_cast<const char*>(from) + i * from_pitch, width, kind);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t) {
    return cudaMemcpy2D(to, to_pitch, from, from_pitch, width, height, kind);
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
    if (bytes == 0) return cudaSuccess;
    if (!to) return done(cudaErrorInvalidValue);
    simt::check_set(to, bytes);
    memset(to, value, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) { return cudaMemset(to, value, bytes); }
cudaError_t cudaMemset2DAsync(void* to, size_t pitch, int value, size_t width, size_t height, cudaStream_t) {
    for (size_t i = 0; i < height; i++) {
        cudaError_t error = cudaMemset(static_cast<char*>(to) + i * pitch, value, width);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
    std::lock_guard lock(memory_mutex);
    *free_bytes = free_memory_locked();
    *total_bytes = total_memory();
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

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int priority) {
    *stream = new simt_stream{priority};
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) { return *least = *greatest = 0, cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    if (!stream || stream == cudaStreamLegacy || stream == cudaStreamPerThread) return done(cudaErrorInvalidResourceHandle);
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t event, unsigned) {
    return done(event ? cudaSuccess : cudaErrorInvalidResourceHandle);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t, void (*function)(void*), void* data) {
    function(data);
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
    *event = new simt_event;
    (*event)->timing = !(flags & cudaEventDisableTiming);
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    if (!event) return done(cudaErrorInvalidResourceHandle);
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
    if (!event) return done(cudaErrorInvalidResourceHandle);
    event->time = std::chrono::steady_clock::now();
    event->recorded = true;
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return done(event ? cudaSuccess : cudaErrorInvalidResourceHandle); }
cudaError_t cudaEventQuery(cudaEvent_t event) { return done(event ? cudaSuccess : cudaErrorInvalidResourceHandle); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
    if (!begin || !end || !begin->recorded || !end->recorded || !begin->timing || !end->timing)
        return done(cudaErrorInvalidResourceHandle);
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
    if (!kernel) return done(cudaErrorInvalidDeviceFunction);
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        static_cast<size_t>(value) > simt::kSharedLimit)
        return done(cudaErrorInvalidValue);
    std::lock_guard lock(function_mutex);
    int& limit = dynamic_shared_limit.try_emplace(kernel, static_cast<int>(simt::kSharedDefault)).first->second;
    limit = value;
    return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
    if (!kernel) return done(cudaErrorInvalidDeviceFunction);
    *attributes = {};
    attributes->maxThreadsPerBlock = simt::kMaxThreads;
    attributes->ptxVersion = attributes->binaryVersion = 80;
    attributes->maxDynamicSharedSizeBytes = static_cast<int>(shared_limit_of(kernel));
    return cudaSuccess;
}
// An OS thread runs one block at a time.
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int block_size, size_t shared) {
    if (!kernel) return done(cudaErrorInvalidDeviceFunction);
    *blocks = block_size >= 1 && block_size <= static_cast<int>(simt::kMaxThreads) && shared <= simt::kSharedLimit;
    return cudaSuccess;
}

cudaError_t simt::launch_kernel(const cudaLaunchConfig_t& config, const void* kernel, void (*body)(void*), void* args) {
    const dim3 &g = config.gridDim, &b = config.blockDim;
    bool shape_ok = g.x >= 1 && g.y >= 1 && g.z >= 1 && g.x <= 0x7fffffff && g.y <= 65535 && g.z <= 65535 &&
                    b.x >= 1 && b.y >= 1 && b.z >= 1 && b.x <= kMaxThreads && b.y <= kMaxThreads && b.z <= 64 &&
                    static_cast<uint64_t>(b.x) * b.y * b.z <= kMaxThreads;
    if (!shape_ok) return done(cudaErrorInvalidConfiguration);
    if (config.dynamicSmemBytes > kSharedDefault && config.dynamicSmemBytes > shared_limit_of(kernel))
        return done(cudaErrorInvalidValue);
    for (unsigned i = 0; i < config.numAttrs; i++) {
        const cudaLaunchAttribute& a = config.attrs[i];
        bool cluster = a.id == cudaLaunchAttributeClusterDimension &&
                       a.val.clusterDim.x * a.val.clusterDim.y * a.val.clusterDim.z != 1;
        if (cluster || (a.id == cudaLaunchAttributeCooperative && a.val.cooperative)) return done(cudaErrorNotSupported);
    }
    Launch launch{body, args, kernel, g, b, config.dynamicSmemBytes};
    return done(run(launch) ? cudaSuccess : cudaErrorLaunchFailure);
}
