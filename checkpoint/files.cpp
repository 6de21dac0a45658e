#include "checkpoint/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <glob.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "kernels/error.h"

namespace {

// What a person can do about the usual reasons.
const char* remedy(int error) {
    switch (error) {
        case ENOENT:
            return "check the path";
        case EACCES:
        case EPERM:
        case EROFS:
            return "check its permissions or choose another place";
        case ENOSPC:
        case EDQUOT:
            return "free some space or choose another place";
        case ENOTDIR:
            return "a part of the path is a file, choose another place";
        case EISDIR:
            return "it is a folder, name a file";
        case EMFILE:
        case ENFILE:
            return "raise the limit on open files (ulimit -n)";
        default:
            return "check the path and the disk";
    }
}

UserError system_error(const std::string& path, const char* what, int error) {
    return user_error("%s: %s: %s; %s", path.c_str(), what, strerror(error), remedy(error));
}

struct Descriptor {
    int fd;
    explicit Descriptor(int f) : fd(f) {}
    ~Descriptor() {
        if (fd >= 0) close(fd);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
};

int open_to_read(const std::string& path) {
    int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) throw system_error(path, "cannot be read", errno);
    struct stat info;
    if (fstat(fd, &info) == 0 && S_ISDIR(info.st_mode)) {
        close(fd);
        throw system_error(path, "cannot be read", EISDIR);
    }
    return fd;
}

// read() until `bytes` are there or the file ends.
size_t read_fully(int fd, char* data, size_t bytes, const std::string& path) {
    size_t done = 0;
    while (done < bytes) {
        ssize_t n = read(fd, data + done, bytes - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) throw system_error(path, "cannot be read", errno);
        if (n == 0) break;
        done += static_cast<size_t>(n);
    }
    return done;
}

}  // namespace

std::string parent_folder(const std::string& path) {
    size_t slash = path.find_last_of('/');
    if (slash == std::string::npos) return ".";
    return slash == 0 ? "/" : path.substr(0, slash);
}

std::string base_name(const std::string& path) {
    size_t slash = path.find_last_of('/');
    return slash == std::string::npos ? path : path.substr(slash + 1);
}

std::string join_path(const std::string& folder, const std::string& name) {
    std::string path = folder;
    return path.append("/").append(name);
}

std::string printable(const std::string& text) {
    constexpr size_t longest = 120;
    std::string out;
    for (size_t i = 0; i < text.size() && i < longest; i++) {
        unsigned char c = static_cast<unsigned char>(text[i]);
        out += c < 0x20 || c >= 0x7f ? format("\\x%02x", c) : std::string(1, text[i]);
    }
    return text.size() > longest ? out + "..." : out;
}

std::string read_text(const std::string& path) {
    Descriptor file(open_to_read(path));
    std::string text;
    // By blocks, not by the size that stat tells: pipes and /proc have none.
    for (std::vector<char> block(1 << 16);;) {
        size_t n = read_fully(file.fd, block.data(), block.size(), path);
        text.append(block.data(), n);
        if (n < block.size()) return text;
    }
}

void write_text_atomic(const std::string& path, const std::string& text) {
    FileWriter file(path);
    file.write(text.data(), text.size());
    file.commit();
}

void sync_folder(const std::string& path) {
    Descriptor folder(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (folder.fd < 0) throw system_error(path, "cannot be opened", errno);
    // Some network file systems cannot sync a folder and say EINVAL; there is nothing better to do there.
    if (fsync(folder.fd) != 0 && errno != EINVAL && errno != ENOTSUP)
        throw system_error(path, "cannot be synced", errno);
}

bool file_exists(const std::string& path) {
    struct stat info;
    return stat(path.c_str(), &info) == 0 && !S_ISDIR(info.st_mode);
}

bool folder_exists(const std::string& path) {
    struct stat info;
    return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

void make_folders(const std::string& path) {
    std::error_code error;
    std::filesystem::create_directories(path, error);
    if (!folder_exists(path)) {
        throw system_error(path, "this folder cannot be made", error ? error.value() : ENOTDIR);
    }
}

bool hold_folder(const std::string& path) {
    const int folder = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) throw system_error(path, "this folder cannot be opened", errno);
    return flock(folder, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;  // left open: that is what holds it
}

void remove_folder(const std::string& path) {
    std::error_code error;
    std::filesystem::remove_all(path, error);
    if (error) throw system_error(path, "this folder cannot be removed", error.value());
}

std::vector<std::string> list_folder(const std::string& path) {
    DIR* folder = opendir(path.c_str());
    if (!folder) throw system_error(path, "this folder cannot be read", errno);
    std::vector<std::string> names;
    while (dirent* entry = readdir(folder)) {
        std::string name = entry->d_name;
        if (name != "." && name != "..") names.push_back(name);
    }
    closedir(folder);
    std::sort(names.begin(), names.end());
    return names;
}

std::vector<std::string> glob_files(const std::string& pattern) {
    glob_t found;
    int status = glob(pattern.c_str(), GLOB_BRACE | GLOB_TILDE | GLOB_NOSORT, nullptr, &found);
    std::vector<std::string> paths;
    for (size_t i = 0; status == 0 && i < found.gl_pathc; i++) paths.push_back(found.gl_pathv[i]);
    globfree(&found);
    // By bytes: glob's own order follows the locale. Braces may name a file twice.
    std::sort(paths.begin(), paths.end());
    paths.erase(std::unique(paths.begin(), paths.end()), paths.end());
    return paths;
}

// Four lanes of 8-byte words, each lane x <- rotl(x + word * odd2, 31) * odd1, then the lanes are mixed into one number
// with the length. Every step is invertible in the word, so a change confined to one word always changes the result;
// any other change goes unseen with a chance of about 2^-64. It guards against bad disks and cut files, not against
// malice.
std::string file_checksum(const std::string& path) {
    constexpr uint64_t odd1 = 0x9E3779B97F4A7C15ull, odd2 = 0xD6E8FEB86659FD93ull;
    auto rotate = [](uint64_t x, int bits) { return x << bits | x >> (64 - bits); };
    Descriptor file(open_to_read(path));
    uint64_t lane[4] = {odd1, odd2, ~odd1, ~odd2}, length = 0;
    std::vector<char> block(1 << 20);
    for (size_t n = block.size(); n == block.size();) {
        n = read_fully(file.fd, block.data(), block.size(), path);
        length += n;
        size_t padded = (n + 31) / 32 * 32;  // the tail as if zeros followed; the length tells them apart
        memset(block.data() + n, 0, padded - n);
        for (size_t i = 0; i < padded; i += 32) {
            uint64_t words[4];
            memcpy(words, block.data() + i, 32);
            for (int k = 0; k < 4; k++) lane[k] = rotate(lane[k] + words[k] * odd2, 31) * odd1;
        }
    }
    uint64_t sum = length * odd2;
    for (uint64_t x : lane) {
        sum = (sum ^ x) * odd2;
        sum ^= sum >> 32;
    }
    return format("%016llx", static_cast<unsigned long long>(sum));
}

MappedFile map_file(const std::string& path, const char* hint) {
    Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (file.fd < 0 && errno == ENOENT) throw user_error("%s: no such file; %s", path.c_str(), hint);
    if (file.fd < 0) throw system_error(path, "cannot be read", errno);
    struct stat info;
    if (fstat(file.fd, &info) != 0) throw system_error(path, "cannot be read", errno);
    if (S_ISDIR(info.st_mode)) throw system_error(path, "cannot be read", EISDIR);
    if (!S_ISREG(info.st_mode)) throw user_error("%s: is not a regular file; name one", path.c_str());
    MappedFile mapped;
    mapped.size = static_cast<size_t>(info.st_size);
    mapped.mtime_ns = static_cast<int64_t>(info.st_mtim.tv_sec) * 1000000000 + info.st_mtim.tv_nsec;
    if (mapped.size == 0) return mapped;
    void* data = mmap(nullptr, mapped.size, PROT_READ, MAP_PRIVATE, file.fd, 0);
    if (data == MAP_FAILED) throw system_error(path, "cannot be mapped into memory", errno);
    mapped.data = static_cast<const unsigned char*>(data);
    mapped.owner = std::shared_ptr<void>(data, [size = mapped.size](void* p) { munmap(p, size); });
    return mapped;
}

FileWriter::FileWriter(const std::string& path) : path_(path), temporary_(path + ".tmp") {
    // A rename would put a plain file in the place of a device or a link: /dev/stdout, say.
    struct stat info = {};
    if (lstat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode))
        throw user_error("%s: not a plain file, so it cannot be replaced; give another name", path.c_str());
    fd_ = open(temporary_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd_ < 0) fail("cannot be written");
}

FileWriter::~FileWriter() {
    if (fd_ >= 0) ::close(fd_);
    if (!committed_) unlink(temporary_.c_str());
}

void FileWriter::fail(const char* what) const {
    throw system_error(path_, what, errno);
}

void FileWriter::open_again() {
    if (fd_ >= 0) return;
    fd_ = open(temporary_.c_str(), O_RDWR | O_CLOEXEC);
    if (fd_ < 0) fail("cannot be written");
}

void FileWriter::write(const void* data, size_t bytes) {
    write_at(size_, data, bytes);
}

void FileWriter::write_at(int64_t offset, const void* data, size_t bytes) {
    CHECK(!committed_ && offset >= 0 && offset <= size_);
    open_again();
    const char* from = static_cast<const char*>(data);
    while (bytes > 0) {
        // Linux writes at most 2 GiB in one call.
        ssize_t n = pwrite(fd_, from, std::min<size_t>(bytes, 1 << 30), offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) fail("cannot be written");
        from += n;
        offset += n;
        bytes -= static_cast<size_t>(n);
    }
    size_ = std::max(size_, offset);
}

void FileWriter::read_at(int64_t offset, void* data, size_t bytes) {
    CHECK(!committed_ && offset >= 0 && offset + static_cast<int64_t>(bytes) <= size_);
    open_again();
    char* to = static_cast<char*>(data);
    while (bytes > 0) {
        ssize_t n = pread(fd_, to, std::min<size_t>(bytes, 1 << 30), offset);
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) errno = EIO;  // somebody cut the file
        if (n <= 0) fail("cannot be read back");
        to += n;
        offset += n;
        bytes -= static_cast<size_t>(n);
    }
}

void FileWriter::truncate(int64_t bytes) {
    CHECK(!committed_ && bytes >= 0 && bytes <= size_);
    open_again();
    if (ftruncate(fd_, bytes) != 0) fail("cannot be cut");
    size_ = bytes;
}

void FileWriter::close() {
    if (fd_ < 0) return;
    if (fsync(fd_) != 0 && errno != EINVAL && errno != ENOTSUP) fail("cannot be written");
    int fd = fd_;
    fd_ = -1;
    if (::close(fd) != 0) fail("cannot be written");
}

void FileWriter::commit() {
    CHECK(!committed_);
    close();
    if (rename(temporary_.c_str(), path_.c_str()) != 0) fail("cannot be put in place");
    committed_ = true;
    sync_folder(parent_folder(path_));
}
