// Evaluation against lm-evaluation-harness: tests/golden/eval holds a small model, task files of every form, and what
// the harness says about them example by example (dev/oracle/eval_vectors.py).
#include <unistd.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "checkpoint/files.h"
#include "dataloader/shards.h"
#include "driver/load.h"
#include "eval/tasks.h"
#include "eval/text.h"
#include "temp_folder.h"
#include "test.h"

using nlohmann::json;

namespace {

const std::string golden = "tests/golden/eval";
constexpr bool exact = sizeof(floatX) == 4;

LoadedModel& small_model() {
    static LoadedModel* loaded = new LoadedModel(load_model(golden, 8));  // outlives the device's own clean-up at exit
    return *loaded;
}
int context() {
    return model_config(*small_model().model).context;
}

Task golden_task(const json& expected) {
    const std::string labels = expected["labels"];
    return read_task(
        {expected["task"], golden + "/" + std::string(expected["file"]), labels.empty() ? "" : golden + "/" + labels},
        *small_model().tokenizer, model_config(*small_model().model), context(), 0);
}

Scores run(const Task& task, int B = 8) {
    return run_task(*small_model().model, task, *small_model().tokenizer, {B, context()}, nullptr);
}

// The engine's own rounding: the vectors are float64. fp32: logits of size 20 are right to a few 2^-24 * 20, for each
// of the up to 96 tokens of a sum; the worst seen is half of this. bf16: logits are stored with 8 bits, 0.06 at size
// 20, and the stream behind them is no better.
double tolerance(double log_likelihood) {
    return exact ? 2e-5 + 2e-7 * std::fabs(log_likelihood) : 0.5 + 0.03 * std::fabs(log_likelihood);
}

json golden_cases() {
    return json::parse(read_text(golden + "/harness.json"));
}

// Bytes and one merge: ":-" is one token.
struct MergingTokenizer : Tokenizer {
    std::string kind() const override { return "merging"; }
    int vocab_size() const override { return 258; }
    int eot() const override { return 257; }
    void encode(std::string_view text, std::vector<int>& tokens) const override {
        for (size_t i = 0; i < text.size();) {
            const bool merged = text.substr(i, 2) == ":-";
            tokens.push_back(merged ? 256 : static_cast<unsigned char>(text[i]));
            i += merged ? 2 : 1;
        }
    }
    void decode(int, std::string&) const override {}
    using Tokenizer::encode;
};

using Tokens = std::vector<int>;

}  // namespace

TEST_CASE("eval: every task agrees with lm-evaluation-harness, example by example", "[eval]") {
    double worst = 0;
    const json cases = golden_cases();
    for (const auto& [name, expected] : cases.items()) {
        INFO(name);
        const Scores scores = run(golden_task(expected));
        CHECK(scores.n == expected["n"]);
        CHECK(scores.skipped == expected["skipped"]);
        REQUIRE(scores.samples.size() == expected["samples"].size());
        for (size_t i = 0; i < scores.samples.size(); i++) {
            const Scores::Sample& got = scores.samples[i];
            const json& want = expected["samples"][i];
            INFO("example " << i);
            CHECK(got.index == want["index"]);
            REQUIRE(got.choices.size() == want["loglikelihoods"].size());
            for (size_t c = 0; c < got.choices.size(); c++) {
                const double wanted = want["loglikelihoods"][c];
                CHECK(std::fabs(got.choices[c].log - wanted) <= tolerance(wanted));
                worst = std::max(worst, std::fabs(got.choices[c].log - wanted) / tolerance(wanted));
                if (exact) CHECK(got.choices[c].greedy == want["greedy"][c]);
            }
            if (!exact) continue;  // what bf16 decides depends on how close the choices are
            CHECK((got.predicted == got.gold) == want["correct"]);
            CHECK(scores.acc_norm.has_value() == (want.contains("correct_norm") || expected["task"] == "choice"));
            if (want.contains("correct_norm")) CHECK((got.predicted_norm == got.gold) == want["correct_norm"]);
        }
        if (!exact) continue;
        const json &want = expected["scores"], fields = scores_json(scores);
        CHECK(fields["acc"].get<double>() == Approx(want["acc"].get<double>()).epsilon(1e-12));
        CHECK(fields["acc_stderr"].get<double>() == Approx(want["acc_stderr"].get<double>()).epsilon(1e-12));
        CHECK(fields.contains("acc_norm") == fields.contains("acc_norm_stderr"));
        if (want.contains("acc_norm")) {
            CHECK(fields["acc_norm"].get<double>() == Approx(want["acc_norm"].get<double>()).epsilon(1e-12));
            CHECK(fields["acc_norm_stderr"].get<double>() ==
                  Approx(want["acc_norm_stderr"].get<double>()).epsilon(1e-12));
        }
        CHECK(fields.contains("ppl") == want.contains("perplexity"));
        if (want.contains("perplexity"))
            CHECK(fields["ppl"].get<double>() == Approx(want["perplexity"].get<double>()).epsilon(1e-5));
    }
    INFO("worst error / tolerance: " << worst);
    CHECK(worst > 0);
}

TEST_CASE("eval: size and order of batches do not change scores", "[eval]") {
    const json cases = golden_cases();
    std::vector<Request> requests;
    for (const char* name : {"lambada", "hellaswag", "arc", "boolq"}) {
        const Task task = golden_task(cases[name]);
        requests.insert(requests.end(), task.requests.begin(), task.requests.end());
    }
    Model& model = *small_model().model;
    const std::vector<Likelihood> together = score(model, requests, 8, context(), nullptr);
    const std::vector<Request> reversed(requests.rbegin(), requests.rend());
    for (int B : {1, 2, 5, 8}) {
        const std::vector<Likelihood> other = score(model, reversed, B, context(), nullptr);
        for (size_t i = 0; i < requests.size(); i++) {
            const Likelihood& a = together[i];
            const Likelihood& b = other[requests.size() - 1 - i];
            INFO("B " << B << ", request " << i << ": " << a.log << " and " << b.log);
            // Products of other shapes may add in another order; bf16 then rounds activations otherwise.
            CHECK(std::fabs(a.log - b.log) <= tolerance(a.log));
            if (exact) CHECK(a.greedy == b.greedy);
        }
    }
    // One request at a time, without any padding behind it that could matter.
    for (size_t i = 0; i < requests.size(); i += 7) {
        const Likelihood alone = score(model, {requests[i]}, 1, context(), nullptr)[0];
        CHECK(std::fabs(alone.log - together[i].log) <= tolerance(alone.log));
    }
}

TEST_CASE("eval: context and continuation become tokens as in the harness", "[eval]") {
    const MergingTokenizer tokenizer;
    auto request = [&](const char* context, const char* continuation, int T) {
        return make_request(tokenizer, context, continuation, T);
    };
    Request r = request("ab", " c", 10);
    CHECK((r.tokens == Tokens{'a', 'b', ' ', 'c'} && r.scored == 2 && r.fits && !r.truncated));
    r = request("ab \n", "c", 10);  // white space moves over
    CHECK((r.tokens == Tokens{'a', 'b', ' ', '\n', 'c'} && r.scored == 3));
    r = request("a\xE3\x80\x80", "c", 10);  // of every kind
    CHECK((r.tokens.size() == 5 && r.scored == 4));
    r = request("a:", "-c", 10);  // a token over the seam counts as the context's: two before, two in all
    CHECK((r.tokens == Tokens{'a', 256, 'c'} && r.scored == 1 && r.fits));
    r = request("a:", "-", 10);  // and leaves nothing here
    CHECK_FALSE(r.fits);
    r = request("", "ab", 10);
    CHECK((r.tokens == Tokens{257, 'a', 'b'} && r.scored == 2 && !r.truncated));
    r = request(" ", "ab", 10);
    CHECK((r.tokens == Tokens{257, ' ', 'a', 'b'} && r.scored == 3));
    r = request("abcd", "ef", 5);
    CHECK((r.tokens.size() == 6 && !r.truncated));
    r = request("abcd", "ef", 4);
    CHECK((r.tokens == Tokens{'b', 'c', 'd', 'e', 'f'} && r.scored == 2 && r.truncated));
    r = request("abcd", "ef", 2);
    CHECK((r.tokens == Tokens{'d', 'e', 'f'} && r.fits));
    CHECK_FALSE(request("abcd", "ef", 1).fits);
    CHECK_FALSE(request("ab", "", 10).fits);
}

TEST_CASE("eval: text as Python sees it", "[eval]") {
    CHECK(characters("a\xC3\x89\xE6\x9D\xB1\xF0\x9F\x98\x80") == 4);
    CHECK(trailing_space("a \t\xC2\xA0\xE2\x80\xA8\x1F\n") == 9);
    CHECK(trailing_space("a\xA0") == 0);  // a stray byte is no space
    CHECK(strip(" \xE3\x80\x80 a b\x85 ") == "a b\x85");
    CHECK(strip(" \n ") == "");
    // What Python 3.11 says.
    for (const auto& [text, want] : std::map<std::string, std::string>{{"the Man in UK", "The man in uk"},
                                                                       {"ÜBER ÉTÉ", "Über été"},
                                                                       {"élan Ž ž ÿ Ÿ ĳĲ", "Élan ž ž ÿ ÿ ĳĳ"},
                                                                       {"1ST", "1st"},
                                                                       {"", ""},
                                                                       {"ŠKODA ŽIVOT ŁÓDŹ ×÷", "Škoda život łódź ×÷"},
                                                                       {"ñANDÚ", "Ñandú"},
                                                                       {"東京 ABC", "東京 abc"}})
        CHECK(capitalize(text) == want);
    CHECK(hellaswag_text("  [header] How to [title] do it. [step] Now  or   never. ") ==
          " How to. do it. Now or  never.");
    CHECK(hellaswag_text("a [b\nc] d [e] f") == "a [b\nc] d f");
    CHECK(hellaswag_text("no [open") == "no [open");
    CHECK(hellaswag_text("[x]") == "");
}

TEST_CASE("eval: bad files are refused with file and line", "[eval]") {
    const std::string arc =
        R"({"question":{"stem":"q","choices":[{"text":"a","label":"A"},{"text":"b","label":"B"}]},)";
    const std::string wino = R"({"sentence":"a _ b","option1":"x","option2":"y")";
    const std::string hella = R"({"ctx_a":"a","ctx_b":"b","activity_label":"c","endings":["d","e"])";
    struct Case {
        const char* task;
        std::string content, labels;  // "": none
        const char* part;
    };
    const std::vector<Case> cases = {
        {"lambada", "{\"text\":\"a b\"}\n{\"text\":\n", "", "f:2: is no JSON"},
        {"lambada", "{\"text\":\"a b\"}\n\n{\"txt\":\"a b\"}\n", "", "f:3: there is no \"text\""},
        {"lambada", "{\"text\":\"a b\"}\n{\"text\":3}\n", "", "f:2: \"text\" is no text"},
        {"lambada", "{\"text\":\"a b\"}\n[1]\n", "", "f:2: is no JSON object"},
        {"lambada", "{\"text\":\"\xFF\"}\n", "", "f:1: is no JSON"},
        {"lambada", "", "", "f: there are no examples"},
        {"lambada", " \n\n", "", "f: there are no examples"},
        {"lambada", std::string("\xFD") + "7zXZ" + '\0', "", "f: is compressed (xz); unpack it first, as in: xz -dc "},
        {"hellaswag", "\x1F\x8B\x08 x", "", "gzip -dc"},
        {"ppl", "\x28\xB5\x2F\xFD x", "", "zstd -dc"},
        {"lambada", "BZh91AY", "", "bzip2 -dc"},
        {"arc", "PK\x03\x04 x", "", "unzip -p"},
        {"hellaswag", hella + ",\"label\":\"\"}", "", "f:1: its label \"label\" is empty"},
        {"hellaswag", hella + ",\"label\":2}", "", "f:1: its label \"label\" is 2, it must lie between 0 and 1"},
        {"hellaswag", hella + ",\"label\":null}", "", "f:1: its label \"label\" is empty"},
        {"hellaswag", hella + ",\"label\":" + std::string(300000, '[') + std::string(300000, ']') + "}", "",
         "f:1: its label \"label\" is no number"},
        {"hellaswag", R"({"ctx_a":"a","ctx_b":"b","activity_label":"c","endings":[],"label":0})", "",
         "f:1: there must be two choices"},
        {"hellaswag", hella + "}", "", "f:1: there is no \"label\""},
        {"hellaswag", "{\"activity_label\":1}", "", "f:1: \"activity_label\" is no text"},
        {"hellaswag", "a: b\n0\nc\nd\ne\nf\ng: h\n1\n", "", "f:8: the file ends after 2 of the 6 lines"},
        {"hellaswag", "a: b\n4\nc\nd\ne\nf\n", "", "f:2: its label \"gold\" is 4"},
        {"hellaswag", "a: b\nc\nd\ne\nf\n0\n", "", "f:2: its label \"gold\" is c"},
        {"piqa", "{\"goal\":\"a\",\"sol1\":\"b\",\"sol2\":\"c\"}", "", "piqa=FILE,LABELS"},
        {"piqa", "{\"goal\":\"a\",\"sol1\":\"b\"}", "0", "f:1: there is no \"sol2\""},
        {"piqa", "{\"goal\":\"a\",\"sol1\":\"b\",\"sol2\":\"c\"}", "2", "l:1: its label \"label\" is 2"},
        {"piqa", "{\"goal\":\"a\",\"sol1\":\"b\",\"sol2\":\"c\"}", "0\n1\n", "l has 2 labels, "},
        {"piqa", "{\"goal\":\"a\",\"sol1\":\"b\",\"sol2\":\"c\"}\n{\"goal\":\"a\",\"sol1\":\"b\",\"sol2\":\"c\"}",
         "0\n", "f:2: "},
        {"piqa", "{\"goal\":\"a\",\"sol1\":\"b\",\"sol2\":\"c\"}", "\n2\n", "l:2: its label \"label\" is 2"},
        {"arc", "{\"question\":\"q\",\"choices\":{\"text\":[\"a\"],\"label\":[\"A\"]},\"answerKey\":\"A\"}", "",
         "f:1: there must be two choices"},
        {"arc", R"({"question":{"stem":"q","choices":[]},"answerKey":"A"})", "", "f:1: there must be two choices"},
        {"arc", arc + "\"answerKey\":\"C\"}", "", "f:1: its \"answerKey\" C is none of the choices' labels"},
        {"arc", arc + "\"answerKey\":\"\"}", "", "f:1: its \"answerKey\" is empty"},
        {"arc", arc + "\"x\":1}", "", "f:1: there is no \"answerKey\""},
        {"arc", "{\"question\":\"q\",\"choices\":{\"text\":[\"a\"],\"label\":[\"A\",\"B\"]},\"answerKey\":\"A\"}", "",
         "f:1: its choices and their labels differ in number"},
        {"arc", "{\"question\":\"q\",\"choices\":[\"a\"],\"answerKey\":\"A\"}", "", "f:1: there is no \"text\""},
        {"winogrande", wino + "}", "", "winogrande=FILE,LABELS"},
        {"winogrande", wino + ",\"answer\":\"\"}", "", "winogrande=FILE,LABELS"},
        {"winogrande", wino + ",\"answer\":\"3\"}", "", "f:1: its label \"answer\" is 3, it must lie between 1 and 2"},
        {"winogrande", wino + "}", "0\n", "l:1: its label \"label\" is 0, it must lie between 1 and 2"},
        {"winogrande", "{\"sentence\":\"a\",\"option1\":\"x\",\"option2\":\"y\",\"answer\":\"1\"}", "",
         "f:1: its \"sentence\""},
        {"winogrande", "{\"context_options\":[\"a\",\"b\"],\"continuation\":\"c\"}", "", "f:1: there is no \"gold\""},
        {"winogrande", "{\"context_options\":[\"a\"],\"continuation\":\"c\",\"gold\":0}", "",
         "f:1: there must be two choices"},
        {"choice", "{\"context\":\"a\",\"choices\":[\"b\",\"c\"]}", "", "f:1: there is no \"gold\""},
        {"choice", "{\"context\":\"a\",\"choices\":[\"b\",\"c\"],\"gold\":\"0\"}", "",
         "f:1: \"gold\" is no whole number"},
        {"choice", "{\"context\":\"a\",\"choices\":[\"b\",\"c\"],\"gold\":-1}", "", "f:1: its label \"gold\" is -1"},
        {"choice", "{\"context\":\"a\",\"choices\":[\"b\"],\"gold\":0}", "", "f:1: there must be two choices"},
        {"choice", "{\"context\":\"a\",\"choices\":[\"b\",3],\"gold\":0}", "", "f:1: \"choices\" is no list of texts"},
        {"choice", "{\"context\":\"a\",\"choices\":[\"b\",\"" + std::string(97, 'x') + "\"],\"gold\":0}", "",
         "f: none of its 1 examples can be scored"},
        {"ppl", "", "", "f: holds no text"},
        {"ppl", "{\"text\":\"\"}", "", "f: holds no text"},
        {"ppl", "{\"text\":\"a\"}\n{\"text\":\n", "", "f:2: is no JSON"},
    };
    const TempFolder temp;
    for (const Case& c : cases) {
        put_bytes(temp / "f", c.content);
        if (!c.labels.empty()) put_bytes(temp / "l", c.labels);
        const std::string message = user_error_of([&] {
            read_task({c.task, temp / "f", c.labels.empty() ? "" : temp / "l"}, *small_model().tokenizer,
                      model_config(*small_model().model), context(), 0);
        });
        INFO(c.task << ": " << c.content << "\n" << message);
        CHECK(message.find(c.part) != std::string::npos);
    }
    for (const char* text : {"ppl", "=f", "ppl=", "glue=f", "piqa=,l", "piqa=f,"})
        CHECK(user_error_of([&] { parse_task("--task", text); }).find("--task") == 0);
    CHECK(parse_task("--task", "piqa=a,b").labels == "b");
    CHECK(parse_task("--task", "lambada=a,b").file == "a,b");
    put_bytes(temp / "a,b", "");
    CHECK(parse_task("--task", "piqa=" + (temp / "a,b")).labels.empty());
    CHECK(user_error_of([&] { check_tokenizer(MergingTokenizer(), model_config(*small_model().model), "dir"); }) ==
          "dir: its tokenizer 'merging' has 258 tokens, the model's vocabulary is of 256; it is not the tokenizer of "
          "this "
          "model");
}

TEST_CASE("eval: skipped and cut examples are counted and named", "[eval]") {
    const Task task = golden_task({{"task", "choice"}, {"file", "choice_too_long.jsonl"}, {"labels", ""}});
    CHECK(task.skipped == 1);
    REQUIRE(task.notes.size() == 1);
    CHECK(task.notes[0].find("choice_too_long.jsonl:2: skipped") != std::string::npos);
    const Scores scores = run(task);
    CHECK(scores_json(scores)["n"] == 3);
    CHECK(scores_json(scores)["skipped"] == 1);
    CHECK(scores.samples[1].index == 2);
    CHECK(scores.samples[1].line == 3);
    CHECK(golden_task(golden_cases()["boolq"]).truncated == 1);

    const TempFolder temp;
    std::string text = "a b\n";
    for (int i = 0; i < 5; i++) text += "a " + std::string(200, 'x') + "\r\n";
    put_bytes(temp / "f", text);
    const Task many = read_task({"lambada", temp / "f", ""}, *small_model().tokenizer,
                                model_config(*small_model().model), context(), 0);
    CHECK(many.skipped == 5);
    REQUIRE(many.notes.size() == 4);  // three by name
    CHECK(many.notes[3].find("2 more") != std::string::npos);
    const Scores one = run(many);
    CHECK(one.n == 1);
    CHECK_FALSE(scores_json(one).contains("acc_stderr"));  // of one example there is none
}

TEST_CASE("eval: perplexity of text, JSON lines and shards, in windows and whole chunks", "[eval]") {
    const TempFolder temp;
    const Tokenizer& tokenizer = *small_model().tokenizer;
    const int vocab = model_config(*small_model().model).vocab;
    const std::string one = "Mara counted the coins twice, then a third time.\n\nShe had one coin", two = "It rained";
    put_bytes(temp / "text", one + "\n<|endoftext|>\n" + two);
    put_bytes(temp / "lines", json{{"text", one}}.dump() + "\n\n" + json{{"text", two}}.dump() + "\n");
    std::vector<uint32_t> tokens;
    for (unsigned char c : one) tokens.push_back(c);
    tokens.push_back(0);
    for (unsigned char c : two) tokens.push_back(c);
    shard_write(temp / "shard", tokens, 256);
    const TextTokens text = read_text_tokens(temp / "text", tokenizer, vocab);
    CHECK(text.words == 15);
    CHECK(text.bytes == static_cast<int64_t>(one.size() + 15 + two.size()));
    for (const char* name : {"lines", "shard"}) {
        const TextTokens other = read_text_tokens(temp / name, tokenizer, vocab);
        INFO(name);
        CHECK(other.tokens == text.tokens);
        CHECK(other.words == text.words);
        CHECK(other.bytes == text.bytes);
    }
    CHECK(user_error_of([&] { read_text_tokens(temp / "shard", tokenizer, 100); }).find("shard") != std::string::npos);

    // Each sum again, token by token from log-likelihoods, which the vectors above vouch for.
    Model& model = *small_model().model;
    const int n = static_cast<int>(text.tokens.size());
    auto loss = [&](int from, int first,
                    int last) {  // of tokens [first, last) behind those from `from` on; -1: end of text
        Request request;
        for (int i = from; i < last; i++)
            request.tokens.push_back(i < 0 ? tokenizer.eot() : text.tokens[static_cast<size_t>(i)]);
        request.scored = last - first;
        return -score(model, {request}, 1, context(), nullptr)[0].log;
    };
    const int T = 32;
    double windows = 0, sliding = 0, chunks = 0;
    for (int i = 0; i < n; i += T) windows += loss(i - 1, i, std::min(i + T, n));
    for (int i = 0, done = 0; done < n; i += 5) {
        const int end = std::min(i + T, n);
        sliding += loss(i - 1, done, end);
        done = end;
    }
    for (int i = 0; i + T + 1 <= n; i += T) chunks += loss(i, i + 1, i + T + 1);
    for (int B : {1, 4}) {
        const Perplexity a = perplexity(model, text, tokenizer, {B, T}, nullptr);
        CHECK(std::fabs(a.nll - windows) <= tolerance(windows));
        CHECK(a.tokens == n);
        const Perplexity b = perplexity(model, text, tokenizer, {B, T, 5}, nullptr);
        CHECK(std::fabs(b.nll - sliding) <= tolerance(sliding));
        CHECK(b.tokens == n);
        const Perplexity c = perplexity(model, text, tokenizer, {B, T, 0, true}, nullptr);
        CHECK(std::fabs(c.nll - chunks) <= tolerance(chunks));
        CHECK(c.tokens == (n - 1) / T * T);
        CHECK(c.dropped == n - c.tokens);
        CHECK(c.words == 13);  // tokens 1 to 64: "ara counted ... She had on"
        CHECK(c.bytes == c.tokens);
        CHECK(c.ppl() == Approx(std::exp(c.nll / static_cast<double>(c.tokens))));
    }
    TextTokens even = text;  // the target of the last input is wanting
    even.tokens.resize(2 * T);
    CHECK(perplexity(model, even, tokenizer, {1, T, 0, true}, nullptr).tokens == T);
    const std::string message = user_error_of([&] { perplexity(model, text, tokenizer, {1, 90, 0, true}, nullptr); });
    CHECK(message.find("fill no chunk of 90") != std::string::npos);
}

TEST_CASE("eval: a text may come through a pipe", "[eval]") {
    const Tokenizer& tokenizer = *small_model().tokenizer;
    auto piped = [&](const std::string& bytes) {  // fits into the pipe, so nobody has to write while we read
        int ends[2];
        REQUIRE(pipe(ends) == 0);
        REQUIRE(write(ends[1], bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
        close(ends[1]);
        const std::string path = "/proc/self/fd/" + std::to_string(ends[0]);
        TextTokens text;
        const std::string message = user_error_of([&] { text = read_text_tokens(path, tokenizer, 256); });
        close(ends[0]);
        return std::make_pair(text, message);
    };
    std::string bytes;
    for (int i = 0; i < 9000; i++) bytes += static_cast<char>('a' + i % 26);
    const TextTokens text = piped(bytes).first;
    CHECK(text.bytes == 9000);
    CHECK(tokenizer.decode(text.tokens) == bytes);
    const TempFolder temp;
    shard_write(temp / "shard", {1, 2, 3}, 256);
    CHECK(piped(read_text(temp / "shard")).second.find("is a token shard in a pipe") != std::string::npos);
}

TEST_CASE("eval: separators, blank lines and bytes of every form of a text", "[eval]") {
    const TempFolder temp;
    auto read = [&](const std::string& content) {
        put_bytes(temp / "f", content);
        return read_text_tokens(temp / "f", *small_model().tokenizer, 256);
    };
    // A blank line in front is no document; an empty document is one.
    put_bytes(temp / "f.jsonl", "\n{\"text\":\"a\"}\n\n{\"text\":\"b\"}\n");
    CHECK((read_text_tokens(temp / "f.jsonl", *small_model().tokenizer, 256).tokens == Tokens{'a', 0, 'b'}));
    CHECK((read("{\"text\":\"\"}\n{\"text\":\"b\"}\n").tokens == Tokens{0, 'b'}));
    // Plain text is taken byte for byte.
    CHECK(read("a\r\n\r\n<|endoftext|>\r\nb").tokens.size() == 5 + 15 + 1);
    // A shard counts the bytes that the text has.
    const std::string separator = "<|endoftext|>\n";
    for (const std::string& text : {"a b\n" + separator + separator + "c", separator + "a\n\n" + separator,
                                    "a\n" + separator + "b\n" + separator + separator}) {
        const TextTokens plain = read(text);
        shard_write(temp / "shard", {plain.tokens.begin(), plain.tokens.end()}, 256);
        const TextTokens shard = read_text_tokens(temp / "shard", *small_model().tokenizer, 256);
        INFO(text);
        CHECK(plain.bytes == static_cast<int64_t>(text.size()));
        CHECK(shard.bytes == plain.bytes);
        CHECK(shard.words == plain.words);
    }
    // JSON lines have those of their documents joined by separators.
    CHECK(read("{\"text\":\"\"}\n{\"text\":\"a\"}\n{\"text\":\"\"}\n{\"text\":\"b\"}\n").bytes ==
          static_cast<int64_t>((separator + "a\n" + separator + separator + "b").size()));
    // A part that begins with a separator knows whether text stood before it.
    for (const char* text : {"a\n<|endoftext|>\nbcdefghijklmnop", "<|endoftext|>\n<|endoftext|>\nbcdefghijklmnop"}) {
        const Windows chunk = {1, 16, 0, true};
        const Perplexity part = perplexity(*small_model().model, read(text), *small_model().tokenizer, chunk, nullptr);
        CHECK(part.tokens == 16);
        CHECK(part.bytes == 14 + (text[0] == 'a') + 15);
    }
}

TEST_CASE("eval: blank lines of LABELS are passed over, word_ppl is absent where it is infinite", "[eval]") {
    const TempFolder temp;
    const Tokenizer& tokenizer = *small_model().tokenizer;
    const ModelConfig& config = model_config(*small_model().model);
    std::string labels = "\n";
    for (char c : read_text(golden + "/piqa-labels.lst")) labels += c == '\n' ? "\r\n \n" : std::string(1, c);
    put_bytes(temp / "l", labels);
    const Task with = read_task({"piqa", golden + "/piqa.jsonl", temp / "l"}, tokenizer, config, context(), 0);
    const Task plain =
        read_task({"piqa", golden + "/piqa.jsonl", golden + "/piqa-labels.lst"}, tokenizer, config, context(), 0);
    REQUIRE(with.items.size() == plain.items.size());
    for (size_t i = 0; i < with.items.size(); i++) CHECK(with.items[i].gold == plain.items[i].gold);

    put_bytes(temp / "f", std::string(1000, '\x01'));  // a single word
    const json scores = scores_json(run(read_task({"ppl", temp / "f", ""}, tokenizer, config, context(), 0)));
    REQUIRE(scores["bits_per_byte"].get<double>() * 1000 > 1024);  // so that 2 to that power is too large
    CHECK(scores["ppl"].is_number());
    CHECK_FALSE(scores.contains("word_ppl"));
}

TEST_CASE("eval: the publishers' files hold what their description says", "[eval]") {
    const std::string folder = "../shared/data/eval/";
    if (!file_exists(folder + "arc_easy_test.jsonl")) SKIP_TEST("eval: ../shared/data/eval is not there");
    struct File {
        const char* task;
        std::string file, labels;
        size_t count;
        std::vector<int> gold;  // how often each label is right; empty: not known
    };
    const std::vector<File> files = {{"lambada", "lambada_test.jsonl", "", 5153, {}},
                                     {"piqa", "piqa_valid.jsonl", "piqa_valid-labels.lst", 1838, {910, 928}},
                                     {"arc", "arc_easy_test.jsonl", "", 2376, {}},
                                     {"arc", "arc_easy_dev.jsonl", "", 570, {}},
                                     {"winogrande", "winogrande_dev_partial.jsonl", "", 1267, {628, 639}}};
    for (const File& f : files) {
        INFO(f.file);
        std::map<int, int> gold;
        size_t count = 0;
        read_examples({f.task, folder + f.file, f.labels.empty() ? "" : folder + f.labels},
                      [&](const Example& example) {
                          gold[example.gold]++;
                          count++;
                      });
        CHECK(count == f.count);
        for (size_t i = 0; i < f.gold.size(); i++) CHECK(gold[static_cast<int>(i)] == f.gold[i]);
    }
    CHECK(user_error_of([&] {
              read_examples({"hellaswag", folder + "hellaswag_val_full.txt.xz", ""}, [](const Example&) {});
          }).find("xz -dc") != std::string::npos);
}
