// The program tokenize: its command line, its messages and its summary.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

#include "dataloader/tokenizer.h"
#include "temp_folder.h"
#include "test.h"
#include "token_shards.h"

namespace {

struct Result {
    int status;
    std::string out, err;
};

// The program beside this test, or in the folder above; "" when it is not built.
std::string program() {
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self);
    std::string folder = parent_folder(std::string(self, n > 0 ? static_cast<size_t>(n) : 0));
    for (const char* where : {"/tokenize", "/../tokenize"}) {
        if (file_exists(folder + where)) return folder + where;
    }
    return "";
}

Result run(const TempFolder& folder, const std::string& arguments) {
    std::string command = "cd " + folder.path + " && " + program() + " " + arguments + " >.stdout 2>.stderr";
    int status = system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_text(folder / ".stdout"), read_text(folder / ".stderr")};
}

}  // namespace

TEST_CASE("tokenize: the command line", "[tokenize]") {
    if (program().empty()) SKIP_TEST("the program tokenize is not built beside the tests");
    TempFolder folder;
    put_bytes(folder / "a.txt", "one\n<|endoftext|>\ntwo\n");
    Result good = run(folder, "a.txt --out d/x --val-fraction 0.5 --val-fraction 0");
    INFO(good.err);
    REQUIRE(good.status == 0);
    REQUIRE(good.err.empty());
    REQUIRE(good.out.find("documents  2\n") != std::string::npos);
    REQUIRE(good.out.find("tokens     8 train, 0 val") != std::string::npos);
    REQUIRE(read_shards(folder / "d/x_train_000000.bin") == bytes_of(std::string("one\0two\n", 8)));
    REQUIRE(tokenizer_load(folder / "d/x_tokenizer.json")->vocab_size() == 256);
    REQUIRE(run(folder, "- --out y --separator '' --val-fraction 0 < a.txt").status == 0);
    REQUIRE(read_shards(folder / "y_train_*.bin") == bytes_of(read_text(folder / "a.txt")));
    put_bytes(folder / "a.jsonl", "{\"text\": \"one\"}\nbad\n{\"body\": \"two\"}\n");
    const std::string json_options = " --val-fraction 0 --skip-bad --threads 2";
    Result skipping = run(folder, "a.jsonl --out y" + json_options);
    REQUIRE(skipping.status == 0);
    REQUIRE(skipping.out.find(
                "skipped    2 lines\n           a.jsonl:2: is no JSON\n           a.jsonl:3: has no field 'text'\n") !=
            std::string::npos);
    REQUIRE(read_shards(folder / "y_train_*.bin") == bytes_of(std::string("one\0", 4)));
    for (const char* from_stdin : {"--jsonl", "--field text"}) {
        REQUIRE(run(folder, std::string("- --out y ") + from_stdin + json_options + " < a.jsonl").status == 0);
        REQUIRE(read_shards(folder / "y_train_*.bin") == bytes_of(std::string("one\0", 4)));
    }
    Result help = run(folder, "--help");
    REQUIRE(help.status == 0);
    REQUIRE(help.err.empty());
    for (const char* option : {"INPUT", "--out", "--tokenizer", "--val-fraction", "--shard-tokens", "--separator",
                               "--jsonl", "--field", "--skip-bad", "--threads", "=0.1"}) {
        REQUIRE(help.out.find(option) != std::string::npos);
    }
    put_bytes(folder / "empty", "");
    put_bytes(folder / "empty.jsonl", "");
    put_bytes(folder / "a.xz", std::string("\xFD"
                                           "7zXZ\0\0\0",
                                           8));
    for (const char* bad : {"",
                            "a.txt",
                            "--out x",
                            "missing --out x",
                            "a.txt --out x --bogus 1",
                            "a.txt --out x --val-fraction 1.5",
                            "a.txt --out x --val-fraction nan",
                            "a.txt --out x --val-fraction two",
                            "a.txt --out x --shard-tokens 0",
                            "a.txt --out x --shard-tokens 3000000000",
                            "a.txt --out x --separator 'a\nb'",
                            "a.txt --out x --tokenizer gpt2:.",
                            "a.txt --out x --tokenizer word",
                            ". --out x",
                            "a.txt --out a.txt/x",
                            "a.txt --out d/",
                            "- --out x </dev/null",
                            "a.xz --out x",
                            "a.txt --out ''",
                            "- --out x <a.xz",
                            "a.jsonl --out x",
                            "- --jsonl --out x <a.jsonl",
                            "a.txt --field text --out x",
                            "a.txt --out x --threads -1",
                            "a.txt --out x --threads=-1",
                            "a.jsonl --skip-bad --out x --field ''",
                            "'no\nfile' --out x",
                            "a.txt --out x --tokenizer 'gpt2:no\nfolder'",
                            "a.txt --out x --bo'\n'gus",
                            "a.txt --out x --tokenizer gpt2",
                            "empty --out x",
                            "empty.jsonl --out x"}) {
        Result result = run(folder, bad);
        CAPTURE(bad, result.out, result.err);
        REQUIRE(result.status == 1);
        REQUIRE(result.out.empty());
        REQUIRE(std::count(result.err.begin(), result.err.end(), '\n') == 1);
        REQUIRE(result.err.rfind("tokenize: ", 0) == 0);
        REQUIRE(result.err.find("; ") != std::string::npos);
    }
    REQUIRE(glob_files(folder / "x*").empty());
}

TEST_CASE("tokenize: what the summary remarks", "[tokenize]") {
    if (program().empty()) SKIP_TEST("the program tokenize is not built beside the tests");
    TempFolder folder;
    put_bytes(folder / "a.json", "{\"text\": \"one\"}\r\n<|endoftext|>\r\n<|endoftext|>\r\n");
    for (const char* input : {"a.json --out x", "- --out x < a.json"}) {
        const Result result = run(folder, "--val-fraction 1e-8 " + std::string(input));
        CAPTURE(input, result.out, result.err);
        REQUIRE(result.status == 0);
        const std::string name = input[0] == '-' ? "standard input" : "a.json";
        CHECK(result.out.find("note       " + name + " looks like JSON lines, but was read as text; use --jsonl\n") !=
              std::string::npos);
        CHECK(result.out.find("note       2 lines are the separator but for a CR") != std::string::npos);
        CHECK(result.out.find("note       --val-fraction 1e-08 is less than half a token of this text") !=
              std::string::npos);
    }
    const Result plain = run(folder, "a.json --jsonl --skip-bad --val-fraction 0 --out x");
    CAPTURE(plain.out, plain.err);
    REQUIRE(plain.status == 0);
    CHECK(plain.out.find("note ") == std::string::npos);
}
