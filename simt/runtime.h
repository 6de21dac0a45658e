// Shared by runtime.cpp and memory.cpp.
#pragma once

#include <cuda_runtime.h>

namespace simt {

cudaError_t done(cudaError_t error);   // remembers a failure for cudaGetLastError
size_t read_number(const char* path);  // the file's first word; 0 if there is none
size_t total_memory();                 // of the machine or the container

}  // namespace simt
