#include "dataloader/prepare.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdio>
#include <memory>
#include <thread>

#include "checkpoint/files.h"
#include "dataloader/shards.h"
#include "dataloader/text_input.h"
#include "dataloader/text_jobs.h"
#include "kernels/error.h"

namespace {

constexpr int64_t block = 1 << 20;  // tokens moved at a time, bytes of text handed on

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
          skip_bad_(options.skip_bad),
          target_(fraction_ >= 1 ? &val : &train) {}

    // tokens: the unit's.
    void unit(const TextUnit& unit, const std::string& source, const int* tokens) {
        if (!unit.fault.empty()) return skip(unit, source);
        const bool json = unit.kind == TextUnit::Kind::json_line;
        if (unit.tokens > 0 || json) text(tokens, unit);
        if (unit.ends_document) end_document();
        if (unit.ends_input) input_ended_ = in_document_;
    }

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
    void text(const int* tokens, const TextUnit& unit) {
        if (input_ended_) end_document();
        if (!in_document_) begin_document();
        const int64_t count = static_cast<int64_t>(unit.tokens);
        summary.eot_in_text += std::count(tokens, tokens + count, tokenizer_.eot());
        if (unit.not_utf8 && !not_utf8_) summary.documents_not_utf8++;
        not_utf8_ = not_utf8_ || unit.not_utf8;
        target_->append(tokens, count);
    }

    void end_document() {
        int eot = tokenizer_.eot();
        target_->append(&eot, 1);
        in_document_ = input_ended_ = false;
    }

    void skip(const TextUnit& unit, const std::string& source) {
        const std::string where =
            format("%s:%lld: %s", source.c_str(), static_cast<long long>(unit.line), unit.fault.c_str());
        if (!skip_bad_) throw user_error("%s; mend it, or leave such lines out with --skip-bad", where.c_str());
        summary.skipped_lines++;
        if (summary.first_skipped.size() < 5) summary.first_skipped.push_back(where);
    }

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
        not_utf8_ = false;
    }

    const Tokenizer& tokenizer_;
    double fraction_;
    bool skip_bad_;
    Series* target_;  // of this document, or of the last one
    bool in_document_ = false;
    bool input_ended_ = false;  // within a document, which ends if more text comes
    bool not_utf8_ = false;     // this document holds bytes that are not UTF-8
};

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
    if (options.threads < 0 || options.threads > 4096)
        throw user_error("--threads %d: is not between 0 (all cores) and 4096; choose how many cores to use",
                         options.threads);
    if (!options.field.empty() && !options.jsonl &&
        std::none_of(options.inputs.begin(), options.inputs.end(),
                     [](const std::string& path) { return path == "-" || is_jsonl(path); }))
        throw user_error("--field %s: no input is JSON lines; name .jsonl files, or say --jsonl",
                         printable(options.field).c_str());
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

// Of a line that was text.
void DocumentSplitter::end_line() {
    separators_with_cr_ += counting_ && behind_ == 1;
    counting_ = false;
}

void DocumentSplitter::feed(std::string_view piece) {
    size_t at = 0;
    while (at < piece.size()) {
        if (!matching_) {
            size_t newline = std::min(piece.find('\n', at), piece.size());
            text_.append(piece.substr(at, newline - at));
            behind_ += newline - at;
            at = newline;
            if (at == piece.size()) break;
            at++;
            end_line();
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
            counting_ = matched_ == separator_.size() && piece[at] == '\r';
            behind_ = 0;
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
        end_line();
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

    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    const std::string field = options.field.empty() ? "text" : options.field;
    Splitter splitter(options, *tokenizer);
    {
        JobQueue jobs(
            options.threads > 0 ? options.threads : std::max(cores, 1),
            [&](TextJob& job) { job.encode(*tokenizer, field); },
            [&](TextJob& job) {
                const int* tokens = job.tokens.data();
                for (const TextUnit& unit : job.units) {
                    splitter.unit(unit, job.source, tokens);
                    tokens += unit.tokens;
                }
            });
        JobBuilder builder(*tokenizer, [&](TextJob job) { jobs.add(std::move(job)); });
        for (const std::string& input : options.inputs) {
            const bool json = options.jsonl || is_jsonl(input) || (input == "-" && !options.field.empty());
            if (json) {
                read_json_lines(input, builder);
            } else {
                const TextSigns signs = read_documents(input, options.separator, field, builder);
                splitter.summary.separators_with_cr += signs.separators_with_cr;
                if (signs.json_line)
                    splitter.summary.like_json_lines.push_back(input == "-" ? "standard input" : input);
            }
        }
        jobs.finish();
    }
    PrepareSummary& summary = splitter.summary;
    if (summary.documents == 0)
        throw user_error("the input holds no text%s; name files with text",
                         summary.skipped_lines > 0 ? " besides bad lines" : "");
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
