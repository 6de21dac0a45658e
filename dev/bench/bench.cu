// bench: every kernel by itself, and every residual rule in training updates of a whole model.
//
//     bench [--kernel NAME,...] [--shape B,T,C,heads,vocab] [--json FILE]
//     bench --kernel step [--count] [--fp8] [--model NAME] [--residual NAME] [--norm NAME] [--shape B,T]
#include "dev/bench/bench.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "checkpoint/files.h"
#include "dev/bench/array.h"
#include "kernels/matmul.cuh"

static std::vector<BenchRow> rows;
static std::string json_path;  // empty: none

// Milliseconds of at least five runs, the fastest first.
static std::vector<float> run_times(const std::function<void()>& work) {
    cudaEvent_t start, stop;
    CUDA_CHECK(cudaEventCreate(&start));
    CUDA_CHECK(cudaEventCreate(&stop));
    for (int i = 0; i < 2; i++) work();
    CUDA_CHECK(cudaDeviceSynchronize());
    std::vector<float> times;
    float total = 0;
    while (times.size() < 5 || (total < 300 && times.size() < 200)) {
        CUDA_CHECK(cudaEventRecord(start));
        work();
        CUDA_CHECK(cudaEventRecord(stop));
        CUDA_CHECK(cudaEventSynchronize(stop));
        float ms = 0;
        CUDA_CHECK(cudaEventElapsedTime(&ms, start, stop));
        times.push_back(ms);
        total += ms;
    }
    std::sort(times.begin(), times.end());
    CUDA_CHECK(cudaEventDestroy(start));
    CUDA_CHECK(cudaEventDestroy(stop));
    return times;
}

double time_us(const std::function<void()>& work) {
    const std::vector<float> times = run_times(work);
    return times[times.size() / 2] * 1e3;
}

// A ceiling is what the machine can do: the fastest run, whatever else it was doing during the others.
static double fastest_us(const std::function<void()>& work) {
    return run_times(work)[0] * 1e3;
}

double declared_bytes(const std::function<void()>& work) {
    traffic::start(false);
    work();
    double bytes = 0;
    for (const traffic::Operation& op : traffic::stop()) bytes += static_cast<double>(op.read + op.written);
    return bytes;
}

double copy_bytes_per_second() {
    static const double rate = [] {
        const size_t bytes = size_t{256} << 20;
        char *from, *to;
        CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&from), bytes));
        CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&to), bytes));
        CUDA_CHECK(cudaMemset(from, 1, bytes));
        const double us =
            fastest_us([&] { CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, nullptr)); });
        CUDA_CHECK(cudaFree(from));
        CUDA_CHECK(cudaFree(to));
        return 2.0 * static_cast<double>(bytes) / us * 1e6;
    }();
    return rate;
}

std::vector<int> random_tokens(size_t count, int vocab) {
    std::vector<int> tokens(count);
    uint32_t state = 12345;
    for (int& token : tokens) {
        state = state * 1664525u + 1013904223u;
        token = static_cast<int>((static_cast<uint64_t>(state) * static_cast<uint64_t>(vocab)) >> 32);
    }
    return tokens;
}

double gemm_flops_per_second() {
    static const double rate = [] {
        const int n = multiprocessors() >= 16 ? 8192 : 1024;  // a size that fills a GPU; a small one for a CPU
        const size_t count = static_cast<size_t>(n) * static_cast<size_t>(n);
        const Array<floatX> a(count, 0.5f), b(count, 0.5f), c(count);
        Matmul* mm = matmul_create();
        matmul_tune(mm, true);  // the ceiling is what the best algorithm reaches; the first call finds it
        const double us = fastest_us([&] { matmul_forward(mm, c.data, a.data, b.data, nullptr, n, n, n, nullptr); });
        matmul_destroy(mm);
        return 2.0 * n * static_cast<double>(count) / us * 1e6;
    }();
    return rate;
}

void bench_report(const BenchRow& row) {
    std::string line = format("%-32s %-34s %10.1f us", row.name.c_str(), row.shape.c_str(), row.us);
    if (row.bytes > 0)
        line += format("  %8.1f GB/s  %5.1f%% of copy", row.bytes / row.us * 1e-3,
                       100 * row.bytes / row.us * 1e6 / copy_bytes_per_second());
    if (row.flops > 0)
        line += format("  %8.3f TFLOP/s  %5.1f%% of GEMM", row.flops / row.us * 1e-6,
                       100 * row.flops / row.us * 1e6 / gemm_flops_per_second());
    // Significant digits: on the CPU machine a kernel may take a hundred times as long as a copy that stays in cache.
    if (row.reference_us > 0) line += format("  %7.3gx %s", row.reference_us / row.us, row.reference.c_str());
    std::printf("%s\n", line.c_str());
    std::fflush(stdout);
    bench_keep(row);
}

void bench_beside_copy(const std::string& name, const std::string& shape, const std::function<void()>& work) {
    BenchRow row{name, shape, time_us(work), declared_bytes(work)};
    const size_t half = static_cast<size_t>(row.bytes / 2) / 16 * 16 + 16;
    const Array<char> from(half, [](uint32_t bits) { return static_cast<char>(bits >> 24); }), to(half);
    row.reference_us =
        time_us([&] { CUDA_CHECK(cudaMemcpyAsync(to.data, from.data, half, cudaMemcpyDeviceToDevice, nullptr)); });
    row.reference = "copy";
    bench_report(row);
}

static void write_json() {
    nlohmann::json list = nlohmann::json::array();
    for (const BenchRow& row : rows) {
        nlohmann::json j = {{"name", row.name}, {"shape", row.shape}, {"us", row.us}};
        if (row.bytes > 0) {
            j["gbps"] = row.bytes / row.us * 1e-3;
            j["share_of_ceiling"] = row.bytes / row.us * 1e6 / copy_bytes_per_second();
        }
        if (row.flops > 0) {
            j["tflops"] = row.flops / row.us * 1e-6;
            j["share_of_ceiling"] = row.flops / row.us * 1e6 / gemm_flops_per_second();
        }
        if (row.reference_us > 0) {
            j["reference"] = row.reference;
            j["reference_us"] = row.reference_us;
        }
        for (const auto& [key, value] : row.numbers) j[key] = value;
        list.push_back(j);
    }
    write_text_atomic(json_path, list.dump(1) + "\n");
}

// The file is written anew with each row: a run that is cut short keeps what it has measured.
void bench_keep(const BenchRow& row) {
    rows.push_back(row);
    if (!json_path.empty()) write_json();
}

static int run(int argc, char** argv) {
    CLI::App app{"Times every kernel by itself, beside a reference and the machine's ceiling, and every residual rule."};
    std::vector<std::string> wanted = {"all"};
    std::vector<int> numbers;
    BenchShape shape;
    const std::vector<std::pair<std::string, void (*)(const BenchShape&)>> list = {
        {"rows", bench_rows}, {"matmul", bench_matmul}, {"attention", bench_attention},
        {"attention_decode", bench_attention_decode}, {"fp8", bench_fp8}, {"rules", bench_rules}, {"step", bench_step}};
    std::string kernels;
    for (const auto& [name, benchmark] : list) kernels += (kernels.empty() ? "" : ", ") + name;
    app.add_option("--kernel", wanted, "some of " + kernels + ", or all")->delimiter(',')->capture_default_str();
    app.add_option("--shape", numbers, "B,T,C,heads,vocab (trailing ones may be left out)")->delimiter(',');
    app.add_option("--model", shape.model, "step: a preset [gpt2-medium on a large GPU, else gpt2-nano]");
    app.add_option("--residual", shape.residual, "step: the residual rule")->capture_default_str();
    app.add_option("--norm", shape.norm, "step: the norm scheme")->capture_default_str();
    app.add_flag("--count", shape.count, "step: count only, no times (in seconds with SIMT_DRY=1 on the CPU machine)");
    app.add_flag("--fp8", shape.fp8, "step: layers multiply in 8 bits");
    app.add_option("--json", json_path, "write the rows to this file too");
    try {
        app.parse(argc, argv);
    } catch (const CLI::CallForHelp&) {
        std::printf("%s", app.help().c_str());
        return 0;
    } catch (const CLI::ParseError& e) {
        throw user_error("%s (see --help)", e.what());
    }
    int* fields[] = {&shape.B, &shape.T, &shape.C, &shape.heads, &shape.vocab};
    if (numbers.size() > 5) throw user_error("--shape takes at most five numbers: B,T,C,heads,vocab");
    for (size_t i = 0; i < numbers.size(); i++) {
        if (numbers[i] < 1) throw user_error("--shape: %d: every number must be at least 1", numbers[i]);
        *fields[i] = numbers[i];
    }
    for (const std::string& name : wanted)
        if (name != "all" && std::none_of(list.begin(), list.end(), [&](const auto& known) { return known.first == name; }))
            throw user_error("--kernel %s: there are %s, all", name.c_str(), kernels.c_str());
    const bool step_alone = wanted == std::vector<std::string>{"step"};
    if (shape.count && !step_alone)
        throw user_error("--count goes with --kernel step alone: the other benchmarks are nothing but times");
    if (shape.fp8 && !step_alone)
        throw user_error("--fp8 goes with --kernel step alone: --kernel fp8 times the kernels of 8 bits by themselves");
    const char* dry = std::getenv("SIMT_DRY");
    if (!shape.count && dry && *dry && std::string(dry) != "0")
        throw user_error("SIMT_DRY=%s: nothing is executed, so there are no times; ask for --kernel step --count", dry);
    auto asked = [&](const std::string& name) { return std::find(wanted.begin(), wanted.end(), name) != wanted.end(); };
    if (!shape.count)
        std::printf("copy %.1f GB/s, GEMM %.3f TFLOP/s (%s)\n", copy_bytes_per_second() * 1e-9,
                    gemm_flops_per_second() * 1e-12, sizeof(floatX) == 2 ? "bf16" : "fp32");
    for (const auto& [name, benchmark] : list)
        if (asked("all") || asked(name)) benchmark(shape);
    if (!json_path.empty()) write_json();
    return 0;
}

int main(int argc, char** argv) {
    try {
        return run(argc, argv);
    } catch (const UserError& e) {
        std::fprintf(stderr, "bench: %s\n", e.what());
        return 1;
    }
}
