// Folders that Hugging Face's transformers wrote (tests/golden/hf, made by dev/hf/golden.py): the engine computes the
// same logits from them, and trains them as torch does. And what of such folders it must refuse.
#include <nlohmann/json.hpp>

#include "checkpoint/files.h"
#include "checkpoint/huggingface.h"
#include "model/model.h"
#include "temp_folder.h"
#include "tiny_run.h"

using nlohmann::json;

namespace {

constexpr bool fp32 = sizeof(floatX) == 4;
const std::string golden_hf = "tests/golden/hf/";
const std::vector<std::string> cases = {"gpt2_tied", "gpt2_untied_fp16", "llama_grouped_sharded", "llama_tied_bf16"};

json expected_of(const std::string& name) {
    return json::parse(read_text(golden_hf + name + "/expected.json"));
}

}  // namespace

TEST_CASE("folders of transformers give transformers' logits", "[huggingface]") {
    for (const std::string& name : cases) {
        INFO(name);
        const std::string folder = golden_hf + name;
        std::vector<std::string> notes;
        const ModelConfig config = config_from_json(read_text(folder + "/config.json"), folder + "/config.json", notes);
        check_config(config);
        ModelPtr model = model_create(config, 1, config.context, Use::inference);
        const Registry& registry = model_registry(*model);
        std::vector<float> arena(static_cast<size_t>(registry.arena), 0.0f);
        weights_read(folder, registry, arena.data());
        model_write_master(*model, arena.data(), 1, 0);

        const json expected = expected_of(name);
        const std::vector<int> tokens = expected["tokens"];
        std::vector<double> got, want;
        for (size_t i = 0; i < expected["prefixes"].size(); i++) {
            std::vector<float> logits(static_cast<size_t>(config.vocab));
            model_last_logits(*model, tokens.data(), expected["prefixes"][i], logits.data());
            const std::vector<double> row = to_double(logits), other = expected["logits"][i];
            got.insert(got.end(), row.begin(), row.end());
            want.insert(want.end(), other.begin(), other.end());
        }
        // Some twenty sums of up to 64 numbers in a row, between norms that bring rounding errors back to the size of
        // the result. Measured: 11 unit roundoffs in fp32, where LLaMA's norms are float32 in transformers too, and 3
        // in bf16.
        CHECK(relative_error(got, want) < (fp32 ? 64 : 8) * unit_roundoff);
    }
}

TEST_CASE("folders of transformers train as torch trains them", "[huggingface]") {
    if (!have_program("train_gpt2")) SKIP_TEST("folders of transformers train: RESIDUAL_BUILD names no build");
    for (const std::string& name : cases) {
        INFO(name);
        TempFolder temp;
        const json expected = expected_of(name);
        const std::string folder = golden_hf + name;
        std::vector<std::string> args = {"--init-from",         folder,  "--train",
                                         folder + "/train.bin", "--out", temp / "run"};
        for (const json& word : expected["args"]) args.push_back(word.get<std::string>());
        const ProgramResult result = run_program("train_gpt2", args);
        INFO(result.out << result.err);
        REQUIRE(result.status == 0);
        std::vector<double> norms;
        for (const json& event : read_events(temp / "run", "step")) norms.push_back(event["grad_norm"]);
        // The tolerances of tests/golden/README.md, and those of bf16 in test_samples.cpp.
        CHECK(worst_error(read_losses(temp / "run"), expected["loss"], fp32 ? 2e-5 : 8e-2, 0) <= 1);
        CHECK(worst_error(norms, expected["grad_norm"], 0, fp32 ? 1e-4 : 8e-2) <= 1);
    }
}

TEST_CASE("features of Hugging Face models that ours have not are refused by name", "[huggingface]") {
    auto message = [&](const std::string& name, const json& more) {
        json j = json::parse(read_text(golden_hf + name + "/config.json"));
        j.update(more);
        std::vector<std::string> notes;
        return user_error_of([&] { check_config(config_from_json(j.dump(), "x/config.json", notes)); });
    };
    const struct {
        const char *name, *key;
        json value, without;
    } features[] = {
        {"gpt2_tied", "scale_attn_by_inverse_layer_idx", true, false},
        {"gpt2_tied", "scale_attn_weights", false, true},
        {"gpt2_tied", "add_cross_attention", true, false},
        {"gpt2_tied", "activation_function", "relu", "gelu_pytorch_tanh"},
        {"gpt2_tied", "model_type", "gpt_neox", "gpt2"},
        {"gpt2_tied", "quantization_config", {{"quant_method", "gptq"}}, nullptr},
        {"llama_tied_bf16", "attention_bias", true, false},
        {"llama_tied_bf16", "mlp_bias", true, false},
        {"llama_tied_bf16", "hidden_act", "gelu", "silu"},
        {"llama_tied_bf16", "sliding_window", 4096, nullptr},
        {"llama_tied_bf16",
         "layer_types",
         {"full_attention", "sliding_attention"},
         {"full_attention", "full_attention"}},
        {"llama_tied_bf16", "partial_rotary_factor", 0.5, 1.0},
        {"llama_tied_bf16",
         "rope_parameters",
         {{"rope_type", "yarn"}, {"rope_theta", 1e4}},
         {{"rope_type", "default"}}},
        {"llama_tied_bf16", "rope_scaling", {{"type", "linear"}, {"factor", 2.0}}, nullptr},
        {"llama_tied_bf16", "model_type", "mistral", "llama"},
    };
    for (const auto& feature : features) {
        INFO(feature.key);
        const std::string refused = message(feature.name, {{feature.key, feature.value}});
        CHECK(refused.find("x/config.json") == 0);
        CHECK(refused.find(feature.key) != std::string::npos);
        CHECK(message(feature.name, {{feature.key, feature.without}}).empty());
    }
}

TEST_CASE("an exported folder's config.json is that of its checkpoint", "[huggingface]") {
    ModelConfig config = preset_config("gpt2-nano");
    config.residual = "gpas";
    config.residual_step = 9;
    const json inner = json::parse(config_to_json(config));
    // transformers takes 50256 for the end of a text if it is not told, and warns when that is outside the vocabulary.
    CHECK(inner["eos_token_id"] == 0);
    CHECK(json::parse(config_to_json(preset_config("gpt2")))["eos_token_id"] == 50256);
    CHECK(json::parse(config_to_json(preset_config("llama-71m")))["eos_token_id"].is_null());

    const json outer = {{"model_type", "residual"}, {"vocab_size", 256}, {"checkpoint", inner}};
    std::vector<std::string> notes;
    CHECK(config_to_json(config_from_json(outer.dump(), "config.json", notes)) == config_to_json(config));
}
