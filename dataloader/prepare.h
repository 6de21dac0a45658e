// Text files to token shards: what the program tokenize does, without its command line.
//
// Documents. A line that is exactly the separator ends a document; it becomes the tokenizer's end-of-text token, which
// takes the place of the line, its newline, and the newline before it. Everything else is text, byte for byte (line
// ends included; a separator line ended by CR LF is not one, but counted; a UTF-8 byte order mark at the start of an
// input is dropped). Between two inputs a document ends as well, with one token, unless the first of them ended with a
// separator. After the last text no token is added.
// In JSON lines every line is an object with the document in one field, a string; the token ends each of them, the
// last one too, separator lines in it are text, and blank lines are passed over.
//
// Memory. What is held is bounded, whatever the size of the input: documents of more than 1 MiB are encoded in parts,
// which changes no token (Tokenizer::cut). A line of JSON is read whole, and refused above 256 MiB.
//
// The split. Whole documents are held out, spread evenly over the text so that val_fraction of its tokens is met at
// the nearest end of a document. When that would hold out none (one document, or few and a small fraction), the tail of
// the text is: the last round(val_fraction * tokens) tokens. 1 holds out everything, 0 nothing.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

struct PrepareOptions {
    std::vector<std::string> inputs;  // files; "-" is standard input
    std::string out;                  // PREFIX of the files written
    std::string tokenizer = "bytes";
    double val_fraction = 0.1;
    int64_t shard_tokens = 100'000'000;
    std::string separator = "<|endoftext|>";
    bool jsonl = false;     // every input is JSON lines, not only those named *.jsonl (in any case)
    std::string field;      // of JSON lines; empty: "text". Standard input is JSON lines when it is given
    bool skip_bad = false;  // lines that are no such object are left out and counted
    int threads = 0;        // 0: as many as there are cores
};

struct PrepareSummary {
    int64_t documents = 0, val_documents = 0;
    int64_t train_tokens = 0, val_tokens = 0;
    int64_t eot_in_text = 0;                   // tokens of text that read as ends of documents: NUL with `bytes`
    int64_t documents_not_utf8 = 0;            // hold bytes that are not UTF-8
    int64_t separators_with_cr = 0;            // lines that would be separators but for a CR before the newline: text
    std::vector<std::string> like_json_lines;  // inputs read as text that begin with a JSON object with the field
    int64_t skipped_lines = 0;
    std::vector<std::string> first_skipped;  // "FILE:LINE: why" of the first five
    bool tail_held_out = false;
    std::vector<std::string> files;  // written, in order
    std::vector<std::string> stale;  // shards of an earlier run of this PREFIX, in a split that this run did not write
};

// Writes PREFIX_train_%06d.bin, PREFIX_val_%06d.bin (a split without tokens has no file) and PREFIX_tokenizer.json, in
// constant memory. All lie aside until everything is written; then they replace those of an earlier run, whose further
// shards of the same split are removed. UserError for options and inputs that cannot be.
PrepareSummary prepare(const PrepareOptions& options);

// Finds separator lines in text that comes in pieces of any size.
class DocumentSplitter {
  public:
    using TextSink = std::function<void(std::string_view)>;
    using SeparatorSink = std::function<void()>;
    // separator: without newlines; the empty one makes every blank line a separator.
    DocumentSplitter(std::string separator, TextSink on_text, SeparatorSink on_separator);
    void feed(std::string_view piece);
    void finish();  // the input ends here; the next feed begins a new one
    int64_t separators_with_cr() const { return separators_with_cr_; }  // lines taken for text because of a CR

  private:
    void no_separator();
    void end_line();
    void flush();
    std::string separator_;
    TextSink on_text_;
    SeparatorSink on_separator_;
    std::string text_;           // gathered, for the sink to get it in large pieces
    bool held_newline_ = false;  // the newline before this line: not yet known to be text
    bool matching_ = true;       // this line is a prefix of the separator so far,
    size_t matched_ = 0;         // this long
    bool counting_ = false;      // this line is the separator, a CR, and maybe more:
    size_t behind_ = 0;          // so many bytes behind the separator
    int64_t separators_with_cr_ = 0;
};
