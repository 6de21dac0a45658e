// Residual rules: whole training updates of one model, with each rule and without any, in turns, so that a machine that
// grows slower or faster in between does so for both sides. Beside what a rule costs stands what it must cost: the bytes it
// moves and the operations it does over vanilla, at the rates of a copy and of a large product.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <optional>

#include "dev/bench/bench.h"
#include "model/model.h"
#include "residual/depth_attention.cuh"

namespace {

using Options = std::map<std::string, std::string>;

// ---------------------------------------------------------------------------------------------------------------------
// What a rule must do over vanilla, in scheme pre. Rows are loads and stores of C channels of one token that the seams of
// its design make, where vanilla's make 4 forward (x, u; x_new, z) and 4 backward (dx_new, dz, x_new; dx). Operands of
// products with C x C matrices are no rows: such a product takes as long as its operations.

struct Cost {
    double rows = 0;     // of floatX, per token
    double exact = 0;    // of fp32, per token
    double flops = 0;    // per token
    double weights = 0;  // bytes per update, over parameters the model has anyway
};
Cost& operator+=(Cost& a, const Cost& b) {
    a.rows += b.rows, a.exact += b.exact, a.flops += b.flops, a.weights += b.weights;
    return a;
}

struct Dims {
    int L;     // layers
    double C;  // channels
    double last_maps;  // parameters in the last linear maps of all sublayers
    Options options;
    int option(const char* key, int otherwise) const {
        auto found = options.find(key);
        return found == options.end() ? otherwise : std::stoi(found->second);
    }
};

// x0.cu: at the end, dx += the gradient of x_0 kept in fp32, and rows of another buffer.
Cost x0_end(double C, int other, int exact) { return {2.0 + other, 1.0 * exact, (other + exact) * 2 * C}; }
// A scalar per branch, with its gradient from the last map's: weights read, their gradients read and written.
Cost branch_factor(const Dims& d) { return {0, 0, 2 * d.L * d.C, d.last_maps * (sizeof(floatX) + 8.0)}; }

Cost layerscale(const Dims& d) { return {2.0 * 2 * d.L, 0, 4 * d.C * 2 * d.L}; }  // u in, du out
Cost lscale_block(const Dims& d) {
    Cost cost{(2 + 3) * d.L - 1.0, 2 * d.L - 1.0, (4 + 8) * d.C * d.L};  // x, x_0; x, x_0, the next layer's g, dx_0
    return cost += x0_end(d.C, 1, 1);
}
Cost lscale_input(const Dims& d) {
    Cost cost{(2 + 2) * d.L + 2.0, 2 * d.L - 1.0, (3 + 7) * d.C * d.L};  // x_0, y; y, x_0, dx_0; x_0 = RMS0(embedding)
    cost.rows += 3 - 2;  // RMS0's backward pass; layer 1 has no y of its own
    return cost += x0_end(d.C, 0, 1);
}
Cost lscale_sub(const Dims& d) {
    Cost cost{2.0 * d.L, 0, 5 * d.C * 2 * d.L};  // x
    cost += branch_factor(d);
    if (!d.option("x0", 0)) return cost;
    cost += {2.0 * d.L, 2 * d.L - 1.0, (2 + 5) * d.C * d.L};  // x_0; x_0, dx_0
    return cost += x0_end(d.C, 0, 1);
}
Cost prores(const Dims& d) { return {0, 0, d.C * 2 * d.L}; }
Cost prores_mls(const Dims& d) {
    Cost cost{2 * d.L - 1.0, 0, (3 + 3) * d.C * d.L};  // x; the next layer's g
    return cost += x0_end(d.C, 1, 0);
}
Cost gpas(const Dims& d) { return {0, 0, 3 * d.C * 2 * d.L}; }
// Both gates' products in, r out; r, u in, du and both gradients out; then RMS0^T: 6 in, 2 out.
Cost review(const Dims& d) { return {(3.0 + 5 + 8) * 2 * d.L, 0, (12 * d.C * d.C + 35 * d.C) * 2 * d.L}; }
Cost highway(const Dims& d) { return {(2.0 + 4) * 2 * d.L, 0, (6 * d.C * d.C + 15 * d.C) * 2 * d.L}; }

Cost dwa(const Dims& d) {
    const int dilation = d.option("dilation", 1), period = d.option("period", 1);
    Cost cost;
    for (int l = 0; l <= d.L; l++) {
        const bool mixes = l > 0 && l % period == 0;
        int earlier = 0, later = 0;
        for (int j = 0; j < l && mixes; j++) earlier += (l - j) % dilation == 0;
        for (int i = l + 1; i <= d.L; i++) later += i % period == 0 && (i - l) % dilation == 0;
        cost.rows += (l > 0) + earlier;          // X_l out
        cost.rows += 1 + later + mixes;          // X_l in; dY_l out
        cost.exact += 2 * (later + 1) / d.C;     // dot products, out and in
        cost.flops += d.C * (2 * earlier + mixes + 4 * later + 3);
    }
    return cost;
}

Cost value_residual(const Dims& d) {  // of as many heads as queries have
    const double mixed = d.L - 1;
    return {8 * mixed + 4, std::max(0.0, 2 * mixed - 1) + 1, 10 * d.C * mixed};
}

Cost hc(const Dims& d) {
    const int n = d.option("n", 4);
    const double seams = 2 * d.L, c = n * (n + 2.0);
    // H, u in, H, z out; dz, H, D, u in, D, du out. At the ends: copies of x_0; no D at the last seam.
    Cost cost{(2 * n - 2 + 3 * n - 1) * seams + 2 * n - 2, 0, (2 * n * n + 4.0 * n + 4 * n * n + 10.0 * n) * d.C * seams};
    if (!d.option("dynamic", 1)) return cost;
    cost.exact = (6 * c + 4 * n) / d.C * seams;  // coefficients and what they come from, of both sublayers of a seam
    cost.flops += (2 * c + 2 * n + 4 * c + 4 * n) * d.C * seams;
    return cost;
}
Cost mhc(const Dims& d) {
    const int n = d.option("n", 4);
    const double seams = 2 * d.L, c = n * (n + 2.0);
    // Write, product with Phi, read; read^T, both products with Phi, write^T. The products are narrow: their rows count.
    Cost cost{(4 * n - 2 + 8 * n + 1) * seams + 3 * n, 0, 0};
    cost.exact = 8 * c / d.C * seams;
    cost.flops = (6 * n * c + 2 * n * n + 4.0 * n + 4 * n * n + 12.0 * n) * d.C * seams;
    // Writes that the backward pass replays, between streams that are kept.
    const int interval = std::max(1, static_cast<int>(std::lround(std::sqrt(n * seams / (n + 2)))));
    const double replayed = seams - std::floor(seams / interval);
    cost.rows += (2 * n + 1) * replayed;
    cost.flops += (2 * n * n + 2.0 * n) * d.C * replayed;
    return cost;
}

// Sources and queries of the attention over depth. pairs: how often a query meets a source.
Cost depth_pairs(const Dims& d, double pairs, int sources, int queries) {
    const double columns = static_cast<double>(round_up(queries + 1, 8));
    // Logits out and in. Each source is read again for the queries' gradients, a product with its coefficients.
    return {sources * (1 + 2 * columns / d.C), 2 * pairs / d.C, pairs * 12 * d.C + sources * 2 * columns * d.C};
}
Cost attnres(const Dims& d) {
    const int last = 2 * d.L;
    Cost cost = depth_pairs(d, last * (last + 3) / 2.0, last + 1, last);
    cost.rows += last + 2;  // the gathering of x_0
    for (int first = 1; first <= last; first += DEPTH_GROUP) {
        const int count = std::min(DEPTH_GROUP, last - first + 1), near = count * (count - 1) / 2;
        const int later = last - (first + count - 1);
        cost.rows += first + count + near;      // older sources in, partial results out; younger ones in
        cost.rows += (later ? 3 : 1) * count - (later ? count : 0) + near;  // source, gathered in, dh out
        if (later) cost.rows += 2 * count + later;
    }
    return cost;
}
Cost attnres_block(const Dims& d) {
    const int last = 2 * d.L, given = d.option("block_size", 0);
    const int S = std::min(last, given ? given : static_cast<int>(ceil_div(last, d.option("blocks", 8)))), N = ceil_div(last, S);
    Cost cost;
    double pairs = 0;
    for (int block = 1; block <= N; block++) {
        const int size = std::min(S, last - (block - 1) * S), later = last - (block - 1) * S;
        pairs += size * (block + 1);
        cost.rows += block * ceil_div(size, DEPTH_GROUP) + size;  // finished blocks in, partial results out
        cost.rows += (2 + 2) * size - 1;                          // partial in, sum out; sum in, dh out
        cost.rows += 2 + later;                                   // the gathering of the block before
    }
    return cost += depth_pairs(d, pairs, N + 1, last);
}
Cost attnres_mls(const Dims& d) {
    const int given = d.option("blocks", 0), size = given ? ceil_div(d.L, given) : d.option("block_size", 4);
    const int N = ceil_div(d.L, size);
    Cost cost;
    for (int block = 1; block <= N; block++) {
        cost.rows += block + 1 + 2;          // older streams in, partial result out and in, own stream out
        cost.rows += 3 + 2 + N - block + 1;  // own stream, gathered in, dh out; the gathering of the block before
    }
    return cost += depth_pairs(d, N * (N + 3) / 2.0, N + 1, N);
}

std::optional<Cost> cost_of(const ResidualName& name, const Dims& d) {
    static const std::map<std::string, Cost (*)(const Dims&)> table = {
        {"vanilla", [](const Dims&) { return Cost{}; }},
        {"rezero", branch_factor}, {"skipinit", branch_factor}, {"layerscale", layerscale}, {"lscale_block", lscale_block},
        {"lscale_input", lscale_input}, {"lscale_sub", lscale_sub}, {"prores_mls", prores_mls}, {"gpas", gpas}, {"hc", hc},
        {"mhc", mhc}, {"attnres", attnres}, {"attnres_block", attnres_block}, {"attnres_mls", attnres_mls},
        {"review", review}, {"highway", highway}, {"dwa", dwa}};
    auto found = table.find(name.rule);
    if (found == table.end()) return {};
    Cost cost = found->second(d);
    if (name.prores) cost += prores(d);
    if (name.value) cost += value_residual(d);
    return cost;
}

// ---------------------------------------------------------------------------------------------------------------------

struct Variant {
    std::string residual;
    Options options;
    std::string label() const {
        std::string text = residual;
        for (const auto& [key, value] : options) text += " " + key + "=" + value;
        return text;
    }
};

// Every rule as it is by default, and with the options that change its cost most.
std::vector<Variant> variants() {
    const std::vector<Variant> further = {{"lscale_sub", {{"x0", "1"}}}, {"hc", {{"dynamic", "0"}}}, {"hc", {{"n", "2"}}},
                                          {"dwa", {{"dilation", "4"}, {"period", "5"}}}};
    std::vector<Variant> out = {{"prores", {}}, {"vanilla+value", {}}};
    for (const RuleSummary& rule : rule_summaries()) {
        if (rule.name == "vanilla") continue;
        out.push_back({rule.name, {}});
        for (const Variant& variant : further)
            if (variant.residual == rule.name) out.push_back(variant);
    }
    return out;
}

// A few batches of random tokens; the last column of one is the next one's first target.
struct Batches {
    static constexpr int count = 4;
    std::vector<int> tokens;
    int B, T;
    Batches(int B_, int T_, int vocab)
        : tokens(random_tokens(static_cast<size_t>(count) * B_ * T_ + 1, vocab)), B(B_), T(T_) {}
    const int* inputs(int64_t step) const { return tokens.data() + static_cast<size_t>(step % count) * B * T; }
};

// One side of the comparison.
struct Side {
    ModelPtr model;
    int64_t step = 0;
    std::vector<double> ms;
    Side(const ModelConfig& config, const Batches& batches) : model(model_create(config, batches.B, batches.T, Use::training)) {
        model_init_weights(*model, 1337);
        if (model_has_gemm_choice(*model)) model_rehearse(*model);
    }
    // Milliseconds of one update. Schedules have run their course, so that no branch is switched off (zeros let a GPU run
    // faster), and factors that start from zero leave it in the first update.
    double update(const Batches& batches) {
        const auto start = std::chrono::steady_clock::now();
        model_set_time(*model, 1'000'000 + step, 1);
        model_forward_backward(*model, batches.inputs(step), batches.inputs(step) + 1, batches.B, batches.T,
                               1.0 / (static_cast<double>(batches.B) * batches.T));
        model_average_grads(*model, nullptr);
        model_update(*model, {}, ++step);
        const double norm = model_result(*model).grad_norm;
        if (!std::isfinite(norm)) throw user_error("%s: the gradient is not finite", model_config(*model).residual.c_str());
        return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    }
};

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const size_t half = values.size() / 2;
    return values.size() % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
}
double least(const std::vector<double>& values) { return *std::min_element(values.begin(), values.end()); }

// Pairs of updates, vanilla and the rule, for `seconds`, at least 5.
void compare(Side& vanilla, Side& rule, const Batches& batches, double seconds) {
    for (int i = 0; i < 2; i++) vanilla.update(batches), rule.update(batches);
    vanilla.ms.clear();
    rule.ms.clear();
    double total = 0;
    while (rule.ms.size() < 5 || (total < seconds * 1e3 && rule.ms.size() < 200)) {
        vanilla.ms.push_back(vanilla.update(batches));
        rule.ms.push_back(rule.update(batches));
        total += vanilla.ms.back() + rule.ms.back();
    }
}

size_t bytes_of(const ModelConfig& config, int B, int T) { return total_bytes(model_memory(config, B, T, Use::training)); }

std::string number(std::optional<double> value, int digits) { return value ? format("%.*f", digits, *value) : "-"; }

}  // namespace

void bench_rules(const BenchShape& asked) {
    const bool small = multiprocessors() < 16;  // not a large GPU
    const std::string preset = small ? "gpt2-nano" : "gpt2-medium";
    ModelConfig config = preset_config(preset);
    int B = asked.B ? asked.B : small ? 8 : 32;
    const int T = asked.T ? asked.T : small ? 128 : 1024;
    config.context = std::max(config.context, T);
    if (asked.C) config.channels = asked.C, config.ffn = 4 * asked.C;
    if (asked.heads) config.heads = config.kv_heads = asked.heads;
    if (asked.vocab) config.vocab = asked.vocab;
    const double seconds = small ? 2.0 : 6.0;  // per rule

    struct Entry {
        Variant variant;
        ModelConfig config;
    };
    std::vector<Entry> entries;
    size_t largest = 0;
    for (const Variant& variant : variants()) {
        Entry entry{variant, config};
        entry.config.residual = variant.residual;
        entry.config.residual_options = variant.options;
        try {
            largest = std::max(largest, bytes_of(entry.config, B, T));
            entries.push_back(entry);
        } catch (const UserError& e) {
            std::printf("%s is left out: %s\n", variant.label().c_str(), e.what());
        }
    }
    // Both sides are in memory at once.
    size_t free_bytes = 0, all_bytes = 0;
    CUDA_CHECK(cudaMemGetInfo(&free_bytes, &all_bytes));
    const int wanted = B;
    while (B > 1 && static_cast<double>(bytes_of(config, B, T) + largest) > 0.95 * static_cast<double>(free_bytes)) {
        B /= 2;
        largest = 0;
        for (const Entry& entry : entries) largest = std::max(largest, bytes_of(entry.config, B, T));
    }
    if (B < wanted) std::printf("B=%d: two models with B=%d do not fit into memory\n", B, wanted);

    const Batches batches(B, T, config.vocab);
    const double tokens = static_cast<double>(B) * T, C = config.channels;
    const double params = static_cast<double>(build_registry(config).num_params);
    const double flops = flops_per_token(config, T) * tokens;
    const size_t memory = bytes_of(config, B, T);
    const std::string shape = format("%s B=%d T=%d", preset.c_str(), B, T) + (asked.C ? format(" C=%d", asked.C) : "");
    Side vanilla(config, batches);
    std::printf("training updates, %s, %.1f M parameters, %.1f GFLOP, %.2f GiB; \"least\": of the fastest updates\n", shape.c_str(),
                params * 1e-6, flops * 1e-9, static_cast<double>(memory) / (1 << 30));
    std::printf("%-28s %9s %9s %8s %8s %8s %10s %9s %10s\n", "rule", "ms", "extra ms", "extra %", "least %", "ideal %", "extra MB",
                "extra GF", "memory MiB");
    std::vector<double> vanilla_ms;  // all of them
    for (const Entry& entry : entries) {
        Side rule(entry.config, batches);
        compare(vanilla, rule, batches, seconds);
        std::vector<double> differences;
        for (size_t i = 0; i < rule.ms.size(); i++) differences.push_back(rule.ms[i] - vanilla.ms[i]);
        vanilla_ms.insert(vanilla_ms.end(), vanilla.ms.begin(), vanilla.ms.end());
        const double reference = median(vanilla.ms), extra = median(differences), ms = median(rule.ms);
        const double of_least = least(rule.ms) / least(vanilla.ms) - 1;
        const double extra_memory = static_cast<double>(bytes_of(entry.config, B, T)) - static_cast<double>(memory);

        const double last_maps = config.layers * C * (C + config.ffn + (config.bias ? 2 : 0));
        std::optional<double> bytes, operations, ideal;
        if (auto cost = cost_of(parse_residual(entry.variant.residual), {config.layers, C, last_maps, entry.variant.options})) {
            // An update reads and writes parameter, both moments and gradient, reads the gradient for its norm, and in bf16
            // writes the working copy.
            const double more = static_cast<double>(build_registry(entry.config).num_params) - params;
            const double optimizer = more * (9 * 4.0 + (sizeof(floatX) == 2 ? 2 : 0));
            bytes = tokens * C * (cost->rows * sizeof(floatX) + cost->exact * 4) + cost->weights + optimizer;
            operations = tokens * cost->flops;
            ideal = (*bytes / copy_bytes_per_second() + *operations / gemm_flops_per_second()) * 1e3 / reference;
        }
        auto scaled = [](std::optional<double> value, double factor) { return value ? std::optional(*value * factor) : value; };
        std::printf("%-28s %9.2f %+9.3f %+8.2f %+8.2f %8s %10s %9s %+10.1f\n", entry.variant.label().c_str(), ms, extra,
                    100 * extra / reference, 100 * of_least, number(scaled(ideal, 100), 2).c_str(),
                    number(scaled(bytes, 1e-6), 1).c_str(), number(scaled(operations, 1e-9), 2).c_str(), extra_memory / (1 << 20));
        std::fflush(stdout);

        BenchRow row{entry.variant.label(), shape, ms * 1e3};
        row.reference = "vanilla";
        row.reference_us = reference * 1e3;
        row.numbers = {{"tokens_per_s", tokens / ms * 1e3}, {"extra_over_vanilla", extra / reference},
                       {"extra_over_vanilla_least", of_least}, {"extra_memory_bytes", extra_memory}};
        if (ideal) {
            row.numbers.insert(row.numbers.end(), {{"ideal_extra", *ideal}, {"extra_bytes", *bytes}, {"extra_flops", *operations},
                                                   {"extra_flops_share", *operations / flops}});
        }
        bench_keep(row);
    }
    const double ms = median(vanilla_ms);
    std::printf("%-28s %9.2f   %.0f tokens/s\n", "vanilla", ms, tokens / ms * 1e3);
    BenchRow row{"vanilla", shape, ms * 1e3};
    row.numbers = {{"tokens_per_s", tokens / ms * 1e3}};
    bench_keep(row);
}
