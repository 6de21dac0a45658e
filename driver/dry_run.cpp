#include "driver/dry_run.h"

#include <algorithm>
#include <cstdio>

#include "driver/log.h"
#include "driver/machine.h"
#include "model/model.h"

// What of a card's memory is gone before a model is allocated: the CUDA context, cuBLASLt's kernels, NCCL's buffers.
constexpr size_t card_reserve = size_t{1536} << 20;

static std::string bytes_text(size_t bytes) {
    return bytes_text(static_cast<double>(bytes));
}

void print_dry_run(const TrainOptions& o, const ModelConfig& config, const RunSizes& sizes) {
    const int B = sizes.B, T = sizes.T;
    const double flops = flops_per_token(config, T);
    if (o.fp8) check_fp8(config, B, T);
    printf("%-24s%lld\n", "parameters", static_cast<long long>(build_registry(config).num_params));
    printf("%-24s%.6e (seq %d)\n", "FLOPs per token", flops, T);
    printf("%-24s%lld (%lld micro-batches of %d x %d)\n", "tokens per update", static_cast<long long>(sizes.total_batch),
           static_cast<long long>(sizes.micro_steps), B, T);

    const size_t sampling = o.sample_every > 0 ? decoder_bytes(config, 1, T) : 0;
    auto memory = [&](Recompute recompute) {
        std::vector<MemorySegment> segments = model_memory(config, B, T, Use::training, recompute, o.fp8);
        if (sampling > 0) segments.push_back({"samples, at most", sampling});
        return segments;
    };
    const std::vector<MemorySegment> segments = memory(options_recompute(o));
    printf("memory of one rank at batch %d, --recompute %s%s\n", B, o.recompute.c_str(), o.fp8 ? " --fp8" : "");
    for (const MemorySegment& segment : segments)
        printf("    %-20s%s\n", segment.name.c_str(), bytes_text(segment.bytes).c_str());
    printf("    %-20s%s\n", "total", bytes_text(total_bytes(segments)).c_str());
    const int64_t N = static_cast<int64_t>(B) * T;
    printf("%-24sof %lld tokens at a time, of %lld\n", "logits", static_cast<long long>(logits_rows(config, N)),
           static_cast<long long>(N));

    const Machine machine = find_machine();
    size_t free_bytes = machine.free_bytes;
    std::string where = "free on " + machine.device;
    if (o.memory) {
        const size_t card = static_cast<size_t>(*o.memory * 0x1p30);
        free_bytes = card - std::min(card, card_reserve);
        where = "of " + bytes_text(card) + ", the rest for context and libraries";
    }
    const bool known = o.memory || machine.found;
    auto largest = [&](Recompute recompute) {
        return largest_batch(config, T, Use::training, free_bytes - std::min(sampling, free_bytes), recompute,
                             o.fp8);
    };
    if (known)
        printf("%-24s%d sequences of %d tokens (%s %s)\n", "largest batch", largest(options_recompute(o)), T,
               bytes_text(free_bytes).c_str(), where.c_str());
    else
        printf("%-24snot known: %s; name the card's with --memory\n", "largest batch", machine.peak_source.c_str());

    printf("%-16s%-16s%-16s%s\n", "--recompute", "total", "more FLOPs", known ? "largest batch" : "");
    for (size_t i = 0; i < recompute_names().size(); i++) {
        const Recompute recompute = static_cast<Recompute>(i);
        const double more = 100 * recompute_flops_per_token(config, T, recompute) / flops;
        printf("    %-12s%-16s%-16s%s\n", recompute_names()[i].c_str(),
               bytes_text(total_bytes(memory(recompute))).c_str(), format("%.1f %%", more).c_str(),
               known ? std::to_string(largest(recompute)).c_str() : "");
    }
    printf("%s\n", mfu_formula(machine, flops, sizes.ranks).c_str());
    printf("FLOPs per token = 6 x weights in products + 6 x layers x channels x seq (causal attention)\n");
}
