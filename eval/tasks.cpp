#include "eval/tasks.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "eval/text.h"
#include "kernels/error.h"

using nlohmann::ordered_json;

namespace {

constexpr int64_t named = 3;  // examples that are skipped and named, of each file

void add_example(Task& task, const Example& example, int64_t index, const Tokenizer& tokenizer, int T) {
    std::vector<Request> requests;
    bool fits = true, truncated = false;
    size_t longest = 0;
    for (const Example::Continuation& choice : example.choices) {
        requests.push_back(make_request(tokenizer, choice.context, choice.text, T));
        fits = fits && requests.back().fits;
        truncated = truncated || requests.back().truncated;
        longest = std::max(longest, requests.back().tokens.size());
    }
    if (!fits) {
        if (++task.skipped <= named)
            task.notes.push_back(
                format("%s:%lld: skipped: a continuation alone has more tokens than the context of %d, "
                       "or none",
                       task.spec.file.c_str(), static_cast<long long>(example.line), T));
        return;
    }
    task.truncated += truncated;
    task.items.push_back({index, example.line, example.gold, task.requests.size(), requests.size()});
    std::move(requests.begin(), requests.end(), std::back_inserter(task.requests));
    task.lengths.insert(task.lengths.end(), example.lengths.begin(), example.lengths.end());
}

Accuracy accuracy(const std::vector<bool>& right) {
    const double n = static_cast<double>(right.size());
    double sum = 0, squares = 0;
    for (bool r : right) sum += r;
    for (bool r : right) squares += (r - sum / n) * (r - sum / n);
    Accuracy result{sum / n, {}};
    if (right.size() > 1) result.standard_error = std::sqrt(squares / (n - 1)) / std::sqrt(n);
    return result;
}

// The largest, of equal ones the first; a NaN is larger than all (numpy's argmax).
int arg_max(const std::vector<double>& values) {
    size_t best = 0;
    for (size_t i = 1; i < values.size(); i++) {
        if (std::isnan(values[best])) break;
        if (!(values[i] <= values[best])) best = i;
    }
    return static_cast<int>(best);
}

ordered_json number(double value) {  // JSON has neither NaN nor infinity
    return std::isfinite(value) ? ordered_json(value) : ordered_json(nullptr);
}

std::string plural(int64_t count, const char* what) {
    return format("%lld %s%s", static_cast<long long>(count), what, count == 1 ? "" : "s");
}

}  // namespace

void check_tokenizer(const Tokenizer& tokenizer, const ModelConfig& config, const std::string& where) {
    if (tokenizer.vocab_size() > config.vocab)
        throw user_error(
            "%s: its tokenizer '%s' has %d tokens, the model's vocabulary is of %d; it is not the tokenizer "
            "of this model",
            where.c_str(), tokenizer.kind().c_str(), tokenizer.vocab_size(), config.vocab);
}

Task read_task(const TaskSpec& spec, const Tokenizer& tokenizer, const ModelConfig& config, int T, int64_t limit) {
    Task task;
    task.spec = spec;
    if (spec.name == "ppl") {
        task.text = read_text_tokens(spec.file, tokenizer, config.vocab);
        return task;
    }
    int64_t index = 0;
    read_examples(spec, [&](const Example& example) {
        if (limit == 0 || index < limit) add_example(task, example, index, tokenizer, T);
        index++;
    });
    if (task.items.empty())
        throw user_error(
            "%s: none of its %lld examples can be scored: the continuations have no tokens, or more than the "
            "context of %d",
            spec.file.c_str(), static_cast<long long>(task.skipped), T);
    if (task.skipped > named)
        task.notes.push_back(
            format("%s: %lld more examples skipped", spec.file.c_str(), static_cast<long long>(task.skipped - named)));
    if (task.lengths.size() != task.requests.size()) task.lengths.clear();
    return task;
}

Scores run_task(Model& model, const Task& task, const Tokenizer& tokenizer, const Windows& windows, Comm* comm) {
    Scores scores;
    scores.task = task.spec.name;
    scores.file = task.spec.file;
    if (task.spec.name == "ppl") {
        const Perplexity p = perplexity(model, task.text, tokenizer, windows, comm);
        scores.n = p.tokens;
        scores.words = p.words;
        scores.bytes = p.bytes;
        scores.dropped = p.dropped;
        scores.finite = std::isfinite(p.nll);
        scores.ppl = p.ppl();
        if (const double word_ppl = p.word_ppl(); std::isfinite(word_ppl)) scores.word_ppl = word_ppl;
        scores.bits_per_byte = p.bits_per_byte();
        return scores;
    }
    const std::vector<Likelihood> likelihoods = score(model, task.requests, windows.B, windows.T, comm);
    const bool lambada = task.spec.name == "lambada", normed = !task.lengths.empty();
    scores.n = static_cast<int64_t>(task.items.size());
    scores.skipped = task.skipped;
    scores.truncated = task.truncated;
    std::vector<bool> right, right_norm;
    double sum = 0;
    for (const Task::Item& item : task.items) {
        Scores::Sample sample{item.index, item.line, item.gold, {}};
        std::vector<double> logs, per_character;
        for (size_t i = item.first; i < item.first + item.choices; i++) {
            sample.choices.push_back(likelihoods[i]);
            logs.push_back(likelihoods[i].log);
            if (normed) per_character.push_back(likelihoods[i].log / task.lengths[i]);
            scores.finite = scores.finite && std::isfinite(likelihoods[i].log);
        }
        sum += logs[0];
        sample.predicted = lambada ? (sample.choices[0].greedy ? 0 : -1) : arg_max(logs);
        right.push_back(sample.predicted == item.gold);
        if (normed) {
            sample.predicted_norm = arg_max(per_character);
            right_norm.push_back(sample.predicted_norm == item.gold);
        }
        scores.samples.push_back(std::move(sample));
    }
    scores.acc = accuracy(right);
    if (normed) scores.acc_norm = accuracy(right_norm);
    if (lambada) scores.ppl = std::exp(-sum / static_cast<double>(scores.n));
    return scores;
}

ordered_json scores_json(const Scores& s) {
    ordered_json out = {{"task", s.task}, {"file", s.file}, {"n", s.n}, {"skipped", s.skipped}};
    if (s.task != "ppl") out["truncated"] = s.truncated;
    auto add = [&](const char* name, const std::optional<Accuracy>& accuracy) {
        if (!accuracy) return;
        out[name] = number(accuracy->mean);
        if (accuracy->standard_error) out[std::string(name) + "_stderr"] = number(*accuracy->standard_error);
    };
    add("acc", s.acc);
    add("acc_norm", s.acc_norm);
    if (s.ppl) out["ppl"] = number(*s.ppl);
    if (s.word_ppl) out["word_ppl"] = number(*s.word_ppl);
    if (s.bits_per_byte) out["bits_per_byte"] = number(*s.bits_per_byte);
    if (s.task == "ppl") {
        out["words"] = s.words;
        out["bytes"] = s.bytes;
        out["dropped"] = s.dropped;
    }
    return out;
}

ordered_json sample_json(const Scores& s, const Scores::Sample& sample) {
    ordered_json logs = ordered_json::array(), greedy = ordered_json::array();
    for (const Likelihood& choice : sample.choices) {
        logs.push_back(number(choice.log));
        greedy.push_back(choice.greedy);
    }
    ordered_json out = {{"task", s.task},
                        {"file", s.file},
                        {"index", sample.index},
                        {"line", sample.line},
                        {"gold", sample.gold},
                        {"loglikelihoods", logs},
                        {"greedy", greedy},
                        {"predicted", sample.predicted},
                        {"correct", sample.predicted == sample.gold}};
    if (s.acc_norm) {
        out["predicted_norm"] = sample.predicted_norm;
        out["correct_norm"] = sample.predicted_norm == sample.gold;
    }
    return out;
}

std::string scores_line(const Scores& s) {
    std::string line = s.task + " " + s.file + ":";
    auto add = [&](const char* name, const std::optional<Accuracy>& accuracy) {
        if (!accuracy) return;
        line += format(" %s %.4f", name, accuracy->mean);
        if (accuracy->standard_error) line += format(" +- %.4f", *accuracy->standard_error);
        line += ",";
    };
    if (s.task == "ppl") {
        line += format(" %.6f per token,", *s.ppl);
        if (s.word_ppl) line += format(" %.6f per word,", *s.word_ppl);
        line += format(" %.6f bits per byte (%s, %s, %s", *s.bits_per_byte, plural(s.n, "token").c_str(),
                       plural(s.words, "word").c_str(), plural(s.bytes, "byte").c_str());
        return line + (s.dropped > 0 ? ", " + plural(s.dropped, "token") + " dropped)" : ")");
    }
    add("acc", s.acc);
    add("acc_norm", s.acc_norm);
    if (s.ppl) line += format(" perplexity %.4f,", *s.ppl);
    line.back() = ' ';
    return line + format("(%s, %lld skipped, %lld truncated)", plural(s.n, "example").c_str(),
                         static_cast<long long>(s.skipped), static_cast<long long>(s.truncated));
}
