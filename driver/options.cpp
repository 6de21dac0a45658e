#include "driver/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "checkpoint/files.h"
#include "driver/cli.h"
#include "driver/toml.h"
#include "eval/examples.h"
#include "kernels/error.h"
#include "residual/rules.h"

namespace {

// A choice among names, of which this build has some.
void check_choice(const char* option, const std::string& value, const std::vector<std::string>& names) {
    if (std::find(names.begin(), names.end(), value) == names.end())
        throw user_error("%s %s: there is no such choice; there are: %s", option, value.c_str(),
                         list_of(names).c_str());
}

size_t index_of(const std::vector<std::string>& names, const std::string& value) {
    return static_cast<size_t>(std::find(names.begin(), names.end(), value) - names.begin());
}

void check_at_least(const char* option, double value, double least) {
    if (!(value >= least)) throw user_error("%s %g: it must be at least %g", option, value, least);
    if (!std::isfinite(value)) throw user_error("%s %g: it must be finite", option, value);
}

void check_belongs(bool given, const char* option, const char* needs) {
    if (given) throw user_error("%s belongs to %s, which is not asked for", option, needs);
}

void add_model_options(CLI::App& app, TrainOptions& o, bool& bias, bool& tie) {
    const char* group = "Model";
    app.add_option("--model", o.model, "preset: gpt2-nano, gpt2, ..., llama-71m, ... (--help-models prints them whole)")
        ->group(group);
    app.add_option("--init-from", o.init_from, "checkpoint, run or Hugging Face folder: its architecture and weights")
        ->group(group)
        ->type_name("DIR");
    app.add_option("--layers", o.layers, "transformer blocks [preset]")->group(group);
    app.add_option("--heads", o.heads, "attention heads [preset]")->group(group);
    app.add_option("--kv-heads", o.kv_heads, "key and value heads, llama only [as many as --heads]")->group(group);
    app.add_option("--channels", o.channels, "width of the stream [preset]")->group(group);
    app.add_option("--context", o.context, "longest sequence [preset]")->group(group);
    app.add_option("--vocab", o.vocab, "vocabulary [preset]")->group(group);
    app.add_option("--ffn", o.ffn, "width of the MLP [gpt2: 4x --channels; llama: preset]")->group(group);
    app.add_option("--init", o.init, "initial weights: " + list_of(init_names()) + " [preset]")->group(group);
    app.add_option("--activation", o.activation, "gpt2: gelu_new (tanh) or gelu (exact); llama: swiglu [preset]")
        ->group(group);
    app.add_flag("--bias,!--no-bias", bias, "biases in linear maps and norms, gpt2 only [preset]")->group(group);
    app.add_flag("--tie,!--no-tie", tie, "head = token embedding [preset]")->group(group);
    app.add_option("--norm-eps", o.norm_eps, "epsilon of the norms [preset]")->group(group);
    app.add_option("--rope-theta", o.rope_theta, "base of the rotary angles, llama only [preset]")->group(group);
    std::string rules;
    for (const RuleSummary& rule : rule_summaries()) rules += (rules.empty() ? "" : ", ") + rule.name;
    app.add_option("--norm", o.norm, "norm scheme: " + scheme_names() + " [pre]")->group(group)->type_name("SCHEME");
    app.add_option("--residual", o.residual,
                   "residual rule: " + rules +
                       "; +prores multiplies its branches by ProRes's schedule, +value adds the "
                       "value residual; prores alone is vanilla+prores [vanilla]")
        ->group(group)
        ->type_name("RULE[+prores][+value]");
    app.add_option("--residual-opt", o.residual_opt, "option of the residual rule or norm scheme; repeatable")
        ->group(group)
        ->type_name("KEY=VALUE")
        ->take_all()
        ->allow_extra_args(false)
        ->default_str("");
}

void add_data_options(CLI::App& app, TrainOptions& o) {
    const char* group = "Data";
    app.add_option("--train", o.train, "token shards to train on")->group(group)->type_name("GLOB");
    app.add_option("--val", o.val, "token shards to validate on")->group(group)->type_name("GLOB");
    app.add_option("--mix", o.mix,
                   "a further corpus and its share of the sequences, as in 'code_*.bin=0.2'; repeatable, --train has "
                   "the rest")
        ->group(group)
        ->type_name("GLOB=SHARE")
        ->take_all()
        ->allow_extra_args(false)
        ->default_str("");
    app.add_option("--hold-out", o.hold_out,
                   "part of every corpus that is not trained on but validated on, in place of --val")
        ->group(group)
        ->type_name("PART");
    app.add_option("--batch", o.batch, "sequences per micro-batch and rank")->group(group);
    app.add_option("--seq", o.seq, "tokens per sequence [the context]")->group(group);
    app.add_option("--total-batch", o.total_batch,
                   "tokens per update over all ranks, a multiple of batch x seq x ranks [that product]")
        ->group(group);
    app.add_option("--recompute", o.recompute,
                   "what the backward pass computes again instead of keeping it: " + list_of(recompute_names()) +
                       "; less memory, the same gradients")
        ->group(group);
    app.add_flag("--fp8", o.fp8, "layers multiply in 8 bits while training (compute capability 8.9 or later)")
        ->group(group);
    app.add_flag("--shuffle,!--no-shuffle", o.shuffle, "permute the sequences; --no-shuffle reads the shards in order")
        ->group(group)
        ->default_str("true");
}

void add_run_options(CLI::App& app, TrainOptions& o) {
    const char* group = "Run";
    app.add_option("--steps", o.steps, "updates of the whole run")->group(group)->default_str("");
    app.add_option("--seed", o.seed, "of weights, data order and sampling")->group(group)->check(whole_number());
    app.add_option("--out", o.out, "folder of the run: log.jsonl and checkpoints")->group(group)->type_name("DIR");
    app.add_option("--save-every", o.save_every, "checkpoint every N updates; 0: only after the last")->group(group);
    app.add_option("--keep", o.keep, "checkpoints kept, the last K; 0: all")->group(group);
    app.add_option("--save-dtype", o.save_dtype, "of model.safetensors: fp32 or bf16")->group(group);
    app.add_flag("--resume", o.resume, "continue from the newest intact checkpoint in --out, or start there")
        ->group(group);
    app.add_flag("--init-only", o.init_only, "write checkpoint step_00000000 and stop")->group(group);
    app.add_flag("--dry-run", o.dry_run, "print parameters, memory, FLOPs and the largest batch, and stop")
        ->group(group);
    app.add_flag("--tune-gemms,!--no-tune-gemms", o.tune_gemms,
                 "measure the library's GEMM algorithms before the first update, unless $RESIDUAL_CACHE, "
                 "$XDG_CACHE_HOME/residual.cu or ~/.cache/residual.cu holds what was measured before")
        ->group(group)
        ->default_str("true");
    app.add_option("--memory", o.memory, "with --dry-run: memory of the card to plan for [the one present]")
        ->group(group)
        ->type_name("GIB");
    app.add_option("--dump-grads", o.dump_grads, "write every gradient of the first update, before clipping")
        ->group(group)
        ->type_name("FILE");
    app.add_flag("--graph,!--no-graph", o.graph, "training passes as CUDA graphs; --no-graph launches every kernel")
        ->group(group)
        ->default_str("true");
}

void add_optimizer_options(CLI::App& app, TrainOptions& o) {
    const char* group = "Optimizer";
    app.add_option("--optimizer", o.optimizer, "adamw")->group(group);
    app.add_option("--lr", o.lr, "peak learning rate")->group(group);
    app.add_option("--beta1", o.beta1, "decay of the first moment")->group(group);
    app.add_option("--beta2", o.beta2, "decay of the second moment")->group(group);
    app.add_option("--eps", o.eps, "added to the root of the second moment")->group(group);
    app.add_option("--weight-decay", o.weight_decay, "decoupled weight decay")->group(group);
    app.add_option("--decay", o.decay, "what decays: 2d, matrix, all, none")->group(group);
    app.add_option("--grad-clip", o.grad_clip, "largest global gradient norm; 0: off")->group(group);
    app.add_option("--freeze", o.freeze, "tensors that are not trained, by class or name pattern; repeatable")
        ->group(group)
        ->type_name("CLASS|GLOB")
        ->take_all()
        ->allow_extra_args(false)
        ->default_str("");
    app.add_option("--layerwise-lr", o.layerwise_lr, "layerwise learning rates: none")->group(group);
    app.add_option("--schedule", o.schedule, "cosine, wsd, linear, constant, invsqrt")->group(group);
    app.add_option("--warmup", o.warmup, "updates of linear warm-up [min(max(1% of steps, 100), steps/10)]")
        ->group(group);
    app.add_option("--final-lr-ratio", o.final_lr_ratio, "last rate over peak [cosine 0.1, linear 0, wsd 0]")
        ->group(group);
    app.add_option("--decay-steps", o.decay_steps, "wsd: updates of the final decay [a fifth of the run]")
        ->group(group);
    app.add_option("--wsd-shape", o.wsd_shape, "wsd: shape of the decay: sqrt, linear, cosine, exp [sqrt]")
        ->group(group);
}

void add_watch_options(CLI::App& app, TrainOptions& o) {
    const char* group = "Watching";
    app.add_option("--val-every", o.val_every, "validate every N updates; 0: only at the end [0]")->group(group);
    app.add_option("--val-batches", o.val_batches, "batches of batch x seq tokens per validation; 0: all [0]")
        ->group(group);
    app.add_option("--eval", o.eval, "task to evaluate; repeatable: " + task_names() + ", as of eval_gpt2")
        ->group(group)
        ->type_name("TASK=FILE")
        ->take_all()
        ->allow_extra_args(false)
        ->default_str("");
    app.add_option("--eval-every", o.eval_every, "evaluate every N updates; 0: only at the end [0]")->group(group);
    app.add_option("--sample-every", o.sample_every, "print a sample every N updates; 0: never")->group(group);
    app.add_option("--layer-stats-every", o.layer_stats_every,
                   "log norms, activations and gates of each layer every N updates; 0: never")
        ->group(group);
    app.add_option("--sample-tokens", o.sample_tokens, "length of the sample [64]")->group(group);
    app.add_option("--prompt", o.prompt, "text the sample begins with; '': a new text")->group(group);
}

void print_presets() {
    for (const Preset& preset : presets()) {
        const ModelConfig& c = preset.config;
        printf("%s: %s\n", preset.name.c_str(), preset.summary.c_str());
        printf("    --layers %d --heads %d --kv-heads %d --channels %d --context %d --vocab %d --ffn %d\n", c.layers,
               c.heads, c.kv_heads, c.channels, c.context, c.vocab, c.ffn);
        printf("    --init %s --activation %s --%sbias --%stie --norm-eps %g", c.init.c_str(),
               activation_names()[static_cast<size_t>(c.activation)].c_str(), c.bias ? "" : "no-", c.tie ? "" : "no-",
               static_cast<double>(c.norm_eps));
        if (c.arch == Arch::llama) printf(" --rope-theta %g", static_cast<double>(c.rope_theta));
        printf(" --norm %s --residual %s\n", c.norm_scheme.c_str(), c.residual.c_str());
    }
}

void check_optimizer(const TrainOptions& o) {
    check_choice("--optimizer", o.optimizer, {"adamw"});
    check_choice("--layerwise-lr", o.layerwise_lr, {"none"});
    check_choice("--decay", o.decay, {"2d", "matrix", "all", "none"});
    check_choice("--schedule", o.schedule, schedule_names());
    if (o.wsd_shape) check_choice("--wsd-shape", *o.wsd_shape, wsd_shape_names());
    check_at_least("--lr", o.lr, 0);
    for (auto [name, beta] : {std::pair{"--beta1", o.beta1}, {"--beta2", o.beta2}}) {
        if (!(beta >= 0 && beta < 1)) throw user_error("%s %g: it must be at least 0 and below 1", name, beta);
    }
    if (!(o.eps >= 1e-10) || !std::isfinite(o.eps)) throw user_error("--eps %g: it must be at least 1e-10", o.eps);
    check_at_least("--weight-decay", o.weight_decay, 0);
    check_at_least("--grad-clip", o.grad_clip, 0);
    if (o.schedule != "wsd") {
        check_belongs(o.decay_steps.has_value(), "--decay-steps", "--schedule wsd");
        check_belongs(o.wsd_shape.has_value(), "--wsd-shape", "--schedule wsd");
    }
    if (o.schedule == "constant" || o.schedule == "invsqrt")
        check_belongs(o.final_lr_ratio.has_value(), "--final-lr-ratio", "--schedule cosine, linear or wsd");
    if (o.final_lr_ratio && !(*o.final_lr_ratio >= 0 && *o.final_lr_ratio <= 1))
        throw user_error("--final-lr-ratio %g: it must lie between 0 and 1", *o.final_lr_ratio);
    if (o.warmup) check_at_least("--warmup", static_cast<double>(*o.warmup), 0);
    if (o.decay_steps) check_at_least("--decay-steps", static_cast<double>(*o.decay_steps), 0);
    if (o.steps > 0 && o.warmup && *o.warmup > o.steps)
        throw user_error("--warmup %lld is longer than the run of --steps %lld", static_cast<long long>(*o.warmup),
                         static_cast<long long>(o.steps));
    if (o.steps > 0 && o.decay_steps && *o.decay_steps > o.steps)
        throw user_error("--decay-steps %lld is longer than the run of --steps %lld",
                         static_cast<long long>(*o.decay_steps), static_cast<long long>(o.steps));
}

void check_model(const TrainOptions& o) {
    if (!o.model.empty() && !o.init_from.empty())
        throw user_error("--model and --init-from exclude each other: the folder fixes the architecture");
    auto fixed = [&](const char* option, bool given) {
        if (given && !o.init_from.empty())
            throw user_error("%s cannot be changed with --init-from: the folder fixes the architecture", option);
    };
    fixed("--layers", o.layers.has_value());
    fixed("--heads", o.heads.has_value());
    fixed("--kv-heads", o.kv_heads.has_value());
    fixed("--channels", o.channels.has_value());
    fixed("--context", o.context.has_value());
    fixed("--vocab", o.vocab.has_value());
    fixed("--ffn", o.ffn.has_value());
    fixed("--init", o.init.has_value());
    fixed("--activation", o.activation.has_value());
    fixed("--bias", o.bias.has_value());
    fixed("--tie", o.tie.has_value());
    fixed("--norm-eps", o.norm_eps.has_value());
    fixed("--rope-theta", o.rope_theta.has_value());
    if (o.activation) check_choice("--activation", *o.activation, activation_names());
    for (const std::string& pair : o.residual_opt) {
        if (pair.find('=') == std::string::npos || pair[0] == '=')
            throw user_error("--residual-opt %s: it is written KEY=VALUE", pair.c_str());
    }
    if (!o.model.empty()) {  // the same errors as later, before any folder is touched
        std::vector<std::string> notes;
        options_config(o, "", notes);
    }
}

void check_run(const TrainOptions& o) {
    check_at_least("--batch", o.batch, 1);
    if (o.seq) check_at_least("--seq", *o.seq, 1);
    if (o.total_batch) check_at_least("--total-batch", static_cast<double>(*o.total_batch), 1);
    check_at_least("--save-every", static_cast<double>(o.save_every), 0);
    check_at_least("--keep", static_cast<double>(o.keep), 0);
    check_choice("--save-dtype", o.save_dtype, {"fp32", "bf16"});
    check_choice("--recompute", o.recompute, recompute_names());
    if (!o.dry_run) check_belongs(o.memory.has_value(), "--memory", "--dry-run");
    if (o.memory && !(*o.memory > 0 && *o.memory < 1e6))
        throw user_error("--memory %g: the GiB of a card, more than 0 and less than a million", *o.memory);
    if (o.init_only && o.resume) throw user_error("--init-only starts a run and --resume continues one: choose one");
    if (!(o.hold_out >= 0 && o.hold_out < 1))
        throw user_error("--hold-out %g: it must be at least 0 and below 1", o.hold_out);
    if (o.hold_out > 0 && !o.val.empty())
        throw user_error("--hold-out and --val exclude each other: either a part of the training shards or others");
    if (o.val.empty() && o.hold_out == 0) {
        check_belongs(o.val_every.has_value(), "--val-every", "--val or --hold-out");
        check_belongs(o.val_batches.has_value(), "--val-batches", "--val or --hold-out");
    }
    options_corpora(o);
    if (!o.mix.empty() && !o.shuffle)
        throw user_error("--mix with --no-shuffle: corpora are mixed by the shuffle only");
    if (o.val_every) check_at_least("--val-every", static_cast<double>(*o.val_every), 0);
    if (o.val_batches) check_at_least("--val-batches", static_cast<double>(*o.val_batches), 0);
    if (o.eval.empty()) check_belongs(o.eval_every.has_value(), "--eval-every", "--eval");
    if (o.eval_every) check_at_least("--eval-every", static_cast<double>(*o.eval_every), 0);
    for (const std::string& task : o.eval) parse_task("--eval", task);
    check_at_least("--sample-every", static_cast<double>(o.sample_every), 0);
    check_at_least("--layer-stats-every", static_cast<double>(o.layer_stats_every), 0);
    if (o.sample_every == 0) {
        check_belongs(o.prompt.has_value(), "--prompt", "--sample-every");
        check_belongs(o.sample_tokens.has_value(), "--sample-tokens", "--sample-every");
    } else if (!o.prompt) {
        throw user_error("--sample-every needs --prompt TEXT, what the sample begins with");
    }
    if (o.sample_tokens) check_at_least("--sample-tokens", *o.sample_tokens, 1);
}

void check_present(const TrainOptions& o) {
    if (o.model.empty() && o.init_from.empty())
        throw user_error("--model NAME or --init-from DIR is missing: which model is it? (--help-models)");
    if (o.dry_run) return;
    if (!o.init_only) {
        if (o.train.empty()) throw user_error("--train GLOB is missing: which token shards to train on?");
        if (o.steps == 0) throw user_error("--steps N is missing: how many updates?");
    }
    if (o.out.empty()) throw user_error("--out DIR is missing: where do log and checkpoints go?");
}

}  // namespace

std::optional<TrainOptions> parse_train_options(int argc, char** argv) {
    TrainOptions o;
    bool help_models = false, bias = true, tie = true;
    CLI::App app{
        "Trains a language model. An option given twice: the last counts. Values in [] are what holds when the "
        "option is absent."};
    cli_defaults(app, "train_gpt2");
    app.add_flag("--help-models", help_models, "print every preset whole and stop")->configurable(false);
    app.config_formatter(std::make_shared<TomlConfig>());
    app.set_config("--config", "", "TOML file with any of the options below; the command line wins")->type_name("FILE");
    app.allow_config_extras(CLI::config_extras_mode::error);
    add_model_options(app, o, bias, tie);
    add_data_options(app, o);
    add_run_options(app, o);
    add_optimizer_options(app, o);
    add_watch_options(app, o);
    CLI::Option* steps = app.get_option("--steps");
    if (!cli_parse(app, argc, argv)) return std::nullopt;
    if (app.count("--bias") > 0) o.bias = bias;
    if (app.count("--tie") > 0) o.tie = tie;
    if (help_models) {
        print_presets();
        return std::nullopt;
    }
    if (steps->count() > 0) check_at_least("--steps", static_cast<double>(o.steps), 1);
    check_optimizer(o);
    check_model(o);
    check_run(o);
    check_present(o);
    return o;
}

std::vector<Corpus> options_corpora(const TrainOptions& o) {
    std::vector<Corpus> corpora(1);
    corpora[0].pattern = o.train;
    for (const std::string& text : o.mix) {
        const size_t equals = text.rfind('=');
        double share = 0;
        const char* end = text.data() + text.size();
        const bool number = equals != std::string::npos &&
                            std::from_chars(text.data() + equals + 1, end, share).ptr == end &&
                            equals + 1 < text.size();
        if (!number || equals == 0)
            throw user_error("--mix %s: it is written GLOB=SHARE, as in 'code_*.bin=0.2'", text.c_str());
        if (!(share > 0 && share < 1)) throw user_error("--mix %s: the share must lie between 0 and 1", text.c_str());
        corpora.push_back({text.substr(0, equals), share});
        corpora[0].share -= share;
    }
    if (!(corpora[0].share > 1e-9))
        throw user_error("--mix: the shares sum to %g, which leaves --train nothing; lower them", 1 - corpora[0].share);
    return corpora;
}

ModelConfig options_config(const TrainOptions& o, const std::string& folder, std::vector<std::string>& notes) {
    ModelConfig c;
    if (!o.init_from.empty()) {
        const std::string path = folder + "/config.json";
        c = config_from_json(read_text(path), path, notes);
    } else {
        c = preset_config(o.model);
        // What follows from another choice as long as it is not chosen itself.
        const bool usual_ffn = c.arch == Arch::gpt2 && c.ffn == 4 * c.channels, usual_kv = c.kv_heads == c.heads;
        c.layers = o.layers.value_or(c.layers);
        c.heads = o.heads.value_or(c.heads);
        c.kv_heads = o.kv_heads.value_or(usual_kv ? c.heads : c.kv_heads);
        c.channels = o.channels.value_or(c.channels);
        c.ffn = o.ffn.value_or(usual_ffn ? 4 * c.channels : c.ffn);
        c.context = o.context.value_or(c.context);
        c.vocab = o.vocab.value_or(c.vocab);
        c.init = o.init.value_or(c.init);
        if (o.activation) c.activation = static_cast<Activation>(index_of(activation_names(), *o.activation));
        c.bias = o.bias.value_or(c.bias);
        c.tie = o.tie.value_or(c.tie);
        c.norm_eps = static_cast<float>(o.norm_eps.value_or(static_cast<double>(c.norm_eps)));
        if (o.rope_theta && c.arch != Arch::llama)
            throw user_error("--rope-theta belongs to the llama models, and %s has no rotary angles", o.model.c_str());
        c.rope_theta = static_cast<float>(o.rope_theta.value_or(static_cast<double>(c.rope_theta)));
    }
    options_choices(o, c);
    if (o.seq && *o.seq > c.context)
        throw user_error("--seq %d is longer than the model's context of %d tokens", *o.seq, c.context);
    return c;
}

void options_choices(const TrainOptions& o, ModelConfig& c) {
    // Options of a rule or scheme go with it; those of the other one stay.
    auto drop_options = [&](bool of_scheme) {
        std::erase_if(c.residual_options,
                      [&](const auto& option) { return is_scheme_option(option.first) == of_scheme; });
    };
    if (o.norm && *o.norm != c.norm_scheme) drop_options(true);
    if (o.residual && *o.residual != c.residual) drop_options(false);
    c.norm_scheme = o.norm.value_or(c.norm_scheme);
    c.residual = o.residual.value_or(c.residual);
    if (!o.init && c.init == "gpt2_scaled" && c.norm_scheme != "pre") c.init = "normal02";  // it is made for pre alone
    for (const std::string& pair : o.residual_opt) {
        const size_t equals = pair.find('=');
        c.residual_options[pair.substr(0, equals)] = pair.substr(equals + 1);
    }
    check_config(c);
}

Recompute options_recompute(const TrainOptions& o) {
    return static_cast<Recompute>(index_of(recompute_names(), o.recompute));
}

Schedule options_schedule(const TrainOptions& o) {
    Schedule s;
    s.kind = static_cast<ScheduleKind>(index_of(schedule_names(), o.schedule));
    s.steps = o.steps;
    s.warmup = o.warmup.value_or(default_warmup(o.steps));
    s.final_ratio = o.final_lr_ratio.value_or(default_final_ratio(s.kind));
    s.decay_steps = o.decay_steps.value_or(default_decay_steps(o.steps));
    if (o.wsd_shape) s.shape = static_cast<WsdShape>(index_of(wsd_shape_names(), *o.wsd_shape));
    return s;
}
