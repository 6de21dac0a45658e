// Text on its way from files to tokens: cut into jobs, encoded by several threads, handed on in order. Memory is
// bounded by the jobs under way, and what comes out does not depend on the number of threads.
#pragma once
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "dataloader/tokenizer.h"

// Stretches of text that follow each other in a job.
struct TextUnit {
    enum class Kind { whole, part, json_line };  // a document; a part of a long one; a line that holds a document
    Kind kind = Kind::whole;
    size_t bytes = 0;
    bool ends_document = false;  // by a separator, or as JSON lines do
    bool ends_input = false;
    int64_t line = 0;  // of a JSON line: its number, from 1

    // Once encoded:
    size_t tokens = 0;
    bool not_utf8 = false;  // holds bytes that are not UTF-8
    std::string fault;      // why a JSON line gives no document
};

// The string in that field of a line of JSON; false with the reason in `fault`.
bool read_field(std::string_view line, const std::string& field, std::string& text, std::string& fault);

struct TextJob {
    std::string source;  // the input, to be named in messages
    std::string text;
    std::vector<TextUnit> units;
    std::vector<int> tokens;  // of all units; those of a JSON line are its field's

    void encode(const Tokenizer& tokenizer, const std::string& field);
};

// Gathers text into jobs.
class JobBuilder {
  public:
    using Sink = std::function<void(TextJob)>;
    JobBuilder(const Tokenizer& tokenizer, Sink sink);
    void begin_input(const std::string& source);
    void text(std::string_view piece);  // more of the document
    void end_document();
    void json(std::string_view piece);  // more of a line
    void end_line();
    void end_input();  // of text: a document goes on to its end there

  private:
    void close(TextUnit unit);
    void emit();
    TextUnit rest_of_text();  // what is left of the open document
    const Tokenizer& tokenizer_;
    Sink sink_;
    TextJob job_;
    size_t begin_ = 0;   // in the job's text, of the unit that is open
    bool long_ = false;  // parts of this document have been closed already
    int64_t line_ = 0;
};

// Runs `work` on jobs in several threads, and `done` on each of them in the order in which they were added, in the
// thread that adds them. What `work` throws, add or finish throws when the job's turn comes.
class JobQueue {
  public:
    using Action = std::function<void(TextJob&)>;
    JobQueue(int threads, Action work, Action done);
    ~JobQueue();  // jobs that are not done are dropped
    JobQueue(const JobQueue&) = delete;
    JobQueue& operator=(const JobQueue&) = delete;
    void add(TextJob job);
    void finish();  // waits for all

  private:
    struct Entry {
        TextJob job;
        bool finished = false;
        std::exception_ptr error;
    };
    void run();
    void hand_on(std::unique_lock<std::mutex>& lock, size_t most_left);
    Action work_, done_;
    size_t most_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::shared_ptr<Entry>> entries_, waiting_;  // all in order; those no thread has taken up
    bool stop_ = false;
    std::vector<std::thread> threads_;
};
