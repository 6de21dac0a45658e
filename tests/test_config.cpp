#include "model/config.h"

#include "test.h"

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
    CHECK(message(with("\"vanilla\"", "\"gpas\"")).find("gpas") != std::string::npos);
    CHECK(notes.empty());
    CHECK(message(with("\"attn_pdrop\": 0.0", "\"attn_pdrop\": 0.1")).empty());
    REQUIRE(notes.size() == 1);
    CHECK(notes[0].find("attn_pdrop") != std::string::npos);
}

TEST_CASE("every preset passes its own check", "[model]") {
    for (const Preset& preset : presets()) {
        INFO(preset.name);
        CHECK_NOTHROW(check_config(preset.config));
    }
}
