// How the processes of one job find each other: who they are, from the launcher's environment, and a few bytes from
// rank 0 to all, through small files. Needs no library, so that a GPU machine needs no MPI.
#pragma once
#include <cstddef>
#include <string>

struct Launch {
    int rank = 0, size = 1, local_rank = 0;
    std::string launcher;  // "mpirun", "srun", ... ; empty for a process started by itself
    std::string job;       // what tells this job from others on the machine
};

// OMPI_COMM_WORLD_* (Open MPI), PMI_* (MPICH, Intel MPI), SLURM_* (srun), RANK and WORLD_SIZE (torchrun), in this
// order. Throws UserError for values that make no sense.
Launch launch_from_environment();

// data (bytes) of rank 0 -> all ranks. The files lie in a folder of their own in $RESIDUAL_RENDEZVOUS (for several
// machines: a shared folder), otherwise $TMPDIR or /tmp, and are gone afterwards. Files that a crashed job left under
// the same name do no harm. Throws UserError when not all have come after $RESIDUAL_RENDEZVOUS_SECONDS (120).
void rendezvous(const Launch& launch, void* data, size_t bytes);
