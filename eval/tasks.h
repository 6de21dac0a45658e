// The tasks of eval_gpt2 and of train_gpt2's --eval: read once, scored whenever asked, reported in one form.
// Scores are those of lm-evaluation-harness 0.4: eval/README.md says task by task what that means.
#pragma once
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "eval/examples.h"
#include "eval/perplexity.h"
#include "eval/score.h"
#include "model/config.h"

// A task's file, tokenised for windows of T tokens.
struct Task {
    TaskSpec spec;
    TextTokens text;  // ppl

    struct Item {             // an example that can be scored
        int64_t index, line;  // in the file, from 0 and from 1
        int gold;
        size_t first, choices;  // its requests
    };
    std::vector<Item> items;
    std::vector<Request> requests;
    std::vector<double> lengths;  // of each request's choice in characters; empty: no acc_norm
    int64_t skipped = 0;          // examples with a continuation of no tokens, or of more than T
    int64_t truncated = 0;        // examples whose context lost tokens
    std::vector<std::string> notes;
};
// limit: only so many examples; 0: all. UserError as of the readers, and when no example can be scored.
Task read_task(const TaskSpec& spec, const Tokenizer& tokenizer, const ModelConfig& config, int T, int64_t limit);

// UserError when the tokenizer has tokens that the model has not. where: the file or folder it came from.
void check_tokenizer(const Tokenizer& tokenizer, const ModelConfig& config, const std::string& where);

struct Accuracy {
    double mean;
    std::optional<double> standard_error;  // sample standard deviation / sqrt(n); none for a single example
};
struct Scores {
    std::string task, file;
    int64_t n = 0, skipped = 0, truncated = 0;
    std::optional<Accuracy> acc, acc_norm;
    std::optional<double> ppl, word_ppl, bits_per_byte;
    int64_t words = 0, bytes = 0, dropped = 0;  // ppl
    bool finite = true;                         // every log-likelihood is a number

    struct Sample {
        int64_t index, line;
        int gold;
        std::vector<Likelihood> choices;
        int predicted = 0, predicted_norm = 0;  // lambada: 0 if it is right, else -1
    };
    std::vector<Sample> samples;
};
// comm: null is one rank; every rank gets the same scores. Windows' stride and chunks are for ppl.
Scores run_task(Model& model, const Task& task, const Tokenizer& tokenizer, const Windows& windows, Comm* comm);

// The fields of --json and of `eval` events; what is not defined is absent (word_ppl also where it is too large),
// what else is no finite number is null.
nlohmann::ordered_json scores_json(const Scores& scores);
nlohmann::ordered_json sample_json(const Scores& scores, const Scores::Sample& sample);
std::string scores_line(const Scores& scores);  // for the terminal
