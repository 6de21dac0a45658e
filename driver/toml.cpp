#include "driver/toml.h"

#include <cctype>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <set>

#include "kernels/error.h"

namespace {

// A cursor over the whole text; every error names the line it stands on.
struct Reader {
    std::string text;
    size_t at = 0;

    [[noreturn]] void fail(const std::string& what) const {
        size_t line = 1;
        for (size_t i = 0; i < at && i < text.size(); i++) line += text[i] == '\n';
        throw CLI::ConfigError(format("line %zu: %s", line, what.c_str()));
    }
    char peek() const { return at < text.size() ? text[at] : '\0'; }
    bool done() const { return at >= text.size(); }
    void skip_blanks() {
        while (peek() == ' ' || peek() == '\t' || peek() == '\r') at++;
    }
    void skip_comment() {
        skip_blanks();
        if (peek() == '#') {
            while (!done() && peek() != '\n') at++;
        }
    }
    void skip_lines() {  // blanks, comments and line ends
        for (skip_comment(); peek() == '\n'; skip_comment()) at++;
    }

    std::string key() {
        std::string name;
        if (peek() == '"' || peek() == '\'') {
            name = string();
        } else {
            while (std::isalnum(static_cast<unsigned char>(peek())) || peek() == '-' || peek() == '_') {
                name += text[at++];
            }
        }
        if (name.empty()) fail("an option's name is expected, as in: batch = 8");
        return name;
    }

    std::string string() {
        const char quote = text[at++];
        std::string value;
        while (peek() != quote) {
            if (done() || peek() == '\n') fail("a string without its closing quote");
            char c = text[at++];
            if (c == '\\' && quote == '"') {
                switch (char escape = done() ? '\0' : text[at++]) {
                    case 'n':
                        c = '\n';
                        break;
                    case 't':
                        c = '\t';
                        break;
                    case 'r':
                        c = '\r';
                        break;
                    case '"':
                    case '\\':
                        c = escape;
                        break;
                    default:
                        fail("an unknown escape in a string; known are \\n \\t \\r \\\" \\\\");
                }
            }
            value += c;
        }
        at++;
        return value;
    }

    std::string value() {
        if (peek() == '"' || peek() == '\'') return string();
        std::string word;
        while (!done() && !std::isspace(static_cast<unsigned char>(peek())) && !strchr(",]#", peek())) {
            word += text[at++];
        }
        if (word == "true" || word == "false") return word;
        bool number = !word.empty() && strchr("+-.0123456789in", word[0]);
        std::string digits;
        for (char c : word) {
            if (c != '_') digits += c;  // 1_000_000
        }
        char* end = nullptr;
        if (number) std::strtod(digits.c_str(), &end);
        if (!number || *end != '\0') {
            fail(word.empty() ? std::string("a value is missing")
                              : "'" + word + "' is no TOML value; text stands in quotes");
        }
        return digits;
    }
};

}  // namespace

std::vector<CLI::ConfigItem> TomlConfig::from_config(std::istream& input) const {
    Reader in;
    in.text.assign(std::istreambuf_iterator<char>(input), std::istreambuf_iterator<char>());
    std::vector<CLI::ConfigItem> items;
    std::set<std::string> seen;
    for (in.skip_lines(); !in.done(); in.skip_lines()) {
        if (in.peek() == '[') {
            while (!in.done() && in.peek() != '\n') in.at++;
            continue;
        }
        CLI::ConfigItem item;
        item.name = in.key();
        if (!seen.insert(item.name).second) in.fail("'" + item.name + "' is set twice");
        in.skip_blanks();
        if (in.peek() != '=') in.fail("'=' is expected after '" + item.name + "'");
        in.at++;
        in.skip_blanks();
        if (in.peek() == '[') {
            in.at++;
            for (in.skip_lines(); in.peek() != ']'; in.skip_lines()) {
                if (in.done()) in.fail("an array without its closing bracket");
                item.inputs.push_back(in.value());
                in.skip_lines();
                if (in.peek() == ',')
                    in.at++;
                else if (in.peek() != ']')
                    in.fail("',' or ']' is expected in an array");
            }
            in.at++;
            if (item.inputs.empty()) in.fail("an empty array; leave '" + item.name + "' out instead");
        } else {
            item.inputs.push_back(in.value());
        }
        in.skip_comment();
        if (!in.done() && in.peek() != '\n') in.fail("something follows the value of '" + item.name + "'");
        items.push_back(item);
    }
    return items;
}
