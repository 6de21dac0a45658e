// What a fault looks like: one paragraph that names kernel, block, thread and source line, then abort().
#include <cxxabi.h>
#include <dlfcn.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <sstream>
#include <string>

#include "engine.h"
#include "report.h"

namespace simt {
namespace {

std::atomic<ReportHandler> handler{nullptr};

// What binutils' addr2line says about an address of this program: pairs of lines, function and file:line, innermost
// inlined frame first. Empty where there is no addr2line. Costs a tenth of a second; only reports ask.
std::string ask_addr2line(const void* address) {
    Dl_info info;
    if (!address || !dladdr(address, &info) || !info.dli_fbase) return {};
    // Position-independent programs are linked at 0; others at the addresses they run at.
    auto base = reinterpret_cast<uintptr_t>(info.dli_fbase);
    auto offset = reinterpret_cast<uintptr_t>(address) - (base == 0x400000 ? 0 : base);
    char command[1200];
    snprintf(command, sizeof command, "addr2line -f -C -i -e '%s' %#zx 2>/dev/null", info.dli_fname, offset);
    std::string text;
    if (FILE* pipe = popen(command, "r")) {
        char part[512];
        while (size_t n = fread(part, 1, sizeof part, pipe)) text.append(part, n);
        pclose(pipe);
    }
    return text;
}

}  // namespace

std::string function_name(const void* address) {
    std::istringstream frames(ask_addr2line(address));
    // Of several frames the last is the function that really stands there.
    std::string name, last, line;
    while (std::getline(frames, name) && std::getline(frames, line)) last = name;
    if (!last.empty() && last != "??") return last;
    Dl_info info;
    if (dladdr(address, &info) && info.dli_sname) {
        int status = 0;
        char* text = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
        std::string result = status == 0 && text ? text : info.dli_sname;
        free(text);
        return result;
    }
    char text[32];
    snprintf(text, sizeof text, "%p", address);
    return text;
}

std::string source_line(const void* pc) {
    if (!pc) return "an unknown line";
    std::istringstream frames(ask_addr2line(static_cast<const char*>(pc) - 1));
    // Frames inlined from simt/ itself say nothing: the first outside is the kernel's line.
    for (std::string name, line; std::getline(frames, name) && std::getline(frames, line);) {
        size_t folder = line.rfind('/');
        bool inside = folder != std::string::npos && folder >= 4 && line.compare(folder - 4, 4, "simt") == 0;
        if (inside || line.rfind("??", 0) == 0) continue;
        return line.substr(0, line.find(" (discriminator"));
    }
    return function_name(pc);
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

bool can_abandon() {
    return handler.load(std::memory_order_relaxed) != nullptr;
}

void set_report_handler(ReportHandler h) {
    handler = h;
}

void report_from_host(const std::string& text) {
    static std::mutex one_at_a_time;
    std::lock_guard lock(one_at_a_time);
    if (ReportHandler h = handler) return h(text.c_str());
    fprintf(stderr, "simt: %s\n", text.c_str());
    fflush(stderr);
    abort();
}

namespace {
[[noreturn]] void leave() {
    if (!self.block) abort();
    abandon_block();
}
}  // namespace

void report(const std::string& text) {
    report_from_host(text);
    leave();
}

// No string may be alive when the block is abandoned: nobody would free it.
void die(const char* format, ...) {
    {
        char text[1024];
        va_list args;
        va_start(args, format);
        vsnprintf(text, sizeof text, format, args);
        va_end(args);
        report_from_host(std::string(text) + "\n  in " + place(self.thread) + "\n  at " +
                         source_line(__builtin_return_address(0)));
    }
    leave();
}

std::string parked_waits() {
    char text[2048] = "";
    if (self.block->asynchronous) self.block->asynchronous->describe(text, sizeof text);
    return text;
}

#ifndef SIMT_CHECK
void report_deadlock(unsigned at_block, unsigned at_warp, unsigned exited, int first_waiter) {
    {
        char text[256];
        snprintf(text, sizeof text,
                 "deadlock: %u threads wait at __syncthreads, %u at a warp operation, %u have returned (the checking "
                 "mode tells where)",
                 at_block, at_warp, exited);
        unsigned thread = first_waiter >= 0 ? static_cast<unsigned>(first_waiter) : self.thread;
        report_from_host(text + parked_waits() + "\n  in " + place(thread));
    }
    leave();
}
#endif

}  // namespace simt
