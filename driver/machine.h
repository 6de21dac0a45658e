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

// Of the program and the libraries it runs on, for log.jsonl and state.json.
std::map<std::string, std::string> library_versions();
