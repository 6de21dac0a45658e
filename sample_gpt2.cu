// sample_gpt2: continues a prompt with a trained model.
#include <cstdio>

#include "driver/cli.h"
#include "driver/load.h"
#include "driver/program.h"
#include "driver/sampler.h"

static int sample(int argc, char** argv) {
    std::string dir, prompt;
    int tokens = 128, num = 1;
    bool stop = false;
    SampleSettings settings;
    CLI::App app{"Continues a prompt with a trained model."};
    cli_defaults(app, "sample_gpt2");
    app.add_option("--model", dir, "checkpoint, run or Hugging Face folder")->type_name("DIR");
    app.add_option("--prompt", prompt, "text to continue");
    app.add_option("--tokens", tokens, "tokens to add");
    app.add_option("--temperature", settings.temperature, "divides the logits; 0: always the likeliest token");
    app.add_option("--top-k", settings.top_k, "only among the k likeliest tokens; 0: all");
    app.add_option("--top-p", settings.top_p, "only among the likeliest tokens of this total probability");
    app.add_option("--seed", settings.seed, "the same seed gives the same text");
    app.add_option("--num", num, "samples, one after the other");
    app.add_flag("--stop", stop, "end a sample at the end-of-text token");
    if (!cli_parse(app, argc, argv)) return EXIT_DONE;
    if (tokens < 1) throw user_error("--tokens %d: it must be at least 1", tokens);
    if (num < 1) throw user_error("--num %d: it must be at least 1", num);
    if (!(settings.temperature >= 0)) throw user_error("--temperature %g: it must be at least 0", settings.temperature);
    if (settings.top_k < 0) throw user_error("--top-k %d: it must be at least 0", settings.top_k);
    if (!(settings.top_p > 0 && settings.top_p <= 1))
        throw user_error("--top-p %g: it must be above 0 and at most 1", settings.top_p);
    if (dir.empty()) throw user_error("--model DIR is missing: which model is to speak?");
    if (prompt.empty()) throw user_error("--prompt TEXT is missing: what is to be continued?");

    LoadedModel loaded = load_model(dir, 1);
    const ModelConfig& config = model_config(*loaded.model);
    const std::vector<int> start = loaded.tokenizer->encode(prompt);
    for (int token : start) {
        if (token >= config.vocab)
            throw user_error("--prompt: token %d is outside the model's vocabulary of %d", token, config.vocab);
    }
    for (int n = 0; n < num; n++) {
        if (num > 1) printf("%s--- %d ---\n", n > 0 ? "\n" : "", n + 1);
        printf("%s", prompt.c_str());
        fflush(stdout);
        std::vector<int> text = start;
        generate(*loaded.model, text, tokens, config.context, settings, static_cast<uint64_t>(n), [&](int token) {
            if (stop && token == loaded.tokenizer->eot()) return false;
            std::string bytes;
            loaded.tokenizer->decode(token, bytes);
            fwrite(bytes.data(), 1, bytes.size(), stdout);
            fflush(stdout);
            return true;
        });
        printf("\n");
    }
    return EXIT_DONE;
}

int main(int argc, char** argv) {
    return program_main("sample_gpt2", [&] { return sample(argc, argv); });
}
