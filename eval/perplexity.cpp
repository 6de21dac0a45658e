#include "eval/perplexity.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>

#include "checkpoint/files.h"
#include "dataloader/prepare.h"
#include "dataloader/shards.h"
#include "eval/examples.h"
#include "eval/score.h"
#include "kernels/error.h"
#include "model/model.h"

double Perplexity::ppl() const {
    return std::exp(nll / static_cast<double>(tokens));
}
double Perplexity::word_ppl() const {
    return words > 0 ? std::exp(nll / static_cast<double>(words)) : NAN;
}
double Perplexity::bits_per_byte() const {
    return nll / (std::log(2.0) * static_cast<double>(bytes));
}

namespace {

// Words and bytes of a text that comes in pieces.
struct Counter {
    int64_t words = 0, bytes = 0;
    bool in_word = false, after_text = false;
    void text(std::string_view piece) {
        bytes += static_cast<int64_t>(piece.size());
        for (unsigned char c : piece) {
            words += !std::isspace(c) && !in_word;
            in_word = !std::isspace(c);
        }
        after_text = after_text || !piece.empty();
    }
    void separator(const Tokenizer& tokenizer) {  // its line, and the newline that ends the text before it
        bytes += static_cast<int64_t>(tokenizer.separator.size()) + 1 + after_text;
        in_word = after_text = false;
    }
};

// Of the text that tokens [first, last) stand for.
Counter count_tokens(const std::vector<int>& tokens, size_t first, size_t last, const Tokenizer& tokenizer) {
    Counter counter;
    counter.after_text = first > 0 && tokens[first - 1] != tokenizer.eot();
    std::string piece;
    for (size_t i = first; i < last; i++) {
        if (tokens[i] == tokenizer.eot()) {
            counter.separator(tokenizer);
            continue;
        }
        piece.clear();
        tokenizer.decode(tokens[i], piece);
        counter.text(piece);
    }
    return counter;
}

// Documents are encoded whole: a cut would change the tokens beside it.
void read_documents(TextTokens& out, const std::string& path, const std::string& text, const Tokenizer& tokenizer) {
    Counter counter;
    const std::string_view first = std::string_view(text).substr(0, text.find('\n'));
    if (is_text_object(first) || path.ends_with(".jsonl")) {
        bool behind_another = false;
        for_each_line(text, [&](std::string_view line, int64_t number) {
            const bool blank = line.find_first_not_of(" \t") == std::string_view::npos;
            if (blank) return;
            if (behind_another) {
                out.tokens.push_back(tokenizer.eot());
                counter.separator(tokenizer);
            }
            behind_another = true;
            const std::string document = text_of_object(path, line, number);
            tokenizer.encode(document, out.tokens);
            counter.text(document);
        });
        out.bytes = counter.bytes;
    } else {
        std::string document;
        auto encode = [&] {
            tokenizer.encode(document, out.tokens);
            counter.text(document);
            document.clear();
        };
        auto on_separator = [&] {
            encode();
            out.tokens.push_back(tokenizer.eot());
            counter.separator(tokenizer);
        };
        DocumentSplitter splitter(
            tokenizer.separator, [&](std::string_view piece) { document += piece; }, on_separator);
        splitter.feed(text);
        splitter.finish();
        encode();
        out.bytes = static_cast<int64_t>(text.size());
    }
    out.words = counter.words;
}

// The first four bytes are the magic number of a shard.
bool is_shard(std::string_view start) {
    if (start.size() < 4) return false;
    uint32_t magic = 0;
    for (size_t i = 4; i-- > 0;) magic = magic << 8 | static_cast<unsigned char>(start[i]);
    return magic == 20240520 || magic == 20240801;
}

// Of a regular file; reading a pipe would take the bytes away.
std::string first_bytes(const std::string& path) {
    std::error_code ignored;
    FILE* file = std::filesystem::is_regular_file(path, ignored) ? fopen(path.c_str(), "rb") : nullptr;
    if (file == nullptr) return "";
    char bytes[4];
    const size_t read = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    return {bytes, read};
}

}  // namespace

TextTokens read_text_tokens(const std::string& path, const Tokenizer& tokenizer, int vocab) {
    TextTokens out;
    out.path = path;
    if (is_shard(first_bytes(path))) {
        check_shard_tokenizer(path, tokenizer);
        const Shard shard = shards_open(path, vocab).at(0);
        for (int64_t i = 0; i < shard.num_tokens; i++) out.tokens.push_back(shard.token(i));
        const Counter counter = count_tokens(out.tokens, 0, out.tokens.size(), tokenizer);
        out.words = counter.words;
        out.bytes = counter.bytes;
    } else {
        const std::string text = read_plain(path);
        if (is_shard(text)) throw user_error("%s: is a token shard in a pipe; name its file", path.c_str());
        read_documents(out, path, text, tokenizer);
    }
    if (out.tokens.empty()) throw user_error("%s: holds no text, so it has no perplexity", path.c_str());
    for (int token : out.tokens) {
        if (token >= vocab)
            throw user_error("%s: its token %d is outside the model's vocabulary of %d; is this the model's tokenizer?",
                             path.c_str(), token, vocab);
    }
    return out;
}

Perplexity perplexity(Model& model, const TextTokens& text, const Tokenizer& tokenizer, const Windows& windows,
                      Comm* comm) {
    const int B = windows.B, T = windows.T, stride = windows.stride == 0 ? T : windows.stride;
    if (stride < 1 || stride > T)
        throw user_error("--stride %d: it must lie between 1 and the context of %d tokens", stride, T);
    // Token number i is predicted from the one before it: the first from end-of-text, or not at all.
    const int64_t all = static_cast<int64_t>(text.tokens.size()), begin = windows.whole_chunks ? 1 : 0;
    const int64_t n = windows.whole_chunks ? begin + (all - 1) / T * T : all;
    if (n == begin)
        throw user_error("%s: its %lld tokens fill no chunk of %d and the one after it; leave --whole-chunks out",
                         text.path.c_str(), static_cast<long long>(all), T);
    auto token = [&](int64_t i) { return i < 0 ? tokenizer.eot() : text.tokens[static_cast<size_t>(i)]; };

    Perplexity result;
    result.tokens = n - begin;
    result.words = text.words;
    result.bytes = text.bytes;
    if (windows.whole_chunks) {
        result.dropped = all - result.tokens;
        const Counter counter =
            count_tokens(text.tokens, static_cast<size_t>(begin), static_cast<size_t>(n), tokenizer);
        result.words = counter.words;
        result.bytes = counter.bytes;
    }
    std::vector<int> inputs(static_cast<size_t>(B) * static_cast<size_t>(T)), targets(inputs.size());
    std::vector<double> losses;  // of the batches
    int rows = 0;
    auto flush = [&] {
        if (rows == 0) return;
        const bool mine = my_turn(comm, static_cast<int64_t>(losses.size()));
        losses.push_back(mine ? model_loss(model, inputs.data(), targets.data(), rows, T) : 0.0);
        rows = 0;
    };
    int64_t predicted = begin;  // tokens that have had their turn
    for (int64_t start = begin; predicted < n; start += stride) {
        const int64_t end = std::min(start + T, n);
        for (int t = 0; t < T; t++) {
            const size_t at = static_cast<size_t>(rows) * static_cast<size_t>(T) + static_cast<size_t>(t);
            const int64_t i = start + t;
            // Behind the end of the text: any token will do, causality keeps it from the others.
            inputs[at] = i < end ? token(i - 1) : 0;
            targets[at] = i < end && i >= predicted ? token(i) : -1;
        }
        predicted = end;
        if (++rows == B) flush();
    }
    flush();
    share_results(comm, losses);
    for (double loss : losses) result.nll += loss;
    return result;
}
