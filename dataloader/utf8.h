// UTF-8 as the Unicode standard defines it: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once
#include <string>
#include <string_view>

// Bytes of the character that `text` begins with, 1 to 4; 0 when it begins with none (or is empty).
size_t utf8_length(std::string_view text);
// How many bytes of `text` come before the first that is not UTF-8; its size when all is.
size_t utf8_valid(std::string_view text);
// Appends the code point, which must be one (below 0x110000, no surrogate).
void utf8_append(unsigned code_point, std::string& text);
// The code point of the character that `text` begins with; there must be one.
unsigned utf8_decode(std::string_view text);
