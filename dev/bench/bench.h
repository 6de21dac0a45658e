// The benchmark's frame: each kernel is timed by itself, beside a reference measured in the same run and the machine's
// ceiling. Times are medians of repeated runs between two events. Residual rules are timed in whole updates.
#pragma once
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/common.cuh"

struct BenchRow {
    std::string name;   // of the kernel
    std::string shape;  // as text: "B=4 T=1024 C=768"
    double us;          // median time of one call
    double bytes = 0;   // the fewest it must move: gives GB/s and the share of copy bandwidth
    double flops = 0;   // that it must do: gives TFLOP/s and the share of the GEMM rate
    double reference_us = 0;     // the same job done otherwise, in the same run
    std::string reference = {};  // what that is
    std::vector<std::pair<std::string, double>> numbers = {};  // further fields of its JSON object
};

// The bytes that the launches of work() declare to move (kernels/traffic.h). Runs it once.
double declared_bytes(const std::function<void()>& work);
// Median microseconds of one call of work(); repeats until about 0.3 s or 200 calls have passed, after a warm-up.
double time_us(const std::function<void()>& work);
// Prints one line and keeps it for --json.
void bench_report(const BenchRow& row);
// Times `work` and, between two arrays, a copy that moves as many bytes in all as its launches declare.
void bench_beside_copy(const std::string& name, const std::string& shape, const std::function<void()>& work);
// Only keeps it, of a benchmark that prints lines of its own.
void bench_keep(const BenchRow& row);

// Of a vocabulary, evenly, the same in every run.
std::vector<int> random_tokens(size_t count, int vocab);

// The shape asked for with --shape, or empty; benchmarks then use their own list.
struct BenchShape {
    int B = 0, T = 0, C = 0, heads = 0, vocab = 0;  // 0: not given
    std::string model, residual = "vanilla", norm = "pre";  // of bench_step; no model: a small one or gpt2-medium
    bool count = false;                                     // of bench_step: no times
    bool fp8 = false;                                       // of bench_step: layers multiply in 8 bits
};

// The benchmarks, each in a file of its own: it times every kernel of its kind and reports rows.
void bench_rows(const BenchShape& shape);       // bench_rows.cu: what is memory-bound, from seams to AdamW
void bench_matmul(const BenchShape& shape);     // bench_matmul.cu: products and activations
void bench_attention(const BenchShape& shape);  // bench_attention.cu
void bench_attention_decode(const BenchShape& shape);  // the same file: one new query over a cache
void bench_fp8(const BenchShape& shape);        // bench_fp8.cu: what 8 bits cost, and what they gain
void bench_rules(const BenchShape& shape);      // bench_rules.cu: residual rules, in training updates of a whole model
void bench_step(const BenchShape& shape);       // bench_step.cu: one update of a whole model, operation by operation

// Ceilings of this machine, measured once per run.
double copy_bytes_per_second();  // a large device-to-device copy, bytes read plus bytes written
double gemm_flops_per_second();  // a large product of floatX on random data
