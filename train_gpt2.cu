// train_gpt2: one training run, from the command line to the last checkpoint.
//
// Read main() at the end first, then train(), which is a run from top to bottom; above it stand the parts it is made
// of. Under mpirun every rank runs all of this; rank 0 alone prints, writes and reads what only one must read.
#include <fnmatch.h>

#include <chrono>
#include <cmath>
#include <filesystem>

#include "checkpoint/checkpoint.h"
#include "checkpoint/files.h"
#include "checkpoint/huggingface.h"
#include "dataloader/prefetch.h"
#include "dataloader/tokenizer.h"
#include "driver/dry_run.h"
#include "driver/load.h"
#include "driver/log.h"
#include "driver/machine.h"
#include "driver/options.h"
#include "driver/program.h"
#include "driver/sampler.h"
#include "driver/stop.h"
#include "driver/tuning.h"
#include "driver/update_log.h"
#include "eval/tasks.h"
#include "model/model.h"
#include "parallel/rendezvous.h"

static double seconds_now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// ---------------------------------------------------------------------------------------------------------------------
// A run and what it holds, in the order in which it is built.

struct Run {
    TrainOptions options;
    Comm* comm = nullptr;
    int rank = 0, ranks = 1;

    std::string folder;        // --init-from, as found
    int64_t resume_step = -1;  // of the checkpoint to continue from; -1: a fresh start
    std::vector<std::string> notes;
    ModelConfig config;
    int B = 0, T = 0;
    int64_t total_batch = 0;  // tokens per update, all ranks
    int64_t micro_steps = 0;  // micro-batches per update and rank
    Schedule schedule;

    Loader train, val;
    int64_t val_batches = 0;     // 0: no validation
    std::string tokenizer_file;  // beside the shards; empty: none
    TokenizerPtr tokenizer;
    std::vector<Task> evals;

    Machine machine;
    ModelPtr model;
    RunState state;
    Log log;

    ~Run() {
        log_close(log);
        model.reset();
        if (comm != nullptr) comm_destroy(comm);
    }
};

// Looks into --out: a folder that holds a run is only continued when asked to. Rank 0 decides for all.
static void find_out_folder(Run& run) {
    const TrainOptions& o = run.options;
    if (run.rank != 0) return;
    if (o.resume) {
        run.resume_step = checkpoint_newest(o.out, run.notes);
    } else if (file_exists(o.out + "/log.jsonl") || !checkpoint_steps(o.out).empty()) {
        throw user_error("--out %s holds a run already; continue it with --resume or choose another folder",
                         o.out.c_str());
    }
    make_folders(o.out);
    if (!hold_folder(o.out))
        throw user_error("--out %s: another run is writing there; wait until it has ended, or choose another folder",
                         o.out.c_str());
    checkpoint_prune(o.out, 0);
    if (o.dump_grads.empty()) return;
    // The file is written aside and renamed, which would replace a device like /dev/null.
    const std::filesystem::path file = o.dump_grads, parent = file.parent_path();
    if (!parent.empty() && !folder_exists(parent))
        throw user_error("--dump-grads %s: there is no such folder to write to", o.dump_grads.c_str());
    if (std::filesystem::exists(file) && !std::filesystem::is_regular_file(file))
        throw user_error("--dump-grads %s: it is there and is no plain file; name another", o.dump_grads.c_str());
}

// The model to train: what was asked for, which must be what the checkpoint holds when there is one.
static void choose_model(Run& run) {
    const TrainOptions& o = run.options;
    if (run.resume_step < 0) {
        if (!o.init_from.empty()) run.folder = model_folder(o.init_from, run.notes);
        run.config = options_config(o, run.folder, run.notes);
        return;
    }
    const std::string path = checkpoint_path(o.out, run.resume_step) + "/config.json";
    run.config = config_from_json(read_text(path), path, run.notes);
    check_config(run.config);
    run.config.residual_step -= run.resume_step;  // where the run began: 0 but after --init-from
    // The folder of --init-from may be gone by now, so only what was asked of it besides is compared.
    ModelConfig asked = run.config;
    if (o.model.empty())
        options_choices(o, asked);
    else
        asked = options_config(o, "", run.notes);
    asked.residual_step = run.config.residual_step;
    if (config_to_json(asked) != config_to_json(run.config))
        throw user_error("--resume: the options describe another model than %s; leave them as they were", path.c_str());
}

// Sizes of micro-batch and update, the schedule, and what stays frozen.
static void choose_sizes(Run& run) {
    TrainOptions& o = run.options;
    for (const std::string& pattern : o.freeze) {
        bool matches = false;
        for (const Tensor& tensor : build_registry(run.config).tensors)
            matches =
                matches || pattern == class_name(tensor.cls) || fnmatch(pattern.c_str(), tensor.name.c_str(), 0) == 0;
        if (!matches)
            throw user_error(
                "--freeze %s: this model has no tensor of such a class (embed, head, matrix, auxmat, norm, bias, gate) "
                "or name",
                pattern.c_str());
    }
    if (run.resume_step >= 0) {
        run.state = checkpoint_read_state(checkpoint_path(o.out, run.resume_step));
        for (const auto& [name, value] : run.state.settings) {
            // Another number of ranks goes on with the same updates unless told otherwise.
            if (name == "total-batch" && !o.total_batch && run.state.step > 0)
                o.total_batch = std::atoll(value.c_str());
        }
    }
    run.B = o.batch;
    run.T = o.seq.value_or(run.config.context);
    if (run.T > run.config.context)
        throw user_error("--seq %d is longer than the model's context of %d tokens", run.T, run.config.context);
    const int64_t step = static_cast<int64_t>(run.B) * run.T * run.ranks;
    run.total_batch = o.total_batch.value_or(step);
    run.micro_steps = run.total_batch / step;
    if (run.total_batch % step != 0) {
        const std::string lower =
            run.micro_steps > 0 ? format("%lld or ", static_cast<long long>(run.micro_steps * step)) : "";
        throw user_error(
            "--total-batch %lld is no multiple of batch x seq x ranks = %d x %d x %d = %lld; nearest: %s%lld",
            static_cast<long long>(run.total_batch), run.B, run.T, run.ranks, static_cast<long long>(step),
            lower.c_str(), static_cast<long long>((run.micro_steps + 1) * step));
    }
    o.seq = run.T;
    o.total_batch = run.total_batch;
    run.schedule = options_schedule(o);
}

// A resumed run goes on with the data it began with, where it stopped.
static void compare_data(Run& run) {
    const bool begun = run.state.step > 0;  // else --init-only made the checkpoint, and no data has been read
    const std::vector<std::string> changes = options_changes(run.options, run.state.settings, begun);
    if (!begun) return;
    run.notes.insert(run.notes.end(), changes.begin(), changes.end());
    const int64_t tokens = run.train.num_tokens();
    if (run.state.train_tokens != 0 && run.state.train_tokens != tokens)
        throw user_error(
            "--resume: the shards of --train hold %lld tokens now and %lld when the checkpoint was written; "
            "give the same, or start from it with --init-from",
            static_cast<long long>(tokens), static_cast<long long>(run.state.train_tokens));
    loader_seek(run.train, run.state.at);
}

// Opens the shards, the tokenizer beside them and the files of the evaluation tasks.
static void open_data(Run& run) {
    const TrainOptions& o = run.options;
    if (o.train.empty()) return;  // --init-only
    LoaderSettings settings = {run.config.vocab, run.B,  run.T,      run.rank, run.ranks,
                               o.shuffle,        o.seed, o.hold_out, false};
    run.train = loader_create(options_corpora(o), settings);
    if (run.resume_step >= 0) compare_data(run);
    run.state.train_tokens = run.train.num_tokens();
    if (!o.val.empty() || o.hold_out > 0) {
        settings.rank = 0;
        settings.ranks = 1;
        settings.shuffle = false;
        settings.held_out = o.hold_out > 0;
        Corpus val;
        val.pattern = o.val;
        run.val = loader_create(settings.held_out ? options_corpora(o) : std::vector<Corpus>{val}, settings);
        run.val_batches = loader_validation_batches(run.val);
        if (run.val_batches == 0)
            throw user_error("%s: no shard holds a batch of %d x %d tokens and the one after them",
                             (settings.held_out ? format("--hold-out %g", o.hold_out) : "--val " + o.val).c_str(),
                             run.B, run.T);
        if (o.val_batches.value_or(0) > 0) run.val_batches = std::min(run.val_batches, *o.val_batches);
    }
    const std::string& first_shard = run.train.corpora[0].shards[0].path;
    const std::string folder = run.resume_step >= 0 ? checkpoint_path(o.out, run.resume_step) : run.folder;
    run.tokenizer = training_tokenizer(run.train, run.val, folder, run.tokenizer_file);
    if (!run.tokenizer && (o.sample_every > 0 || !o.eval.empty()))
        throw user_error("%s needs the tokenizer of the shards, PREFIX_tokenizer.json beside %s",
                         o.sample_every > 0 ? "--sample-every" : "--eval", first_shard.c_str());
    if (o.sample_every > 0) prompt_tokens(*run.tokenizer, *o.prompt, run.config.vocab);
    if (!o.eval.empty())
        check_tokenizer(*run.tokenizer, run.config, run.tokenizer_file.empty() ? folder : run.tokenizer_file);
    for (const std::string& text : o.eval) {
        run.evals.push_back(read_task(parse_task("--eval", text), *run.tokenizer, run.config, run.T, 0));
        const std::vector<std::string>& notes = run.evals.back().notes;
        run.notes.insert(run.notes.end(), notes.begin(), notes.end());
    }
}

// Allocates the model and gives it its weights: fresh ones, those of --init-from, or a checkpoint's with the moments.
static void make_model(Run& run) {
    const TrainOptions& o = run.options;
    run.model = model_create(run.config, run.B, run.T, Use::training, options_recompute(o), o.fp8);
    // Whether samples find room is seen here rather than in the middle of the run.
    if (o.sample_every > 0 && run.rank == 0) decoder_create(*run.model, 1, run.T);
    const Registry& registry = model_registry(*run.model);
    const size_t size = static_cast<size_t>(registry.arena);
    if (run.resume_step >= 0) {
        const std::string folder = checkpoint_path(o.out, run.resume_step);
        std::vector<float> master(size), m(size), v(size);
        Fp8State fp8;
        weights_read(folder, registry, master.data());
        checkpoint_read_optimizer(folder, registry, m.data(), v.data(), master.data(), fp8);
        // The same seed and update round the working copy of a bf16 build as the update did.
        model_write_master(*run.model, master.data(), o.seed, static_cast<uint64_t>(run.state.last_change));
        model_write_moments(*run.model, m.data(), v.data());
        model_write_fp8(*run.model, fp8);
        return;
    }
    model_init_weights(*run.model, o.seed);
    if (run.folder.empty()) return;
    std::vector<float> master(size);
    model_read_master(*run.model, master.data());
    const std::string path = run.folder + "/config.json";
    std::vector<std::string> ignored;
    const Registry have = build_registry(config_from_json(read_text(path), path, ignored));
    weights_read_into(run.folder, have, registry, master.data(), run.notes);
    model_write_master(*run.model, master.data(), o.seed, 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// What happens between updates

// Mean loss over the first batches of --val. Ranks take turns at batches, and the losses are summed in the order of the
// batches, so that the number does not depend on how many ranks there are.
static double validate(Run& run) {
    std::vector<double> losses(static_cast<size_t>(run.val_batches), 0.0);
    std::vector<int> inputs(static_cast<size_t>(run.B) * static_cast<size_t>(run.T)), targets(inputs.size());
    for (int64_t m = run.rank; m < run.val_batches; m += run.ranks) {
        CHECK(loader_validation_batch(run.val, m, inputs.data(), targets.data()));
        losses[static_cast<size_t>(m)] = model_loss(*run.model, inputs.data(), targets.data(), run.B, run.T);
    }
    comm_sum(run.comm, losses.data(), static_cast<int>(losses.size()));
    double sum = 0;
    for (double loss : losses) sum += loss;
    return sum / (static_cast<double>(run.val_batches) * run.B * run.T);
}

static void print_sample(Run& run, int64_t step) {
    const std::vector<int> prompt = prompt_tokens(*run.tokenizer, *run.options.prompt, run.config.vocab);
    std::string text;
    SampleSettings settings;
    settings.temperature = 0.8;
    settings.seed = run.options.seed;
    try {
        generate(*run.model, prompt, run.options.sample_tokens.value_or(64), run.T, settings,
                 static_cast<uint64_t>(step), 1, [&](int, int token) {
                     run.tokenizer->decode(token, text);
                     return true;
                 });
        log_sample(run.log, step, *run.options.prompt, text);
    } catch (const UserError& error) {  // of weights that are no numbers: the next update's loss ends the run, on all ranks
        log_line(run.log, format("no sample at step %lld: %s", static_cast<long long>(step), error.what()));
    }
}

static void dump_gradients(Run& run) {
    const Registry& registry = model_registry(*run.model);
    std::vector<float> grads(static_cast<size_t>(registry.arena));
    model_read_grads(*run.model, grads.data());
    weights_write(run.options.dump_grads, registry, grads.data(), Dtype::f32);
}

static void save_checkpoint(Run& run) {
    if (run.rank != 0) return;
    const Registry& registry = model_registry(*run.model);
    const size_t size = static_cast<size_t>(registry.arena);
    std::vector<float> master(size), m, v;
    model_read_master(*run.model, master.data());
    Arrays arrays{master.data()};
    if (run.state.step > 0) {
        m.resize(size);
        v.resize(size);
        model_read_moments(*run.model, m.data(), v.data());
        arrays.m = m.data();
        arrays.v = v.data();
        arrays.fp8 = model_read_fp8(*run.model);
    }
    run.state.seed = run.options.seed;
    run.state.world_size = run.ranks;
    run.state.settings = option_values(run.options);
    run.state.versions = library_versions();
    std::vector<NamedText> files;
    if (run.tokenizer) files = tokenizer_files(*run.tokenizer, run.tokenizer_file);
    const Dtype dtype = run.options.save_dtype == "bf16" ? Dtype::bf16 : Dtype::f32;
    const std::string folder = checkpoint_save(run.options.out, run.state, run.config, registry, arrays, dtype, files);
    log_checkpoint(run.log, run.state.step, folder);
    checkpoint_prune(run.options.out, run.options.keep);
}

// ---------------------------------------------------------------------------------------------------------------------
// The updates. Returns the exit code.

static int diverged(Run& run, int64_t step, const std::string& why, double seconds) {
    log_end(run.log, step, "diverged", seconds);
    if (run.rank == 0)
        print_error("train_gpt2", format("step %lld: %s, the run has diverged; lower --lr, or lengthen --warmup",
                                         static_cast<long long>(step), why.c_str()));
    return EXIT_DIVERGED;
}

static int train_loop(Run& run) {
    const TrainOptions& o = run.options;
    UpdateSettings settings;
    settings.peak_lr = o.lr;
    settings.beta1 = o.beta1;
    settings.beta2 = o.beta2;
    settings.eps = o.eps;
    settings.weight_decay = o.weight_decay;
    settings.grad_clip = o.grad_clip;
    settings.decay = o.decay;
    settings.freeze = o.freeze;
    settings.seed = o.seed;
    const double flops = flops_per_token(run.config, run.T);
    const double loss_scale = 1.0 / (static_cast<double>(run.micro_steps) * run.B * run.T);  // then averaged over ranks
    Prefetcher batches(run.train);
    const double run_start = seconds_now();
    bool dump = !o.dump_grads.empty();
    UpdateLog updates(*run.model, run.log);
    LayerStats layer_stats;

    stop_on_signals();
    model_use_graphs(*run.model, o.graph);
    model_set_time(*run.model, run.state.step, run.micro_steps);
    model_start_clock(*run.model);
    for (int64_t step = run.state.step + 1; step <= o.steps; step++) {
        const bool last = step == o.steps;
        auto every = [&](int64_t n) { return n > 0 && step % n == 0; };
        const bool watch = every(o.layer_stats_every), watch_here = watch && run.rank == 0;
        model_watch(*run.model, watch_here);
        for (int64_t micro = 0; micro < run.micro_steps; micro++) {
            const Batch batch = batches.next(model_stream(*run.model));
            model_forward_backward_device(*run.model, batch.device, batch.count, run.B, run.T, loss_scale);
            run.state.at = batch.after;
        }
        model_average_grads(*run.model, run.comm);
        if (dump && run.rank == 0) dump_gradients(run);
        dump = false;
        settings.lr = o.lr * schedule_at(run.schedule, step - 1);
        if (watch_here) layer_stats.before_update(*run.model);
        const bool signalled = stop_asked();
        model_update(*run.model, settings, step, run.comm, signalled);
        run.state.step = step;
        run.state.tokens += run.total_batch;
        updates.add({step, run.state.tokens, run.total_batch, 0, 0, settings.lr, 0,
                     run.machine.peak_flops * run.ranks, flops},
                    watch_here ? &layer_stats : nullptr);

        // The result of the update before this one, and of this one too where its weights are needed. All ranks decide
        // alike: what one rank knows alone may not keep it from the next update, in which the others wait for it.
        const bool val = run.val_batches > 0 && every(o.val_every.value_or(0)), eval = every(o.eval_every.value_or(0));
        const bool sample = every(o.sample_every), save = every(o.save_every);
        const bool needed = last || watch || val || eval || sample || save || (signalled && run.ranks == 1);
        while (updates.waiting() > (needed || updates.stop() ? 0 : 1)) {
            const std::string why = updates.take();
            if (updates.last_change() > 0) run.state.last_change = updates.last_change();
            if (!why.empty()) return diverged(run, updates.last_taken(), why, seconds_now() - run_start);
        }
        const bool stop = updates.stop();
        if (!needed && !stop) continue;

        if (run.val_batches > 0 && (last || (val && !stop))) {
            const double loss = validate(run);
            log_val(run.log, step, loss);
            if (!std::isfinite(loss))
                return diverged(run, step, "the validation loss is not finite", seconds_now() - run_start);
        }
        if (last || (eval && !stop)) {
            for (const Task& task : run.evals)
                log_eval(run.log, step, run_task(*run.model, task, *run.tokenizer, {run.B, run.T}, run.comm));
        }
        if (run.rank == 0 && o.sample_every > 0 && (last || (sample && !stop))) print_sample(run, step);
        if (stop || last || save) save_checkpoint(run);
        if (stop && !last) {
            log_end(run.log, step, "signal", seconds_now() - run_start);
            return EXIT_SIGNAL;
        }
        model_start_clock(*run.model);
    }
    log_end(run.log, o.steps, "complete", seconds_now() - run_start);
    return EXIT_DONE;
}

// ---------------------------------------------------------------------------------------------------------------------

static int dry_run(const TrainOptions& o) {
    std::vector<std::string> notes;
    const std::string folder = o.init_from.empty() ? "" : model_folder(o.init_from, notes);
    const ModelConfig config = options_config(o, folder, notes);
    for (const std::string& note : notes) printf("%s\n", note.c_str());
    Run sizes;  // checks the total batch as well
    sizes.options = o;
    sizes.ranks = launch_from_environment().size;
    sizes.config = config;
    choose_sizes(sizes);
    print_dry_run(o, config, {sizes.B, sizes.T, sizes.total_batch, sizes.micro_steps, sizes.ranks});
    return EXIT_DONE;
}

static int train(int argc, char** argv) {
    std::optional<TrainOptions> parsed = parse_train_options(argc, argv);
    if (!parsed) return EXIT_DONE;
    if (parsed->dry_run) return launcher_rank() == 0 ? dry_run(*parsed) : EXIT_DONE;

    Run run;
    run.options = *parsed;
    const TrainOptions& o = run.options;
    run.comm = comm_create();
    run.rank = comm_rank(run.comm);
    run.ranks = comm_size(run.comm);

    // Everything a user can get wrong comes out before the first update, from one rank, while all ranks still agree.
    together(run.comm, [&] { find_out_folder(run); });
    run.resume_step = comm_broadcast(run.comm, run.resume_step);
    if (run.resume_step >= 0 && run.resume_step >= o.steps) {
        if (run.rank == 0)
            printf("the run in %s is complete: its newest checkpoint is of step %lld\n", o.out.c_str(),
                   static_cast<long long>(run.resume_step));
        return EXIT_DONE;
    }
    together(run.comm, [&] {
        choose_model(run);
        choose_sizes(run);
    });
    // Rank 0 goes first: it scans the shards, the others find its result beside them.
    together(run.comm, [&] {
        if (run.rank == 0) open_data(run);
    });
    together(run.comm, [&] {
        if (run.rank != 0) open_data(run);
    });
    together(run.comm, [&] {
        run.machine = find_machine();
        make_model(run);
        if (run.rank == 0) tune_gemms(*run.model, o.tune_gemms && !o.init_only, run.state.gemm, run.notes);
        if (run.rank == 0 && o.resume) {
            if (run.resume_step >= 0)
                log_cut(o.out, run.resume_step);
            else if (file_exists(o.out + "/log.jsonl"))
                write_text_atomic(o.out + "/log.jsonl", "");
        }
        const bool has_log = file_exists(o.out + "/log.jsonl");
        run.log = log_open(o.out, o.steps, run.rank);
        for (const std::string& note : run.notes) log_line(run.log, note);
        if (run.resume_step < 0 || !has_log)
            log_start(run.log, {option_values(o), &run.config, model_registry(*run.model).num_params,
                                flops_per_token(run.config, run.T), run.ranks, run.machine});
        if (run.resume_step >= 0)
            log_resume(run.log, run.state.step, run.state.tokens, checkpoint_path(o.out, run.resume_step), run.notes);
        if (o.init_only) save_checkpoint(run);
    });
    if (o.init_only) return EXIT_DONE;
    share_gemms(*run.model, run.comm, run.state.gemm);
    try {
        return train_loop(run);
    } catch (const UserError& error) {  // the disk is full, say: the other ranks wait for this one and must not
        if (run.ranks == 1) throw;
        print_error("train_gpt2", error.what());
        comm_abort(run.comm, EXIT_USER);
    }
}

int main(int argc, char** argv) {
    return program_main("train_gpt2", [&] { return train(argc, argv); });
}
