#include "dataloader/pretokenize.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "dataloader/utf8.h"
#include "kernels/error.h"

namespace {

// White space (the property White_Space) is spelt out: PCRE2's \s has U+180E, which is none.
#define SPACES "\\t-\\r\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
// What Unicode 15, 15.1 and 16 added to the letters and numbers of Unicode 14, which PCRE2 10.38 to 10.42 know. The
// lists only ever grow, so that naming them again does no harm with a newer PCRE2.
#define LETTERS                                                                                                \
    "\\p{L}"                                                                                                   \
    "\\x{1C89}-\\x{1C8A}\\x{A7CB}-\\x{A7CD}\\x{A7DA}-\\x{A7DC}\\x{105C0}-\\x{105F3}\\x{10D4A}-\\x{10D65}"      \
    "\\x{10D6F}-\\x{10D85}\\x{10EC2}-\\x{10EC4}\\x{1123F}-\\x{11240}\\x{11380}-\\x{11389}\\x{1138B}\\x{1138E}" \
    "\\x{11390}-\\x{113B5}\\x{113B7}\\x{113D1}\\x{113D3}\\x{11BC0}-\\x{11BE0}\\x{11F02}\\x{11F04}-\\x{11F10}"  \
    "\\x{11F12}-\\x{11F33}\\x{1342F}\\x{13441}-\\x{13446}\\x{13460}-\\x{143FA}\\x{16100}-\\x{1611D}"           \
    "\\x{16D40}-\\x{16D6C}\\x{18CFF}\\x{1B132}\\x{1B155}\\x{1DF25}-\\x{1DF2A}\\x{1E030}-\\x{1E06D}"            \
    "\\x{1E4D0}-\\x{1E4EB}\\x{1E5D0}-\\x{1E5ED}\\x{1E5F0}\\x{2B739}\\x{2EBF0}-\\x{2EE5D}\\x{31350}-\\x{323AF}"
#define NUMBERS                                                                                                 \
    "\\p{N}"                                                                                                    \
    "\\x{10D40}-\\x{10D49}\\x{116D0}-\\x{116E3}\\x{11BF0}-\\x{11BF9}\\x{11F50}-\\x{11F59}\\x{16130}-\\x{16139}" \
    "\\x{16D70}-\\x{16D79}\\x{1CCF0}-\\x{1CCF9}\\x{1D2C0}-\\x{1D2D3}\\x{1E4F0}-\\x{1E4F9}\\x{1E5F1}-\\x{1E5FA}"

// Possessive where the original is greedy: what follows could not use a character that is given back.
constexpr const char* pattern =
    "'(?:[sdmt]|ll|ve|re)"
    "| ?[" LETTERS
    "]++"
    "| ?[" NUMBERS
    "]++"
    "| ?[^" SPACES LETTERS NUMBERS
    "]++"
    "|[" SPACES "]+(?![^" SPACES
    "])"
    "|[" SPACES "]+";

}  // namespace

Pretokenizer::Pretokenizer() {
    int error = 0;
    PCRE2_SIZE place = 0;
    code_ = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern), PCRE2_ZERO_TERMINATED,
                          PCRE2_UTF | PCRE2_ANCHORED | PCRE2_NO_START_OPTIMIZE | PCRE2_NEVER_BACKSLASH_C, &error,
                          &place, nullptr);
    if (code_ == nullptr) throw user_error("PCRE2 was built without Unicode (error %d); install libpcre2-dev", error);
    // Without leave for executable memory there is the slower interpreter.
    jit_ = pcre2_jit_compile(code_, PCRE2_JIT_COMPLETE) == 0;
}

Pretokenizer::~Pretokenizer() {
    pcre2_code_free(code_);
}

Pretokenizer::Matcher::Matcher(const Pretokenizer& pretokenizer)
    : code_(pretokenizer.code_), jit_(pretokenizer.jit_), data_(pcre2_match_data_create(1, nullptr)) {
    if (data_ == nullptr) throw std::bad_alloc();
}

Pretokenizer::Matcher::~Matcher() {
    pcre2_match_data_free(data_);
}

size_t Pretokenizer::Matcher::piece_end(std::string_view text, size_t at) {
    const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    const int matched = jit_ ? pcre2_jit_match(code_, subject, text.size(), at, 0, data_, nullptr)
                             : pcre2_match(code_, subject, text.size(), at, PCRE2_NO_UTF_CHECK, data_, nullptr);
    CHECK(matched > 0);
    return pcre2_get_ovector_pointer(data_)[1];
}

bool ends_in_space(std::string_view text) {
    if (text.empty()) return false;
    const unsigned char last = static_cast<unsigned char>(text.back());
    if (last < 0x80) return last == ' ' || (last >= '\t' && last <= '\r');
    if (text.ends_with("\xC2\x85") || text.ends_with("\xC2\xA0")) return true;
    if (text.size() < 3) return false;
    const std::string_view three = text.substr(text.size() - 3);
    if (three == "\xE1\x9A\x80" || three == "\xE2\x81\x9F" || three == "\xE3\x80\x80") return true;
    return three.starts_with("\xE2\x80") && (last <= 0x8A || last == 0xA8 || last == 0xA9 || last == 0xAF);
}

std::string hide_invalid(std::string_view text) {
    std::string shown(text);
    for (size_t at = 0;;) {
        at += utf8_valid(text.substr(at));
        if (at == text.size()) return shown;
        shown[at++] = '\1';
    }
}
