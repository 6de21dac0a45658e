// For tests that plant faults in kernels: what the CPU machine reported. Only for sources that see <simt.h>.
#pragma once
#include <simt.h>

#include <string>

#include "test.h"

#ifdef SIMT_CHECK
constexpr bool CHECKING = true;
#else
constexpr bool CHECKING = false;
#endif
#define ONLY_CHECKING \
    if (!CHECKING) SKIP_TEST("only the checking mode sees it")

inline std::string reported;
inline int reports = 0;
inline void record(const char* text) {
    reported = text;
    reports++;
}

// Launches and gives the report; empty if there was none. early: as launch_early() does.
template <class... P, class... A>
std::string report_as(bool early, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... args) {
    reported.clear();
    reports = 0;
    simt::set_report_handler(record);
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = early ? 1 : 0;
    cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
    simt::set_report_handler(nullptr);
    cudaGetLastError();
    CHECK((error == cudaErrorLaunchFailure) == (reports > 0));
    return reported;
}

template <class... P, class... A>
std::string report_of(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... args) {
    return report_as(false, kernel, grid, block, shared, args...);
}

inline bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}
// The report has all of these.
inline void require(const std::string& report, const std::vector<std::string>& parts) {
    INFO(report);
    for (const std::string& part : parts) {
        INFO(part);
        CHECK(has(report, part));
    }
}
