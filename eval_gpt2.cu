// eval_gpt2: scores a trained model on tasks.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "driver/cli.h"
#include "driver/load.h"
#include "driver/program.h"
#include "eval/tasks.h"

// Where --json or --samples goes. Opened before anything is scored, so that a wrong path costs no time, and emptied
// only when there are results. Written in place, not aside and renamed: it may well be /dev/stdout or a pipe.
class ResultFile {
  public:
    // path: "": there is none
    ResultFile(const char* option, const std::string& path) : option_(option), path_(path) {
        if (path.empty()) return;
        is_new_ = lstat(path.c_str(), &info_) != 0;
        file_ = fopen(path.c_str(), "ab");
        if (file_ == nullptr || fstat(fileno(file_), &info_) != 0) fail();
    }
    ~ResultFile() {
        if (file_ == nullptr) return;
        fclose(file_);
        if (is_new_) remove(path_.c_str());
    }
    ResultFile(const ResultFile&) = delete;
    ResultFile& operator=(const ResultFile&) = delete;

    bool same(const ResultFile& other) const {
        return file_ != nullptr && other.file_ != nullptr && same(info_, other.info_);
    }
    void write(const std::string& text) {
        if (file_ == nullptr) return;
        fflush(stdout);
        struct stat out = {}, err = {};
        // What was printed there stays.
        const bool printed = (fstat(STDOUT_FILENO, &out) == 0 && same(info_, out)) ||
                             (fstat(STDERR_FILENO, &err) == 0 && same(info_, err));
        if (!printed && S_ISREG(info_.st_mode) && ftruncate(fileno(file_), 0) != 0) fail();
        if (fwrite(text.data(), 1, text.size(), file_) != text.size() || fflush(file_) != 0) fail();
        is_new_ = false;
    }

  private:
    static bool same(const struct stat& a, const struct stat& b) {
        return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
    }
    [[noreturn]] void fail() const {
        throw user_error("%s %s: cannot be written: %s; check the path and the space left", option_, path_.c_str(),
                         strerror(errno));
    }
    const char* option_;
    std::string path_;
    FILE* file_ = nullptr;
    struct stat info_ = {};
    bool is_new_ = false;  // not there before: removed again if it gets no results
};

static int evaluate(int argc, char** argv) {
    std::string dir, json_path, samples_path;
    std::vector<std::string> tasks;
    int batch = 4, stride = 0;
    int64_t limit = 0;
    bool whole_chunks = false;
    CLI::App app{"Scores a trained model as lm-evaluation-harness would; eval/README.md describes tasks and files."};
    cli_defaults(app, "eval_gpt2");
    app.add_option("--model", dir, "checkpoint, run or Hugging Face folder")->type_name("DIR");
    app.add_option("--task", tasks,
                   "what to score; repeatable: " + task_names() + "; piqa and winogrande also FILE,LABELS")
        ->type_name("NAME=FILE")
        ->take_all()
        ->allow_extra_args(false)
        ->default_str("");
    app.add_option("--batch", batch, "sequences of the model's context at a time, or as many tokens of shorter ones");
    app.add_option("--stride", stride, "ppl: tokens between windows; 0: the context, no overlap");
    app.add_flag("--whole-chunks", whole_chunks,
                 "ppl: whole chunks of the context only, as nanoGPT and MLS-Bench count");
    app.add_option("--limit", limit, "only the first N examples of each task but ppl; 0: all")->type_name("N");
    app.add_option("--samples", samples_path, "write every example's log-likelihoods here")->type_name("FILE");
    app.add_option("--json", json_path, "write the scores here as well")->type_name("FILE");
    if (!cli_parse(app, argc, argv)) return EXIT_DONE;
    if (batch < 1) throw user_error("--batch %d: it must be at least 1", batch);
    if (stride < 0) throw user_error("--stride %d: it must be at least 0", stride);
    if (limit < 0) throw user_error("--limit %lld: it must be at least 0", static_cast<long long>(limit));
    if (whole_chunks && stride > 0)
        throw user_error("--whole-chunks and --stride exclude each other: chunks do not overlap");
    std::vector<TaskSpec> specs;
    specs.reserve(tasks.size());
    for (const std::string& task : tasks) specs.push_back(parse_task("--task", task));
    if (dir.empty()) throw user_error("--model DIR is missing: which model is to be scored?");
    if (tasks.empty()) throw user_error("--task NAME=FILE is missing: on what? There are: %s", task_names().c_str());
    const bool any_ppl = std::any_of(specs.begin(), specs.end(), [](const TaskSpec& s) { return s.name == "ppl"; });
    if (!any_ppl && (stride > 0 || whole_chunks))
        throw user_error("%s belongs to the task ppl, which is not asked for",
                         stride > 0 ? "--stride" : "--whole-chunks");

    ResultFile samples_file("--samples", samples_path), json_file("--json", json_path);
    if (samples_file.same(json_file))
        throw user_error("--samples %s: --json names the same file; give each its own", samples_path.c_str());

    LoadedModel loaded = load_model(dir, batch);
    const ModelConfig& config = model_config(*loaded.model);
    if (stride > config.context)
        throw user_error("--stride %d is longer than the model's context of %d tokens", stride, config.context);
    std::vector<Task> read;  // all before the first is scored
    for (const TaskSpec& spec : specs) {
        read.push_back(read_task(spec, *loaded.tokenizer, config, config.context, limit));
        for (const std::string& note : read.back().notes) printf("note: %s\n", note.c_str());
    }
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    std::string samples;
    for (const Task& task : read) {
        const Windows windows = {batch, config.context, stride, whole_chunks};
        const Scores scores = run_task(*loaded.model, task, *loaded.tokenizer, windows, nullptr);
        if (!scores.finite)
            throw user_error("%s: the model's loss on %s is not finite", loaded.folder.c_str(), scores.file.c_str());
        printf("%s\n", scores_line(scores).c_str());
        fflush(stdout);
        list.push_back(scores_json(scores));
        if (samples_path.empty()) continue;
        for (const Scores::Sample& sample : scores.samples) samples += sample_json(scores, sample).dump() + "\n";
    }
    samples_file.write(samples);
    json_file.write(list.dump(2) + "\n");
    return EXIT_DONE;
}

int main(int argc, char** argv) {
    return program_main("eval_gpt2", [&] { return evaluate(argc, argv); });
}
