// Which token a distribution gives, the bytes that may be printed, and sample_gpt2's options.
#include "driver/sampler.h"

#include <algorithm>
#include <numeric>

#include "tiny_run.h"

namespace {

// From the definition: everything sorted, every step a pass of its own.
int reference(const std::vector<float>& logits, const SampleSettings& s, double uniform) {
    std::vector<int> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    auto logit = [&](int i) { return logits[static_cast<size_t>(i)]; };
    const bool cut = (s.top_k > 0 && static_cast<size_t>(s.top_k) < order.size()) || s.top_p < 1;
    if (cut) std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logit(a) > logit(b); });
    if (s.top_k > 0 && static_cast<size_t>(s.top_k) < order.size()) order.resize(static_cast<size_t>(s.top_k));
    const double most = *std::max_element(logits.begin(), logits.end());
    auto share = [&](int i) { return std::exp((logit(i) - most) / s.temperature); };
    auto sum = [&](size_t n) {
        double total = 0;
        for (size_t i = 0; i < n; i++) total += share(order[i]);
        return total;
    };
    if (s.top_p < 1) {
        size_t n = 1;
        while (n < order.size() && sum(n) < s.top_p * sum(order.size())) n++;
        order.resize(n);
    }
    double left = uniform * sum(order.size());
    for (int i : order)
        if ((left -= share(i)) < 0) return i;
    return order.back();
}

// The tokens that can be drawn from these probabilities.
std::vector<int> drawn(const std::vector<double>& probabilities, const SampleSettings& settings) {
    std::vector<float> logits;
    for (double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
    std::vector<int> out;
    for (int i = 0; i < 2000; i++)
        out.push_back(pick_token(logits.data(), static_cast<int>(logits.size()), settings, (i + 0.5) / 2000));
    std::sort(out.begin(), out.end());
    out.erase(std::unique(out.begin(), out.end()), out.end());
    return out;
}

}  // namespace

TEST_CASE("picking a token: as the definition says, for every cut", "[sampler]") {
    Random random(1);
    for (int V : {1, 2, 61, 700}) {
        for (double spread : {0.01, 1.0, 6.0}) {
            std::vector<float> logits = random.normals<float>(static_cast<size_t>(V), spread);
            for (size_t i = 3; i < logits.size(); i += 4) logits[i] = logits[i - 3];  // ties
            for (int k : {0, 1, 5, 64, 300, 10000}) {
                for (double p : {1.0, 0.999, 0.9, 0.5, 0.01}) {
                    SampleSettings settings;
                    settings.top_k = k;
                    settings.top_p = p;
                    settings.temperature = k == 5 ? 0.7 : 1.0;
                    CAPTURE(V, spread, k, p);
                    for (int i = 0; i < 8; i++) {
                        const double uniform = random.uniform();
                        const int want = reference(logits, settings, uniform);
                        REQUIRE(pick_token(logits.data(), V, settings, uniform) == want);
                    }
                }
            }
        }
    }
}

TEST_CASE("picking a token: what top-k, top-p and temperature leave", "[sampler]") {
    const std::vector<double> p = {0.15, 0.5, 0.05, 0.3};
    using Tokens = std::vector<int>;
    auto left = [&](double temperature, int top_k, double top_p) {
        return drawn(p, {temperature, top_k, top_p, 0});
    };
    CHECK(left(1, 0, 1) == Tokens{0, 1, 2, 3});
    CHECK(left(1, 2, 1) == Tokens{1, 3});
    CHECK(left(1, 9, 1) == Tokens{0, 1, 2, 3});
    CHECK(left(1, 0, 0.49) == Tokens{1});
    CHECK(left(1, 0, 0.51) == Tokens{1, 3});  // the smallest set that reaches it
    CHECK(left(1, 0, 0.79) == Tokens{1, 3});
    CHECK(left(1, 0, 0.81) == Tokens{0, 1, 3});
    CHECK(left(1, 0, 1e-9) == Tokens{1});    // never none
    CHECK(left(1, 2, 0.6) == Tokens{1});      // 0.5 / 0.8 of what top-k left
    CHECK(left(0.5, 0, 0.65) == Tokens{1});   // 0.25 / 0.365 after the temperature
    CHECK(left(0, 0, 1) == Tokens{1});
    CHECK(left(1e-6, 0, 1) == Tokens{1});
    const std::vector<float> broken = {0.0f, NAN, 1.0f};
    CHECK_THROWS_WITH(pick_token(broken.data(), 3, {}, 0.5), Catch::Contains("diverged"));
    CHECK_THROWS_WITH(pick_token(broken.data(), 3, {0.0, 0, 1.0, 0}, 0.5), Catch::Contains("diverged"));
}

TEST_CASE("bytes that may be printed: never half a character", "[sampler]") {
    const std::string text = "a\xC3\xA9z\xE2\x82\xAC\xF0\x9F\x98\x80!";  // 1, 2, 1, 3, 4 and 1 bytes
    const size_t ends[] = {0, 1, 3, 4, 7, 11, 12};
    for (size_t n = 0; n <= text.size(); n++) {
        size_t want = 0;
        for (size_t end : ends) want = end <= n ? end : want;
        CAPTURE(n);
        CHECK(complete_utf8(text.substr(0, n)) == want);
    }
    // What is no UTF-8 is not held back.
    for (const char* bytes :
         {"\x80", "a\x80\x80\x80", "\xFF", "\xC0", "\xF5\x80", "\xC3\xA9\x80", "\xE2\x82\xAC\x80\x80"})
        CHECK(complete_utf8(bytes) == std::string(bytes).size());
}

TEST_CASE("sample_gpt2: prompts, several samples, what is refused", "[sampler]") {
    if (!have_program("train_gpt2") || !have_program("sample_gpt2"))
        SKIP_TEST("sample_gpt2: RESIDUAL_BUILD names no build");
    TempFolder temp;
    const std::string prefix = temp.path + "/data", out = temp.path + "/run";
    write_tiny_data(prefix);
    REQUIRE(run_program("train_gpt2", tiny_args(prefix, out)).status == 0);
    auto run = [&](std::vector<std::string> args, const std::string& input = "/dev/null") {
        args.insert(args.begin(), {"--model", out});
        return run_program("sample_gpt2", args, input);
    };
    auto sample = [&](const std::vector<std::string>& args, const std::string& input = "/dev/null") {
        const ProgramResult result = run(args, input);
        INFO(result.err);
        CHECK(result.status == 0);
        CHECK(result.err.empty());
        return result.out;
    };
    const std::string text = sample({"--prompt", "the ", "--tokens", "30"});
    CHECK(text.size() == 4 + 30 + 1);
    CHECK(sample({"--prompt-tokens", "116,104,101,32", "--tokens", "30"}) == text);
    write_text_atomic(temp.path + "/prompt", "the ");
    CHECK(sample({"--prompt", "-", "--tokens", "30"}, temp.path + "/prompt") == text);
    // An empty prompt is the end-of-text token, which for bytes is a NUL and is not printed with it.
    const std::string fresh = sample({"--prompt", "", "--tokens", "30"});
    CHECK(fresh.size() == 31);
    CHECK(sample({"--prompt-tokens", "0", "--tokens", "30"}) == std::string(1, '\0') + fresh);
    CHECK(sample({"--prompt", "-", "--tokens", "30"}) == fresh);
    // The samples of --num one after the other; the first is the one that comes alone.
    const std::string three = sample({"--prompt", "the ", "--tokens", "30", "--num", "3"});
    CHECK(three.rfind("--- 1 ---\n" + text + "\n--- 2 ---\nthe ", 0) == 0);
    CHECK(three.size() == 3 * (10 + 35) + 2);
    CHECK(sample({"--prompt", "the ", "--tokens", "30", "--num", "2"}) == three.substr(0, 2 * (10 + 35) + 1));
    // The end of a prompt longer than the context of 16 is what counts.
    const std::string tail = "cat sat on a mat";
    const std::string a = sample({"--prompt", "It was the " + tail, "--tokens", "30"});
    const std::string b = sample({"--prompt", "a a a " + tail, "--tokens", "30"});
    CHECK(a.rfind("note: the prompt has 27 tokens, the model reads the last 16\nIt was the " + tail, 0) == 0);
    CHECK(a.substr(a.size() - 31) == b.substr(b.size() - 31));
    CHECK(sample({"--prompt", "the ", "--tokens", "3", "--timing"}).find("tokens/s\n") != std::string::npos);

    auto refused = [&](const std::vector<std::string>& args, const std::string& part) {
        const ProgramResult result = run(args);
        INFO(part << ": " << result.out << result.err);
        CHECK(result.status == 1);
        CHECK(count_lines(result.err) == 1);
        CHECK(result.err.find(part) != std::string::npos);
    };
    refused({}, "--prompt TEXT is missing");
    refused({"--prompt", "a", "--prompt-tokens", "1"}, "--prompt-tokens");
    refused({"--prompt-tokens", "5,256"}, "token 256");
    refused({"--prompt-tokens", "-1"}, "token -1");
    for (const char* list : {"", "x", "1,,2", "1,", "1;2", "99999999999"})
        refused({"--prompt-tokens", list}, "is written N,N");
    refused({"--prompt", "a", "--tokens", "0"}, "--tokens 0");
    refused({"--prompt", "a", "--num", "0"}, "--num 0");
}
