#include "eval/perplexity.h"

#include <algorithm>
#include <cctype>
#include <cmath>

#include "checkpoint/files.h"
#include "dataloader/prepare.h"
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

TextTokens read_text_tokens(const std::string& path, const Tokenizer& tokenizer, int vocab) {
    const std::string text = read_text(path);
    if (text.empty()) throw user_error("%s: the file is empty, so it has no perplexity", path.c_str());
    TextTokens out;
    out.bytes = static_cast<int64_t>(text.size());
    bool in_word = false;
    auto on_text = [&](std::string_view piece) {
        tokenizer.encode(piece, out.tokens);
        for (unsigned char c : piece) {
            out.words += !std::isspace(c) && !in_word;
            in_word = !std::isspace(c);
        }
    };
    auto on_separator = [&] {
        out.tokens.push_back(tokenizer.eot());
        in_word = false;
    };
    DocumentSplitter splitter(tokenizer.separator, on_text, on_separator);
    splitter.feed(text);
    splitter.finish();
    for (int token : out.tokens) {
        if (token >= vocab)
            throw user_error("%s: its token %d is outside the model's vocabulary of %d; is this the model's tokenizer?",
                             path.c_str(), token, vocab);
    }
    return out;
}

Perplexity perplexity(Model& model, const TextTokens& text, int eot, int B, int T, int stride) {
    if (stride == 0) stride = T;
    if (stride < 1 || stride > T)
        throw user_error("--stride %d: it must lie between 1 and the context of %d tokens", stride, T);
    const int64_t n = static_cast<int64_t>(text.tokens.size());
    // predictors[i] is the token before tokens[i].
    std::vector<int> predictors(text.tokens.size());
    predictors[0] = eot >= 0 && eot < model_config(model).vocab ? eot : 0;
    std::copy(text.tokens.begin(), text.tokens.end() - 1, predictors.begin() + 1);

    Perplexity result;
    result.tokens = n;
    result.words = text.words;
    result.bytes = text.bytes;
    std::vector<int> inputs(static_cast<size_t>(B) * static_cast<size_t>(T)), targets(inputs.size());
    int rows = 0;
    auto flush = [&] {
        if (rows > 0) result.nll += model_loss(model, inputs.data(), targets.data(), rows, T);
        rows = 0;
    };
    int64_t predicted = 0;  // tokens that have had their turn
    for (int64_t start = 0; predicted < n; start += stride) {
        const int64_t end = std::min(start + T, n);
        for (int t = 0; t < T; t++) {
            const size_t at = static_cast<size_t>(rows) * static_cast<size_t>(T) + static_cast<size_t>(t);
            const int64_t i = start + t;
            // Behind the end of the text: any token will do, causality keeps it from the others.
            inputs[at] = i < end ? predictors[static_cast<size_t>(i)] : 0;
            targets[at] = i < end && i >= predicted ? text.tokens[static_cast<size_t>(i)] : -1;
        }
        predicted = end;
        if (++rows == B) flush();
    }
    flush();
    return result;
}
