#include "dataloader/prepare.h"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>

#include "checkpoint/files.h"
#include "dataloader/shards.h"
#include "dataloader/tokenizer.h"
#include "kernels/error.h"

namespace {

constexpr int64_t block = 1 << 20;  // bytes read, tokens moved at a time

// The shards of one split, filled one after the other.
class Series {
  public:
    Series(std::string prefix, int64_t vocab, int64_t shard_tokens)
        : prefix_(std::move(prefix)), vocab_(vocab), shard_tokens_(shard_tokens) {}

    int64_t tokens() const { return tokens_; }
    size_t num_shards() const { return shards_.size(); }
    const std::string& path(size_t i) const { return shards_[i]->path(); }

    void append(const int* tokens, int64_t count) {
        while (count > 0) {
            if (shards_.empty() || shards_.back()->num_tokens() == shard_tokens_) {
                if (!shards_.empty()) shards_.back()->close();
                std::string path = format("%s%06zu.bin", prefix_.c_str(), shards_.size());
                shards_.push_back(std::make_unique<ShardWriter>(path, vocab_));
            }
            int64_t now = std::min(count, shard_tokens_ - shards_.back()->num_tokens());
            shards_.back()->append(reinterpret_cast<const uint32_t*>(tokens), now);
            tokens += now;
            count -= now;
            tokens_ += now;
        }
    }

    // Moves the last `count` tokens to the end of `other`.
    void move_tail(int64_t count, Series& other) {
        int64_t keep = tokens_ - count, before = 0;
        for (auto& shard : shards_) {
            int64_t here = shard->num_tokens(), first = std::clamp<int64_t>(keep - before, 0, here);
            before += here;
            if (first == here) continue;
            for (int64_t i = first; i < here; i += block) {
                std::vector<uint32_t> moved = shard->read(i, std::min(block, here - i));
                other.append(reinterpret_cast<const int*>(moved.data()), static_cast<int64_t>(moved.size()));
            }
            shard->truncate(first);
            shard->close();
        }
        while (!shards_.empty() && shards_.back()->num_tokens() == 0) shards_.pop_back();
        tokens_ = keep;
    }

    void close() {
        for (auto& shard : shards_) shard->close();
    }
    void commit() {
        for (auto& shard : shards_) shard->commit();
    }

    // Files of this name and a number that this run did not reach.
    std::vector<std::string> older_files() const {
        std::string folder = parent_folder(prefix_), start = base_name(prefix_);
        std::vector<std::string> paths;
        for (const std::string& name : list_folder(folder)) {
            bool ours = name.size() == start.size() + 10 && name.compare(0, start.size(), start) == 0 &&
                        name.compare(name.size() - 4, 4, ".bin") == 0 &&
                        std::all_of(name.end() - 10, name.end() - 4, [](char c) { return c >= '0' && c <= '9'; });
            if (ours && std::stoul(name.substr(start.size(), 6)) >= shards_.size())
                paths.push_back(join_path(folder, name));
        }
        return paths;
    }

  private:
    std::string prefix_;
    int64_t vocab_, shard_tokens_, tokens_ = 0;
    std::vector<std::unique_ptr<ShardWriter>> shards_;
};

// Sends documents to one split or the other.
class Splitter {
  public:
    Splitter(const PrepareOptions& options, const Tokenizer& tokenizer)
        : train(options.out + "_train_", tokenizer.vocab_size(), options.shard_tokens),
          val(options.out + "_val_", tokenizer.vocab_size(), options.shard_tokens),
          tokenizer_(tokenizer),
          fraction_(options.val_fraction),
          target_(fraction_ >= 1 ? &val : &train) {}

    void text(std::string_view piece) {
        summary.nul_bytes += std::count(piece.begin(), piece.end(), '\0');
        if (input_ended_) end_document();
        if (!in_document_) begin_document();
        tokens_.clear();
        tokenizer_.encode(piece, tokens_);
        target_->append(tokens_.data(), static_cast<int64_t>(tokens_.size()));
    }

    void end_document() {
        int eot = tokenizer_.eot();
        target_->append(&eot, 1);
        in_document_ = input_ended_ = false;
    }

    void end_input() { input_ended_ = in_document_; }

    void finish() {
        int64_t total = train.tokens() + val.tokens(), tail = std::llround(fraction_ * static_cast<double>(total));
        if (val.tokens() == 0 && tail > 0) {
            train.move_tail(tail, val);
            summary.tail_held_out = true;
        }
        summary.train_tokens = train.tokens();
        summary.val_tokens = val.tokens();
    }

    Series train, val;
    PrepareSummary summary;

  private:
    void begin_document() {
        // Held out when half a document or more is lacking, taking it to be as long as those so far: then the error of
        // the split never adds up, and is half a document on average.
        double total = static_cast<double>(train.tokens() + val.tokens());
        double lacking = fraction_ * total - static_cast<double>(val.tokens());
        bool hold_out = fraction_ >= 1;
        if (fraction_ > 0 && summary.documents > 0) {
            double half = 0.5 * total / static_cast<double>(summary.documents);
            hold_out = hold_out || lacking >= half * (1 - 1e-9);
        }
        target_ = hold_out ? &val : &train;
        summary.documents++;
        if (hold_out) summary.val_documents++;
        in_document_ = true;
    }

    const Tokenizer& tokenizer_;
    double fraction_;
    Series* target_;  // of this document, or of the last one
    bool in_document_ = false;
    bool input_ended_ = false;  // within a document, which ends if more text comes
    std::vector<int> tokens_;
};

// Compressed text would give fine tokens and a useless model.
void refuse_compressed(const std::string& path, std::string_view start) {
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
        if (start.substr(0, kind.magic.size()) == kind.magic) {
            throw user_error("%s: is compressed (%s); unpack it first, as in: %s %s | tokenize - ...", path.c_str(),
                             kind.name, kind.unpack, path.c_str());
        }
    }
}

void read_input(const std::string& path, DocumentSplitter& documents) {
    struct Close {
        void operator()(FILE* f) const {
            if (f != stdin) fclose(f);
        }
    };
    bool standard = path == "-";
    if (!standard && folder_exists(path)) throw user_error("%s: is a folder; name text files", path.c_str());
    std::unique_ptr<FILE, Close> file(standard ? stdin : fopen(path.c_str(), "rb"));
    const char* shown = standard ? "standard input" : path.c_str();
    if (!file) throw user_error("%s: cannot be read: %s; check the path", shown, strerror(errno));
    std::vector<char> bytes(static_cast<size_t>(block));
    for (bool first = true;; first = false) {
        size_t n = fread(bytes.data(), 1, bytes.size(), file.get());
        if (ferror(file.get())) throw user_error("%s: cannot be read: %s; check the disk", shown, strerror(errno));
        if (first && !standard) refuse_compressed(path, {bytes.data(), n});
        documents.feed({bytes.data(), n});
        if (n < bytes.size()) break;
    }
    documents.finish();
}

void check_options(const PrepareOptions& options) {
    if (options.inputs.empty()) throw user_error("no input; name text files, or - for standard input");
    if (options.out.empty()) throw user_error("--out is empty; give the start of the names of the files to write");
    if (options.out.back() == '/') {
        throw user_error("--out %s: is a folder; add the start of the file names, as in %sdata", options.out.c_str(),
                         options.out.c_str());
    }
    if (!(options.val_fraction >= 0 && options.val_fraction <= 1)) {
        throw user_error("--val-fraction %g: is not between 0 and 1; choose a part of the text, as in 0.1",
                         options.val_fraction);
    }
    if (options.shard_tokens < 1 || options.shard_tokens > INT_MAX) {
        throw user_error("--shard-tokens %lld: is not between 1 and %d; choose how many tokens a file holds at most",
                         static_cast<long long>(options.shard_tokens), INT_MAX);
    }
    if (options.separator.find('\n') != std::string::npos) {
        throw user_error("--separator: holds a newline; give the text of one line");
    }
}

}  // namespace

DocumentSplitter::DocumentSplitter(std::string separator, TextSink on_text, SeparatorSink on_separator)
    : separator_(std::move(separator)), on_text_(std::move(on_text)), on_separator_(std::move(on_separator)) {}

void DocumentSplitter::flush() {
    if (!text_.empty()) on_text_(text_);
    text_.clear();
}

// What was held back is text after all.
void DocumentSplitter::no_separator() {
    if (held_newline_) text_ += '\n';
    text_.append(separator_, 0, matched_);
    held_newline_ = matching_ = false;
    matched_ = 0;
}

void DocumentSplitter::feed(std::string_view piece) {
    size_t at = 0;
    while (at < piece.size()) {
        if (!matching_) {
            size_t newline = std::min(piece.find('\n', at), piece.size());
            text_.append(piece.substr(at, newline - at));
            at = newline;
            if (at == piece.size()) break;
            at++;
            held_newline_ = matching_ = true;
        } else if (matched_ < separator_.size() && piece[at] == separator_[matched_]) {
            matched_++;
            at++;
        } else if (matched_ == separator_.size() && piece[at] == '\n') {
            flush();
            on_separator_();
            held_newline_ = false;
            matched_ = 0;
            at++;
        } else {
            no_separator();
        }
        if (text_.size() >= static_cast<size_t>(block)) flush();
    }
}

void DocumentSplitter::finish() {
    if (matching_ && matched_ == separator_.size() && matched_ > 0) {  // the last line lacks its newline
        flush();
        on_separator_();
    } else {
        no_separator();
        flush();
    }
    held_newline_ = false;
    matching_ = true;
    matched_ = 0;
}

PrepareSummary prepare(const PrepareOptions& options) {
    check_options(options);
    TokenizerPtr tokenizer = tokenizer_create(options.tokenizer);
    tokenizer->separator = options.separator;
    for (const std::string& input : options.inputs) {  // before hours of work on the first one
        if (input != "-" && !file_exists(input) && !folder_exists(input)) {
            throw user_error("%s: no such file; check the path", input.c_str());
        }
    }
    make_folders(parent_folder(options.out));

    Splitter splitter(options, *tokenizer);
    DocumentSplitter documents(
        options.separator, [&](std::string_view text) { splitter.text(text); }, [&] { splitter.end_document(); });
    for (const std::string& input : options.inputs) {
        read_input(input, documents);
        splitter.end_input();
    }
    PrepareSummary& summary = splitter.summary;
    if (summary.documents == 0) throw user_error("the input holds no text; name files with text");
    splitter.finish();

    for (Series* series : {&splitter.train, &splitter.val}) series->close();
    for (Series* series : {&splitter.train, &splitter.val}) {
        series->commit();
        for (size_t i = 0; i < series->num_shards(); i++) summary.files.push_back(series->path(i));
        for (const std::string& path : series->older_files()) {
            if (series->num_shards() == 0) {
                summary.stale.push_back(path);
            } else {
                remove(path.c_str());
                remove((parent_folder(path) + "/." + base_name(path) + ".checked").c_str());
            }
        }
    }
    std::string description = options.out + "_tokenizer.json";
    tokenizer_save(*tokenizer, description);
    summary.files.push_back(description);
    return summary;
}
