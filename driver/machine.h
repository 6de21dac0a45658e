// The machine a run stands on: its device, its free memory, and how fast it could be at best.
#pragma once
#include <cstddef>
#include <map>
#include <string>

struct Machine {
    bool found = false;       // a device answers; if not, the rest is empty
    std::string device;       // its name
    int multiprocessors = 0;  // or cores of a CPU
    size_t free_bytes = 0, total_bytes = 0;
    double peak_flops = 0;    // dense matrix products in this build's precision, per second; 0: not known
    std::string peak_source;  // where that number comes from, or why there is none
    std::string precision;    // fp32 or bf16
};
Machine find_machine();

// What a device can do at best, dense, in FLOP/s: products of bf16 on tensor cores with fp32 accumulation, or fp32
// outside of them. First by name from the makers' data sheets, else multiprocessors x FLOPs per clock x highest clock.
struct Card {
    std::string name;
    int major, minor;  // compute capability
    int multiprocessors;
    double clock;  // Hz, the highest
};
struct Peak {
    double flops = 0;    // 0: not known
    std::string source;  // where the number comes from, or why there is none
};
Peak peak_by_name(const Card& device, bool bf16);  // no flops and no source: not in the table
Peak peak_by_units(const Card& device, bool bf16);
Peak find_peak(const Card& device, bool bf16);

// One line: how the MFU that a run reports is computed on `ranks` such machines, or why there is none.
std::string mfu_formula(const Machine& machine, double flops_per_token, int ranks);

// Of the program and the libraries it runs on, for log.jsonl and state.json.
std::map<std::string, std::string> library_versions();
