// What a user can get wrong, end to end: exit code 1, exactly one line on stderr that names the culprit, nothing left
// behind. And what the programs print when all is well.
#include <filesystem>
#include <limits>

#include "checkpoint/huggingface.h"
#include "tiny_run.h"

namespace fs = std::filesystem;
using nlohmann::json;

#define NEEDS_PROGRAMS()                                                                           \
    if (!have_program("train_gpt2") || !have_program("sample_gpt2") || !have_program("eval_gpt2")) \
    SKIP_TEST("driver errors: RESIDUAL_BUILD names no build")

namespace {

void check_refused(const ProgramResult& result, const std::string& part) {
    INFO("exit code " << result.status << ", stderr: " << result.err);
    CHECK(result.status == 1);
    CHECK(count_lines(result.err) == 1);
    CHECK(result.err.find(part) != std::string::npos);
}

void write_bytes(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
}

}  // namespace

TEST_CASE("train_gpt2 refuses bad input in one line", "[errors]") {
    NEEDS_PROGRAMS();
    TempFolder temp;
    const std::string prefix = temp.path + "/tiny", out = temp.path + "/run";
    write_tiny_data(prefix);
    auto train = [&](const std::vector<std::string>& more) {
        return run_program("train_gpt2", tiny_args(prefix, out, more));
    };
    const std::string shard = prefix + "_train_000000.bin", bad = temp.path + "/bad.bin";

    check_refused(run_program("train_gpt2", {"--nonsense"}), "--nonsense");
    check_refused(run_program("train_gpt2", {"--model", "gpt2"}), "--train");
    check_refused(train({"--train", temp.path + "/absent_*.bin"}), "absent_");
    write_bytes(bad, "short");
    check_refused(train({"--train", bad}), "bad.bin");
    write_bytes(bad, std::string(5000, 'x'));
    check_refused(train({"--train", bad}), "bad.bin");
    fs::copy_file(shard, bad, fs::copy_options::overwrite_existing);
    fs::resize_file(bad, fs::file_size(bad) - 10);
    check_refused(train({"--train", bad}), "bad.bin");
    check_refused(train({"--val", bad}), "bad.bin");
    check_refused(train({"--vocab", "50"}), "vocabulary");
    check_refused(train({"--mix", temp.path + "/absent_*.bin=0.2"}), "absent_");
    check_refused(train({"--hold-out", "0.001"}), "--hold-out 0.001");
    const std::string table = temp.path + "/other";  // another tokenizer, though its tokens fit into the vocabulary
    fs::copy_file(shard, table + "_train_000000.bin");
    write_bytes(table + "_tokenizer.json",
                R"({"kind":"table","name":"two","vocab_size":2,"eot_token":0,"tokens":["a","b"]})");
    check_refused(train({"--mix", table + "_train_*.bin=0.5"}), "'table' (2 tokens)");
    check_refused(train({"--val", table + "_train_*.bin"}), "'table' (2 tokens)");
    check_refused(train({"--eval", "ppl=" + table + "_train_000000.bin"}), "'table' (2 tokens)");
    // A trained model keeps its tokenizer: other shards are refused, shards without one get it.
    const std::string base = temp.path + "/base", plain = temp.path + "/plain_train_000000.bin",
                      more = temp.path + "/more";
    REQUIRE(run_program("train_gpt2", tiny_args(prefix, base, {"--init-only"})).status == 0);
    auto go_on = [&](const std::string& shards) {
        return run_program("train_gpt2", {"--init-from", base, "--train", shards, "--steps", "1", "--out", more});
    };
    check_refused(go_on(table + "_train_*.bin"), "'table' (2 tokens), where 'bytes' (256)");
    fs::copy_file(shard, plain);
    auto speaks = [&] {
        return run_program("sample_gpt2", {"--model", more, "--prompt", "The", "--tokens", "2"}).status == 0;
    };
    REQUIRE(go_on(plain).status == 0);
    CHECK(speaks());
    REQUIRE(run_program("train_gpt2", {"--init-from", base, "--train", plain, "--steps", "2", "--out", more, "--resume"})
                .status == 0);
    CHECK(fs::exists(more + "/step_00000002"));
    CHECK(speaks());
    check_refused(train({"--batch", "400"}), "tiny_train_");
    check_refused(train({"--total-batch", "100"}), "nearest: 64 or 128");
    check_refused(train({"--total-batch", "60"}), "nearest: 64");
    check_refused(train({"--seq", "17"}), "context of 16");
    check_refused(train({"--channels", "30"}), "--channels 30");
    check_refused(train({"--channels", "33"}), "--channels 33");
    check_refused(train({"--init-from", out}), "--model");
    check_refused(train({"--freeze", "embed", "--freeze", "h.9.*"}), "h.9.*");
    check_refused(train({"--dump-grads", temp.path + "/no/folder.safetensors"}), "--dump-grads");
    check_refused(train({"--dump-grads", temp.path}), "no plain file");
    check_refused(train({"--eval", "ppl=" + temp.path + "/absent.txt"}), "absent.txt");
    check_refused(train({"--out", shard}), "tiny_train_");
    check_refused(run_program("train_gpt2",
                              {"--init-from", temp.path + "/absent", "--train", shard, "--steps", "1", "--out", out}),
                  "absent");
    // A batch that cannot fit, predicted before anything is allocated.
    check_refused(run_program("train_gpt2", {"--model", "gpt2-xl", "--train", shard, "--batch", "100000", "--seq", "8",
                                             "--no-shuffle", "--steps", "1", "--out", out}),
                  "--batch");
    CHECK(read_events(out).empty());

    REQUIRE(train({}).status == 0);
    check_refused(train({}), "--resume");
    fs::remove(out + "/log.jsonl");
    check_refused(train({}), "--resume");

    // Without the tokenizer's file nothing can be said in text.
    fs::remove(prefix + "_tokenizer.json");
    check_refused(
        run_program("train_gpt2", tiny_args(prefix, temp.path + "/run2", {"--sample-every", "1", "--prompt", "The"})),
        "tokenizer");
}

TEST_CASE("a folder that another run writes to is left alone", "[errors]") {
    NEEDS_PROGRAMS();
    TempFolder temp;
    const std::string prefix = temp.path + "/tiny", out = temp.path + "/run";
    write_tiny_data(prefix);
    REQUIRE(run_program("train_gpt2", tiny_args(prefix, out, {"--steps", "2"})).status == 0);
    REQUIRE(hold_folder(out));
    CHECK_FALSE(hold_folder(out));
    const std::string unfinished = out + "/step_00000003.tmp";  // of the other run
    fs::create_directories(unfinished);
    check_refused(run_program("train_gpt2", tiny_args(prefix, out, {"--resume", "--steps", "4"})),
                  "another run is writing there");
    CHECK(fs::exists(unfinished));
    CHECK(read_losses(out).size() == 2);
}

TEST_CASE("checkpoints cut short are refused by file", "[errors]") {
    NEEDS_PROGRAMS();
    TempFolder temp;
    const std::string prefix = temp.path + "/tiny", out = temp.path + "/run", folder = out + "/step_00000002";
    write_tiny_data(prefix);
    REQUIRE(run_program("train_gpt2", tiny_args(prefix, out, {"--steps", "2"})).status == 0);
    auto from = [&](const std::string& dir) {
        return run_program("train_gpt2", {"--init-from", dir, "--train", prefix + "_train_*.bin", "--steps", "1",
                                          "--out", temp.path + "/next"});
    };
    check_refused(run_program("train_gpt2", {"--init-from", folder, "--layers", "3", "--dry-run"}), "--layers");
    fs::resize_file(folder + "/model.safetensors", fs::file_size(folder + "/model.safetensors") - 100);
    check_refused(from(folder), "model.safetensors");
    check_refused(from(out), "model.safetensors");
    check_refused(run_program("sample_gpt2", {"--model", folder, "--prompt", "a"}), "model.safetensors");
    // The same as a Hugging Face folder, which has no checksums.
    const std::string plain = temp.path + "/plain";
    fs::create_directories(plain);
    for (const char* name : {"config.json", "model.safetensors"}) fs::copy(folder + "/" + name, plain + "/" + name);
    auto sample = [&] { return run_program("sample_gpt2", {"--model", plain, "--prompt", "a"}); };
    check_refused(sample(), "no tokenizer beside the weights");
    write_bytes(plain + "/tokenizer.json", R"({"model": {"type": "BPE"}})");
    check_refused(sample(), "only Hugging Face's tokenizer.json is there");
    for (const char* name : {"vocab.json", "merges.txt"})
        fs::copy(std::string("tests/golden/tokenizer/") + name, plain + "/" + name);
    write_bytes(plain + "/tiny_tokenizer.json", R"({"kind": "by)");
    check_refused(sample(), "tiny_tokenizer.json: is not a tokenizer file of ours");
    check_refused(from(plain), "tiny_tokenizer.json: is not a tokenizer file of ours");
    for (const char* name : {"vocab.json", "merges.txt", "tiny_tokenizer.json"}) fs::remove(plain + "/" + name);
    check_refused(from(plain), "model.safetensors");
    write_bytes(plain + "/config.json", "{\"model_type\": \"gpt2\"}");
    check_refused(from(plain), "config.json");
    write_bytes(plain + "/config.json", "{");
    check_refused(from(plain), "config.json");
}

TEST_CASE("results that stdout cannot take are an error", "[errors]") {
    NEEDS_PROGRAMS();
    const std::string golden = "tests/golden/eval";
    for (const auto& [name, arguments] : std::vector<std::pair<std::string, std::vector<std::string>>>{
             {"eval_gpt2", {"--model", golden, "--task", "ppl=" + golden + "/lambada.txt"}},
             {"sample_gpt2", {"--model", golden, "--prompt", "a", "--tokens", "2"}},
             {"train_gpt2", {"--model", "gpt2-nano", "--dry-run"}}}) {
        const ProgramResult result = run_program(name, arguments, "/dev/null", "/dev/full");
        check_refused(result, name + ": standard output cannot be written");
    }
}

TEST_CASE("an error behind sampled text begins a line", "[errors]") {
    NEEDS_PROGRAMS();
    const TempFolder temp;
    for (const char* name : {"config.json", "model.safetensors", "bytes_tokenizer.json"})
        fs::copy("tests/golden/eval/" + std::string(name), temp.path + "/" + name);
    std::string weights = read_text(temp.path + "/model.safetensors");
    std::fill(weights.end() - 4096, weights.end(), '\xFF');  // NaN in any type
    write_bytes(temp.path + "/model.safetensors", weights);
    const ProgramResult result = run_program("sample_gpt2", {"--model", temp.path, "--prompt", "the cat"});
    check_refused(result, "not finite");
    CHECK(result.out == "the cat\n");
}

TEST_CASE("a run that diverges ends with 2 and one line", "[errors]") {
    NEEDS_PROGRAMS();
    TempFolder temp;
    const std::string prefix = temp.path + "/tiny", out = temp.path + "/run";
    write_tiny_data(prefix);
    const ProgramResult result = run_program("train_gpt2", tiny_args(prefix, out,
                                                                     {"--lr", "1e30", "--grad-clip", "0", "--schedule",
                                                                      "constant", "--warmup", "0", "--steps", "50"}));
    INFO(result.err);
    CHECK(result.status == 2);
    CHECK(count_lines(result.err) == 1);
    CHECK(result.err.find("diverged") != std::string::npos);
    const nlohmann::json end = read_events(out, "end").at(0);
    CHECK(end["reason"] == "diverged");
    const std::vector<nlohmann::json> steps = read_events(out, "step");
    int without = 0;
    for (const nlohmann::json& step : steps) without += step["loss"].is_null();
    CHECK(without == 1);  // the update that was queued behind it is not logged
    CHECK(steps.back()["loss"].is_null());
    CHECK(steps.back()["step"] == end["step"]);
}

TEST_CASE("a last update that ruins the weights is seen by validation", "[errors]") {
    NEEDS_PROGRAMS();
    TempFolder temp;
    const std::string prefix = temp.path + "/tiny", out = temp.path + "/run";
    write_tiny_data(prefix);
    const ProgramResult result =
        run_program("train_gpt2", tiny_args(prefix, out,
                                            {"--lr", "1e38", "--grad-clip", "0", "--schedule", "constant", "--warmup",
                                             "0", "--steps", "1", "--val", prefix + "_train_*.bin"}));
    CHECK(result.status == 2);
    CHECK(count_lines(result.err) == 1);
    CHECK(read_events(out, "end").at(0)["reason"] == "diverged");
}

TEST_CASE("one rank's mistake ends all of them with one line", "[errors][ranks]") {
    NEEDS_PROGRAMS();
    if (std::system("command -v mpirun > /dev/null 2>&1") != 0) SKIP_TEST("ranks: there is no mpirun");
    TempFolder temp;
    const std::string prefix = temp.path + "/tiny", out = temp.path + "/run";
    write_tiny_data(prefix);
    for (const std::vector<std::string>& options : std::vector<std::vector<std::string>>{
             {"--nonsense", "1"}, {"--train", temp.path + "/absent.bin"}, {"--total-batch", "64"}}) {
        const ProgramResult result = run_ranks(2, "train_gpt2", tiny_args(prefix, out, options));
        INFO(result.err);
        CHECK(result.status == 1);
        int ours = 0;  // mpirun adds lines of its own
        for (size_t at = result.err.find("train_gpt2: "); at != std::string::npos;
             at = result.err.find("train_gpt2: ", at + 1))
            ours++;
        CHECK(ours == 1);
    }
}

TEST_CASE("log.jsonl has the events and fields of the contract", "[errors]") {
    NEEDS_PROGRAMS();
    TempFolder temp;
    const std::string prefix = temp.path + "/tiny", out = temp.path + "/run", text = temp.path + "/text.txt";
    write_tiny_data(prefix);
    write_bytes(text, "the cat sat on a mat. It was\n<|endoftext|>\nthe mat.");
    const ProgramResult result =
        run_program("train_gpt2", tiny_args(prefix, out,
                                            {"--val", prefix + "_val_*.bin", "--val-every", "5", "--val-batches", "2",
                                             "--eval", "ppl=" + text, "--sample-every", "10", "--sample-tokens", "5",
                                             "--prompt", "the ", "--dump-grads", temp.path + "/grads.safetensors"}));
    INFO(result.err);
    REQUIRE(result.status == 0);
    CHECK(result.err.empty());
    const std::vector<json> events = read_events(out);
    CHECK(events.front()["event"] == "start");
    for (const char* key : {"version", "options", "model", "machine", "parameters", "flops_per_token", "peak_flops",
                            "peak_flops_source"}) {
        INFO(key);
        CHECK(events.front().contains(key));
    }
    CHECK(events.back()["event"] == "end");
    const std::vector<json> steps = read_events(out, "step");
    REQUIRE(steps.size() == 10);
    for (size_t i = 0; i < steps.size(); i++) {
        CHECK(steps[i]["step"] == i + 1);
        CHECK(steps[i]["tokens"] == 64 * (i + 1));
        CHECK(steps[i]["loss"].get<double>() > 0);
        CHECK(steps[i]["grad_norm"].get<double>() > 0);
        CHECK(steps[i]["ms"].get<double>() > 0);
        CHECK(steps[i]["tokens_per_s"].get<double>() > 0);
        CHECK(steps[i].contains("mfu"));
    }
    CHECK(steps[0]["lr"].get<double>() == Approx(0.005));
    CHECK(steps[1]["lr"].get<double>() == Approx(0.01));
    CHECK(steps[9]["loss"].get<double>() < steps[0]["loss"].get<double>() - 0.1);  // it learns
    CHECK(read_events(out, "val").size() == 2);
    CHECK(read_events(out, "sample").size() == 1);
    const json eval = read_events(out, "eval").at(0);
    CHECK(eval["task"] == "ppl");
    CHECK(eval["n"] == 37);  // 28 bytes of the first document, one separator, 8 of the second
    CHECK(read_events(out, "checkpoint").at(0)["step"] == 10);

    // The dumped gradients are those whose norm the first step reports.
    double sum = 0;
    const SafetensorsFile grads = safetensors_read(temp.path + "/grads.safetensors");
    CHECK(grads.tensors.size() == 2 * 12 + 4);
    for (const auto& [name, view] : grads.tensors) {
        std::vector<float> values(static_cast<size_t>(view.count()));
        tensor_to_float(values.data(), view, name);
        for (float x : values) sum += static_cast<double>(x) * static_cast<double>(x);
    }
    CHECK(std::sqrt(sum) == Approx(steps[0]["grad_norm"].get<double>()).epsilon(1e-5));

    // eval_gpt2 says the same as the run's last evaluation.
    const std::string scores = temp.path + "/scores.json";
    const ProgramResult scored = run_program("eval_gpt2", {"--model", out, "--task", "ppl=" + text, "--json", scores});
    INFO(scored.err);
    REQUIRE(scored.status == 0);
    const json score = json::parse(read_text(scores)).at(0);
    CHECK(score["task"] == "ppl");
    CHECK(score["ppl"].get<double>() == Approx(eval["ppl"].get<double>()).epsilon(sizeof(floatX) == 4 ? 1e-5 : 2e-2));
    // ppl per token, word and byte are one number in three units: 10 words, 51 bytes.
    const double nll = 37 * std::log(score["ppl"].get<double>());
    CHECK(score["word_ppl"].get<double>() == Approx(std::exp(nll / 10)).epsilon(1e-9));
    CHECK(score["bits_per_byte"].get<double>() == Approx(nll / std::log(2.0) / 51).epsilon(1e-9));

    // More context never makes windows incomparable: a stride of 1 is a better-informed score of the same tokens.
    const ProgramResult strided =
        run_program("eval_gpt2", {"--model", out, "--task", "ppl=" + text, "--stride", "1", "--json", scores});
    REQUIRE(strided.status == 0);
    CHECK(json::parse(read_text(scores)).at(0)["n"] == 37);

    // Sampling: the same seed, the same text; another, another.
    auto sample = [&](const std::vector<std::string>& more) {
        std::vector<std::string> args = {"--model", out, "--prompt", "the ", "--tokens", "40"};
        args.insert(args.end(), more.begin(), more.end());
        const ProgramResult r = run_program("sample_gpt2", args);
        INFO(r.err);
        CHECK(r.status == 0);
        return r.out;
    };
    const std::string first = sample({});
    CHECK(first.rfind("the ", 0) == 0);
    CHECK(first.size() == 4 + 40 + 1);
    CHECK(sample({}) == first);
    CHECK(sample({"--seed", "2"}) != first);
    CHECK(sample({"--temperature", "0"}) == sample({"--top-k", "1", "--seed", "5"}));
    CHECK(sample({"--num", "2"}).find(first) != std::string::npos);

    check_refused(run_program("eval_gpt2", {"--model", out, "--task", "glue=x"}), "ppl, lambada");
    check_refused(run_program("eval_gpt2", {"--model", out, "--task", "ppl=" + temp.path + "/absent"}), "absent");
    check_refused(run_program("eval_gpt2", {"--model", out, "--task", "ppl=" + text, "--stride", "17"}), "--stride 17");
    check_refused(run_program("eval_gpt2", {"--model", out, "--task", "ppl=" + text, "--json", temp.path}), "--json");
    check_refused(run_program("eval_gpt2", {"--model", out}), "--task");
    check_refused(run_program("sample_gpt2", {"--model", out}), "--prompt");
    check_refused(run_program("sample_gpt2", {"--model", out, "--prompt", "a", "--top-p", "0"}), "--top-p");
    check_refused(run_program("sample_gpt2", {"--model", temp.path, "--prompt", "a"}), temp.path);
}

TEST_CASE("--dry-run says what a run would take and writes nothing", "[errors]") {
    NEEDS_PROGRAMS();
    TempFolder temp;
    const ProgramResult result = run_program(
        "train_gpt2", {"--model", "gpt2", "--batch", "4", "--seq", "64", "--dry-run", "--out", temp.path + "/x"});
    INFO(result.err);
    CHECK(result.status == 0);
    for (const char* part : {"124439808", "FLOPs per token", "total", "largest batch"}) {
        INFO(part);
        CHECK(result.out.find(part) != std::string::npos);
    }
    CHECK_FALSE(fs::exists(temp.path + "/x"));
    check_refused(run_program("train_gpt2", {"--model", "gpt2", "--dry-run", "--total-batch", "5"}), "--total-batch 5");
}
