// Files that are never half there: written aside, synced, renamed; and small helpers around paths.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

std::string read_text(const std::string& path);                          // UserError when it cannot be read
void write_text_atomic(const std::string& path, const std::string& text);  // PATH.tmp, fsync, rename, fsync folder
void sync_folder(const std::string& path);
bool file_exists(const std::string& path);
bool folder_exists(const std::string& path);
void make_folders(const std::string& path);
void remove_folder(const std::string& path);
std::vector<std::string> list_folder(const std::string& path);  // names, sorted
std::vector<std::string> glob_files(const std::string& pattern);  // sorted; empty when nothing matches
// 64-bit checksum of a file's bytes (for state.json), as 16 hex digits.
std::string file_checksum(const std::string& path);
