// One update of a whole model, operation by operation: launches, bytes and floating-point operations that every
// launch declares (kernels/traffic.h), beside the fewest bytes that a fused step could move; and, where it really
// runs, the time of each between two events. With --count nothing is timed, so that a machine that only counts
// (SIMT_DRY=1 on the CPU machine) can do it for a model of any size. With --fp8 layers multiply in 8 bits.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>

#include "dev/bench/bench.h"
#include "kernels/embedding.cuh"
#include "model/model.h"

namespace {

using traffic::Operation;

constexpr double GB = 1e9;
constexpr double TARGET = 69.5 * GB;  // of gpt2-medium, B=32, T=1024, bf16: within 10 % of it

double moved(const Operation& op) {
    return static_cast<double>(op.read + op.written);
}

// Of one kind of work: what must cross the memory bus, and which operations do it now.
struct Item {
    const char* name;
    double bytes;
    std::function<bool(const Operation&)> ours;
};

bool starts_with(const std::string& text, const char* start) {
    return text.rfind(start, 0) == 0;
}

// The ideal of one micro-batch and update, of everything but the operands of products (bias, activation and bias
// gradients being parts of their epilogues): a vanilla residual rule with norms in front of the sublayers, every array
// crossing the bus once per kernel that cannot be fused with its neighbour. Where the engine does with less, `over` is
// negative: a product that ends a sublayer adds the stream itself, and gradients that it stores need no zeros before.
//
// With fp8 what layers multiply is written twice in 8 bits, by rows and transposed, by the kernel that makes it; all
// that this adds beyond seams and attention stands in one item, and so does every conversion of the engine. Its
// activation is a kernel: in the product's epilogue it would have to be kept in floatX as well.
std::vector<Item> ideal(const ModelConfig& c, int B, int T, double unique_tokens, double params, bool fp8) {
    const double X = sizeof(floatX), F = sizeof(float), N = static_cast<double>(B) * T, C = c.channels, L = c.layers;
    const double row = N * C * X;                                       // one array (N,C)
    const double qkv = N * (C + 2.0 * c.kv_heads * c.head_size()) * X;  // queries, keys, values
    const double lse = N * c.heads * F;                                 // log-sum-exp of attention
    const double stats = N * F * (c.arch == Arch::gpt2 ? 2 : 1);        // of one norm: mean and 1/deviation
    const double logits = N * c.padded_vocab() * X;
    const double positions = c.arch == Arch::gpt2 ? T * C : 0;  // learned position embeddings
    const double parts = c.activation == Activation::swiglu ? 2 : 1;  // of what the first map of the MLP gives
    const double hidden = N * c.padded_ffn();
    const double seam_z = fp8 ? 2 * N * C : row, dqkv = fp8 ? 2 * qkv / X : qkv;
    auto named = [](const char* start) { return [start](const Operation& op) { return starts_with(op.name, start); }; };
    auto within = [](const char* range, const char* start) {
        return [=](const Operation& op) { return op.range == range && starts_with(op.name, start); };
    };
    std::vector<Item> items = {
        // Tokens, their different rows and the positions' in; x out.
        {"embedding", N * F + (unique_tokens * C + positions) * X + row, named("embedding_forward")},
        // qkv in; out and lse out.
        {"attention forward", L * (qkv + row + lse), within("attention", "attention_")},
        // qkv, out, dout and lse in; dqkv out.
        {"attention backward", L * (qkv + row + row + lse + dqkv), within("attention backward", "attention_")},
        // 2L seams: u, x in; x_new, z and statistics out. The first: x in; z out. The head reads floatX in any case.
        {"seams forward", (2 * L * 3 + 2) * row + 2 * L * seam_z + (2 * L + 1) * stats,
         [](const Operation& op) { return op.range == "seam" && !starts_with(op.name, "fp8_"); }},
        // 2L+1 seams: dz, x, dx_new and statistics in; dx out. Nothing comes to the last one from behind.
        {"seams backward", ((2 * L + 1) * 4 - 1) * row + (2 * L + 1) * stats, within("seam backward", "")},
        // Logits in, their gradients out, once; targets in, losses out and in.
        {"classifier and loss", 2 * logits + N * (F + 2 * F), within("head", "")},
        // dx in, once; the gradients of the rows that occur in and out.
        {"embedding backward", row + N * F + 2 * (unique_tokens * C + positions) * F, named("embedding_backward")},
        // Gradients in.
        {"gradient norm", params * F, named("gradient_norm")},
        // Gradient, master, both moments in; master, moments, working copy, zeros out.
        {"AdamW", params * (4 * F + 3 * F + (X < F ? X : 0) + F), named("adamw")},
    };
    if (fp8) {
        const double weights = L * C * (qkv / X / N + C + (parts + 1) * c.padded_ffn());
        // Attention's output; the gradients of both sublayers' outputs, which stay in floatX as the stream's.
        const double copies = 2 * N * C + 2 * 2 * N * C;
        // What the first map gives in, rows out; the same and its own gradient in, gradients both ways and itself
        // transposed out.
        const double activation = hidden * (parts * X + 1) + hidden * (parts * X + X + 2 * parts + 1);
        items.push_back({"8-bit conversions", L * (copies + activation) + 2 * weights, named("fp8_")});
    } else if (parts == 2) {
        // SwiGLU has no epilogue in the library: gate, up in, activation out; with its gradient in, both gradients out.
        items.push_back({"SwiGLU", L * (3 + 5) * hidden * X, named("swiglu")});
    }
    return items;
}

struct Step {
    std::string preset;
    ModelConfig config;
    int B, T;
    ModelPtr model;
    std::vector<int> tokens;
    int64_t step = 0;
    bool fp8;

    explicit Step(const BenchShape& asked) {
        const bool small = multiprocessors() < 16;  // not a large GPU
        preset = !asked.model.empty() ? asked.model : small ? "gpt2-nano" : "gpt2-medium";
        config = preset_config(preset);
        B = asked.B ? asked.B : small ? 16 : 32;
        T = asked.T ? asked.T : small ? 128 : 1024;
        config.context = std::max(config.context, T);
        config.residual = asked.residual;
        config.norm_scheme = asked.norm;
        fp8 = asked.fp8;
        model = model_create(config, B, T, Use::training, Recompute::none, fp8);
        if (!asked.count)
            model_init_weights(*model, 1337);
        else if (fp8)
            settle_scales();
        tokens = random_tokens(static_cast<size_t>(B) * static_cast<size_t>(T) + 1, config.vocab);
    }
    // Where nothing is executed no tensor would ever get a scale, and a model without scales converts in passes of their
    // own. Updates that are timed find theirs: made-up ones would leave gradients of zeros, which multiply faster.
    void settle_scales() {
        Fp8State state = model_read_fp8(*model);
        for (std::vector<float>* list : {&state.scale, &state.history}) std::fill(list->begin(), list->end(), 1.0f);
        model_write_fp8(*model, state);
    }
    void update() {
        model_set_time(*model, 1'000'000 + step, 1);
        model_forward_backward(*model, tokens.data(), tokens.data() + 1, B, T, 1.0 / (static_cast<double>(B) * T));
        model_average_grads(*model, nullptr);
        model_update(*model, {}, ++step);
        model_result(*model);
    }
};

double wall_ms(Step& step) {
    model_use_graphs(*step.model, true);
    for (int i = 0; i < 2; i++) step.update();
    std::vector<double> ms;
    for (int i = 0; i < 5; i++) {
        const auto start = std::chrono::steady_clock::now();
        step.update();
        ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    }
    std::sort(ms.begin(), ms.end());
    return ms[ms.size() / 2];
}

// In GB, or for small models in MB.
struct Unit {
    const char* name;
    double bytes;
};

void print_operations(const std::vector<Operation>& operations, Unit unit, bool timed) {
    std::printf("%-46s %8s %6s read %9s %10s", "operation", "launches", unit.name, "written", "GFLOP");
    std::printf("%s\n", timed ? format(" %9s %16s %10s", "ms", "rate", "of ceiling").c_str() : "");
    for (const Operation& op : operations) {
        const std::string name = op.range.empty() ? op.name : op.range + " / " + op.name;
        std::printf("%-46s %8lld %11.3f %9.3f %10s", name.c_str(), static_cast<long long>(op.launches),
                    static_cast<double>(op.read) / unit.bytes, static_cast<double>(op.written) / unit.bytes,
                    op.flops > 0 ? format("%.3f", op.flops * 1e-9).c_str() : "");
        if (timed && op.ms > 0) {
            const double bytes = moved(op) / op.ms * 1e3, flops = op.flops / op.ms * 1e3;
            if (op.flops > 0)
                std::printf(" %9.3f %8.3f TFLOP/s %8.1f %%", op.ms, flops * 1e-12,
                            100 * flops / gemm_flops_per_second());
            else
                std::printf(" %9.3f %11.1f GB/s %8.1f %%", op.ms, bytes / GB, 100 * bytes / copy_bytes_per_second());
        }
        std::printf("\n");
    }
}

}  // namespace

void bench_step(const BenchShape& asked) {
    Step step(asked);
    const ModelConfig& c = step.config;
    model_use_graphs(*step.model, false);  // a replayed pass counts nothing, and its launches cannot be timed
    for (int i = 0; i < 2; i++) step.update();  // algorithms are chosen, memory is touched
    traffic::start(!asked.count);
    {
        const traffic::Range range("profiled update");  // what dev/gpu/profile.sh looks for
        step.update();
    }
    const std::vector<Operation> operations = traffic::stop();

    const double N = static_cast<double>(step.B) * step.T;
    const Registry& registry = model_registry(*step.model);
    std::vector<int> groups(token_groups_capacity(step.tokens.size() - 1));
    group_tokens(groups.data(), step.tokens.data(), static_cast<int>(N));
    const std::string shape =
        format("%s %s %s%s B=%d T=%d", step.preset.c_str(), c.residual.c_str(), c.norm_scheme.c_str(),
               step.fp8 ? " fp8" : "", step.B, step.T);
    std::printf("one update, %s, %.1f M parameters, %s\n", shape.c_str(),
                static_cast<double>(registry.num_params) * 1e-6, sizeof(floatX) == 2 ? "bf16" : "fp32");
    double others = 0, operands = 0, flops = 0, ms = 0;
    int64_t micro_step = 0, all = 0;
    for (const Operation& op : operations) {
        (op.product ? operands : others) += moved(op);
        flops += op.flops;
        ms += op.ms;
        all += op.launches;
        if (op.range != "optimizer" && op.range != "average" && op.range != "loss") micro_step += op.launches;
    }
    const Unit unit = others < GB ? Unit{"MB", 1e6} : Unit{"GB", GB};
    print_operations(operations, unit, !asked.count);
    std::printf("\nall but products, %-6s %9s %9s %9s\n", unit.name, "ideal", "now", "over");
    double least = 0, listed = 0;
    auto line = [unit](const char* name, double bytes, double now) {
        std::printf("%-24s %9.3f %9.3f %+9.3f\n", name, bytes / unit.bytes, now / unit.bytes,
                    (now - bytes) / unit.bytes);
    };
    const auto items = ideal(c, step.B, step.T, groups[0], static_cast<double>(registry.arena), step.fp8);
    for (const Item& item : items) {
        double now = 0;
        for (const Operation& op : operations)
            if (!op.product && item.ours(op)) now += moved(op);
        line(item.name, item.bytes, now);
        least += item.bytes;
        listed += now;
    }
    line("everything else", 0, others - listed);
    line("sum", least, others);
    // The project's target for this step is set against an estimate of its own.
    if (step.preset == "gpt2-medium" && step.B == 32 && step.T == 1024 && sizeof(floatX) == 2 && !step.fp8)
        std::printf("%.1f %% of the %.1f GB that the target is set against\n", 100 * others / TARGET, TARGET / GB);
    std::printf("%.1f %% of the ideal; operands of products %.3f %s\n", 100 * others / least, operands / unit.bytes,
                unit.name);
    const double model_flops = flops_per_token(c, step.T) * N;
    std::printf("%lld launches, of which the micro-step %lld; %.1f GFLOP, %.1f %% of the model's %.1f\n",
                static_cast<long long>(all), static_cast<long long>(micro_step), flops * 1e-9,
                100 * flops / model_flops, model_flops * 1e-9);

    BenchRow row{"step", shape, 0};
    row.numbers = {{"bytes_but_products", others},
                   {"bytes_ideal", least},
                   {"bytes_products", operands},
                   {"flops", flops},
                   {"flops_model", model_flops},
                   {"launches", static_cast<double>(all)},
                   {"launches_micro_step", static_cast<double>(micro_step)}};
    if (!asked.count) {
        const double whole = wall_ms(step);
        std::printf("%.2f ms an update, %.0f tokens/s; its launches by themselves, between events, %.2f ms\n", whole,
                    N / whole * 1e3, ms);
        row.us = whole * 1e3;
        row.numbers.push_back({"tokens_per_s", N / whole * 1e3});
    }
    bench_keep(row);
    for (const Operation& op : operations)
        bench_keep({op.range + " / " + op.name,
                    shape,
                    op.ms * 1e3,
                    0,
                    0,
                    0,
                    {},
                    {{"launches", static_cast<double>(op.launches)},
                     {"read", static_cast<double>(op.read)},
                     {"written", static_cast<double>(op.written)},
                     {"flops", op.flops}}});
}
