#include "dataloader/text_input.h"

#include <strings.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "checkpoint/files.h"
#include "dataloader/prepare.h"
#include "kernels/error.h"

namespace {

constexpr size_t block = 1 << 20;  // bytes read at a time

std::string shown(const std::string& path) {
    return path == "-" ? "standard input" : path;
}

// Hands on the input in blocks, the last one shorter.
template <class Action>
void read_blocks(const std::string& path, Action action) {
    struct Close {
        void operator()(FILE* f) const {
            if (f != stdin) fclose(f);
        }
    };
    const bool standard = path == "-";
    const std::string name = shown(path);
    if (!standard && folder_exists(path)) throw user_error("%s: is a folder; name text files", path.c_str());
    std::unique_ptr<FILE, Close> file(standard ? stdin : fopen(path.c_str(), "rb"));
    if (!file) throw user_error("%s: cannot be read: %s; check the path", name.c_str(), strerror(errno));
    std::vector<char> bytes(block);
    for (bool first = true;; first = false) {
        const size_t n = fread(bytes.data(), 1, bytes.size(), file.get());
        if (ferror(file.get()))
            throw user_error("%s: cannot be read: %s; check the disk", name.c_str(), strerror(errno));
        std::string_view text(bytes.data(), n);
        if (first) {
            const bool json = path.find(".jsonl") != std::string::npos || path.find(".json.") != std::string::npos;
            refuse_compressed(path, text, json ? "| tokenize - --jsonl ..." : "| tokenize - ...");
            if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
        }
        action(text);
        if (n < bytes.size()) return;
    }
}

}  // namespace

void refuse_compressed(const std::string& path, std::string_view start, const std::string& then) {
    struct Kind {
        std::string_view magic;
        const char *name, *unpack;
    };
    using namespace std::string_view_literals;
    static const Kind kinds[] = {{"\xFD"sv
                                  "7zXZ\0"sv,
                                  "xz", "xz -dc"},
                                 {"\x1F\x8B\x08"sv, "gzip", "gzip -dc"},
                                 {"\x28\xB5\x2F\xFD"sv, "zstd", "zstd -dc"},
                                 {"BZh"sv, "bzip2", "bzip2 -dc"},
                                 {"PK\x03\x04"sv, "zip", "unzip -p"}};
    for (const Kind& kind : kinds) {
        if (start.substr(0, kind.magic.size()) != kind.magic) continue;
        throw user_error("%s: is compressed (%s); unpack it first, as in: %s %s %s", shown(path).c_str(), kind.name,
                         kind.unpack, path == "-" ? "FILE" : path.c_str(), then.c_str());
    }
}

TextSigns read_documents(const std::string& path, const std::string& separator, const std::string& field,
                         JobBuilder& builder) {
    builder.begin_input(shown(path));
    DocumentSplitter splitter(
        separator, [&](std::string_view text) { builder.text(text); }, [&] { builder.end_document(); });
    TextSigns signs;
    bool first = true;
    read_blocks(path, [&](std::string_view bytes) {
        std::string document, fault;
        if (first && bytes.starts_with('{'))
            signs.json_line = read_field(bytes.substr(0, bytes.find('\n')), field, document, fault);
        first = false;
        splitter.feed(bytes);
    });
    splitter.finish();
    builder.end_input();
    signs.separators_with_cr = splitter.separators_with_cr();
    return signs;
}

void read_json_lines(const std::string& path, JobBuilder& builder) {
    builder.begin_input(shown(path));
    read_blocks(path, [&](std::string_view bytes) {
        for (size_t end; (end = bytes.find('\n')) != std::string_view::npos; bytes.remove_prefix(end + 1)) {
            builder.json(bytes.substr(0, end));
            builder.end_line();
        }
        builder.json(bytes);
    });
    builder.end_line();
    builder.end_input();
}

bool is_jsonl(const std::string& path) {
    constexpr std::string_view ending = ".jsonl";
    return path.size() >= ending.size() && strcasecmp(path.c_str() + path.size() - ending.size(), ending.data()) == 0;
}
