#include "driver/machine.h"

#include <cublasLt.h>
#include <cuda_runtime.h>

#include "driver/version.h"
#include "kernels/common.cuh"

namespace {

// Peak rates from the makers' data sheets, in FLOP/s: dense bf16 on tensor cores, and fp32 outside of them (fp32 builds
// never use TF32). The first name that occurs in the device's name counts, so longer names stand first.
struct Peak {
    const char* name;
    double bf16, fp32;
};
constexpr Peak peaks[] = {
    {"GB200", 2500e12, 80e12},        {"B200", 2250e12, 75e12},         {"GH200", 989.4e12, 66.9e12},
    {"H200 NVL", 835.5e12, 60e12},    {"H200", 989.4e12, 66.9e12},      {"H100 NVL", 835.5e12, 60e12},
    {"H100 PCIe", 756.4e12, 51.2e12}, {"H100", 989.4e12, 66.9e12},      {"H800", 989.4e12, 66.9e12},
    {"A100", 312e12, 19.5e12},        {"A800", 312e12, 19.5e12},        {"A40", 149.7e12, 37.4e12},
    {"A10", 125e12, 31.2e12},         {"L40S", 362e12, 91.6e12},        {"L40", 181e12, 90.5e12},
    {"L4", 121e12, 30.3e12},          {"RTX 5090", 209.5e12, 104.8e12}, {"RTX 4090", 165.2e12, 82.6e12},
    {"RTX 3090", 71e12, 35.6e12},
};

std::string dotted(int version) {
    return format("%d.%d", version / 1000, version % 1000 / 10);
}

}  // namespace

Machine find_machine() {
    Machine machine;
    const bool bf16 = sizeof(floatX) == 2;
    machine.precision = bf16 ? "bf16" : "fp32";
    int device = 0, count = 0;
    cudaDeviceProp properties;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0 || cudaGetDevice(&device) != cudaSuccess ||
        cudaGetDeviceProperties(&properties, device) != cudaSuccess ||
        cudaMemGetInfo(&machine.free_bytes, &machine.total_bytes) != cudaSuccess) {
        machine.peak_source = "no device answers";
        return machine;
    }
    machine.found = true;
    machine.device = properties.name;
    machine.multiprocessors = properties.multiProcessorCount;
    for (const Peak& peak : peaks) {
        if (machine.device.find(peak.name) == std::string::npos) continue;
        machine.peak_flops = bf16 ? peak.bf16 : peak.fp32;
        machine.peak_source = format("data sheet of %s, dense %s", peak.name, bf16 ? "bf16" : "fp32");
        return machine;
    }
    machine.peak_source = "not known for this device";
    return machine;
}

std::map<std::string, std::string> library_versions() {
    int runtime = 0;
    cudaRuntimeGetVersion(&runtime);
    return {{"residual", version()},
            {"compiler", __VERSION__},
            {"cuda_runtime", dotted(runtime)},
            {"cublaslt", std::to_string(cublasLtGetVersion())}};
}
