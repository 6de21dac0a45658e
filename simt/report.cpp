// What a fault looks like: one paragraph that names kernel, block, thread and source line, then abort().
#include <cxxabi.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "engine.h"
#include "report.h"
#if __has_include(<backtrace.h>)
#include <backtrace.h>
#define SIMT_BACKTRACE 1
#endif

namespace simt {
namespace {

std::atomic<ReportHandler> handler{nullptr};

#ifdef SIMT_BACKTRACE
backtrace_state* symbols() {
    static backtrace_state* state = backtrace_create_state(nullptr, 1, [](void*, const char*, int) {}, nullptr);
    return state;
}
#endif

std::string demangled(const char* name) {
    int status = 0;
    char* text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
    std::string result = status == 0 && text ? text : name;
    free(text);
    return result;
}

}  // namespace

std::string function_name(const void* address) {
    std::string name;
#ifdef SIMT_BACKTRACE
    backtrace_syminfo(
        symbols(), reinterpret_cast<uintptr_t>(address),
        [](void* out, uintptr_t, const char* symbol, uintptr_t, uintptr_t) {
            if (symbol) *static_cast<std::string*>(out) = demangled(symbol);
        },
        [](void*, const char*, int) {}, &name);
#endif
    if (name.empty()) {
        char text[32];
        snprintf(text, sizeof text, "%p", address);
        name = text;
    }
    return name;
}

std::string source_line(const void* pc) {
    std::string line;
#ifdef SIMT_BACKTRACE
    // Frames come innermost first; those inlined from simt/ itself say nothing, the first outside is the kernel's line.
    if (pc)
        backtrace_pcinfo(
            symbols(), reinterpret_cast<uintptr_t>(pc) - 1,
            [](void* out, uintptr_t, const char* file, int number, const char*) {
                if (!file) return 0;
                std::string path = file;
                auto& text = *static_cast<std::string*>(out);
                bool inside = path.rfind("simt/", 0) == 0 || path.find("/simt/") != std::string::npos;
                if (!inside) {
                    text = path + ":" + std::to_string(number);
                    return 1;
                }
                return 0;
            },
            [](void*, const char*, int) {}, &line);
#endif
    if (line.empty() && pc) line = function_name(pc);
    return line;
}

std::string thread_name(unsigned thread) {
    unsigned x = thread % blockDim.x, y = thread / blockDim.x % blockDim.y, z = thread / blockDim.x / blockDim.y;
    char text[64];
    snprintf(text, sizeof text, "(%u,%u,%u)", x, y, z);
    return text;
}

std::string place(unsigned thread) {
    const Launch* launch = current_launch();
    if (!launch) return "outside kernels";
    char block[64];
    snprintf(block, sizeof block, "(%u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z);
    return "kernel " + function_name(launch->kernel) + ", block " + block + ", thread " + thread_name(thread);
}

bool can_abandon() { return handler.load(std::memory_order_relaxed) != nullptr; }

void set_report_handler(ReportHandler h) { handler = h; }

void report(const std::string& text) {
    if (ReportHandler h = handler; h && self.block) {
        h(text.c_str());
        abandon_block();
    }
    fprintf(stderr, "simt: %s\n", text.c_str());
    fflush(stderr);
    abort();
}

void die(const char* format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    report(std::string(text) + "\n  in " + place(self.thread) + "\n  at " + source_line(__builtin_return_address(0)));
}

#ifndef SIMT_CHECK
void report_deadlock(unsigned at_block, unsigned at_warp, unsigned exited, int first_warp_waiter) {
    char text[256];
    snprintf(text, sizeof text,
             "deadlock: %u threads wait at __syncthreads, %u at a warp operation, %u have returned (a build with "
             "SIMT_CHECK tells where)",
             at_block, at_warp, exited);
    report(std::string(text) + "\n  in " + place(first_warp_waiter >= 0 ? static_cast<unsigned>(first_warp_waiter)
                                                                        : self.thread));
}
#endif

}  // namespace simt
