// Text files, read block by block. UserError names the input that cannot be read, is a folder, or is compressed.
#pragma once
#include <string>

#include "dataloader/text_jobs.h"

// path: "-" is standard input.
void read_documents(const std::string& path, const std::string& separator, JobBuilder& builder);
void read_json_lines(const std::string& path, JobBuilder& builder);

// True for names that end in .jsonl.
bool is_jsonl(const std::string& path);
