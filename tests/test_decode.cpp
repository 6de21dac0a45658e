// Decoding with a cache of keys and values against whole forward passes, for every residual rule and norm scheme.
#include <set>

#include "decode_model.h"

using nlohmann::json;

namespace {

// Cached and whole passes do the same sums in another order (attention over splits, products with fewer rows): a few
// roundings per layer, amplified by norms and by these large random weights. fp32: 2^-24 times a hundred or so. bf16:
// every activation is rounded to 8 bits, and another order flips some of these roundings, in four layers and two
// sublayers each. Measured worst: 1.8e-6 and 4.2e-2.
constexpr double tolerance = sizeof(floatX) == 4 ? 1e-5 : 1e-1;

// Largest difference of a row of logits from those of the whole text, relative to the largest logit.
double error(Model& model, const std::vector<int>& text, const float* logits) {
    const size_t V = static_cast<size_t>(model_config(model).vocab);
    std::vector<float> whole(V);
    model_last_logits(model, text.data(), static_cast<int>(text.size()), whole.data());
    double most = 0, worst = 0;
    for (size_t i = 0; i < V; i++) {
        if (!std::isfinite(logits[i])) return INFINITY;
        most = std::max(most, std::fabs(static_cast<double>(whole[i])));
        worst = std::max(worst, std::fabs(static_cast<double>(logits[i]) - static_cast<double>(whole[i])));
    }
    return worst / most;
}

// Two rows that begin with the same 5 tokens and go on apart until the context is full; then both begin anew.
double decoding_error(Model& model) {
    const int V = model_config(model).vocab, rows = 2, start = 5;
    std::vector<std::vector<int>> text(rows, recipe_tokens(0, start, V));
    std::vector<float> logits(static_cast<size_t>(rows * V));
    DecoderPtr decoder = decoder_create(model, rows, CONTEXT);
    decoder_start(*decoder, text[0].data(), start, logits.data());
    double worst = error(model, text[0], logits.data());
    auto compare = [&] {
        for (int r = 0; r < rows; r++)
            worst = std::max(worst, error(model, text[static_cast<size_t>(r)], logits.data() + r * V));
    };
    auto step = [&] {
        const int t = decoder_length(*decoder);
        std::vector<int> next;
        for (int r = 0; r < rows; r++) {
            next.push_back(recipe_tokens(100 + 40 * r + t, 1, V)[0]);
            text[static_cast<size_t>(r)].push_back(next.back());
        }
        decoder_step(*decoder, next.data(), logits.data());
    };
    while (decoder_length(*decoder) < CONTEXT) {
        step();
        if (decoder_length(*decoder) % 6 == 0) compare();
    }
    std::vector<int> last;
    for (std::vector<int>& row : text) {
        row.erase(row.begin(), row.end() - 4);
        last.insert(last.end(), row.begin(), row.end());
    }
    decoder_restart(*decoder, last.data(), 4, logits.data());
    compare();
    step();
    compare();
    return worst;
}

}  // namespace

TEST_CASE("decoding with a cache gives the logits of whole passes, whatever the rule", "[decode]") {
    const json all = json::parse(read_text(golden_rules + "cases.json"));
    std::set<std::string> rules;
    for (const json& one : all["cases"]) {
        INFO("case " << one["name"].get<std::string>());
        const ModelConfig config = widened(case_config(one));
        ModelPtr model = small_model(config, 1, CONTEXT, Use::inference);
        model_set_time(*model, 700, 2);  // in the middle of schedules
        CHECK(decoding_error(*model) <= tolerance);
        rules.insert(parse_residual(config.residual).rule);
    }
    for (const RuleSummary& rule : rule_summaries()) {
        INFO(rule.name);
        CHECK(rules.count(rule.name) == 1);
    }
}

TEST_CASE("decoding on a training model leaves its updates alone", "[decode]") {
    for (const char* residual : {"vanilla+prores", "mhc+value", "attnres", "gpas"}) {
        INFO(residual);
        ModelConfig config = plain(Arch::gpt2);
        config.residual = residual;
        const int B = 2, T = 6;  // B*T tokens hold one text as long as the context
        auto gradients_with = [&](bool decode) {
            ModelPtr model = small_model(config, B, T, Use::training);
            model_set_time(*model, 700, 2);
            for (int micro = 0; micro < 2; micro++) {
                const std::vector<int> tokens = recipe_tokens(50 * micro, B * T + 1, config.vocab);
                model_forward_backward(*model, tokens.data(), tokens.data() + 1, B, T, 1.0 / (B * T));
                if (decode && micro == 0) CHECK(decoding_error(*model) <= tolerance);
            }
            return gradients(*model);
        };
        CHECK(gradients_with(true) == gradients_with(false));
    }
}

TEST_CASE("memory of a decoder", "[decode]") {
    ModelConfig config = plain(Arch::llama);
    // Two layers, two key heads of 8 channels, keys and values.
    const size_t one = 2 * 2 * 8 * 2 * sizeof(floatX);
    CHECK(decoder_bytes(config, 3, 10) >= 3 * 10 * one);
    CHECK(decoder_bytes(config, 3, 10) <= 3 * 10 * one + 256 + 4096);  // and the scratch of attention
    ModelPtr model = small_model(config, 1, CONTEXT, Use::inference);
    CHECK(decoder_rows(*model, 1, CONTEXT) == 1);
    CHECK(decoder_rows(*model, 100, CONTEXT) == CONTEXT);  // as many as the model's buffers have rows
}
