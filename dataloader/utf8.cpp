#include "dataloader/utf8.h"

#include <cstdint>
#include <cstring>

size_t utf8_length(std::string_view text) {
    if (text.empty()) return 0;
    auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
    auto continues = [&](size_t i) { return i < text.size() && (byte(i) & 0xC0) == 0x80; };
    const unsigned char lead = byte(0);
    if (lead < 0x80) return 1;
    if (lead < 0xC2) return 0;  // a continuation, or an overlong form of ASCII
    if (lead < 0xE0) return continues(1) ? 2 : 0;
    if (lead < 0xF0) {
        if (!continues(1) || !continues(2)) return 0;
        const bool overlong = lead == 0xE0 && byte(1) < 0xA0, surrogate = lead == 0xED && byte(1) > 0x9F;
        return overlong || surrogate ? 0 : 3;
    }
    if (lead > 0xF4 || !continues(1) || !continues(2) || !continues(3)) return 0;
    const bool overlong = lead == 0xF0 && byte(1) < 0x90, beyond = lead == 0xF4 && byte(1) > 0x8F;
    return overlong || beyond ? 0 : 4;
}

size_t utf8_valid(std::string_view text) {
    size_t at = 0;
    while (at < text.size()) {
        uint64_t eight;
        if (at + sizeof eight <= text.size()) {
            memcpy(&eight, text.data() + at, sizeof eight);
            if ((eight & 0x8080808080808080) == 0) {
                at += sizeof eight;
                continue;
            }
        }
        const size_t length = utf8_length(text.substr(at));
        if (length == 0) break;
        at += length;
    }
    return at;
}

void utf8_append(unsigned code_point, std::string& text) {
    auto put = [&](unsigned byte) { text += static_cast<char>(byte); };
    if (code_point < 0x80) {
        put(code_point);
    } else if (code_point < 0x800) {
        put(0xC0 | code_point >> 6);
        put(0x80 | (code_point & 63));
    } else if (code_point < 0x10000) {
        put(0xE0 | code_point >> 12);
        put(0x80 | (code_point >> 6 & 63));
        put(0x80 | (code_point & 63));
    } else {
        put(0xF0 | code_point >> 18);
        put(0x80 | (code_point >> 12 & 63));
        put(0x80 | (code_point >> 6 & 63));
        put(0x80 | (code_point & 63));
    }
}

unsigned utf8_decode(std::string_view text) {
    const unsigned lead = static_cast<unsigned char>(text[0]);
    if (lead < 0x80) return lead;
    const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    unsigned code_point = lead & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) code_point = code_point << 6 | (static_cast<unsigned char>(text[i]) & 63u);
    return code_point;
}
