// Stopping and going on: a run that is interrupted and resumed ends with the same bits as one that is not.
#include <csignal>
#include <filesystem>

#include "tiny_run.h"

namespace fs = std::filesystem;
using nlohmann::json;

#define NEEDS_PROGRAM() \
    if (!have_program("train_gpt2")) SKIP_TEST("resume: RESIDUAL_BUILD names no build")

namespace {

struct Data {
    TempFolder temp;
    std::string prefix = temp.path + "/tiny", dir = temp.path + "/run", other = temp.path + "/other";
    Data() { write_tiny_data(prefix); }
    std::string val() const { return prefix + "_val_*.bin"; }
    ProgramResult train(const std::string& out, const std::vector<std::string>& more = {}) const {
        const ProgramResult result = run_program("train_gpt2", tiny_args(prefix, out, more));
        INFO(result.out << result.err);
        CHECK(result.err.empty());
        return result;
    }
};

void check_same_bytes(const std::string& a, const std::string& b, const std::vector<std::string>& names) {
    for (const std::string& name : names) {
        INFO(a << " and " << b << ": " << name);
        REQUIRE(file_exists(a + "/" + name));
        CHECK((read_text(a + "/" + name) == read_text(b + "/" + name)));  // in brackets: the bytes are not shown
    }
}
const std::vector<std::string> all_files = {"config.json", "model.safetensors", "optimizer_0000.safetensors",
                                            "tiny_tokenizer.json"};

// What a step event says about the update, without how long it took.
json without_time(json event) {
    for (const char* key : {"ms", "tokens_per_s", "mfu"}) event.erase(key);
    return event;
}

void check_same_log(const std::string& a, const std::string& b) {
    for (const char* kind : {"step", "val"}) {
        const std::vector<json> x = read_events(a, kind), y = read_events(b, kind);
        REQUIRE(x.size() == y.size());
        for (size_t i = 0; i < x.size(); i++) CHECK(without_time(x[i]) == without_time(y[i]));
    }
}

// The status of a run while which a shell does `meanwhile`. What it says on stderr goes to OUT.err.
int run_while(const std::string& prefix, const std::string& out, const std::vector<std::string>& more,
              const std::string& meanwhile) {
    std::string command = "OUT='" + out + "'; '" + std::string(getenv("RESIDUAL_BUILD")) + "/train_gpt2'";
    for (const std::string& word : tiny_args(prefix, out, more)) command += " '" + word + "'";
    command += " > /dev/null 2> \"$OUT.err\" & PID=$!; " + meanwhile + "; wait $PID";
    std::string escaped;
    for (char c : command) escaped += c == '"' || c == '$' || c == '\\' ? std::string("\\") + c : std::string(1, c);
    return std::system(("bash -c \"" + escaped + "\"").c_str());
}
const std::string third_update = "until grep -qs '\"step\",\"step\":3,' \"$OUT/log.jsonl\"; do sleep 0.005; done; ";

}  // namespace

TEST_CASE("10 updates are 5 + resume + 5, bit for bit", "[resume]") {
    NEEDS_PROGRAM();
    Data d;
    const std::vector<std::vector<std::string>> variants = {
        {},
        {"--no-shuffle", "--total-batch", "128", "--save-dtype", "bf16"},
        {"--freeze", "embed", "--freeze", "h.0.*"},
        {"--fp8", "--total-batch", "128", "--val", d.val(), "--val-every", "4"},
        {"--schedule", "wsd", "--no-tie", "--val", d.val(), "--val-every", "2", "--val-batches", "3"},
        // The second corpus begins its second epoch within the run.
        {"--mix", d.val() + "=0.3", "--hold-out", "0.9", "--val-every", "5", "--total-batch", "320"}};
    for (size_t i = 0; i < variants.size(); i++) {
        INFO("variant " << i);
        const std::string whole = d.dir + std::to_string(i), parts = d.other + std::to_string(i);
        std::vector<std::string> options = variants[i];
        options.insert(options.end(), {"--save-every", "5"});
        REQUIRE(d.train(whole, options).status == 0);
        // The first half of the same run: the checkpoint of step 5, and a log that is ahead of it.
        fs::create_directories(parts);
        fs::copy(whole + "/step_00000005", parts + "/step_00000005", fs::copy_options::recursive);
        fs::copy(whole + "/log.jsonl", parts + "/log.jsonl");
        options.push_back("--resume");
        REQUIRE(d.train(parts, options).status == 0);
        check_same_bytes(whole + "/step_00000010", parts + "/step_00000010", all_files);
        check_same_log(whole, parts);
        const std::vector<json> resumes = read_events(parts, "resume");
        REQUIRE(resumes.size() == 1);
        CHECK(resumes[0]["step"] == 5);
        CHECK(read_events(parts, "end").size() == 1);
    }
}

TEST_CASE("--init-only and --resume are a run from the start", "[resume]") {
    NEEDS_PROGRAM();
    Data d;
    REQUIRE(d.train(d.dir).status == 0);
    REQUIRE(d.train(d.other, {"--init-only"}).status == 0);
    CHECK(fs::exists(d.other + "/step_00000000/model.safetensors"));
    CHECK(read_events(d.other, "step").empty());
    REQUIRE(d.train(d.other, {"--resume"}).status == 0);
    check_same_bytes(d.dir + "/step_00000010", d.other + "/step_00000010", all_files);
    check_same_log(d.dir, d.other);

    // It has read no data, so every choice of data is still open; its weights are of its seed.
    for (const std::vector<std::string>& choice :
         std::vector<std::vector<std::string>>{{"--no-shuffle"}, {"--seq", "8"}, {"--mix", d.val() + "=0.5"}}) {
        TempFolder temp;
        std::vector<std::string> more = choice;
        REQUIRE(d.train(temp.path + "/a", {"--init-only"}).status == 0);
        REQUIRE(d.train(temp.path + "/b", more).status == 0);
        more.push_back("--resume");
        REQUIRE(d.train(temp.path + "/a", more).status == 0);
        check_same_log(temp.path + "/a", temp.path + "/b");
    }
    REQUIRE(d.train(d.temp.path + "/seed", {"--init-only"}).status == 0);
    const std::vector<std::string> seed = tiny_args(d.prefix, d.temp.path + "/seed", {"--resume", "--seed", "2"});
    CHECK(run_program("train_gpt2", seed).status == 1);
}

TEST_CASE("--resume passes over damaged checkpoints", "[resume]") {
    NEEDS_PROGRAM();
    Data d;
    REQUIRE(d.train(d.dir, {"--save-every", "3"}).status == 0);
    fs::copy(d.dir, d.other, fs::copy_options::recursive);
    for (const char* step : {"step_00000010", "step_00000009"})
        fs::resize_file(d.other + "/" + step + "/model.safetensors", 1000);
    const ProgramResult result = d.train(d.other, {"--save-every", "3", "--resume"});
    REQUIRE(result.status == 0);
    CHECK(result.out.find("step_00000010/model.safetensors: damaged") != std::string::npos);
    CHECK(read_events(d.other, "resume")[0]["step"] == 6);
    check_same_bytes(d.dir + "/step_00000010", d.other + "/step_00000010", all_files);
    check_same_bytes(d.dir + "/step_00000009", d.other + "/step_00000009", all_files);
    check_same_log(d.dir, d.other);
}

TEST_CASE("--resume starts where there is nothing, and ends where there is nothing to do", "[resume]") {
    NEEDS_PROGRAM();
    Data d;
    REQUIRE(d.train(d.dir, {"--resume"}).status == 0);
    CHECK(read_events(d.dir, "start").size() == 1);
    CHECK(read_events(d.dir, "resume").empty());
    const std::string log = read_text(d.dir + "/log.jsonl");
    const ProgramResult again = d.train(d.dir, {"--resume"});
    CHECK(again.status == 0);
    CHECK(again.out.find("complete") != std::string::npos);
    CHECK(read_text(d.dir + "/log.jsonl") == log);
    // A run that died before its first checkpoint left a log only.
    fs::remove_all(d.dir + "/step_00000010");
    REQUIRE(d.train(d.dir, {"--resume"}).status == 0);
    CHECK(read_events(d.dir, "start").size() == 1);
    CHECK(read_losses(d.dir).size() == 10);
    // A longer run goes on.
    REQUIRE(d.train(d.dir, {"--resume", "--steps", "12", "--warmup", "2"}).status == 0);
    CHECK(read_losses(d.dir).size() == 12);
    CHECK(fs::exists(d.dir + "/step_00000012"));
}

TEST_CASE("--keep keeps the last checkpoints of a run", "[resume]") {
    NEEDS_PROGRAM();
    Data d;
    REQUIRE(d.train(d.dir, {"--save-every", "2", "--keep", "2"}).status == 0);
    CHECK(list_folder(d.dir) == std::vector<std::string>{"log.jsonl", "step_00000008", "step_00000010"});
}

TEST_CASE("--resume refuses another model, data order or data", "[resume]") {
    NEEDS_PROGRAM();
    Data d;
    REQUIRE(d.train(d.dir, {"--steps", "4"}).status == 0);
    write_tiny_data(d.temp.path + "/more", 5000);
    const struct {
        std::vector<std::string> options;
        std::string part;
    } cases[] = {{{"--layers", "3"}, "another model"},
                 {{"--seed", "2"}, "--seed"},
                 {{"--seq", "8"}, "--seq"},
                 {{"--no-shuffle"}, "--shuffle"},
                 {{"--train", d.temp.path + "/more_train_*.bin"}, "5000"}};
    for (const auto& c : cases) {
        std::vector<std::string> options = {"--resume", "--steps", "8"};
        options.insert(options.end(), c.options.begin(), c.options.end());
        const ProgramResult result = run_program("train_gpt2", tiny_args(d.prefix, d.dir, options));
        INFO(c.part << ": " << result.err);
        CHECK(result.status == 1);
        CHECK(count_lines(result.err) == 1);
        CHECK(result.err.find(c.part) != std::string::npos);
    }
    // A run that began with --init-from goes on without that folder, but not as another model either.
    const std::string prefix = d.temp.path + "/tiny_train_*.bin";
    auto from = [&](const std::string& folder, std::vector<std::string> more) {
        const std::vector<std::string> always = {"--init-from", folder, "--train", prefix, "--out", d.other};
        more.insert(more.begin(), always.begin(), always.end());
        return run_program("train_gpt2", more);
    };
    REQUIRE(from(d.dir, {"--residual", "gpas", "--residual-opt", "act=tanh", "--steps", "1"}).status == 0);
    const std::vector<std::vector<std::string>> others = {
        {"--residual", "rezero"}, {"--norm", "sandwich"}, {"--residual-opt", "act=relu"}, {"--norm", "no-scheme"}};
    for (std::vector<std::string> more : others) {
        more.insert(more.end(), {"--resume", "--steps", "2"});
        const ProgramResult result = from(d.dir, more);
        INFO(more[0] << " " << more[1] << ": " << result.err);
        CHECK(result.status == 1);
        CHECK(count_lines(result.err) == 1);
    }
    CHECK(from("gone", {"--residual", "gpas", "--residual-opt", "act=tanh", "--resume", "--steps", "2"}).status == 0);
    CHECK(from("gone", {"--resume", "--steps", "3"}).status == 0);

    // Any other change is allowed, and said.
    const ProgramResult result = d.train(d.dir, {"--resume", "--steps", "8", "--lr", "5e-3"});
    CHECK(result.status == 0);
    CHECK(result.out.find("--lr was") != std::string::npos);
}

TEST_CASE("kernels launched one by one give the same bytes as graphs, and the log is in order", "[resume]") {
    NEEDS_PROGRAM();
    Data d;
    const std::vector<std::string> more = {"--total-batch",       "192", "--residual",   "gpas+prores",
                                           "--layer-stats-every", "4",   "--val",        d.val(),
                                           "--val-every",         "3",   "--save-every", "6"};
    std::vector<std::string> plain = more;
    plain.push_back("--no-graph");
    REQUIRE(d.train(d.dir, more).status == 0);
    REQUIRE(d.train(d.other, plain).status == 0);
    for (const char* step : {"/step_00000006", "/step_00000010"})
        check_same_bytes(d.dir + step, d.other + step, all_files);
    check_same_log(d.dir, d.other);
    // Results come late, but every event of a step stands behind its line and before the next one's.
    int64_t step = 0;
    int others = 0;
    for (const json& event : read_events(d.dir)) {
        if (event["event"] == "start") continue;
        if (event["event"] == "step") {
            CHECK(event["step"] == ++step);
            CHECK(event["ms"] > 0);
        } else {
            CHECK(event["step"] == step);
            others++;
        }
    }
    CHECK(step == 10);
    CHECK(others == 2 + 4 + 2 + 1);  // layers, val, checkpoint, end
}

TEST_CASE("a signal ends the run after the update, with a checkpoint, and the run goes on from there", "[resume]") {
    NEEDS_PROGRAM();
    Data d;
    const std::string signal = GENERATE("TERM", "HUP", "PIPE");
    REQUIRE(d.train(d.dir, {"--steps", "60"}).status == 0);
    const int raw = run_while(d.prefix, d.other, {"--steps", "60"}, third_update + "kill -" + signal + " $PID");
    REQUIRE(WIFEXITED(raw));
    if (WEXITSTATUS(raw) == 0) SKIP_TEST("signal: the run was over before the signal came");
    REQUIRE(WEXITSTATUS(raw) == 3);
    const std::vector<json> ends = read_events(d.other, "end");
    REQUIRE(ends.size() == 1);
    CHECK(ends[0]["reason"] == "signal");
    CHECK(fs::exists(d.other + format("/step_%08d/state.json", ends[0]["step"].get<int>())));
    REQUIRE(d.train(d.other, {"--steps", "60", "--resume"}).status == 0);
    check_same_bytes(d.dir + "/step_00000060", d.other + "/step_00000060", all_files);
    check_same_log(d.dir, d.other);
}

TEST_CASE("Ctrl-C ends the run after the update and says so; a second one stops at once", "[resume]") {
    NEEDS_PROGRAM();
    Data d;
    const int once = run_while(d.prefix, d.dir, {"--steps", "100000"}, third_update + "kill -INT $PID");
    REQUIRE(WIFEXITED(once));
    CHECK(WEXITSTATUS(once) == 3);
    CHECK(read_text(d.dir + ".err").find("Ctrl-C again stops at once") != std::string::npos);
    CHECK(read_events(d.dir, "checkpoint").size() == 1);
    // An update of many seconds. SigCgt: the signals that the process handles, in hexadecimal; SIGINT is 2.
    const int twice = run_while(d.prefix, d.other, {"--total-batch", "1280000"},
                                "until grep -q 'SigCgt:.*[2367abef]$' /proc/$PID/status; do sleep 0.005; done; "
                                "kill -INT $PID; until [ -s \"$OUT.err\" ]; do sleep 0.005; done; kill -INT $PID");
    REQUIRE(WIFEXITED(twice));
    CHECK(WEXITSTATUS(twice) == 128 + SIGINT);
    CHECK(read_events(d.other, "step").empty());
}

TEST_CASE("--init-from takes run, checkpoint and Hugging Face folders", "[resume]") {
    NEEDS_PROGRAM();
    Data d;
    REQUIRE(d.train(d.dir, {"--save-every", "5"}).status == 0);
    const std::string folder = d.dir + "/step_00000010", plain = d.temp.path + "/plain";
    fs::create_directories(plain);
    for (const char* name : {"config.json", "model.safetensors"}) fs::copy(folder + "/" + name, plain + "/" + name);
    std::vector<std::string> outs;
    for (const std::string& from : {d.dir, folder, plain}) {
        outs.push_back(d.temp.path + "/from" + std::to_string(outs.size()));
        const ProgramResult result =
            run_program("train_gpt2", {"--init-from", from, "--train", d.prefix + "_train_*.bin", "--steps", "2",
                                       "--batch", "4", "--out", outs.back()});
        INFO(result.err);
        REQUIRE(result.status == 0);
        check_same_log(outs[0], outs.back());
        // It goes on where the other run had come to.
        CHECK(read_losses(outs.back())[0] < read_losses(d.dir)[0] - 0.1);
    }
}

TEST_CASE("one, two and three ranks see the same updates and validate to the same number", "[resume][ranks]") {
    NEEDS_PROGRAM();
    if (std::system("command -v mpirun > /dev/null 2>&1") != 0) SKIP_TEST("ranks: there is no mpirun");
    Data d;
    const std::vector<std::string> options = {"--total-batch",         "384",          "--val",
                                              d.prefix + "_val_*.bin", "--save-every", "5"};
    std::vector<double> losses, val;
    for (int ranks : {1, 2, 3}) {
        const std::string out = d.dir + std::to_string(ranks);
        const ProgramResult result = run_ranks(ranks, "train_gpt2", tiny_args(d.prefix, out, options));
        INFO(ranks << " ranks: " << result.out << result.err);
        REQUIRE(result.status == 0);
        std::vector<double> got = read_losses(out);
        got.push_back(read_events(out, "val").at(0)["loss"]);
        REQUIRE(got.size() == 11);
        if (ranks == 1) losses = got;
        // fp32: the gradients' sums are rounded in another order; bf16: so are the all-reduced gradients' roundings of
        // the working copy, at 2^-9 each.
        CHECK(worst_error(got, losses, sizeof(floatX) == 4 ? 1e-5 : 2e-2, 0) <= 1);
    }
    // A checkpoint of one rank goes on with two.
    fs::remove_all(d.dir + "1/step_00000010");
    std::vector<std::string> resume = options;
    resume.push_back("--resume");
    REQUIRE(run_ranks(2, "train_gpt2", tiny_args(d.prefix, d.dir + "1", resume)).status == 0);
    losses.pop_back();
    CHECK(worst_error(read_losses(d.dir + "1"), losses, sizeof(floatX) == 4 ? 1e-5 : 2e-2, 0) <= 1);
}
