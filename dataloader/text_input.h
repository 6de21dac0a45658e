// Text files, read block by block. UserError names the input that cannot be read, is a folder, or is compressed. A
// UTF-8 byte order mark at the start is no text, and is dropped.
#pragma once
#include <string>
#include <string_view>

#include "dataloader/text_jobs.h"

// What makes a text look as if it was meant otherwise.
struct TextSigns {
    int64_t separators_with_cr = 0;  // lines that would be separators but for a CR before the newline
    bool json_line = false;          // its first line is a JSON object with the field
};
// path: "-" is standard input.
TextSigns read_documents(const std::string& path, const std::string& separator, const std::string& field,
                         JobBuilder& builder);
void read_json_lines(const std::string& path, JobBuilder& builder);

// UserError when a file starts like a compressed one, which would give fine tokens and a useless model. It says how to
// unpack it; then: what follows that command, as in "> FILE". path: "-" is standard input.
void refuse_compressed(const std::string& path, std::string_view start, const std::string& then);

// True for names that end in .jsonl, in any case.
bool is_jsonl(const std::string& path);
