// Text files, read block by block. UserError names the input that cannot be read, is a folder, or is compressed.
#pragma once
#include <string>
#include <string_view>

#include "dataloader/text_jobs.h"

// path: "-" is standard input.
void read_documents(const std::string& path, const std::string& separator, JobBuilder& builder);
void read_json_lines(const std::string& path, JobBuilder& builder);

// UserError when a file starts like a compressed one, which would give fine tokens and a useless model. It says how to
// unpack it; then: what follows that command, as in "> FILE". path: "-" is standard input.
void refuse_compressed(const std::string& path, std::string_view start, const std::string& then);

// True for names that end in .jsonl.
bool is_jsonl(const std::string& path);
