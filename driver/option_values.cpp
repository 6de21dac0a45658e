// The options of a run as text: what its log and its checkpoints record, and what a resumed run changes.
#include <charconv>
#include <map>

#include "driver/options.h"
#include "kernels/error.h"

std::string list_of(const std::vector<std::string>& names, const char* between) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : between) + name;
    return text;
}

std::vector<std::pair<std::string, std::string>> option_values(const TrainOptions& o) {
    const Schedule s = options_schedule(o);
    auto number = [](double value) {  // the shortest text that reads back as the same number
        char text[32];
        return std::string(text, std::to_chars(text, text + sizeof(text), value).ptr);
    };
    return {{"model", o.model},
            {"init-from", o.init_from},
            {"train", o.train},
            {"mix", list_of(o.mix, " ")},
            {"hold-out", number(o.hold_out)},
            {"val", o.val},
            {"batch", std::to_string(o.batch)},
            {"seq", std::to_string(o.seq.value_or(0))},
            {"total-batch", std::to_string(o.total_batch.value_or(0))},
            {"recompute", o.recompute},
            {"fp8", o.fp8 ? "true" : "false"},
            {"shuffle", o.shuffle ? "true" : "false"},
            {"steps", std::to_string(o.steps)},
            {"seed", std::to_string(o.seed)},
            {"save-dtype", o.save_dtype},
            {"optimizer", o.optimizer},
            {"lr", number(o.lr)},
            {"beta1", number(o.beta1)},
            {"beta2", number(o.beta2)},
            {"eps", number(o.eps)},
            {"weight-decay", number(o.weight_decay)},
            {"layerwise-lr", o.layerwise_lr},
            {"decay", o.decay},
            {"grad-clip", number(o.grad_clip)},
            {"freeze", list_of(o.freeze, " ")},
            {"schedule", o.schedule},
            {"warmup", std::to_string(s.warmup)},
            {"final-lr-ratio", number(s.final_ratio)},
            {"decay-steps", o.schedule == "wsd" ? std::to_string(s.decay_steps) : ""},
            {"wsd-shape", o.schedule == "wsd" ? wsd_shape_names()[static_cast<size_t>(s.shape)] : ""},
            {"val-every", std::to_string(o.val_every.value_or(0))},
            {"val-batches", std::to_string(o.val_batches.value_or(0))},
            {"eval", list_of(o.eval, " ")},
            {"eval-every", std::to_string(o.eval_every.value_or(0))},
            {"sample-every", std::to_string(o.sample_every)},
            {"sample-tokens", std::to_string(o.sample_tokens.value_or(0))},
            {"layer-stats-every", std::to_string(o.layer_stats_every)},
            {"prompt", o.prompt.value_or("")},
            {"save-every", std::to_string(o.save_every)},
            {"keep", std::to_string(o.keep)},
            {"graph", o.graph ? "true" : "false"},
            {"tune-gemms", o.tune_gemms ? "true" : "false"}};
}

std::vector<std::string> options_changes(const TrainOptions& o,
                                         const std::vector<std::pair<std::string, std::string>>& before, bool begun) {
    std::vector<std::string> notes;
    std::map<std::string, std::string> now;
    for (const auto& [name, value] : option_values(o)) now[name] = value;
    for (const auto& [name, value] : before) {
        if (now.count(name) == 0 || now[name] == value) continue;
        if (name == "seed" || (begun && (name == "seq" || name == "shuffle" || name == "mix" || name == "hold-out")))
            throw user_error(
                "--resume: --%s was %s and is %s now, which would be another data order; leave it as it was",
                name.c_str(), value.c_str(), now[name].c_str());
        notes.push_back(format("--%s was %s, is %s now", name.c_str(), value.c_str(), now[name].c_str()));
    }
    return notes;
}
