// Data parallelism through the NCCL API (MPI stands behind it on the CPU machine).
// One process per rank, started by mpirun, srun or torchrun; a process started by itself is rank 0 of 1.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

struct Comm;  // ncclComm_t and its stream-ordered helpers; null inside when there is one rank

// Reads rank and size from the launcher's environment, picks the local device, makes the NCCL communicator.
// Throws UserError when the ranks cannot find each other.
Comm* comm_create();
void comm_destroy(Comm* comm);
int comm_rank(const Comm* comm);
int comm_size(const Comm* comm);
int comm_local_rank(const Comm* comm);

// buffer (count) fp32 on the device <- mean over ranks. Stream ordered. Nothing to do with one rank, or without a comm.
void comm_average(Comm* comm, float* buffer, size_t count, cudaStream_t stream);
// buffer (count) fp32 on the device <- the largest of all ranks, element by element. As comm_average otherwise.
void comm_largest(Comm* comm, float* buffer, size_t count, cudaStream_t stream);
// own (count) fp64 on the device of every rank, one behind the other in the order of the ranks: (ranks,count) on the
// device, until the next call. Stream ordered. With one rank: own itself.
const double* comm_gather(Comm* comm, const double* own, int count, cudaStream_t stream);
// Sum over ranks of host values, in rank order (small; synchronises).
void comm_sum(Comm* comm, double* values, int count);
// The value of rank 0 on every rank / the largest of all ranks (small; synchronises). Also a barrier.
int64_t comm_broadcast(Comm* comm, int64_t value);
int64_t comm_max(Comm* comm, int64_t value);
void comm_barrier(Comm* comm);
// Ends every rank after a user error on one of them: nobody waits for a rank that is gone.
[[noreturn]] void comm_abort(Comm* comm, int exit_code);
