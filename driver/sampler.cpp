#include "driver/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

// splitmix64's output function: a bijection that mixes all bits.
static uint64_t mix(uint64_t z) {
    z += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

int pick_token(const float* logits, int V, const SampleSettings& s, double uniform) {
    if (s.temperature == 0) return static_cast<int>(std::max_element(logits, logits + V) - logits);
    std::vector<int> order(static_cast<size_t>(V));
    std::iota(order.begin(), order.end(), 0);
    const bool cut = (s.top_k > 0 && s.top_k < V) || s.top_p < 1.0;
    if (cut) {  // only then does the order matter
        std::sort(order.begin(), order.end(),
                  [&](int a, int b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
        if (s.top_k > 0 && s.top_k < V) order.resize(static_cast<size_t>(s.top_k));
    }
    const double largest = *std::max_element(logits, logits + V);
    std::vector<double> weight(order.size());
    double total = 0;
    for (size_t i = 0; i < order.size(); i++) {
        weight[i] = std::exp((logits[order[i]] - largest) / s.temperature);
        total += weight[i];
    }
    if (s.top_p < 1.0) {
        double kept = 0;
        size_t n = 0;
        while (n < order.size() && (n == 0 || kept < s.top_p * total)) kept += weight[n++];
        order.resize(n);
        total = kept;
    }
    double left = uniform * total;
    for (size_t i = 0; i < order.size(); i++) {
        left -= weight[i];
        if (left < 0) return order[i];
    }
    // Rounding has left a crumb: the last token that can be drawn at all.
    for (size_t i = order.size(); i-- > 0;) {
        if (weight[i] > 0) return order[i];
    }
    return order[0];
}

void generate(Model& model, std::vector<int>& tokens, int count, int T, const SampleSettings& s, uint64_t sample,
              const std::function<bool(int)>& on_token) {
    const int V = model_config(model).vocab;
    std::vector<float> logits(static_cast<size_t>(V));
    for (int i = 0; i < count; i++) {
        const int t = static_cast<int>(std::min<size_t>(tokens.size(), static_cast<size_t>(T)));
        model_last_logits(model, tokens.data() + tokens.size() - static_cast<size_t>(t), t, logits.data());
        const uint64_t bits = mix(mix(s.seed ^ mix(sample)) + static_cast<uint64_t>(i));
        const int token = pick_token(logits.data(), V, s, static_cast<double>(bits >> 11) * 0x1p-53);
        tokens.push_back(token);
        if (!on_token(token)) return;
    }
}
