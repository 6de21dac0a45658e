// sample_gpt2: continues a prompt with a trained model.
#include <charconv>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <iterator>

#include "driver/cli.h"
#include "driver/load.h"
#include "driver/program.h"
#include "driver/sampler.h"

// Samples are decoded together and printed one after the other: the first while it grows, of the others what has waited
// until their turn. Half a character of UTF-8 waits for its other half.
struct Printer {
    struct Sample {
        std::string waiting;
        bool ended = false;
    };
    std::vector<Sample> samples;
    size_t turn = 0;

    void begin() const {
        if (samples.size() > 1) printf("%s--- %zu ---\n", turn > 0 ? "\n" : "", turn + 1);
    }
    void add(size_t i, const std::string& bytes) {
        samples[i].waiting += bytes;
        if (i == turn) print(complete_utf8(samples[i].waiting));
    }
    void end(size_t i) {
        samples[i].ended = true;
        while (turn < samples.size() && samples[turn].ended) {
            print(samples[turn].waiting.size());
            printf("\n");
            if (++turn == samples.size()) return;
            begin();
            print(complete_utf8(samples[turn].waiting));
        }
    }

  private:
    void print(size_t bytes) {
        std::string& waiting = samples[turn].waiting;
        fwrite(waiting.data(), 1, bytes, stdout);
        fflush(stdout);
        waiting.erase(0, bytes);
    }
};

static std::vector<int> parse_tokens(const std::string& list) {
    std::vector<int> tokens;
    const char *at = list.data(), *end = at + list.size();
    for (;; at++) {
        int token = 0;
        const auto [next, error] = std::from_chars(at, end, token);
        if (error != std::errc() || (next != end && *next != ','))
            throw user_error("--prompt-tokens '%s': it is written N,N,...", list.c_str());
        tokens.push_back(token);
        if ((at = next) == end) return tokens;
    }
}

static int sample(int argc, char** argv) {
    std::string dir, prompt, prompt_numbers;
    int tokens = 128, num = 1;
    bool stop = false, timing = false;
    SampleSettings settings;
    CLI::App app{
        "Continues a prompt with a trained model.\n\n"
        "The model reads at most its context: of a longer prompt the end. Where text outgrows the context, the model\n"
        "goes on from the last half of it."};
    cli_defaults(app, "sample_gpt2");
    app.add_option("--model", dir, "checkpoint, run or Hugging Face folder")->type_name("DIR");
    CLI::Option* text_given =
        app.add_option("--prompt", prompt, "text to continue; -: from standard input; '': a new text begins");
    CLI::Option* numbers_given =
        app.add_option("--prompt-tokens", prompt_numbers, "the prompt as token numbers instead")->type_name("N,N,...");
    app.add_option("--tokens", tokens, "tokens to add");
    app.add_option("--temperature", settings.temperature, "divides the logits; 0: always the likeliest token");
    app.add_option("--top-k", settings.top_k, "only among the k likeliest tokens; 0: all");
    app.add_option("--top-p", settings.top_p, "only among the likeliest tokens of this total probability");
    app.add_option("--seed", settings.seed, "the same seed gives the same text")->check(whole_number());
    app.add_option("--num", num, "samples, decoded together, printed one after the other");
    app.add_flag("--stop", stop, "end a sample at the end-of-text token");
    app.add_flag("--timing", timing, "print tokens per second at the end");
    if (!cli_parse(app, argc, argv)) return EXIT_DONE;
    if (tokens < 1) throw user_error("--tokens %d: it must be at least 1", tokens);
    if (num < 1) throw user_error("--num %d: it must be at least 1", num);
    if (!(settings.temperature >= 0)) throw user_error("--temperature %g: it must be at least 0", settings.temperature);
    if (settings.top_k < 0) throw user_error("--top-k %d: it must be at least 0", settings.top_k);
    if (!(settings.top_p > 0 && settings.top_p <= 1))
        throw user_error("--top-p %g: it must be above 0 and at most 1", settings.top_p);
    if (dir.empty()) throw user_error("--model DIR is missing: which model is to speak?");
    if (text_given->count() + numbers_given->count() == 0)
        throw user_error("--prompt TEXT is missing: what is to be continued?");
    if (text_given->count() > 0 && numbers_given->count() > 0)
        throw user_error("--prompt and --prompt-tokens: give one of them");
    std::vector<int> start;
    if (numbers_given->count() > 0) start = parse_tokens(prompt_numbers);

    if (prompt == "-") prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
    LoadedModel loaded = load_model(dir, 1);
    const Tokenizer& tokenizer = *loaded.tokenizer;
    const ModelConfig& config = model_config(*loaded.model);
    if (start.empty()) {
        start = prompt_tokens(tokenizer, prompt, config.vocab);
    } else {
        check_tokens(start, config.vocab, "--prompt-tokens");
        prompt = tokenizer.decode(start);
    }
    if (start.size() > static_cast<size_t>(config.context))
        printf("note: the prompt has %zu tokens, the model reads the last %d\n", start.size(), config.context);

    Printer printer;
    printer.samples.assign(static_cast<size_t>(num), {prompt});
    printer.begin();
    printer.add(0, "");
    using Clock = std::chrono::steady_clock;
    const Clock::time_point began = Clock::now();
    Clock::time_point first_token = began;
    int64_t made = 0;
    std::vector<int> left(static_cast<size_t>(num), tokens);
    auto on_token = [&](int n, int token) {
        const size_t i = static_cast<size_t>(n);
        if (made++ == 0) first_token = Clock::now();
        const bool stopped = stop && token == tokenizer.eot();
        std::string bytes;
        if (!stopped) tokenizer.decode(token, bytes);
        printer.add(i, bytes);
        if (stopped || --left[i] == 0) printer.end(i);
        return !stopped;
    };
    try {
        generate(*loaded.model, start, tokens, config.context, settings, 0, num, on_token);
    } catch (const UserError&) {
        printf("\n");  // the error's line is not to begin behind the text
        throw;
    }
    if (timing) {
        const std::chrono::duration<double> prefill = first_token - began, rest = Clock::now() - first_token;
        printf("timing: %zu tokens of prompt in %.3f s; %lld tokens in %.3f s, %.1f tokens/s\n", start.size(),
               prefill.count(), static_cast<long long>(made - num), rest.count(),
               rest.count() > 0 ? static_cast<double>(made - num) / rest.count() : 0.0);
    }
    return EXIT_DONE;
}

int main(int argc, char** argv) {
    return program_main("sample_gpt2", [&] { return sample(argc, argv); });
}
