// What a model is: the sizes and choices that fix its function, as in a Hugging Face config.json.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/activation.cuh"

enum class Arch { gpt2, llama };

struct ModelConfig {
    Arch arch = Arch::gpt2;
    int layers = 12, heads = 12, kv_heads = 12, channels = 768, context = 1024, vocab = 50257, ffn = 3072;
    Activation activation = Activation::gelu_new;
    bool bias = true;  // biases in linear maps and norms; llama has none
    bool tie = true;   // head = token embedding
    float norm_eps = 1e-5f;
    float rope_theta = 10000.0f;  // base of llama's rotary angles
    // Standard deviations, everything else being 0.02 (and gains 1, biases 0):
    //   normal02      none
    //   gpt2_scaled   the last map of each sublayer 0.02 / sqrt(2 layers)
    //   ds_init       the last map of each sublayer 0.02 / sqrt(2 l) in layer l = 1..layers
    //   scaled_embed  token embedding sqrt(2/5), which asks for an untied head
    //   prores_init   token embedding 0.02 sqrt(channels)
    std::string init = "gpt2_scaled";
    std::string norm_scheme = "pre";
    std::string residual = "vanilla";
    std::map<std::string, std::string> residual_options;
    int64_t residual_step = 0;  // completed updates, where schedules start for evaluation and --init-from

    int head_size() const { return channels / heads; }
    int padded_vocab() const { return (vocab + 63) / 64 * 64; }
    int padded_ffn() const { return (ffn + 63) / 64 * 64; }
};

struct Preset {
    std::string name, summary;
    ModelConfig config;
};
const std::vector<Preset>& presets();
const std::vector<std::string>& init_names();
const std::vector<std::string>& activation_names();  // in the order of Activation
ModelConfig preset_config(const std::string& name);  // UserError lists the known names

// UserError (one line) when sizes do not divide, a scheme or rule is unknown, ...
void check_config(const ModelConfig& config);

// config.json of a checkpoint: Hugging Face GPT2Config / LlamaConfig field names plus ours (interface: checkpoint
// folder). dtype: of the weights beside it, in torch's words.
std::string config_to_json(const ModelConfig& config, const char* dtype = "float32");
// path names the file in error messages; notes receives remarks worth showing (ignored dropout).
ModelConfig config_from_json(const std::string& text, const std::string& path, std::vector<std::string>& notes);
