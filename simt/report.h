// Reports: shared by the .cpp files of simt/ only.
#pragma once

#include <string>

#include "simt.h"

namespace simt {

std::string function_name(const void* address);       // demangled
std::string source_line(const void* return_address);  // "file:line" of the call, of the kernel's own source if inlined
std::string thread_name(unsigned thread);             // "(x,y,z)"
std::string place(unsigned thread);                   // "kernel NAME, block (x,y,z), thread (x,y,z)"

std::string parked_waits();                           // lines that say what parked lanes of the block wait for

// To stderr and abort(), or to the handler; then the block is abandoned.
[[noreturn]] void report(const std::string& text);
// The same for faults of host code: after the handler the program goes on.
void report_from_host(const std::string& text);

}  // namespace simt
