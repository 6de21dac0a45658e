#include "driver/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/error.h"

// splitmix64's output function: a bijection that mixes all bits.
static uint64_t mix(uint64_t z) {
    z += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

int pick_token(const float* logits, int V, const SampleSettings& s, double uniform) {
    double largest = logits[0];
    for (int i = 0; i < V; i++) {
        if (!std::isfinite(logits[i]))
            throw user_error("the model's logits are not finite: it has diverged, or its weights are damaged");
        largest = std::max<double>(largest, logits[i]);
    }
    if (s.temperature == 0) return static_cast<int>(std::max_element(logits, logits + V) - logits);
    auto weight = [&](int token) { return std::exp((logits[token] - largest) / s.temperature); };
    auto likelier = [&](int a, int b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };

    std::vector<int> order(static_cast<size_t>(V));
    std::iota(order.begin(), order.end(), 0);
    // The likeliest are brought to the front and ordered only as far as needed.
    auto sort_range = [&](size_t begin, size_t end) {
        const auto from = order.begin() + static_cast<int64_t>(begin), to = order.begin() + static_cast<int64_t>(end);
        if (end < order.size()) std::nth_element(from, to, order.end(), likelier);
        std::sort(from, to, likelier);
    };
    const bool top_k = s.top_k > 0 && s.top_k < V;
    if (top_k) {
        sort_range(0, static_cast<size_t>(s.top_k));
        order.resize(static_cast<size_t>(s.top_k));
    }
    double total = 0;
    for (int token : order) total += weight(token);
    if (s.top_p < 1.0) {
        double kept = 0;
        size_t n = 0, sorted = top_k ? order.size() : 0;
        while (n == 0 || (n < order.size() && kept < s.top_p * total)) {
            if (n == sorted) sort_range(n, sorted = std::min(order.size(), 64 + 4 * n));
            kept += weight(order[n++]);
        }
        order.resize(n);
        total = kept;
    }
    double left = uniform * total;
    for (int token : order) {
        left -= weight(token);
        if (left < 0) return token;
    }
    // Rounding has left a crumb: the last token that can be drawn at all.
    return *std::find_if(order.rbegin(), order.rend(), [&](int token) { return weight(token) > 0; });
}

void check_tokens(const std::vector<int>& tokens, int vocab, const char* option) {
    for (int token : tokens) {
        if (token < 0 || token >= vocab)
            throw user_error("%s: token %d is outside the model's vocabulary of %d", option, token, vocab);
    }
}

std::vector<int> prompt_tokens(const Tokenizer& tokenizer, std::string_view prompt, int vocab) {
    std::vector<int> tokens = tokenizer.encode(prompt);
    if (tokens.empty()) tokens.push_back(tokenizer.eot());
    check_tokens(tokens, vocab, "--prompt");
    return tokens;
}

namespace {

// Samples that are decoded together; sample[0] of them is number `first`.
struct Batch {
    uint64_t first;
    std::vector<std::vector<int>> text;  // prompt and new tokens
    std::vector<char> ended;
};

// The next token's logits (rows,V), behind the newest token of every row.
void next_logits(Decoder& decoder, const Batch& batch, int T, bool begin, std::vector<float>& logits) {
    const size_t rows = batch.text.size(), length = batch.text[0].size();
    std::vector<int> tokens;
    if (begin) {
        const size_t t = std::min(length, static_cast<size_t>(T));
        decoder_start(decoder, batch.text[0].data() + length - t, static_cast<int>(t), logits.data());
        const size_t V = logits.size() / rows;
        for (size_t r = 1; r < rows; r++) std::copy_n(logits.begin(), V, logits.begin() + static_cast<int64_t>(r * V));
    } else if (decoder_length(decoder) < T) {
        for (const std::vector<int>& text : batch.text) tokens.push_back(text.back());
        decoder_step(decoder, tokens.data(), logits.data());
    } else {
        const int t = std::max(T / 2, 1);
        for (const std::vector<int>& text : batch.text) tokens.insert(tokens.end(), text.end() - t, text.end());
        decoder_restart(decoder, tokens.data(), t, logits.data());
    }
}

}  // namespace

void generate(Model& model, const std::vector<int>& prompt, int count, int T, const SampleSettings& s, uint64_t first,
              int num, const std::function<bool(int, int)>& on_token) {
    const int V = model_config(model).vocab;
    // The last new token is not fed back.
    const int64_t length = static_cast<int64_t>(prompt.size()) + count - 1;
    const int capacity = static_cast<int>(std::min<int64_t>(length, T));
    const int together = decoder_rows(model, num, capacity);
    for (int done = 0; done < num; done += together) {
        const int rows = std::min(together, num - done);
        DecoderPtr decoder = decoder_create(model, rows, capacity);
        Batch batch{first + static_cast<uint64_t>(done), {static_cast<size_t>(rows), prompt}, {}};
        batch.ended.assign(static_cast<size_t>(rows), 0);
        std::vector<float> logits(static_cast<size_t>(rows) * static_cast<size_t>(V));
        for (int i = 0; i < count; i++) {
            next_logits(*decoder, batch, T, i == 0, logits);
            bool all_ended = true;
            for (int r = 0; r < rows; r++) {
                const size_t row = static_cast<size_t>(r);
                const uint64_t bits = mix(mix(s.seed ^ mix(batch.first + row)) + static_cast<uint64_t>(i));
                const double uniform = static_cast<double>(bits >> 11) * 0x1p-53;
                const int token = pick_token(logits.data() + row * static_cast<size_t>(V), V, s, uniform);
                batch.text[row].push_back(token);  // a sample that has ended goes on unheard
                if (!batch.ended[row]) batch.ended[row] = !on_token(done + r, token);
                all_ended = all_ended && batch.ended[row];
            }
            if (all_ended) break;
        }
    }
}

size_t complete_utf8(std::string_view text) {
    // The last byte that is no continuation, among the three in which an unfinished character can begin.
    for (size_t back = 1; back <= 3 && back <= text.size(); back++) {
        const unsigned char byte = static_cast<unsigned char>(text[text.size() - back]);
        if ((byte & 0xC0) == 0x80) continue;
        const size_t needed = byte < 0xC2 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : byte < 0xF5 ? 4 : 1;
        return needed > back ? text.size() - back : text.size();
    }
    return text.size();
}
