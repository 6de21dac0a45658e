// eval_gpt2 and train_gpt2 --eval as a user runs them.
#include "temp_folder.h"
#include "tiny_run.h"

using nlohmann::json;

#define NEEDS_PROGRAMS()                                           \
    if (!have_program("train_gpt2") || !have_program("eval_gpt2")) \
    SKIP_TEST("eval programs: RESIDUAL_BUILD names no build")

namespace {

const std::string golden = "tests/golden/eval/";

ProgramResult evaluate(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"--model", golden});
    return run_program("eval_gpt2", arguments);
}

void check_refused(const ProgramResult& result, const std::string& part) {
    INFO("exit code " << result.status << ", stderr: " << result.err);
    CHECK(result.status == 1);
    CHECK(count_lines(result.err) == 1);
    CHECK(result.err.find(part) != std::string::npos);
}

}  // namespace

TEST_CASE("eval_gpt2 scores tasks, writes scores and samples", "[eval]") {
    NEEDS_PROGRAMS();
    const TempFolder temp;
    const ProgramResult result =
        evaluate({"--task", "lambada=" + golden + "lambada.jsonl", "--task", "arc=" + golden + "arc.jsonl", "--task",
                  "winogrande=" + golden + "winogrande_unlabelled.jsonl," + golden + "winogrande-labels.lst", "--task",
                  "ppl=" + golden + "hellaswag.txt", "--whole-chunks", "--json", temp / "scores", "--samples",
                  temp / "samples"});
    INFO(result.err);
    REQUIRE(result.status == 0);
    CHECK(result.err.empty());
    CHECK(count_lines(result.out) == 5);  // a note and four tasks
    CHECK(result.out.find("note: " + golden + "lambada.jsonl:11: skipped") == 0);
    const json scores = json::parse(read_text(temp / "scores"));
    auto keys = [](const json& object) {
        std::string list;
        for (const auto& [key, value] : object.items()) list += (list.empty() ? "" : " ") + key;
        return list;
    };
    CHECK(keys(scores[0]) == "acc acc_stderr file n ppl skipped task truncated");
    CHECK(keys(scores[1]) == "acc acc_norm acc_norm_stderr acc_stderr file n skipped task truncated");
    CHECK(keys(scores[2]) == "acc acc_stderr file n skipped task truncated");
    CHECK(keys(scores[3]) == "bits_per_byte bytes dropped file n ppl skipped task word_ppl words");
    CHECK(scores[0]["task"] == "lambada");
    CHECK(scores[0]["n"] == 10);
    CHECK(scores[0]["skipped"] == 1);
    CHECK(scores[3]["n"].get<int>() % 96 == 0);

    std::vector<json> samples;
    std::ifstream file(temp / "samples");
    for (std::string line; std::getline(file, line);) samples.push_back(json::parse(line));
    REQUIRE(samples.size() == 10 + 5 + 5);
    CHECK(samples[10]["task"] == "arc");
    CHECK(samples[12]["loglikelihoods"].size() == 5);
    int right = 0;
    for (size_t i = 10; i < 15; i++) right += samples[i]["correct"].get<bool>();
    CHECK(right == std::lround(5 * scores[1]["acc"].get<double>()));

    // Examples at the front alone, and the same ones.
    REQUIRE(evaluate({"--task", "arc=" + golden + "arc.jsonl", "--limit", "2", "--batch", "1", "--samples",
                      temp / "two", "--json", temp / "scores"})
                .status == 0);
    CHECK(json::parse(read_text(temp / "scores"))[0]["n"] == 2);
    CHECK(count_lines(read_text(temp / "two")) == 2);
    const json first = json::parse(read_text(temp / "two").substr(0, read_text(temp / "two").find('\n')));
    CHECK(first["loglikelihoods"][0].get<double>() ==
          Approx(samples[10]["loglikelihoods"][0].get<double>()).epsilon(sizeof(floatX) == 4 ? 1e-5 : 0.05));
}

TEST_CASE("eval_gpt2 refuses what cannot be in one line", "[eval]") {
    NEEDS_PROGRAMS();
    const TempFolder temp;
    const std::string arc = "arc=" + golden + "arc.jsonl", ppl = "ppl=" + golden + "lambada.txt";
    check_refused(evaluate({"--task", "squad=f"}), "there is no such task; there are: ppl, lambada");
    check_refused(evaluate({"--task", "arc"}), "TASK=FILE");
    check_refused(evaluate({"--task", "arc=" + (temp / "absent")}), "absent");
    check_refused(evaluate({"--task", "piqa=" + golden + "piqa.jsonl," + (temp / "absent")}), "absent");
    check_refused(evaluate({"--task", "piqa=" + golden + "piqa.jsonl"}), "piqa.jsonl:1: ");
    check_refused(evaluate({"--task", arc, "--limit", "-1"}), "--limit -1");
    check_refused(evaluate({"--task", arc, "--stride", "5"}), "--stride belongs to the task ppl");
    check_refused(evaluate({"--task", arc, "--whole-chunks"}), "--whole-chunks belongs to the task ppl");
    check_refused(evaluate({"--task", ppl, "--whole-chunks", "--stride", "5"}), "exclude each other");
    check_refused(evaluate({"--task", arc, "--samples", temp.path}), "--samples " + temp.path);
    // Every file is read before the first is scored.
    put_bytes(temp / "bad", "{\"text\": \"a b\"}\n{\"text\"\n");
    const ProgramResult late = evaluate({"--task", arc, "--task", "lambada=" + (temp / "bad")});
    check_refused(late, "bad:2: is no JSON");
    CHECK(late.out.empty());
    // A model of fewer tokens than its tokenizer.
    const std::string prefix = temp / "tiny", out = temp / "run";
    write_tiny_data(prefix);
    REQUIRE(run_program("train_gpt2", tiny_args(prefix, out, {"--vocab", "200", "--init-only"})).status == 0);
    tokenizer_save(*tokenizer_create("bytes"), out + "/step_00000000/tiny_tokenizer.json");
    check_refused(run_program("eval_gpt2", {"--model", out, "--task", arc}), "its tokenizer 'bytes' has 256 tokens");
    check_refused(run_program("train_gpt2", tiny_args(prefix, temp / "other", {"--vocab", "200", "--eval", arc})),
                  "tiny_tokenizer.json: its tokenizer 'bytes' has 256 tokens");
    check_refused(run_program("train_gpt2", tiny_args(prefix, temp / "third", {"--eval", "lambada=" + (temp / "bad")})),
                  "bad:2: is no JSON");
}

TEST_CASE("eval_gpt2 opens its results before it scores and cuts nothing else", "[eval]") {
    NEEDS_PROGRAMS();
    const TempFolder temp;
    const std::string arc = "arc=" + golden + "arc.jsonl";
    for (const char* option : {"--json", "--samples"}) {
        const ProgramResult early = evaluate({"--task", arc, option, temp / "no/folder"});
        check_refused(early, option + (" " + temp.path) + "/no/folder: cannot be written");
        CHECK(early.out.empty());
    }
    const ProgramResult twice = evaluate({"--task", arc, "--json", temp / "both", "--samples", temp.path + "/./both"});
    check_refused(twice, "--json names the same file");
    CHECK(twice.out.empty());
    CHECK_FALSE(file_exists(temp / "both"));
    // An evaluation that fails leaves results of an earlier one, and no empty ones.
    put_bytes(temp / "old", std::string(100000, 'x'));
    check_refused(evaluate({"--task", "arc=" + (temp / "absent"), "--json", temp / "old", "--samples", temp / "new"}),
                  "absent");
    CHECK(read_text(temp / "old") == std::string(100000, 'x'));
    CHECK_FALSE(file_exists(temp / "new"));
    REQUIRE(evaluate({"--task", arc, "--json", temp / "old"}).status == 0);
    const json scores = json::parse(read_text(temp / "old"));
    // stdout, redirected to a file, keeps what was printed there.
    const ProgramResult out = evaluate({"--task", arc, "--json", "/dev/stdout"});
    CHECK(out.status == 0);
    CHECK(out.out.find("arc " + golden + "arc.jsonl: acc ") == 0);
    const size_t line = out.out.find('\n') + 1;
    CHECK(json::parse(out.out.substr(line)) == scores);
}

TEST_CASE("train_gpt2 --eval: the same tasks, the same scores for any number of ranks", "[eval]") {
    NEEDS_PROGRAMS();
    const TempFolder temp;
    const std::string prefix = temp / "tiny";
    write_tiny_data(prefix);
    const std::vector<std::string> options = {
        "--context",     "96",
        "--steps",       "2",
        "--lr",          "0",
        "--total-batch", "1152",
        "--batch",       "3",
        "--eval",        "lambada=" + golden + "lambada.jsonl",
        "--eval",        "hellaswag=" + golden + "hellaswag.jsonl",
        "--eval",        "piqa=" + golden + "piqa.jsonl," + golden + "piqa-labels.lst",
        "--eval",        "ppl=" + golden + "hellaswag.txt",
        "--eval-every",  "1"};
    std::vector<std::vector<json>> events;
    for (int ranks : {1, 2, 3}) {
        const std::string out = temp / std::to_string(ranks);
        auto args = tiny_args(prefix, out, options);
        if (ranks == 3) args.insert(args.end(), {"--total-batch", "864"});
        const ProgramResult result = run_ranks(ranks, "train_gpt2", args);  // with one thread each, however many
        INFO(result.err);
        REQUIRE(result.status == 0);
        CHECK(result.out.find("lambada.jsonl:11: skipped") != std::string::npos);
        events.push_back(read_events(out, "eval"));
    }
    REQUIRE(events[0].size() == 8);
    CHECK(events[0][0]["step"] == 1);
    CHECK(events[0][0]["task"] == "lambada");
    CHECK(events[0][0]["skipped"] == 1);
    CHECK(events[0][1].contains("acc_norm"));
    CHECK(events[0][3]["ppl"].get<double>() > 1);
    CHECK(events[0] == events[1]);  // bit for bit: the batches are the same
    CHECK(events[0] == events[2]);

    // The context is the run's, so eval_gpt2 says the same of the checkpoint, but for the shapes of its batches.
    REQUIRE(run_program("eval_gpt2",
                        {"--model", temp / "1", "--batch", "3", "--task", "hellaswag=" + golden + "hellaswag.jsonl",
                         "--task", "ppl=" + golden + "hellaswag.txt", "--json", temp / "scores"})
                .status == 0);
    const json scores = json::parse(read_text(temp / "scores"));
    CHECK(scores[0]["acc_norm"] == events[0][5]["acc_norm"]);
    CHECK(scores[1]["ppl"].get<double>() ==
          Approx(events[0][7]["ppl"].get<double>()).epsilon(sizeof(floatX) == 4 ? 1e-5 : 0.02));
}
