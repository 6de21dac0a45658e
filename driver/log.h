// What a run says: log.jsonl, one JSON object a line, and the terminal, one line a step and a progress bar with the
// time left where stdout is a terminal. Only rank 0 says anything: the others' Log has no file and swallows all.
#pragma once
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "driver/machine.h"
#include "eval/tasks.h"
#include "model/registry.h"

struct Log {
    std::string path;
    FILE* file = nullptr;
    bool terminal = false;  // stdout is one
    int64_t step = 0, steps = 0;
    double seconds_per_step = 0;  // smoothed, for the time left
};

Log log_open(const std::string& run, int64_t steps, int rank);  // appends to RUN/log.jsonl
void log_close(Log& log);

// What a resumed run begins with: drops every line of RUN/log.jsonl from the first that is later than `step`, that says
// the run had ended, or that is not whole.
void log_cut(const std::string& run, int64_t step);

struct StartRecord {
    std::vector<std::pair<std::string, std::string>> settings;  // option values
    const ModelConfig* config;
    int64_t parameters;
    double flops_per_token;
    int world_size;
    Machine machine;
};
void log_start(Log& log, const StartRecord& start);

struct StepRecord {
    int64_t step, tokens, update_tokens;
    double loss, grad_norm, lr, ms;
    double peak_flops, flops_per_token;  // of all ranks together; 0: not known
};
void log_step(Log& log, const StepRecord& step);

void log_val(Log& log, int64_t step, double loss);
void log_eval(Log& log, int64_t step, const Scores& scores);
void log_sample(Log& log, int64_t step, const std::string& prompt, const std::string& text);
// layers: a JSON array, see driver/layer_stats.h.
void log_layers(Log& log, int64_t step, const std::string& layers);
void log_skip(Log& log, int64_t step, const std::string& why);
void log_checkpoint(Log& log, int64_t step, const std::string& folder);
void log_resume(Log& log, int64_t step, int64_t tokens, const std::string& folder,
                const std::vector<std::string>& notes);
// reason: complete, signal, diverged
void log_end(Log& log, int64_t step, const std::string& reason, double seconds);

// A line on the terminal alone, above the progress bar.
void log_line(Log& log, const std::string& text);

// 12.3M, 4.5 GiB, 1h 02m
std::string with_unit(double number);
std::string bytes_text(double bytes);
std::string time_text(double seconds);
