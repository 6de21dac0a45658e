#include "dataloader/text_jobs.h"

#include <nlohmann/json.hpp>

#include "dataloader/utf8.h"
#include "kernels/error.h"

using nlohmann::json;

namespace {

constexpr size_t job_bytes = 256 << 10;  // a job is sent off when it has that many

}  // namespace

bool read_field(std::string_view line, const std::string& field, std::string& text, std::string& fault) {
    json object = json::parse(line, nullptr, false);
    if (object.is_discarded()) {
        fault = "is no JSON";
    } else if (!object.is_object()) {
        fault = "is no JSON object";
    } else if (!object.contains(field)) {
        fault = "has no field '" + printable(field) + "'";
    } else if (!object[field].is_string()) {
        fault = "has a field '" + printable(field) + "' that is no string";
    } else {
        text = std::move(object[field].get_ref<std::string&>());
    }
    return fault.empty();
}

void TextJob::encode(const Tokenizer& tokenizer, const std::string& field) {
    size_t at = 0;
    std::string of_field;
    for (TextUnit& unit : units) {
        const size_t before = tokens.size();
        std::string_view bytes = std::string_view(text).substr(at, unit.bytes);
        at += unit.bytes;
        if (unit.kind == TextUnit::Kind::json_line) {
            if (!read_field(bytes, field, of_field, unit.fault)) continue;
            bytes = of_field;
        }
        unit.not_utf8 = utf8_valid(bytes) < bytes.size();
        if (unit.kind == TextUnit::Kind::part) {
            tokenizer.encode_part(bytes, tokens);
        } else {
            tokenizer.encode(bytes, tokens);
        }
        unit.tokens = tokens.size() - before;
    }
    text = {};
}

JobBuilder::JobBuilder(const Tokenizer& tokenizer, Sink sink) : tokenizer_(tokenizer), sink_(std::move(sink)) {}

void JobBuilder::begin_input(const std::string& source) {
    job_.source = source;
    line_ = 0;
}

// Sends off the closed units; text of an open one stays.
void JobBuilder::emit() {
    TextJob next;
    next.source = job_.source;
    next.text = job_.text.substr(begin_);
    job_.text.resize(begin_);
    if (!job_.units.empty()) sink_(std::move(job_));
    job_ = std::move(next);
    begin_ = 0;
}

void JobBuilder::close(TextUnit unit) {
    if (unit.bytes == 0) unit.bytes = job_.text.size() - begin_;
    begin_ += unit.bytes;
    job_.units.push_back(std::move(unit));
    if (begin_ >= job_bytes) emit();
}

void JobBuilder::text(std::string_view piece) {
    job_.text += piece;
    while (job_.text.size() - begin_ > whole_text) {
        long_ = true;
        const size_t cut = tokenizer_.cut(std::string_view(job_.text).substr(begin_));
        if (cut == 0) break;
        TextUnit unit;
        unit.kind = TextUnit::Kind::part;
        unit.bytes = cut;
        close(unit);
    }
}

TextUnit JobBuilder::rest_of_text() {
    TextUnit unit;
    unit.kind = long_ ? TextUnit::Kind::part : TextUnit::Kind::whole;
    long_ = false;
    return unit;
}

void JobBuilder::end_document() {
    TextUnit unit = rest_of_text();
    unit.ends_document = true;
    close(unit);
}

void JobBuilder::json(std::string_view piece) {
    constexpr size_t longest_line = 256 << 20;
    job_.text += piece;
    if (job_.text.size() - begin_ > longest_line)
        throw user_error("%s:%lld: is longer than %zu MiB; JSON lines hold one document each", job_.source.c_str(),
                         static_cast<long long>(line_ + 1), longest_line >> 20);
}

void JobBuilder::end_line() {
    line_++;
    if (job_.text.find_first_not_of(" \t\r", begin_) == std::string::npos) {  // a blank line
        job_.text.resize(begin_);
        return;
    }
    TextUnit unit;
    unit.kind = TextUnit::Kind::json_line;
    unit.line = line_;
    unit.ends_document = true;
    close(unit);
}

void JobBuilder::end_input() {
    TextUnit unit = rest_of_text();
    unit.ends_input = true;
    close(unit);
    emit();
}

JobQueue::JobQueue(int threads, Action work, Action done)
    : work_(std::move(work)), done_(std::move(done)), most_(2 * static_cast<size_t>(threads) + 2) {
    // A single thread is the one that adds.
    for (int i = 0; threads > 1 && i < threads; i++) threads_.emplace_back([this] { run(); });
}

JobQueue::~JobQueue() {
    {
        std::lock_guard lock(mutex_);
        stop_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void JobQueue::run() {
    std::unique_lock lock(mutex_);
    while (true) {
        changed_.wait(lock, [&] { return stop_ || !waiting_.empty(); });
        if (stop_) return;
        std::shared_ptr<Entry> entry = waiting_.front();
        waiting_.pop_front();
        lock.unlock();
        try {
            work_(entry->job);
        } catch (...) {
            entry->error = std::current_exception();
        }
        lock.lock();
        entry->finished = true;
        changed_.notify_all();
    }
}

// Hands on the first jobs until no more than that many are left, and those that happen to be finished.
void JobQueue::hand_on(std::unique_lock<std::mutex>& lock, size_t most_left) {
    while (!entries_.empty() && (entries_.size() > most_left || entries_.front()->finished)) {
        std::shared_ptr<Entry> entry = entries_.front();
        changed_.wait(lock, [&] { return entry->finished; });
        entries_.pop_front();
        lock.unlock();
        if (entry->error) std::rethrow_exception(entry->error);
        done_(entry->job);
        lock.lock();
    }
}

void JobQueue::add(TextJob job) {
    if (threads_.empty()) {
        work_(job);
        done_(job);
        return;
    }
    auto entry = std::make_shared<Entry>();
    entry->job = std::move(job);
    std::unique_lock lock(mutex_);
    entries_.push_back(entry);
    waiting_.push_back(entry);
    changed_.notify_all();
    hand_on(lock, most_);
}

void JobQueue::finish() {
    std::unique_lock lock(mutex_);
    hand_on(lock, 0);
}
