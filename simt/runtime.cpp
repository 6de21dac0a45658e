// The host side of the CUDA runtime stand-in: device, streams, events, launch checks. Memory: memory.cpp.
#include <cuda_runtime.h>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "dry.h"
#include "engine.h"
#include "runtime.h"
#ifdef _OPENMP
#include <omp.h>
#endif

struct simt_event {
    std::chrono::steady_clock::time_point time;
    bool recorded = false;
    bool timing = true;
    bool captured = false;  // its last record stands in a graph, not in time
};

using simt::done;

namespace {

thread_local cudaError_t last_error = cudaSuccess;

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
    if (size_t khz = simt::read_number("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"))
        return static_cast<int>(khz);
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

constexpr size_t kArgumentAlignment = 128;  // no parameter asks for more
size_t round_to_alignment(size_t bytes) {
    return (bytes + kArgumentAlignment - 1) / kArgumentAlignment * kArgumentAlignment;
}

size_t shared_limit_of(const void* kernel) {
    std::lock_guard lock(function_mutex);
    auto found = dynamic_shared_limit.find(kernel);
    return found == dynamic_shared_limit.end() ? simt::kSharedDefault : static_cast<size_t>(found->second);
}

}  // namespace

cudaError_t simt::done(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
#define SIMT_NAME(e) \
    case e:          \
        return #e;
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
        SIMT_NAME(cudaErrorIllegalState)
        SIMT_NAME(cudaErrorNotReady)
        SIMT_NAME(cudaErrorHostMemoryAlreadyRegistered)
        SIMT_NAME(cudaErrorHostMemoryNotRegistered)
        SIMT_NAME(cudaErrorLaunchFailure)
        SIMT_NAME(cudaErrorCooperativeLaunchTooLarge)
        SIMT_NAME(cudaErrorNotSupported)
        SIMT_NAME(cudaErrorStreamCaptureUnsupported)
        SIMT_NAME(cudaErrorStreamCaptureInvalidated)
        SIMT_NAME(cudaErrorStreamCaptureIsolation)
        SIMT_NAME(cudaErrorStreamCaptureImplicit)
        SIMT_NAME(cudaErrorCapturedEvent)
        SIMT_NAME(cudaErrorStreamCaptureWrongThread)
#undef SIMT_NAME
    }
    return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "no error";
        case cudaErrorInvalidValue:
            return "invalid argument";
        case cudaErrorMemoryAllocation:
            return "out of memory";
        case cudaErrorInitializationError:
            return "initialization error";
        case cudaErrorInvalidConfiguration:
            return "invalid configuration argument";
        case cudaErrorInvalidMemcpyDirection:
            return "invalid copy direction for memcpy";
        case cudaErrorInvalidDeviceFunction:
            return "invalid device function";
        case cudaErrorNoDevice:
            return "no CUDA-capable device is detected";
        case cudaErrorInvalidDevice:
            return "invalid device ordinal";
        case cudaErrorInvalidResourceHandle:
            return "invalid resource handle";
        case cudaErrorIllegalState:
            return "the operation cannot be performed in the present state";
        case cudaErrorNotReady:
            return "device not ready";
        case cudaErrorHostMemoryAlreadyRegistered:
            return "part or all of the requested memory range is already mapped";
        case cudaErrorHostMemoryNotRegistered:
            return "pointer does not correspond to a registered memory region";
        case cudaErrorLaunchFailure:
            return "unspecified launch failure";
        case cudaErrorCooperativeLaunchTooLarge:
            return "too many blocks in cooperative launch";
        case cudaErrorNotSupported:
            return "operation not supported";
        case cudaErrorStreamCaptureUnsupported:
            return "operation not permitted when stream is capturing";
        case cudaErrorStreamCaptureInvalidated:
            return "operation failed due to a previous error during capture";
        case cudaErrorStreamCaptureIsolation:
            return "dependency created on uncaptured work in another stream";
        case cudaErrorStreamCaptureImplicit:
            return "operation would make the legacy stream depend on a capturing blocking stream";
        case cudaErrorCapturedEvent:
            return "operation not permitted on an event last recorded in a capturing stream";
        case cudaErrorStreamCaptureWrongThread:
            return "attempt to terminate a thread-local capture sequence from another thread";
    }
    return "unrecognized error code";
}
cudaError_t cudaGetLastError() {
    return std::exchange(last_error, cudaSuccess);
}
cudaError_t cudaPeekAtLastError() {
    return last_error;
}

cudaError_t cudaGetDeviceCount(int* count) {
    return *count = 1, cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    return done(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaGetDevice(int* device) {
    return *device = 0, cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
    SIMT_REFUSE_IN_CAPTURE();
    return cudaSuccess;
}
cudaError_t cudaDeviceReset() {
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
    return *version = CUDART_VERSION, cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
    return *version = CUDART_VERSION, cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int device) {
    if (device != 0) return done(cudaErrorInvalidDevice);
    snprintf(id, static_cast<size_t>(length), "0000:00:00.0");
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
    if (device != 0) return done(cudaErrorInvalidDevice);
    *p = {};
    snprintf(p->name, sizeof p->name, "%s", cpu_name().c_str());
    p->totalGlobalMem = simt::total_memory();
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
        case cudaDevAttrMaxThreadsPerBlock:
            *value = simt::kMaxThreads;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlock:
            *value = simt::kSharedDefault;
            break;
        case cudaDevAttrWarpSize:
            *value = simt::kWarp;
            break;
        case cudaDevAttrMaxRegistersPerBlock:
            *value = 65536;
            break;
        case cudaDevAttrClockRate:
            *value = clock_khz();
            break;
        case cudaDevAttrMultiProcessorCount:
            *value = cores();
            break;
        case cudaDevAttrMemoryClockRate:
            *value = 0;
            break;
        case cudaDevAttrGlobalMemoryBusWidth:
            *value = 0;
            break;
        case cudaDevAttrL2CacheSize:
            *value = last_level_cache();
            break;
        case cudaDevAttrMaxThreadsPerMultiProcessor:
            *value = simt::kMaxThreads;
            break;
        case cudaDevAttrComputeCapabilityMajor:
            *value = 8;
            break;
        case cudaDevAttrComputeCapabilityMinor:
            *value = 0;
            break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
            *value = simt::kSharedLimit + 1024;
            break;
        case cudaDevAttrCooperativeLaunch:
            *value = 1;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = simt::kSharedLimit;
            break;
        case cudaDevAttrMemoryPoolsSupported:
            *value = 0;
            break;
        default:
            return done(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
    *stream = new simt_stream{priority, nullptr, flags != cudaStreamNonBlocking};
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    return cudaStreamCreateWithPriority(stream, 0, 0);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    return *least = *greatest = 0, cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    if (!stream || stream == cudaStreamLegacy || stream == cudaStreamPerThread)
        return done(cudaErrorInvalidResourceHandle);
    if (stream->capture) return simt::spoil(stream, cudaErrorStreamCaptureUnsupported);
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
    SIMT_REFUSE_IN_CAPTURE();
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t) {
    SIMT_REFUSE_IN_CAPTURE();
    return cudaSuccess;
}
// In a capture: of an event of the same capture, which changes nothing; a fork to another stream is not known here.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    if (!event) return done(cudaErrorInvalidResourceHandle);
    if (simt::is_capturing(stream) && !event->captured) return simt::spoil(stream, cudaErrorStreamCaptureIsolation);
    if (!simt::is_capturing(stream) && event->captured && simt::capturing_stream)
        return simt::spoil(simt::capturing_stream, cudaErrorNotSupported);
    return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*function)(void*), void* data) {
    return simt::enqueue(stream, [=] { return function(data), cudaSuccess; });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
    *event = new simt_event;
    (*event)->timing = !(flags & cudaEventDisableTiming);
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
    return cudaEventCreateWithFlags(event, 0);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    if (!event) return done(cudaErrorInvalidResourceHandle);
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    if (!event) return done(cudaErrorInvalidResourceHandle);
    event->captured = simt::is_capturing(stream);
    if (event->captured) return cudaSuccess;
    event->time = std::chrono::steady_clock::now();
    event->recorded = true;
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    SIMT_REFUSE_IN_CAPTURE();
    if (!event) return done(cudaErrorInvalidResourceHandle);
    return done(event->captured ? cudaErrorCapturedEvent : cudaSuccess);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    return cudaEventSynchronize(event);
}
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
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int block_size,
                                                          size_t shared) {
    if (!kernel) return done(cudaErrorInvalidDeviceFunction);
    *blocks = block_size >= 1 && block_size <= static_cast<int>(simt::kMaxThreads) && shared <= simt::kSharedLimit;
    return cudaSuccess;
}

cudaError_t simt::launch_kernel(const cudaLaunchConfig_t& config, const void* kernel,
                                const KernelCall& call) {
    const dim3 &g = config.gridDim, &b = config.blockDim;
    bool shape_ok = g.x >= 1 && g.y >= 1 && g.z >= 1 && g.x <= 0x7fffffff && g.y <= 65535 && g.z <= 65535 && b.x >= 1 &&
                    b.y >= 1 && b.z >= 1 && b.x <= kMaxThreads && b.y <= kMaxThreads && b.z <= 64 &&
                    static_cast<uint64_t>(b.x) * b.y * b.z <= kMaxThreads;
    if (!shape_ok) return done(cudaErrorInvalidConfiguration);
    if (config.dynamicSmemBytes > kSharedDefault && config.dynamicSmemBytes > shared_limit_of(kernel))
        return done(cudaErrorInvalidValue);
    bool early = false;
    for (unsigned i = 0; i < config.numAttrs; i++) {
        const cudaLaunchAttribute& a = config.attrs[i];
        bool cluster = a.id == cudaLaunchAttributeClusterDimension &&
                       a.val.clusterDim.x * a.val.clusterDim.y * a.val.clusterDim.z != 1;
        if (cluster) return done(cudaErrorNotSupported);
        // Blocks that wait for each other must all run at once.
        if (a.id == cudaLaunchAttributeCooperative && a.val.cooperative &&
            static_cast<uint64_t>(g.x) * g.y * g.z > static_cast<uint64_t>(cores()))
            return done(cudaErrorCooperativeLaunchTooLarge);
        early |= a.id == cudaLaunchAttributeProgrammaticStreamSerialization &&
                 a.val.programmaticStreamSerializationAllowed;
    }
    if (dry()) return cudaSuccess;
    Launch launch{call.body, call.args, kernel, g, b, config.dynamicSmemBytes, early};
    if (!is_capturing(config.stream))
        return enqueue(config.stream, [&] { return done(run(launch) ? cudaSuccess : cudaErrorLaunchFailure); });
    // A node keeps the arguments as they are now.
    const std::shared_ptr<void> args(aligned_alloc(kArgumentAlignment, round_to_alignment(call.bytes)), free);
    memcpy(args.get(), call.args, call.bytes);
    launch.args = args.get();
    return enqueue(config.stream, [launch, args] { return done(run(launch) ? cudaSuccess : cudaErrorLaunchFailure); });
}
