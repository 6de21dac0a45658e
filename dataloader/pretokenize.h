// GPT-2's pre-tokenisation: the cut of a text into the pieces within which byte pairs are merged, by the pattern
//
//     '(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//
// (Radford et al. 2019, encoder.py). Some alternative matches at every place, so the pieces cover the text. Letters,
// numbers and white space are those of Unicode 16, as in tiktoken 0.14 and tokenizers 0.23, whatever (older) version
// the PCRE2 at hand knows.
#pragma once
#include <memory>
#include <string>
#include <string_view>

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;

class Pretokenizer {
  public:
    Pretokenizer();
    ~Pretokenizer();
    Pretokenizer(const Pretokenizer&) = delete;
    Pretokenizer& operator=(const Pretokenizer&) = delete;

    // What one thread needs to match.
    class Matcher {
      public:
        explicit Matcher(const Pretokenizer& pretokenizer);
        ~Matcher();
        Matcher(const Matcher&) = delete;
        Matcher& operator=(const Matcher&) = delete;
        // Where the piece that begins at `at` ends. text: UTF-8, which is not checked here; at < text.size().
        size_t piece_end(std::string_view text, size_t at);

      private:
        const pcre2_real_code_8* code_;
        bool jit_;
        pcre2_real_match_data_8* data_;
    };

  private:
    pcre2_real_code_8* code_;
    bool jit_;
};

// True when the last character of `text` is white space (\s of the pattern). What is not UTF-8 is none.
bool ends_in_space(std::string_view text);

// The text with every byte that is not UTF-8 replaced by U+0001, which is, as such bytes shall be, neither letter nor
// number nor white space. Places stay the same.
std::string hide_invalid(std::string_view text);
