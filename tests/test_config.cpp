#include "model/config.h"

#include <nlohmann/json.hpp>

#include "driver/options.h"
#include "test.h"

using nlohmann::json;

namespace {

// The line with which a config.json, or a model asked for on the command line, is refused; empty: it is accepted.
std::string refusal(const std::string& text) {
    std::vector<std::string> notes;
    try {
        check_config(config_from_json(text, "x/config.json", notes));
    } catch (const UserError& e) {
        return e.what();
    }
    return "";
}
ModelConfig asked(std::vector<std::string> words) {
    words.insert(words.begin(), {"train_gpt2", "--dry-run"});
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    std::vector<std::string> notes;
    return options_config(*parse_train_options(static_cast<int>(argv.size()), argv.data()), "", notes);
}
std::string refusal(const std::vector<std::string>& words) {
    try {
        asked(words);
    } catch (const UserError& e) {
        return e.what();
    }
    return "";
}
bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("config.json comes back as it went", "[model]") {
    ModelConfig config = preset_config("gpt2-mls");
    config.norm_eps = 1e-3f;
    config.ffn = 100;
    config.tie = false;
    config.residual_step = 42;
    std::vector<std::string> notes;
    const ModelConfig back = config_from_json(config_to_json(config), "config.json", notes);
    CHECK(notes.empty());
    CHECK(back.layers == config.layers);
    CHECK(back.heads == config.heads);
    CHECK(back.channels == config.channels);
    CHECK(back.context == config.context);
    CHECK(back.vocab == config.vocab);
    CHECK(back.ffn == 100);
    CHECK(back.activation == Activation::gelu);
    CHECK(back.norm_eps == config.norm_eps);
    CHECK((!back.bias && !back.tie));
    CHECK(back.residual_step == 42);
}

TEST_CASE("what config.json may say wrongly is named", "[model]") {
    std::vector<std::string> notes;
    const std::string good = config_to_json(preset_config("gpt2-nano"));
    auto with = [&](const std::string& from, const std::string& to) {
        std::string text = good;
        const size_t at = text.find(from);
        REQUIRE(at != std::string::npos);
        return text.replace(at, from.size(), to);
    };
    auto message = [&](const std::string& text) -> std::string {
        try {
            check_config(config_from_json(text, "x/config.json", notes));
        } catch (const UserError& e) {
            return e.what();
        }
        return "";
    };
    CHECK(message(good).empty());
    CHECK(message("{").find("x/config.json") != std::string::npos);
    CHECK(message(with("\"n_layer\": 4", "\"n_layer\": -4")).find("n_layer") != std::string::npos);
    CHECK(message(with("\"n_layer\": 4", "\"n_layer\": \"four\"")).find("n_layer") != std::string::npos);
    CHECK(message(with("\"n_head\": 4", "\"n_head\": 3")).find("divisible") != std::string::npos);
    CHECK(message(with("\"gpt2\"", "\"bert\"")).find("bert") != std::string::npos);
    CHECK(message(with("gelu_new", "relu")).find("relu") != std::string::npos);
    CHECK(message(with("\"vanilla\"", "\"gpt\"")).find("there is no rule gpt") != std::string::npos);
    CHECK(message(with("\"vanilla\"", "\"gpas\"")).empty());
    CHECK(message(with("\"residual_step\": 0", "\"residual_step\": -1")).find("residual_step") != std::string::npos);
    CHECK(notes.empty());
    CHECK(message(with("\"attn_pdrop\": 0.0", "\"attn_pdrop\": 0.1")).empty());
    REQUIRE(notes.size() == 1);
    CHECK(notes[0].find("attn_pdrop") != std::string::npos);
}

TEST_CASE("every preset passes its own check and comes back from its config.json", "[model]") {
    std::vector<std::string> notes;
    for (const Preset& preset : presets()) {
        INFO(preset.name);
        CHECK_NOTHROW(check_config(preset.config));
        const std::string text = config_to_json(preset.config);
        CHECK(config_to_json(config_from_json(text, "config.json", notes)) == text);
        CHECK(config_to_json(asked({"--model", preset.name})) == text);
    }
    CHECK(notes.empty());
}

TEST_CASE("the llama presets are those of the papers", "[model]") {
    const struct {
        const char* name;
        int layers, heads, channels, ffn, context;
        float eps;
        const char* init;
    } expected[] = {
        {"llama-71m", 12, 8, 512, 1368, 256, 1e-6f, "scaled_embed"},
        {"llama-130m", 12, 12, 768, 2048, 256, 1e-6f, "scaled_embed"},
        {"llama-250m", 24, 16, 768, 2560, 256, 1e-6f, "scaled_embed"},
        {"llama-350m", 24, 16, 1024, 2736, 256, 1e-6f, "scaled_embed"},
        {"llama-1b", 24, 32, 2048, 5461, 256, 1e-6f, "scaled_embed"},
        {"llama-7b", 32, 32, 4096, 11008, 256, 1e-6f, "scaled_embed"},
        {"llama-prores-130m", 12, 12, 768, 2048, 1024, 1e-5f, "prores_init"},
        {"llama-prores-350m", 24, 16, 1024, 2736, 1024, 1e-5f, "prores_init"},
        {"llama-prores-1.3b", 24, 32, 2048, 5632, 1024, 1e-5f, "prores_init"},
        {"llama-prores-7b", 32, 32, 4096, 11008, 1024, 1e-5f, "prores_init"},
    };
    for (const auto& e : expected) {
        INFO(e.name);
        const ModelConfig c = preset_config(e.name);
        CHECK(c.arch == Arch::llama);
        CHECK((c.layers == e.layers && c.heads == e.heads && c.kv_heads == e.heads && c.channels == e.channels));
        CHECK((c.ffn == e.ffn && c.context == e.context && c.vocab == 32000));
        CHECK((c.norm_eps == e.eps && c.rope_theta == 10000.0f && c.init == e.init));
        CHECK((c.activation == Activation::swiglu && !c.bias && !c.tie));
    }
}

TEST_CASE("a llama config.json has Hugging Face's fields", "[model]") {
    ModelConfig config = preset_config("llama-71m");
    config.kv_heads = 2;
    config.rope_theta = 500000.0f;
    config.residual_step = 7;
    const json j = json::parse(config_to_json(config));
    CHECK(j["model_type"] == "llama");
    CHECK(j["architectures"] == json({"LlamaForCausalLM"}));
    CHECK((j["hidden_size"] == 512 && j["intermediate_size"] == 1368 && j["num_hidden_layers"] == 12));
    CHECK((j["num_attention_heads"] == 8 && j["num_key_value_heads"] == 2 && j["max_position_embeddings"] == 256));
    CHECK((j["rms_norm_eps"] == 1e-6 && j["rope_theta"] == 500000.0 && j["vocab_size"] == 32000));
    CHECK((j["hidden_act"] == "silu" && j["tie_word_embeddings"] == false && j["attention_bias"] == false));
    std::vector<std::string> notes;
    const ModelConfig back = config_from_json(j.dump(), "config.json", notes);
    CHECK((back.arch == Arch::llama && back.kv_heads == 2 && back.rope_theta == 500000.0f));
    CHECK((back.init == "scaled_embed" && back.residual_step == 7));
}

TEST_CASE("llama config.json as others write it", "[model]") {
    const json plain = {{"model_type", "llama"},        {"vocab_size", 100},      {"hidden_size", 64},
                        {"intermediate_size", 40},      {"num_hidden_layers", 2}, {"num_attention_heads", 4},
                        {"max_position_embeddings", 32}};
    std::vector<std::string> notes;
    auto read = [&](const json& more) {
        json j = plain;
        j.update(more);
        return config_from_json(j.dump(), "x/config.json", notes);
    };
    auto message = [&](const json& more) {
        json j = plain;
        j.update(more);
        return refusal(j.dump());
    };
    const ModelConfig c = read(json::object());
    check_config(c);
    CHECK((c.kv_heads == 4 && c.norm_eps == 1e-6f && c.rope_theta == 10000.0f && !c.tie && !c.bias));
    CHECK((c.activation == Activation::swiglu && c.init == "normal02"));
    CHECK(read({{"tie_word_embeddings", true}}).tie);
    CHECK(read({{"num_key_value_heads", nullptr}, {"head_dim", nullptr}, {"rope_scaling", nullptr}}).kv_heads == 4);
    CHECK(read({{"num_key_value_heads", 1}, {"head_dim", 16}}).kv_heads == 1);
    CHECK(read({{"rope_theta", 500000}}).rope_theta == 500000.0f);
    CHECK(read({{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 500000.0}}}}).rope_theta == 500000.0f);
    CHECK(read({{"rope_scaling", {{"type", "default"}}}, {"rope_theta", 5e5}}).rope_theta == 500000.0f);
    CHECK(notes.empty());
    read({{"attention_dropout", 0.1}});
    REQUIRE(notes.size() == 1);
    CHECK(contains(notes[0], "attention_dropout"));

    CHECK(message(json::object()).empty());
    CHECK(contains(message({{"rope_parameters", {{"rope_type", "llama3"}, {"rope_theta", 5e5}}}}), "llama3"));
    CHECK(contains(message({{"rope_scaling", {{"type", "linear"}, {"factor", 8.0}}}}), "rope_scaling"));
    CHECK(contains(message({{"rope_scaling", 8.0}}), "rope_scaling"));
    CHECK(contains(message({{"rope_parameters", {{"partial_rotary_factor", 0.5}}}}), "partial_rotary_factor"));
    CHECK(contains(message({{"rope_theta", 1e4}, {"rope_parameters", {{"rope_theta", 5e5}}}}), "rope_theta"));
    CHECK(contains(message({{"rope_theta", -1}}), "rope-theta"));
    CHECK(contains(message({{"hidden_act", "gelu"}}), "gelu"));
    CHECK(contains(message({{"attention_bias", true}}), "attention_bias"));
    CHECK(contains(message({{"mlp_bias", true}}), "mlp_bias"));
    CHECK(contains(message({{"head_dim", 32}}), "head_dim"));
    CHECK(contains(message({{"num_key_value_heads", 3}}), "--kv-heads 3"));
    CHECK(contains(message({{"num_key_value_heads", 0}}), "num_key_value_heads"));
    CHECK(contains(message({{"num_attention_heads", 64}}), "heads of 1 channels"));
    CHECK(contains(message({{"residual_init", "zero"}}), "zero"));
    CHECK(contains(message({{"residual_init", "scaled_embed"}, {"tie_word_embeddings", true}}), "scaled_embed"));
    CHECK(message({{"residual_init", "prores_init"}, {"tie_word_embeddings", true}}).empty());
}

TEST_CASE("a llama preset is overridden by what is given", "[model]") {
    const ModelConfig c =
        asked({"--model", "llama-130m", "--channels", "256", "--heads", "8", "--rope-theta", "5e5", "--norm-eps",
               "1e-5", "--init", "ds_init", "--tie", "--no-bias", "--activation", "swiglu"});
    CHECK((c.channels == 256 && c.heads == 8 && c.kv_heads == 8 && c.ffn == 2048));  // ffn stays, kv heads follow
    CHECK((c.rope_theta == 5e5f && c.norm_eps == 1e-5f && c.init == "ds_init" && c.tie));
    CHECK(asked({"--model", "llama-130m", "--kv-heads", "4"}).kv_heads == 4);
    CHECK(asked({"--model", "llama-130m", "--heads", "24", "--kv-heads", "4"}).kv_heads == 4);
    CHECK(asked({"--model", "llama-130m", "--channels", "384", "--ffn", "1000"}).ffn == 1000);
    CHECK(asked({"--model", "llama-130m", "--ffn", "3072", "--channels", "384"}).ffn == 3072);
    CHECK(asked({"--model", "gpt2", "--channels", "384"}).ffn == 1536);
    CHECK(asked({"--model", "gpt2", "--heads", "6"}).kv_heads == 6);
    CHECK(asked({"--model", "gpt2", "--no-tie", "--init", "scaled_embed"}).init == "scaled_embed");
    for (const std::string& init : init_names()) CHECK(asked({"--model", "llama-71m", "--init", init}).init == init);

    CHECK(contains(refusal({"--model", "llama-71m", "--bias"}), "--bias"));
    CHECK(contains(refusal({"--model", "llama-71m", "--tie"}), "scaled_embed"));
    CHECK(contains(refusal({"--model", "gpt2", "--init", "scaled_embed"}), "scaled_embed"));
    CHECK(contains(refusal({"--model", "llama-71m", "--kv-heads", "3"}), "--kv-heads 3"));
    CHECK(contains(refusal({"--model", "llama-71m", "--kv-heads", "0"}), "--kv-heads"));
    CHECK(contains(refusal({"--model", "llama-71m", "--activation", "gelu"}), "swiglu"));
    CHECK(contains(refusal({"--model", "gpt2", "--activation", "swiglu"}), "llama"));
    CHECK(contains(refusal({"--model", "llama-71m", "--rope-theta", "0"}), "--rope-theta"));
    CHECK(contains(refusal({"--model", "gpt2", "--rope-theta", "1e4"}), "llama"));
    CHECK(contains(refusal({"--model", "llama-71m", "--init", "deepnorm_init"}), "ds_init"));
}
