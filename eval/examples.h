// Examples of the tasks, read from their publishers' files and from the forms of eval/README.md. The form is known from
// the content, not from the name.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

// What `NAME=FILE` or `NAME=FILE,LABELS` asks for.
struct TaskSpec {
    std::string name, file, labels;  // labels: piqa and winogrande; empty: they stand in FILE
};
std::string task_names();  // "ppl, lambada, ..."
// option: as the user wrote it (--task, --eval), for the message of the UserError. A FILE that is there may hold a
// comma.
TaskSpec parse_task(const char* option, const std::string& text);

// Continuations to be scored behind their contexts. lambada: one; else one for each choice.
struct Example {
    int64_t line = 0;  // its first, from 1
    struct Continuation {
        std::string context, text;
    };
    std::vector<Continuation> choices;
    std::vector<double> lengths;  // of the choices in characters, for acc_norm; empty where that is not defined
    int gold = 0;
};

// Every example of FILE in order, for all tasks but ppl. UserError, which names file and line: what is no JSON, a field
// that is missing or of another type, a label that is missing or no choice's, labels that do not match in number, a
// compressed file, a file without examples.
void read_examples(const TaskSpec& task, const std::function<void(const Example&)>& on_example);

// The lines of a text without their ends (LF or CR LF), and their numbers from 1.
void for_each_line(std::string_view text, const std::function<void(std::string_view, int64_t)>& on_line);
// read_text for these files: UserError for compressed ones, which says how to unpack them. A byte order mark is
// dropped.
std::string read_plain(const std::string& path);
// A line that is a JSON object with the string "text", as documents and LAMBADA have it: whether it is one, ...
bool is_text_object(std::string_view line);
// ... and that string; UserError where it is not.
std::string text_of_object(const std::string& path, std::string_view line, int64_t number);
