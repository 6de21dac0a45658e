#include "driver/machine.h"

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cctype>

#include "driver/version.h"
#include "kernels/common.cuh"

namespace {

// From the makers' data sheets and architecture papers, in TFLOP/s: dense bf16 on tensor cores with fp32 accumulation,
// and fp32 outside of them (fp32 builds never use TF32). GeForce cards and the L40 accumulate in fp32 at half the rate;
// sheets that name one number for a GeForce card mean fp16 accumulation, with zeros skipped. 0: no bf16 tensor cores.
struct Entry {
    const char* name;
    double bf16, fp32;
};
constexpr Entry entries[] = {
    // Data centre. H20: capped below its units. GH200, GB200 and GB300: one GPU of a superchip.
    {"GB300", 2500, 80},
    {"B300", 2250, 75},
    {"GB200", 2500, 80},
    {"B200", 2250, 75},
    {"GH200", 989.4, 66.9},
    {"H200 NVL", 835.5, 60},
    {"H200", 989.4, 66.9},
    {"H100 NVL", 835.5, 60},
    {"H100 PCIe", 756.4, 51.2},
    {"H100", 989.4, 66.9},
    {"H800 PCIe", 756.4, 51.2},
    {"H800", 989.4, 66.9},
    {"H20", 148, 44},
    {"A100", 312, 19.5},
    {"A800", 312, 19.5},
    {"A30", 165, 10.3},
    {"A40", 149.7, 37.4},
    {"A10", 125, 31.2},
    {"L40S", 362, 91.6},
    {"L40", 181, 90.5},
    {"L4", 121, 30.3},
    {"T4", 0, 8.1},
    {"V100-SXM2-16GB", 0, 15.7},
    {"V100-SXM2-32GB", 0, 15.7},
    {"V100-PCIE-16GB", 0, 14},
    {"V100-PCIE-32GB", 0, 14},
    // Workstation.
    {"RTX PRO 6000 Blackwell Workstation Edition", 503.8, 126},
    {"RTX 6000 Ada Generation", 364.2, 91.1},
    {"RTX A6000", 154.8, 38.7},
    // GeForce.
    {"RTX 5090", 209.5, 104.8},
    {"RTX 5080", 112.6, 56.3},
    {"RTX 5070 Ti", 87.9, 43.9},
    {"RTX 5070", 61.7, 30.9},
    {"RTX 4090", 165.2, 82.6},
    {"RTX 4080 SUPER", 104.4, 52.2},
    {"RTX 4080", 97.5, 48.7},
    {"RTX 4070 Ti SUPER", 88.2, 44.1},
    {"RTX 4070 Ti", 80.2, 40.1},
    {"RTX 4070 SUPER", 71, 35.5},
    {"RTX 4070", 58.3, 29.1},
    {"RTX 3090 Ti", 80, 40},
    {"RTX 3090", 71.2, 35.6},
    {"RTX 3080 Ti", 68.2, 34.1},
    {"RTX 3080", 59.5, 29.8},
    {"RTX 3070", 40.6, 20.3},
    {"RTX 3060", 25.5, 12.7},
};

// FLOPs of a multiprocessor in a clock.
struct Units {
    int major, minor, bf16, fp32;
};
constexpr Units all_units[] = {{7, 0, 0, 128},    {7, 5, 0, 128},     {8, 0, 2048, 128},
                               {8, 6, 1024, 256}, {8, 9, 1024, 256},  {9, 0, 4096, 256},
                               {10, 0, 8192, 256}, {10, 3, 8192, 256}, {12, 0, 1024, 256}};

// Whether `word` stands in `name` as a whole word; RTX cards have siblings with longer names, so theirs must end it.
bool names(const std::string& name, const std::string& word) {
    const size_t at = name.find(word), end = at + word.size();
    if (at == std::string::npos) return false;
    if (at > 0 && isalnum(static_cast<unsigned char>(name[at - 1]))) return false;
    return end == name.size() || (word.rfind("RTX", 0) != 0 && !isalnum(static_cast<unsigned char>(name[end])));
}
bool has(const std::string& name, const char* part) {
    return name.find(part) != std::string::npos;
}

const char* kind(bool bf16) {
    return bf16 ? "dense bf16, fp32 accumulation" : "fp32 without tensor cores";
}

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
    int clock = 0;  // kHz
    cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, device);
    const Peak peak = find_peak(
        {machine.device, properties.major, properties.minor, machine.multiprocessors, clock * 1e3}, bf16);
    machine.peak_flops = peak.flops;
    machine.peak_source = peak.source;
    return machine;
}

Peak peak_by_name(const Card& device, bool bf16) {
    if (has(device.name, "MIG ")) return {};  // a slice of the card
    for (const Entry& entry : entries) {
        if (!names(device.name, entry.name)) continue;
        const double tera = bf16 ? entry.bf16 : entry.fp32;
        if (tera == 0) return {0, format("%s has no bf16 tensor cores, only fp16", entry.name)};
        return {tera * 1e12, format("data sheet of %s, %s", entry.name, kind(bf16))};
    }
    return {};
}

Peak peak_by_units(const Card& device, bool bf16) {
    const bool geforce = has(device.name, "GeForce");
    const bool nvidia = geforce || has(device.name, "NVIDIA") || has(device.name, "Tesla") ||
                        has(device.name, "Quadro") || has(device.name, "TITAN");
    for (const Units& units : all_units) {
        if (!nvidia || units.major != device.major || units.minor != device.minor) continue;
        if (bf16 && units.bf16 == 0)
            return {0,
                    format("compute capability %d.%d has no bf16 tensor cores, only fp16", units.major, units.minor)};
        const bool halved = bf16 && geforce;
        const int per_clock = bf16 ? units.bf16 / (halved ? 2 : 1) : units.fp32;
        return {static_cast<double>(device.multiprocessors) * per_clock * device.clock,
                format("%d multiprocessors x %d FLOPs x %.3f GHz (compute capability %d.%d, %s%s)",
                       device.multiprocessors, per_clock, device.clock * 1e-9, units.major, units.minor, kind(bf16),
                       halved ? ": half rate on GeForce" : "")};
    }
    return {0, nvidia ? format("not known for compute capability %d.%d", device.major, device.minor)
                      : "not known for this device"};
}

Peak find_peak(const Card& device, bool bf16) {
    const Peak named = peak_by_name(device, bf16);
    return named.source.empty() ? peak_by_units(device, bf16) : named;
}

std::string mfu_formula(const Machine& machine, double flops_per_token, int ranks) {
    if (machine.peak_flops <= 0) return format("no MFU: peak FLOP/s: %s", machine.peak_source.c_str());
    return format("MFU = tokens/s x %.6e FLOPs per token / (%d x %.1f TFLOP/s: %s)", flops_per_token, ranks,
                  machine.peak_flops * 1e-12, machine.peak_source.c_str());
}

std::map<std::string, std::string> library_versions() {
    int runtime = 0;
    cudaRuntimeGetVersion(&runtime);
    return {{"residual", version()},
            {"compiler", __VERSION__},
            {"cuda_runtime", dotted(runtime)},
            {"cublaslt", std::to_string(cublasLtGetVersion())}};
}
