// Text as lm-evaluation-harness handles it, which is to say as Python does: in Unicode code points of UTF-8.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

size_t characters(std::string_view text);      // code points
size_t trailing_space(std::string_view text);  // bytes of white space at the end (str.isspace)
std::string strip(std::string_view text);      // without white space at both ends

// First letter large, all others small (str.capitalize), for Latin letters; others stay as they are.
std::string capitalize(std::string_view text);

// What the harness does to contexts and endings of HellaSwag: strips, turns " [title]" into ". ", drops what stands in
// brackets, halves double spaces.
std::string hellaswag_text(std::string_view text);
