// Small tables that change from update to update: schedules, the optimizer's list of tensors.
#pragma once
#include "kernels/common.cuh"

// device (bytes) <- host (bytes, a multiple of 4), which may be changed or freed at once. The values travel as kernel
// arguments, 3840 bytes a launch: in the order of the stream, without pinned memory, and without waiting for anything,
// where a copy of memory that is not pinned may wait for the device.
void upload_values(void* device, const void* host, size_t bytes, cudaStream_t stream);
