#include "eval/text.h"

namespace {

bool continues(char c) {  // a byte of a code point behind its first
    return (static_cast<unsigned char>(c) & 0xC0) == 0x80;
}

// The code point that starts at `at`, and its length in bytes. A byte that belongs to none stands for itself.
struct CodePoint {
    char32_t value;
    size_t length;
};
CodePoint code_point(std::string_view text, size_t at) {
    const unsigned char first = static_cast<unsigned char>(text[at]);
    const size_t length = first < 0xC0 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    if (length == 1 || at + length > text.size()) return {first, 1};
    char32_t value = first & (0xFFu >> (length + 1));
    for (size_t i = 1; i < length; i++) {
        if (!continues(text[at + i])) return {first, 1};
        value = value << 6 | (static_cast<unsigned char>(text[at + i]) & 0x3F);
    }
    return {value, length};
}

void append(std::string& text, char32_t c, size_t length) {
    if (length == 1) {
        text += static_cast<char>(c);
    } else if (length == 2) {
        text += static_cast<char>(0xC0 | c >> 6);
        text += static_cast<char>(0x80 | (c & 0x3F));
    }
}

// Python's str.isspace, of a whole code point.
bool is_space(CodePoint c) {
    const char32_t v = c.value;
    if (c.length == 1) return v == ' ' || (v >= 0x09 && v <= 0x0D) || (v >= 0x1C && v <= 0x1F);
    return v == 0x85 || v == 0xA0 || v == 0x1680 || (v >= 0x2000 && v <= 0x200A) || v == 0x2028 || v == 0x2029 ||
           v == 0x202F || v == 0x205F || v == 0x3000;
}

// The other case of a Latin letter: +1 it has a small form, -1 a large one; 0: neither, or not Latin.
struct Case {
    int direction;
    char32_t other;
};
Case letter_case(char32_t c) {
    if (c >= 'A' && c <= 'Z') return {1, c + 32};
    if (c >= 'a' && c <= 'z') return {-1, c - 32};
    if (c >= 0xC0 && c <= 0xDE && c != 0xD7) return {1, c + 32};
    if (c >= 0xE0 && c <= 0xFE && c != 0xF7) return {-1, c - 32};
    if (c == 0xFF) return {-1, 0x178};
    if (c == 0x178) return {1, 0xFF};
    // Latin Extended-A: pairs of neighbours, the large one even in some ranges and odd in others.
    const bool even = (c >= 0x100 && c <= 0x12F) || (c >= 0x132 && c <= 0x137) || (c >= 0x14A && c <= 0x177);
    const bool odd = (c >= 0x139 && c <= 0x148) || (c >= 0x179 && c <= 0x17E);
    if (!even && !odd) return {0, c};
    return (c % 2 == 0) == even ? Case{1, c + 1} : Case{-1, c - 1};
}

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
    std::string out;
    for (size_t at = 0;;) {
        const size_t found = text.find(from, at);
        out += text.substr(at, found - at);
        if (found == std::string_view::npos) return out;
        out += to;
        at = found + from.size();
    }
}

}  // namespace

size_t characters(std::string_view text) {
    size_t count = 0;
    for (char c : text) count += !continues(c);
    return count;
}

size_t trailing_space(std::string_view text) {
    size_t end = text.size();
    while (end > 0) {
        size_t start = end - 1;
        while (start > 0 && end - start < 4 && continues(text[start])) start--;
        const CodePoint c = code_point(text, start);
        if (start + c.length != end || !is_space(c)) break;
        end = start;
    }
    return text.size() - end;
}

std::string strip(std::string_view text) {
    text.remove_suffix(trailing_space(text));
    while (!text.empty()) {
        const CodePoint c = code_point(text, 0);
        if (!is_space(c)) break;
        text.remove_prefix(c.length);
    }
    return std::string(text);
}

std::string capitalize(std::string_view text) {
    std::string out;
    for (size_t at = 0; at < text.size();) {
        const CodePoint c = code_point(text, at);
        const Case found = c.length <= 2 && !(c.length == 1 && c.value >= 0x80) ? letter_case(c.value) : Case{0, 0};
        if (found.direction == (at == 0 ? -1 : 1))
            append(out, found.other, c.length);
        else
            out += text.substr(at, c.length);
        at += c.length;
    }
    return out;
}

std::string hellaswag_text(std::string_view text) {
    const std::string titled = replaced(strip(text), " [title]", ". ");
    std::string open;
    for (size_t at = 0; at < titled.size();) {
        const size_t end = titled[at] == '[' ? titled.find_first_of("]\n", at) : std::string::npos;
        if (end != std::string::npos && titled[end] == ']')
            at = end + 1;
        else
            open += titled[at++];
    }
    return replaced(open, "  ", " ");
}
