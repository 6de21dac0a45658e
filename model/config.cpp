#include "model/config.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "kernels/error.h"

using nlohmann::json;

static ModelConfig gpt2(int layers, int heads, int channels, int context = 1024, int vocab = 50257) {
    ModelConfig config;
    config.layers = layers;
    config.heads = config.kv_heads = heads;
    config.channels = channels;
    config.ffn = 4 * channels;
    config.context = context;
    config.vocab = vocab;
    return config;
}

const std::vector<Preset>& presets() {
    static const std::vector<Preset> list = {
        {"gpt2-nano", "bytes; trains on a laptop in a minute", gpt2(4, 4, 128, 128, 256)},
        {"gpt2", "124M, Radford et al. 2019", gpt2(12, 12, 768)},
        {"gpt2-medium", "355M", gpt2(24, 16, 1024)},
        {"gpt2-large", "774M", gpt2(36, 20, 1280)},
        {"gpt2-xl", "1.6B", gpt2(48, 25, 1600)},
        {"gpt2-mls", "MLS-Bench llm-pretrain-residual: no biases, exact GELU, vocabulary 50304", [] {
             ModelConfig config = gpt2(24, 16, 1024, 1024, 50304);
             config.bias = false;
             config.activation = Activation::gelu;
             return config;
         }()},
    };
    return list;
}

ModelConfig preset_config(const std::string& name) {
    std::string known;
    for (const Preset& preset : presets()) {
        if (preset.name == name) return preset.config;
        known += (known.empty() ? "" : ", ") + preset.name;
    }
    throw user_error("--model %s: no such preset; there are %s", name.c_str(), known.c_str());
}

void check_config(const ModelConfig& c) {
    auto positive = [](const char* what, int value) {
        if (value < 1) throw user_error("%s is %d: it must be at least 1", what, value);
    };
    positive("--layers", c.layers);
    positive("--heads", c.heads);
    positive("--channels", c.channels);
    positive("--context", c.context);
    positive("--vocab", c.vocab);
    positive("--ffn", c.ffn);
    if (c.arch == Arch::llama) throw user_error("architecture llama: this version trains gpt2 only");
    if (c.kv_heads != c.heads)
        throw user_error("--kv-heads %d: GPT-2 has as many key and value heads as query heads (%d)", c.kv_heads, c.heads);
    if (c.channels % c.heads != 0)
        throw user_error("--channels %d is not divisible by --heads %d", c.channels, c.heads);
    // A head is a multiple of 16 bytes wide in every build, so that a checkpoint trains in each: 8 elements of bf16, 4 of fp32.
    int unit = 16 / static_cast<int>(sizeof(floatX));
    if (c.head_size() % unit != 0)
        throw user_error("--channels %d / --heads %d gives heads of %d channels: they must be a multiple of %d (16 bytes)",
                         c.channels, c.heads, c.head_size(), unit);
    if (c.head_size() > 256)
        throw user_error("--channels %d / --heads %d gives heads of %d channels: at most 256 are supported", c.channels,
                         c.heads, c.head_size());
    if (!(c.norm_eps > 0)) throw user_error("--norm-eps %g: it must be positive", c.norm_eps);
    if (c.norm_scheme != "pre")
        throw user_error("--norm %s with --residual %s: this version has the norm scheme pre only", c.norm_scheme.c_str(),
                         c.residual.c_str());
    if (c.residual != "vanilla")
        throw user_error("--residual %s with --norm %s: this version has the rule vanilla only", c.residual.c_str(),
                         c.norm_scheme.c_str());
    for (const auto& [key, value] : c.residual_options)
        throw user_error("--residual-opt %s=%s: rule %s with scheme %s does not read it", key.c_str(), value.c_str(),
                         c.residual.c_str(), c.norm_scheme.c_str());
    if (c.init != "normal02" && c.init != "gpt2_scaled")
        throw user_error("--init %s: there are normal02 and gpt2_scaled", c.init.c_str());
}

std::string config_to_json(const ModelConfig& c) {
    json options = json::object();
    for (const auto& [key, value] : c.residual_options) {
        try {
            size_t used = 0;
            double number = std::stod(value, &used);
            if (used == value.size()) {
                options[key] = number == std::floor(number) ? json(static_cast<int64_t>(number)) : json(number);
                continue;
            }
        } catch (const std::exception&) {
        }
        options[key] = value;
    }
    // eps is an fp32 number that came from a short decimal: give back the decimal, not its binary neighbourhood.
    double eps = std::stod(format("%.7g", c.norm_eps));
    json j = {
        {"architectures", {"GPT2LMHeadModel"}},
        {"model_type", "gpt2"},
        {"vocab_size", c.vocab},
        {"n_positions", c.context},
        {"n_ctx", c.context},
        {"n_embd", c.channels},
        {"n_layer", c.layers},
        {"n_head", c.heads},
        {"n_inner", c.ffn == 4 * c.channels ? json(nullptr) : json(c.ffn)},
        {"activation_function", c.activation == Activation::gelu ? "gelu" : "gelu_new"},
        {"layer_norm_epsilon", eps},
        {"attn_pdrop", 0.0},
        {"embd_pdrop", 0.0},
        {"resid_pdrop", 0.0},
        {"tie_word_embeddings", c.tie},
        {"bias", c.bias},
        {"initializer_range", 0.02},
        {"torch_dtype", "float32"},
        {"norm_scheme", c.norm_scheme},
        {"residual", c.residual},
        {"residual_options", options},
        {"residual_step", c.residual_step},
        {"residual_init", c.init},
    };
    return j.dump(2) + "\n";
}

// A field of the JSON object with a readable error when its type is wrong.
template <class T>
static T field(const json& j, const char* key, T fallback, const std::string& path) {
    auto it = j.find(key);
    if (it == j.end() || it->is_null()) return fallback;
    try {
        return it->get<T>();
    } catch (const json::exception&) {
        throw user_error("%s: \"%s\" is %s, which is not what this field holds", path.c_str(), key, it->dump().c_str());
    }
}

static int required(const json& j, const char* key, const std::string& path) {
    if (!j.contains(key)) throw user_error("%s: \"%s\" is missing", path.c_str(), key);
    double value = field<double>(j, key, 0, path);
    if (value != std::floor(value) || value < 1 || value > 2e9)
        throw user_error("%s: \"%s\" is %s: it must be a positive whole number", path.c_str(), key, j[key].dump().c_str());
    return static_cast<int>(value);
}

ModelConfig config_from_json(const std::string& text, const std::string& path, std::vector<std::string>& notes) {
    json j = json::parse(text, nullptr, false);
    if (j.is_discarded() || !j.is_object()) throw user_error("%s: not a JSON object", path.c_str());
    std::string type = field<std::string>(j, "model_type", "", path);
    if (type != "gpt2")
        throw user_error("%s: model_type is \"%s\": this version reads gpt2 only", path.c_str(), type.c_str());

    ModelConfig c;
    c.layers = required(j, "n_layer", path);
    c.heads = c.kv_heads = required(j, "n_head", path);
    c.channels = required(j, "n_embd", path);
    c.context = required(j, j.contains("n_positions") ? "n_positions" : "n_ctx", path);
    c.vocab = required(j, "vocab_size", path);
    bool inner = j.contains("n_inner") && !j["n_inner"].is_null();
    c.ffn = inner ? required(j, "n_inner", path) : 4 * c.channels;
    std::string act = field<std::string>(j, "activation_function", "gelu_new", path);
    if (act == "gelu_new" || act == "gelu_pytorch_tanh") {
        c.activation = Activation::gelu_new;
    } else if (act == "gelu") {
        c.activation = Activation::gelu;
    } else {
        throw user_error("%s: activation_function \"%s\": there are gelu_new and gelu", path.c_str(), act.c_str());
    }
    c.norm_eps = static_cast<float>(field<double>(j, "layer_norm_epsilon", 1e-5, path));
    c.tie = field<bool>(j, "tie_word_embeddings", true, path);
    c.bias = field<bool>(j, "bias", true, path);
    c.init = field<std::string>(j, "residual_init", "gpt2_scaled", path);
    c.norm_scheme = field<std::string>(j, "norm_scheme", "pre", path);
    c.residual = field<std::string>(j, "residual", "vanilla", path);
    c.residual_step = field<int64_t>(j, "residual_step", 0, path);
    if (j.contains("residual_options")) {
        if (!j["residual_options"].is_object()) throw user_error("%s: \"residual_options\" is not an object", path.c_str());
        for (const auto& [key, value] : j["residual_options"].items())
            c.residual_options[key] = value.is_string() ? value.get<std::string>() : value.dump();
    }
    for (const char* key : {"attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout"}) {
        double p = field<double>(j, key, 0, path);
        if (p != 0 && std::string(key) != "summary_first_dropout")
            notes.push_back(format("%s: %s %g is ignored: there is no dropout", path.c_str(), key, p));
    }
    if (field<bool>(j, "scale_attn_by_inverse_layer_idx", false, path))
        throw user_error("%s: scale_attn_by_inverse_layer_idx is not supported", path.c_str());
    if (!field<bool>(j, "scale_attn_weights", true, path))
        throw user_error("%s: scale_attn_weights false is not supported", path.c_str());
    return c;
}
