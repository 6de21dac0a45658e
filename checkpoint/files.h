// Files that are never half there: written aside, synced, renamed; and small helpers around paths.
// Every failure is a UserError that names the path, the system's reason, and what to do.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

std::string read_text(const std::string& path);                            // UserError when it cannot be read
void write_text_atomic(const std::string& path, const std::string& text);  // PATH.tmp, fsync, rename, fsync folder
void sync_folder(const std::string& path);
bool file_exists(const std::string& path);  // a file, not a folder
bool folder_exists(const std::string& path);
void make_folders(const std::string& path);                       // with its parents; fine when it is there already
void remove_folder(const std::string& path);                      // with all it holds; fine when it is not there
// Keeps the folder for this process until it ends. False: another one has it. Where locks are not to be had, everyone does.
bool hold_folder(const std::string& path);
std::vector<std::string> list_folder(const std::string& path);    // names, sorted
std::vector<std::string> glob_files(const std::string& pattern);  // sorted; empty when nothing matches
// 64-bit checksum of a file's bytes (for state.json), as 16 hex digits.
std::string file_checksum(const std::string& path);

std::string parent_folder(const std::string& path);  // "." when the path names none
std::string base_name(const std::string& path);
std::string join_path(const std::string& folder, const std::string& name);
// Text from a file made fit for one line of a message: control characters and bad bytes as \xNN, long text cut.
std::string printable(const std::string& text);

// A file's name, without its folder, and what it holds.
struct NamedText {
    std::string name, text;
};

// A whole regular file mapped for reading. `owner` keeps it mapped; data is null for an empty file.
struct MappedFile {
    const unsigned char* data = nullptr;
    size_t size = 0;
    int64_t mtime_ns = 0;
    std::shared_ptr<void> owner;
};
// hint: what to do when the file is not there.
MappedFile map_file(const std::string& path, const char* hint = "check the path");

// A file being written as PATH.tmp. Until commit() PATH is untouched; without it the .tmp is removed again.
class FileWriter {
  public:
    explicit FileWriter(const std::string& path);
    ~FileWriter();
    FileWriter(const FileWriter&) = delete;
    FileWriter& operator=(const FileWriter&) = delete;

    void write(const void* data, size_t bytes);  // at the end
    void write_at(int64_t offset, const void* data, size_t bytes);
    void read_at(int64_t offset, void* data, size_t bytes);  // bytes written before
    void truncate(int64_t bytes);
    int64_t size() const { return size_; }
    const std::string& path() const { return path_; }
    void close();   // synced and closed, still under its temporary name: many may wait for one commit
    void commit();  // closed, renamed, its folder synced

  private:
    void open_again();
    [[noreturn]] void fail(const char* what) const;
    std::string path_, temporary_;
    int fd_ = -1;
    int64_t size_ = 0;
    bool committed_ = false;
};
