// eval_gpt2: scores a trained model on tasks.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "driver/cli.h"
#include "driver/load.h"
#include "driver/program.h"
#include "eval/perplexity.h"

static int evaluate(int argc, char** argv) {
    std::string dir, json_path;
    std::vector<std::string> tasks;
    int batch = 4, stride = 0;
    CLI::App app{"Scores a trained model."};
    cli_defaults(app, "eval_gpt2");
    app.add_option("--model", dir, "checkpoint, run or Hugging Face folder")->type_name("DIR");
    app.add_option("--task", tasks, "what to score; repeatable: ppl=FILE (perplexity of a text)")
        ->type_name("NAME=FILE")
        ->take_all()
        ->allow_extra_args(false)
        ->default_str("");
    app.add_option("--batch", batch, "sequences at a time");
    app.add_option("--stride", stride, "ppl: tokens between windows; 0: the context, no overlap");
    app.add_option("--json", json_path, "write the scores here as well")->type_name("FILE");
    if (!cli_parse(app, argc, argv)) return EXIT_DONE;
    if (batch < 1) throw user_error("--batch %d: it must be at least 1", batch);
    if (stride < 0) throw user_error("--stride %d: it must be at least 0", stride);
    for (const std::string& task : tasks) {
        const size_t equals = task.find('=');
        if (equals == std::string::npos || equals == 0 || equals + 1 == task.size())
            throw user_error("--task %s: it is written NAME=FILE", task.c_str());
        if (task.substr(0, equals) != "ppl")
            throw user_error("--task %s: there is no such task; there are: ppl", task.substr(0, equals).c_str());
    }
    if (dir.empty()) throw user_error("--model DIR is missing: which model is to be scored?");
    if (tasks.empty()) throw user_error("--task NAME=FILE is missing: on what? There are: ppl");

    LoadedModel loaded = load_model(dir, batch);
    const ModelConfig& config = model_config(*loaded.model);
    if (stride > config.context)
        throw user_error("--stride %d is longer than the model's context of %d tokens", stride, config.context);
    std::vector<std::pair<std::string, TextTokens>> texts;  // all read before the first is scored
    for (const std::string& task : tasks) {
        const std::string path = task.substr(task.find('=') + 1);
        texts.emplace_back(path, read_text_tokens(path, *loaded.tokenizer, config.vocab));
    }
    nlohmann::ordered_json scores = nlohmann::ordered_json::array();
    for (const auto& [path, text] : texts) {
        const Perplexity p = perplexity(*loaded.model, text, loaded.tokenizer->eot(), batch, config.context, stride);
        if (!std::isfinite(p.nll))
            throw user_error("%s: the model's loss on %s is not finite", loaded.folder.c_str(), path.c_str());
        printf("ppl %s: %.6f per token, %.6f per word, %.6f bits per byte (%lld tokens, %lld words, %lld bytes)\n",
               path.c_str(), p.ppl(), p.word_ppl(), p.bits_per_byte(), static_cast<long long>(p.tokens),
               static_cast<long long>(p.words), static_cast<long long>(p.bytes));
        nlohmann::ordered_json score = {
            {"task", "ppl"}, {"file", path}, {"n", p.tokens}, {"skipped", 0}, {"ppl", p.ppl()}};
        if (p.words > 0) score["word_ppl"] = p.word_ppl();
        score["bits_per_byte"] = p.bits_per_byte();
        scores.push_back(score);
    }
    if (!json_path.empty()) {  // written in place, not aside and renamed: it may well be /dev/stdout
        std::ofstream file(json_path);
        file << scores.dump(2) << std::endl;
        if (!file)
            throw user_error("--json %s: cannot be written; check the path and the space left", json_path.c_str());
    }
    return EXIT_DONE;
}

int main(int argc, char** argv) {
    return program_main("eval_gpt2", [&] { return evaluate(argc, argv); });
}
