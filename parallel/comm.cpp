#include "parallel/comm.h"

#include <nccl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "parallel/rendezvous.h"

struct Comm {
    Launch launch;
    ncclComm_t nccl = nullptr;
    cudaStream_t stream = nullptr;  // for the small, synchronous exchanges
    char* staging = nullptr;        // on the device
    size_t staging_bytes = 0;
    double* gathered = nullptr;  // on the device, of comm_gather
    size_t gathered_count = 0;
};

namespace {

void cuda_check(cudaError_t status, const char* call, int line) {
    if (status != cudaSuccess) programming_error(call, cudaGetErrorString(status), __FILE__, line);
}
#define CUDA_CHECK(call) cuda_check((call), #call, __LINE__)

// A failed collective means that another rank or the network is gone: nothing that this program could mend.
void nccl_check(const Comm* comm, ncclResult_t result, const char* call) {
    if (result == ncclSuccess) return;
    throw user_error("rank %d of %d: %s: %s: %s", comm->launch.rank, comm->launch.size, call,
                     ncclGetErrorString(result), ncclGetLastError(comm->nccl));
}
#define NCCL_CHECK(comm, call) nccl_check(comm, (call), #call)

char* staging(Comm* comm, size_t bytes) {
    if (bytes > comm->staging_bytes) {
        CUDA_CHECK(cudaFree(comm->staging));
        comm->staging_bytes = std::max(bytes, size_t{4096});
        CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&comm->staging), comm->staging_bytes));
    }
    return comm->staging;
}
void to_device(const Comm* comm, void* device, const void* host, size_t bytes) {
    CUDA_CHECK(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, comm->stream));
}
void to_host(const Comm* comm, void* host, const void* device, size_t bytes) {
    CUDA_CHECK(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, comm->stream));
    CUDA_CHECK(cudaStreamSynchronize(comm->stream));
}

}  // namespace

Comm* comm_create() {
    Comm made;
    made.launch = launch_from_environment();
    int devices = 0;
    if (cudaError_t status = cudaGetDeviceCount(&devices); status != cudaSuccess || devices == 0) {
        throw user_error("no usable CUDA device: %s",
                         status != cudaSuccess ? cudaGetErrorString(status) : "none found");
    }
    CUDA_CHECK(cudaSetDevice(made.launch.local_rank % devices));
    if (made.launch.size > 1) {
        ncclUniqueId id = {};
        if (made.launch.rank == 0) NCCL_CHECK(&made, ncclGetUniqueId(&id));
        rendezvous(made.launch, &id, sizeof id);
        if (ncclResult_t result = ncclCommInitRank(&made.nccl, made.launch.size, id, made.launch.rank);
            result != ncclSuccess) {
            throw user_error(
                "rank %d of %d cannot join the others: %s: %s (its local rank is %d; this machine has %d device%s)",
                made.launch.rank, made.launch.size, ncclGetErrorString(result), ncclGetLastError(nullptr),
                made.launch.local_rank, devices, devices == 1 ? "" : "s");
        }
        CUDA_CHECK(cudaStreamCreate(&made.stream));
    }
    return new Comm(made);
}

void comm_destroy(Comm* comm) {
    if (!comm) return;
    if (comm->nccl) {
        CUDA_CHECK(cudaFree(comm->staging));
        CUDA_CHECK(cudaFree(comm->gathered));
        CUDA_CHECK(cudaStreamDestroy(comm->stream));
        NCCL_CHECK(comm, ncclCommDestroy(comm->nccl));
    }
    delete comm;
}

int comm_rank(const Comm* comm) {
    return comm->launch.rank;
}
int comm_size(const Comm* comm) {
    return comm->launch.size;
}
int comm_local_rank(const Comm* comm) {
    return comm->launch.local_rank;
}

void comm_average(Comm* comm, float* buffer, size_t count, cudaStream_t stream) {
    if (!comm || !comm->nccl || count == 0) return;
    NCCL_CHECK(comm, ncclAllReduce(buffer, buffer, count, ncclFloat32, ncclAvg, comm->nccl, stream));
}

void comm_largest(Comm* comm, float* buffer, size_t count, cudaStream_t stream) {
    if (!comm || !comm->nccl || count == 0) return;
    NCCL_CHECK(comm, ncclAllReduce(buffer, buffer, count, ncclFloat32, ncclMax, comm->nccl, stream));
}

const double* comm_gather(Comm* comm, const double* own, int count, cudaStream_t stream) {
    if (!comm->nccl) return own;
    const size_t n = static_cast<size_t>(count), all = n * static_cast<size_t>(comm->launch.size);
    if (all > comm->gathered_count) {
        CUDA_CHECK(cudaFree(comm->gathered));
        CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&comm->gathered), all * sizeof(double)));
        comm->gathered_count = all;
    }
    NCCL_CHECK(comm, ncclAllGather(own, comm->gathered, n, ncclFloat64, comm->nccl, stream));
    return comm->gathered;
}

void comm_sum(Comm* comm, double* values, int count) {
    if (!comm->nccl || count <= 0) return;
    // Gathered and added here, so that the order is that of the ranks whatever algorithm a sum in NCCL would choose.
    const size_t n = static_cast<size_t>(count), size = static_cast<size_t>(comm->launch.size);
    double* all = reinterpret_cast<double*>(staging(comm, n * size * sizeof(double)));
    double* own = all + n * static_cast<size_t>(comm->launch.rank);
    to_device(comm, own, values, n * sizeof(double));
    NCCL_CHECK(comm, ncclAllGather(own, all, n, ncclFloat64, comm->nccl, comm->stream));
    std::vector<double> host(n * size);
    to_host(comm, host.data(), all, n * size * sizeof(double));
    for (size_t i = 0; i < n; i++) {
        double sum = host[i];
        for (size_t r = 1; r < size; r++) sum += host[r * n + i];
        values[i] = sum;
    }
}

int64_t comm_broadcast(Comm* comm, int64_t value) {
    if (!comm->nccl) return value;
    void* buffer = staging(comm, sizeof value);
    to_device(comm, buffer, &value, sizeof value);
    NCCL_CHECK(comm, ncclBroadcast(buffer, buffer, 1, ncclInt64, 0, comm->nccl, comm->stream));
    to_host(comm, &value, buffer, sizeof value);
    return value;
}

int64_t comm_max(Comm* comm, int64_t value) {
    if (!comm->nccl) return value;
    void* buffer = staging(comm, sizeof value);
    to_device(comm, buffer, &value, sizeof value);
    NCCL_CHECK(comm, ncclAllReduce(buffer, buffer, 1, ncclInt64, ncclMax, comm->nccl, comm->stream));
    to_host(comm, &value, buffer, sizeof value);
    return value;
}

void comm_barrier(Comm* comm) {
    comm_max(comm, 0);
}

void comm_abort(Comm* comm, int exit_code) {
    fflush(nullptr);
    if (comm && comm->nccl) ncclCommAbort(comm->nccl);
    // Not exit(): what runs at a normal end may wait for the other ranks. The launcher sees the status and ends them.
    _exit(exit_code);
}
