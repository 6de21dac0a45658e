#include "model/config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "kernels/error.h"
#include "model/registry.h"

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

// The sizes of the GPAS paper (arXiv 2506.22049), with its context and initialisation.
static ModelConfig llama(int layers, int heads, int channels, int ffn) {
    ModelConfig config;
    config.arch = Arch::llama;
    config.layers = layers;
    config.heads = config.kv_heads = heads;
    config.channels = channels;
    config.ffn = ffn;
    config.context = 256;
    config.vocab = 32000;
    config.activation = Activation::swiglu;
    config.bias = config.tie = false;
    config.norm_eps = 1e-6f;
    config.init = "scaled_embed";
    return config;
}
// The runs of the ProRes paper (arXiv 2603.05369): plain normal weights, as in its code; embeddings of 0.02 sqrt(C).
static ModelConfig prores(int layers, int heads, int channels, int ffn) {
    ModelConfig config = llama(layers, heads, channels, ffn);
    config.context = 1024;
    config.norm_eps = 1e-5f;
    config.init = "prores_init";
    return config;
}

const std::vector<Preset>& presets() {
    static const std::vector<Preset> list = {
        {"gpt2-nano", "bytes; trains on a laptop in a minute", gpt2(4, 4, 128, 128, 256)},
        {"gpt2", "124M, Radford et al. 2019", gpt2(12, 12, 768)},
        {"gpt2-medium", "355M", gpt2(24, 16, 1024)},
        {"gpt2-large", "774M", gpt2(36, 20, 1280)},
        {"gpt2-xl", "1.6B", gpt2(48, 25, 1600)},
        {"gpt2-mls", "MLS-Bench llm-pretrain-residual: no biases, exact GELU, vocabulary 50304",
         [] {
             ModelConfig config = gpt2(24, 16, 1024, 1024, 50304);
             config.bias = false;
             config.activation = Activation::gelu;
             return config;
         }()},
        {"llama-71m", "71M, GPAS", llama(12, 8, 512, 1368)},
        {"llama-130m", "134M, GPAS", llama(12, 12, 768, 2048)},
        {"llama-250m", "247M, GPAS", llama(24, 16, 768, 2560)},
        {"llama-350m", "368M, GPAS", llama(24, 16, 1024, 2736)},
        {"llama-1b", "1.3B, GPAS", llama(24, 32, 2048, 5461)},
        {"llama-7b", "6.7B, GPAS", llama(32, 32, 4096, 11008)},
        {"llama-prores-130m", "134M, ProRes", prores(12, 12, 768, 2048)},
        {"llama-prores-350m", "368M, ProRes", prores(24, 16, 1024, 2736)},
        {"llama-prores-1.3b", "1.4B, ProRes", prores(24, 32, 2048, 5632)},
        {"llama-prores-7b", "6.7B, ProRes", prores(32, 32, 4096, 11008)},
    };
    return list;
}

const std::vector<std::string>& init_names() {
    static const std::vector<std::string> names = {"normal02", "gpt2_scaled", "scaled_embed", "prores_init", "ds_init"};
    return names;
}

const std::vector<std::string>& activation_names() {
    static const std::vector<std::string> names = {"gelu_new", "gelu", "swiglu"};
    return names;
}

ModelConfig preset_config(const std::string& name) {
    std::string known;
    for (const Preset& preset : presets()) {
        if (preset.name == name) return preset.config;
        known += (known.empty() ? "" : ", ") + preset.name;
    }
    throw user_error("--model %s: no such preset; there are %s", name.c_str(), known.c_str());
}

// What the two architectures allow.
static void check_architecture(const ModelConfig& c) {
    const std::string& activation = activation_names()[static_cast<size_t>(c.activation)];
    if (c.arch == Arch::gpt2) {
        if (c.kv_heads != c.heads)
            throw user_error("--kv-heads %d: GPT-2 has as many key and value heads as query heads (%d)", c.kv_heads,
                             c.heads);
        if (c.activation == Activation::swiglu)
            throw user_error("--activation swiglu belongs to the llama models; GPT-2 has gelu_new and gelu");
        return;
    }
    if (c.heads % c.kv_heads != 0)
        throw user_error("--kv-heads %d does not divide --heads %d: each is shared by equally many query heads",
                         c.kv_heads, c.heads);
    if (c.activation != Activation::swiglu)
        throw user_error("--activation %s belongs to GPT-2; the llama models have swiglu", activation.c_str());
    if (c.bias) throw user_error("--bias: the llama models have no biases");
    if (!(c.rope_theta > 0) || !std::isfinite(c.rope_theta))
        throw user_error("--rope-theta %g: it must be positive", static_cast<double>(c.rope_theta));
}

static void check_init(const ModelConfig& c) {
    const std::vector<std::string>& names = init_names();
    if (std::find(names.begin(), names.end(), c.init) == names.end()) {
        std::string known;
        for (const std::string& name : names) known += (known.empty() ? "" : ", ") + name;
        throw user_error("--init %s: there is no such choice; there are: %s", c.init.c_str(), known.c_str());
    }
    if (c.init == "gpt2_scaled" && c.norm_scheme != "pre")
        throw user_error(
            "--init gpt2_scaled with --norm %s: it is made for pre alone; normal02 is the usual choice here",
            c.norm_scheme.c_str());
    // Embeddings of size 0.6 that are the head as well would start with logits some thirty times too large.
    if (c.init == "scaled_embed" && c.tie)
        throw user_error("--init scaled_embed with --tie: its embeddings are too large for a head; use --no-tie");
}

void check_config(const ModelConfig& c) {
    auto positive = [](const char* what, int value) {
        if (value < 1) throw user_error("%s is %d: it must be at least 1", what, value);
    };
    positive("--layers", c.layers);
    positive("--heads", c.heads);
    positive("--kv-heads", c.kv_heads);
    positive("--channels", c.channels);
    positive("--context", c.context);
    positive("--vocab", c.vocab);
    positive("--ffn", c.ffn);
    check_architecture(c);
    if (c.channels % c.heads != 0)
        throw user_error("--channels %d is not divisible by --heads %d", c.channels, c.heads);
    // A head is a multiple of 16 bytes wide in every build, so that a checkpoint trains in each: 8 elements of bf16, 4
    // of fp32.
    int unit = 16 / static_cast<int>(sizeof(floatX));
    if (c.head_size() % unit != 0)
        throw user_error(
            "--channels %d / --heads %d gives heads of %d channels: they must be a multiple of %d (16 bytes)",
            c.channels, c.heads, c.head_size(), unit);
    if (c.head_size() > 256)
        throw user_error("--channels %d / --heads %d gives heads of %d channels: at most 256 are supported", c.channels,
                         c.heads, c.head_size());
    if (!(c.norm_eps > 0) || !std::isfinite(c.norm_eps))
        throw user_error("--norm-eps %g: it must be positive", static_cast<double>(c.norm_eps));
    config_residual(c, 1, false);  // refuses unknown rules and schemes, undefined pairs, and options that nobody reads
    check_init(c);
}

// An fp32 number that came from a short decimal, as that decimal and not its binary neighbourhood.
static double short_decimal(float x) {
    char text[32];
    char* end = std::to_chars(text, text + sizeof text, x).ptr;
    return std::stod(std::string(text, end));
}

static json gpt2_fields(const ModelConfig& c) {
    return {
        {"architectures", {"GPT2LMHeadModel"}},
        {"model_type", "gpt2"},
        {"vocab_size", c.vocab},
        {"n_positions", c.context},
        {"n_ctx", c.context},
        {"n_embd", c.channels},
        {"n_layer", c.layers},
        {"n_head", c.heads},
        {"n_inner", c.ffn == 4 * c.channels ? json(nullptr) : json(c.ffn)},
        {"activation_function", activation_names()[static_cast<size_t>(c.activation)]},
        {"layer_norm_epsilon", short_decimal(c.norm_eps)},
        {"attn_pdrop", 0.0},
        {"embd_pdrop", 0.0},
        {"resid_pdrop", 0.0},
        {"bias", c.bias},
    };
}

static json llama_fields(const ModelConfig& c) {
    return {
        {"architectures", {"LlamaForCausalLM"}},
        {"model_type", "llama"},
        {"vocab_size", c.vocab},
        {"max_position_embeddings", c.context},
        {"hidden_size", c.channels},
        {"intermediate_size", c.ffn},
        {"num_hidden_layers", c.layers},
        {"num_attention_heads", c.heads},
        {"num_key_value_heads", c.kv_heads},
        {"head_dim", c.head_size()},
        {"hidden_act", "silu"},
        {"rms_norm_eps", short_decimal(c.norm_eps)},
        {"rope_theta", short_decimal(c.rope_theta)},
        {"attention_bias", false},
        {"mlp_bias", false},
        {"attention_dropout", 0.0},
    };
}

std::string config_to_json(const ModelConfig& c, const char* dtype) {
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
    json j = c.arch == Arch::llama ? llama_fields(c) : gpt2_fields(c);
    j["tie_word_embeddings"] = c.tie;
    j["initializer_range"] = 0.02;
    j["torch_dtype"] = dtype;
    // The token that ends a text: of GPT-2's tokenizer, or of the bytes. Left to itself transformers assumes 50256, or
    // 1 and 2, whatever the vocabulary.
    j["bos_token_id"] = j["eos_token_id"] = c.vocab > 50256 ? json(50256) : c.vocab == 256 ? json(0) : json(nullptr);
    j["norm_scheme"] = c.norm_scheme;
    j["residual"] = c.residual;
    j["residual_options"] = options;
    j["residual_step"] = c.residual_step;
    j["residual_init"] = c.init;
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
        throw user_error("%s: \"%s\" is %s: it must be a positive whole number", path.c_str(), key,
                         j[key].dump().c_str());
    return static_cast<int>(value);
}

// Dropout that the file asks for and that there is not.
static void note_dropout(const json& j, const char* key, const std::string& path, std::vector<std::string>& notes) {
    const double p = field<double>(j, key, 0, path);
    if (p != 0) notes.push_back(format("%s: %s %g is ignored: there is no dropout", path.c_str(), key, p));
}

// What other models of these two families may have and ours have not, each with the value that means "without". Passed
// over, it would give another function than the file's.
static void refuse_features(const json& j, const std::string& path) {
    static const std::vector<std::pair<const char*, json>> features = {
        {"scale_attn_by_inverse_layer_idx", false},
        {"scale_attn_weights", true},
        {"add_cross_attention", false},
        {"attention_bias", false},
        {"mlp_bias", false},
        {"sliding_window", nullptr},
        {"use_sliding_window", false},
        {"partial_rotary_factor", 1.0},
        {"attn_logit_softcapping", nullptr},
        {"final_logit_softcapping", nullptr},
        {"quantization_config", nullptr},
    };
    for (const auto& [key, without] : features) {
        const json value = j.value(key, json());
        if (!value.is_null() && value != without)
            throw user_error("%s: %s %s is not supported", path.c_str(), key, value.dump().c_str());
    }
    for (const json& type : j.value("layer_types", json::array()))
        if (type != "full_attention")
            throw user_error("%s: layer_types %s is not supported, only \"full_attention\"", path.c_str(),
                             type.dump().c_str());
}

static ModelConfig read_gpt2(const json& j, const std::string& path, std::vector<std::string>& notes) {
    ModelConfig c;
    c.layers = required(j, "n_layer", path);
    c.heads = c.kv_heads = required(j, "n_head", path);
    c.channels = required(j, "n_embd", path);
    c.context = required(j, j.contains("n_positions") ? "n_positions" : "n_ctx", path);
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
    c.init = "gpt2_scaled";
    for (const char* key : {"attn_pdrop", "embd_pdrop", "resid_pdrop"}) note_dropout(j, key, path, notes);
    return c;
}

// The base of the rotary angles: "rope_theta" beside the others, or inside "rope_parameters" as transformers 5 writes
// it. Of the ways to stretch the angles ("rope_scaling", or again "rope_parameters") there is none.
static double read_rope(const json& j, const std::string& path) {
    double theta = field<double>(j, "rope_theta", 10000.0, path);
    for (const char* key : {"rope_scaling", "rope_parameters"}) {
        if (!j.contains(key) || j[key].is_null()) continue;
        const json& rope = j[key];
        if (!rope.is_object()) throw user_error("%s: \"%s\" is not an object", path.c_str(), key);
        const std::string kind =
            field<std::string>(rope, "rope_type", field<std::string>(rope, "type", "default", path), path);
        if (kind != "default")
            throw user_error("%s: %s of type \"%s\" is not supported, only \"default\"", path.c_str(), key,
                             kind.c_str());
        if (field<double>(rope, "partial_rotary_factor", 1.0, path) != 1.0)
            throw user_error("%s: partial_rotary_factor is not supported: whole heads are turned", path.c_str());
        const double inside = field<double>(rope, "rope_theta", theta, path);
        if (j.contains("rope_theta") && inside != theta)
            throw user_error("%s: rope_theta is %g, and %g in %s: which is it?", path.c_str(), theta, inside, key);
        theta = inside;
    }
    return theta;
}

static ModelConfig read_llama(const json& j, const std::string& path, std::vector<std::string>& notes) {
    ModelConfig c;
    c.arch = Arch::llama;
    c.layers = required(j, "num_hidden_layers", path);
    c.heads = required(j, "num_attention_heads", path);
    const bool grouped = j.contains("num_key_value_heads") && !j["num_key_value_heads"].is_null();
    c.kv_heads = grouped ? required(j, "num_key_value_heads", path) : c.heads;
    c.channels = required(j, "hidden_size", path);
    c.ffn = required(j, "intermediate_size", path);
    c.context = required(j, "max_position_embeddings", path);
    if (j.contains("head_dim") && !j["head_dim"].is_null()) {
        const int head_dim = required(j, "head_dim", path);
        if (static_cast<int64_t>(head_dim) * c.heads != c.channels)
            throw user_error("%s: head_dim %d is not hidden_size %d / num_attention_heads %d: this is not supported",
                             path.c_str(), head_dim, c.channels, c.heads);
    }
    const std::string act = field<std::string>(j, "hidden_act", "silu", path);
    if (act != "silu") throw user_error("%s: hidden_act \"%s\": there is silu only", path.c_str(), act.c_str());
    c.activation = Activation::swiglu;
    c.bias = false;
    if (field<bool>(j, "bias", false, path))
        throw user_error("%s: bias true is not supported: the llama models have no biases", path.c_str());
    c.norm_eps = static_cast<float>(field<double>(j, "rms_norm_eps", 1e-6, path));
    c.rope_theta = static_cast<float>(read_rope(j, path));
    c.tie = field<bool>(j, "tie_word_embeddings", false, path);
    c.init = "normal02";
    note_dropout(j, "attention_dropout", path, notes);
    return c;
}

ModelConfig config_from_json(const std::string& text, const std::string& path, std::vector<std::string>& notes) {
    json j = json::parse(text, nullptr, false);
    if (j.is_discarded() || !j.is_object()) throw user_error("%s: not a JSON object", path.c_str());
    // A folder of dev/hf/export.py has the checkpoint's own file inside its own.
    if (j.value("model_type", json()) == "residual" && j.contains("checkpoint")) j = json(j["checkpoint"]);
    std::string type = field<std::string>(j, "model_type", "", path);
    if (type != "gpt2" && type != "llama")
        throw user_error("%s: model_type is \"%s\": there are gpt2 and llama", path.c_str(), type.c_str());

    refuse_features(j, path);
    ModelConfig c = type == "llama" ? read_llama(j, path, notes) : read_gpt2(j, path, notes);
    c.vocab = required(j, "vocab_size", path);
    c.norm_scheme = field<std::string>(j, "norm_scheme", "pre", path);
    if (c.norm_scheme != "pre" && c.init == "gpt2_scaled") c.init = "normal02";
    c.init = field<std::string>(j, "residual_init", c.init, path);
    c.residual = field<std::string>(j, "residual", "vanilla", path);
    c.residual_step = field<int64_t>(j, "residual_step", 0, path);
    if (c.residual_step < 0)
        throw user_error("%s: \"residual_step\" is %lld: it counts updates", path.c_str(),
                         static_cast<long long>(c.residual_step));
    if (j.contains("residual_options")) {
        if (!j["residual_options"].is_object())
            throw user_error("%s: \"residual_options\" is not an object", path.c_str());
        for (const auto& [key, value] : j["residual_options"].items())
            c.residual_options[key] = value.is_string()    ? value.get<std::string>()
                                      : value.is_boolean() ? (value.get<bool>() ? "1" : "0")
                                                           : value.dump();
    }
    return c;
}
