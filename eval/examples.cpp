#include "eval/examples.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "checkpoint/files.h"
#include "dataloader/text_input.h"
#include "eval/text.h"
#include "kernels/error.h"

using nlohmann::json;

namespace {

const std::vector<std::string> names = {"ppl", "lambada", "hellaswag", "piqa", "arc", "winogrande", "choice"};

// A place in a file, for messages, and the JSON object that stands there.
struct Line {
    const std::string& path;
    int64_t number;
    json object;

    [[noreturn]] void fail(const std::string& what) const {
        throw user_error("%s:%lld: %s", path.c_str(), static_cast<long long>(number), what.c_str());
    }
    bool has(const char* key) const { return object.contains(key); }

    const json& field(const json& from, const char* key) const {
        if (!from.is_object() || !from.contains(key)) fail(format("there is no \"%s\"", key));
        return from[key];
    }
    std::string text(const json& from, const char* key) const {
        const json& value = field(from, key);
        if (!value.is_string()) fail(format("\"%s\" is no text", key));
        return value.get<std::string>();
    }
    std::string text(const char* key) const { return text(object, key); }
    std::vector<std::string> texts(const json& from, const char* key) const {
        const json& value = field(from, key);
        if (!value.is_array() || !std::all_of(value.begin(), value.end(), [](const json& v) { return v.is_string(); }))
            fail(format("\"%s\" is no list of texts", key));
        return value.get<std::vector<std::string>>();
    }

    void at_least_two(const std::vector<std::string>& choices) const {
        if (choices.size() < 2) fail("there must be two choices at least");
    }

    // A label that counts from `first`: a number, or a text that is one.
    int label(const json& value, const char* key, int first, size_t count) const {
        if (value.is_structured()) fail(format("its label \"%s\" is no number", key));
        std::string shown = value.is_string() ? value.get<std::string>() : value.dump();
        shown.erase(std::remove(shown.begin(), shown.end(), ' '), shown.end());
        if (shown.empty() || value.is_null()) fail(format("its label \"%s\" is empty; score a split with labels", key));
        for (size_t i = 0; i < count; i++) {
            if (shown == std::to_string(first + static_cast<int>(i))) return static_cast<int>(i);
        }
        fail(format("its label \"%s\" is %s, it must lie between %d and %zu", key, printable(shown).c_str(), first,
                    static_cast<size_t>(first) + count - 1));
    }
};

Line parse_line(const std::string& path, std::string_view text, int64_t number) {
    Line line{path, number, json::parse(text, nullptr, false)};
    if (line.object.is_discarded())
        line.fail("is no JSON; every line must be one whole JSON object: " +
                  printable(std::string(text.substr(0, 60))));
    if (!line.object.is_object()) line.fail("is no JSON object");
    return line;
}

bool blank(std::string_view line) {
    return trailing_space(line) == line.size();
}

// The harness puts one space between a context and a choice.
void add_choices(Example& example, const std::string& context, const std::vector<std::string>& choices,
                 const std::string& delimiter = " ") {
    for (const std::string& choice : choices) {
        example.choices.push_back({context, delimiter + choice});
        example.lengths.push_back(static_cast<double>(characters(choice)));
    }
}

// The same continuation behind several contexts; the harness defines no acc_norm there.
void add_contexts(Example& example, const std::vector<std::string>& contexts, const std::string& continuation,
                  const std::string& delimiter = " ") {
    for (const std::string& context : contexts) example.choices.push_back({context, delimiter + continuation});
}

// ---------------------------------------------------------------------------------------------------------------------
// The tasks. Each takes one line's object; label: what the file of labels says, from 0; -1: there is none.

void read_lambada(Example& example, const std::string& text) {
    const size_t space = text.rfind(' ');
    if (space == std::string::npos)
        example.choices.push_back({"", " " + text});
    else
        example.choices.push_back({text.substr(0, space), text.substr(space)});
}

void read_hellaswag(Example& example, const Line& line) {
    const std::string label = line.text("activity_label"), before = line.text("ctx_a"), after = line.text("ctx_b");
    const std::string context = label + ": " + before + " " + capitalize(after);
    std::vector<std::string> endings = line.texts(line.object, "endings");
    line.at_least_two(endings);
    for (std::string& ending : endings) ending = hellaswag_text(ending);
    add_choices(example, hellaswag_text(context), endings);
    example.gold = line.label(line.field(line.object, "label"), "label", 0, endings.size());
}

void read_piqa(Example& example, const Line& line, int label) {
    add_choices(example, "Question: " + line.text("goal") + "\nAnswer:", {line.text("sol1"), line.text("sol2")});
    if (label < 0 && !line.has("label"))
        line.fail("there is no \"label\"; give the file of labels as well: piqa=FILE,LABELS");
    example.gold = label >= 0 ? label : line.label(line.object["label"], "label", 0, 2);
}

void read_arc(Example& example, const Line& line) {
    const json& question = line.field(line.object, "question");
    std::vector<std::string> texts, labels;
    if (question.is_object()) {  // AI2's own form
        const json& choices = line.field(question, "choices");
        if (!choices.is_array()) line.fail("\"choices\" is no list");
        for (const json& choice : choices) {
            texts.push_back(line.text(choice, "text"));
            labels.push_back(line.text(choice, "label"));
        }
    } else {
        const json& choices = line.field(line.object, "choices");
        texts = line.texts(choices, "text");
        labels = line.texts(choices, "label");
    }
    if (texts.size() != labels.size()) line.fail("its choices and their labels differ in number");
    line.at_least_two(texts);
    const std::string stem = question.is_object() ? line.text(question, "stem") : line.text("question");
    const std::string key = line.text("answerKey");
    const auto found = std::find(labels.begin(), labels.end(), key);
    if (key.empty()) line.fail("its \"answerKey\" is empty; score a split with labels");
    if (found == labels.end()) line.fail("its \"answerKey\" " + printable(key) + " is none of the choices' labels");
    example.gold = static_cast<int>(found - labels.begin());
    add_choices(example, "Question: " + stem + "\nAnswer:", texts);
}

void read_winogrande(Example& example, const Line& line, int label) {
    if (line.has("context_options")) {  // the partial-evaluation form
        const std::vector<std::string> contexts = line.texts(line.object, "context_options");
        line.at_least_two(contexts);
        add_contexts(example, contexts, line.text("continuation"));
        example.gold =
            label >= 0 ? label : line.label(line.field(line.object, "gold"), "gold", 0, example.choices.size());
        return;
    }
    const std::string sentence = line.text("sentence");
    const size_t gap = sentence.find('_');
    if (gap == std::string::npos) line.fail("its \"sentence\" has no _ to be filled");
    const std::string before = sentence.substr(0, gap);
    add_contexts(example, {before + line.text("option1"), before + line.text("option2")},
                 strip(sentence.substr(gap + 1)));
    if (label < 0 && (!line.has("answer") || line.object["answer"] == ""))
        line.fail("there is no \"answer\"; give the file of labels as well: winogrande=FILE,LABELS");
    example.gold = label >= 0 ? label : line.label(line.object["answer"], "answer", 1, 2);
}

void read_choice(Example& example, const Line& line) {
    const std::string delimiter = line.has("delimiter") ? line.text("delimiter") : " ";
    const bool contexts = line.has("contexts");
    const std::vector<std::string> texts = line.texts(line.object, contexts ? "contexts" : "choices");
    line.at_least_two(texts);
    if (contexts)
        add_contexts(example, texts, line.text("continuation"), delimiter);
    else
        add_choices(example, line.text("context"), texts, delimiter);
    const json& gold = line.field(line.object, "gold");
    if (!gold.is_number_integer()) line.fail("\"gold\" is no whole number");
    example.gold = line.label(gold, "gold", 0, example.choices.size());
}

// Six lines a task: context, number of the right ending, four endings; the harness's substitutions are done already.
void read_hellaswag_text(const std::string& path, const std::string& text,
                         const std::function<void(const Example&)>& on_example) {
    Example example;
    std::string context;
    std::vector<std::string> endings;
    int64_t at = 0, last = 0;
    for_each_line(text, [&](std::string_view content, int64_t number) {
        const Line line{path, number, {}};
        if (at == 0) {
            if (blank(content)) return;
            example = {number, {}, {}, 0};
            context = content;
        } else if (at == 1) {
            example.gold = line.label(std::string(content), "gold", 0, 4);
        } else {
            endings.emplace_back(content);
        }
        last = number;
        if (++at < 6) return;
        add_choices(example, context, endings);
        on_example(example);
        endings.clear();
        at = 0;
    });
    if (at != 0)
        Line{path, last, {}}.fail(
            format("the file ends after %lld of the 6 lines of a task: context, number of the "
                   "right ending (0 to 3), four endings",
                   static_cast<long long>(at)));
}

// One label a line, counted from 0 for piqa and from 1 for winogrande; here always from 0.
std::vector<int> read_labels(const TaskSpec& task) {
    std::vector<int> labels;
    if (task.labels.empty()) return labels;
    const int first = task.name == "winogrande" ? 1 : 0;
    for_each_line(read_plain(task.labels), [&](std::string_view content, int64_t number) {
        if (blank(content)) return;
        labels.push_back(Line{task.labels, number, {}}.label(std::string(content), "label", first, 2));
    });
    return labels;
}

}  // namespace

std::string task_names() {
    std::string list;
    for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
    return list;
}

TaskSpec parse_task(const char* option, const std::string& text) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0 || equals + 1 == text.size())
        throw user_error("%s %s: it is written TASK=FILE; the tasks: %s", option, text.c_str(), task_names().c_str());
    TaskSpec task{text.substr(0, equals), text.substr(equals + 1), ""};
    if (std::find(names.begin(), names.end(), task.name) == names.end())
        throw user_error("%s %s: there is no such task; there are: %s", option, task.name.c_str(),
                         task_names().c_str());
    const size_t comma = task.file.rfind(',');
    if ((task.name == "piqa" || task.name == "winogrande") && comma != std::string::npos && !file_exists(task.file)) {
        task.labels = task.file.substr(comma + 1);
        task.file.resize(comma);
        if (task.file.empty() || task.labels.empty())
            throw user_error("%s %s: it is written %s=FILE,LABELS", option, text.c_str(), task.name.c_str());
    }
    return task;
}

void for_each_line(std::string_view text, const std::function<void(std::string_view, int64_t)>& on_line) {
    int64_t number = 0;
    for (size_t at = 0; at < text.size();) {
        const size_t end = std::min(text.find('\n', at), text.size());
        std::string_view line = text.substr(at, end - at);
        if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
        on_line(line, ++number);
        at = end + 1;
    }
}

std::string read_plain(const std::string& path) {
    std::string text = read_text(path);
    refuse_compressed(path, text, "> FILE");
    if (text.rfind("\xEF\xBB\xBF", 0) == 0) text.erase(0, 3);
    return text;
}

bool is_text_object(std::string_view line) {
    const json object = json::parse(line, nullptr, false);
    return object.is_object() && object.contains("text") && object["text"].is_string();
}

std::string text_of_object(const std::string& path, std::string_view line, int64_t number) {
    return parse_line(path, line, number).text("text");
}

void read_examples(const TaskSpec& task, const std::function<void(const Example&)>& on_example) {
    const std::string text = read_plain(task.file);
    const std::vector<int> labels = read_labels(task);
    size_t examples = 0;
    auto count = [&](const Example& example) {
        examples++;
        on_example(example);
    };
    const size_t start = text.find_first_not_of(" \t\r\n");
    const bool objects = start != std::string::npos && text[start] == '{';
    if (task.name == "hellaswag" && !objects) {
        read_hellaswag_text(task.file, text, count);
    } else {
        for_each_line(text, [&](std::string_view content, int64_t number) {
            if (blank(content)) return;
            Example example;
            example.line = number;
            if (task.name == "lambada") {
                read_lambada(example, objects ? text_of_object(task.file, content, number) : std::string(content));
                return count(example);
            }
            const Line line = parse_line(task.file, content, number);
            if (!task.labels.empty() && examples >= labels.size())
                line.fail(format("%s has no label for it, only %zu in all", task.labels.c_str(), labels.size()));
            const int label = task.labels.empty() ? -1 : labels[examples];
            if (task.name == "hellaswag") read_hellaswag(example, line);
            if (task.name == "piqa") read_piqa(example, line, label);
            if (task.name == "arc") read_arc(example, line);
            if (task.name == "winogrande") read_winogrande(example, line, label);
            if (task.name == "choice") read_choice(example, line);
            count(example);
        });
    }
    if (examples == 0) throw user_error("%s: there are no examples in it", task.file.c_str());
    if (!task.labels.empty() && examples != labels.size())
        throw user_error("%s has %zu labels, %s has %zu examples; they must belong together", task.labels.c_str(),
                         labels.size(), task.file.c_str(), examples);
}
