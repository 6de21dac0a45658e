// What tests of whole models with residual rules share: the oracle's recipe of weights and tokens, and gradients by the
// names they have in files. tests/golden/rules/README.md defines the recipe.
#pragma once
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "checkpoint/files.h"
#include "checkpoint/safetensors.h"
#include "kernels/error.h"
#include "model/model.h"
#include "test.h"

const std::string golden_rules = "tests/golden/rules/";

inline uint64_t recipe_mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}
inline uint64_t recipe_key(const std::string& name) {
    uint64_t h = 0xCBF29CE484222325ull;
    for (unsigned char ch : name) h = (h ^ ch) * 0x100000001B3ull;
    return h;
}
// Number i, from zero, of the stream that belongs to a name.
inline uint64_t recipe_bits(uint64_t key, size_t i) { return recipe_mix(key + 0x9E3779B97F4A7C15ull * (i + 1)); }

inline bool ends_with(const std::string& text, const std::string& end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

inline double recipe_base(const Tensor& t, size_t i) {
    return !t.initial.empty() ? static_cast<double>(t.initial[i]) : t.init_ranges.empty() ? t.init_mean : 0.0;
}

// Weights of the small cases (cases.json).
inline std::vector<float> small_weights(const Tensor& t, const FilePart& part) {
    const bool mhc_b = ends_with(t.name, "mhc_b");
    const double amp = mhc_b ? 1.0 : t.vector() ? 0.1 : 0.3;
    const uint64_t key = recipe_key(part.name);
    std::vector<float> values(static_cast<size_t>(part.rows * t.cols));
    for (size_t i = 0; i < values.size(); i++) {
        const double u = 2 * (static_cast<double>(recipe_bits(key, i) >> 11) * 0x1p-53) - 1;
        values[i] = static_cast<float>((mhc_b ? 0 : recipe_base(t, i)) + amp * u);
    }
    return values;
}

// Those of the cases of larger widths (sizes.json): exact in bf16.
inline std::vector<float> size_weights(const Tensor& t, const FilePart& part) {
    const bool whole = ends_with(t.name, "wpe.weight") || ends_with(t.name, "embed_tokens.weight") || ends_with(t.name, ".mhc_b");
    const double n = static_cast<double>(std::max(part.rows, t.cols));
    const double amp = whole ? 1.0 : t.vector() ? 0.125 : std::min(0.25, std::exp2(std::round(0.5 * std::log2(3 / n))));
    const uint64_t key = recipe_key(part.name);
    std::vector<float> values(static_cast<size_t>(part.rows * t.cols));
    for (size_t i = 0; i < values.size(); i++) {
        const double u = static_cast<double>(recipe_bits(key, i) >> 57) / 64 - 1;
        values[i] = static_cast<float>((whole ? 0 : recipe_base(t, i)) + amp * u);
    }
    return values;
}

using Recipe = std::vector<float> (*)(const Tensor&, const FilePart&);

// All parameters, in the layout of the arena.
inline std::vector<float> recipe_arena(const Registry& registry, Recipe recipe) {
    std::vector<float> arena(static_cast<size_t>(registry.arena), 0.0f);
    for (const Tensor& t : registry.tensors)
        for (const FilePart& part : t.parts) part_to_stored(arena.data() + t.offset, t, part, recipe(t, part).data());
    return arena;
}

// Tokens first .. first+count-1.
inline std::vector<int> recipe_tokens(int64_t first, int count, int vocab) {
    std::vector<int> tokens;
    for (int i = 0; i < count; i++)
        tokens.push_back(static_cast<int>(recipe_bits(0, static_cast<size_t>(first + i)) % static_cast<uint64_t>(vocab)));
    return tokens;
}

// Parameters or gradients by the names of their files, whose shapes have no padding.
using Named = std::map<std::string, std::vector<double>>;
inline Named by_name(const Registry& registry, const std::vector<float>& arena) {
    Named out;
    for (const Tensor& t : registry.tensors)
        for (const FilePart& part : t.parts) {
            std::vector<float> values(static_cast<size_t>(part.rows * t.cols));
            stored_to_part(values.data(), t, part, arena.data() + t.offset);
            out[part.name] = to_double(values);
        }
    return out;
}
inline Named gradients(Model& model) {
    std::vector<float> grads(static_cast<size_t>(model_registry(model).arena));
    model_read_grads(model, grads.data());
    return by_name(model_registry(model), grads);
}

inline double length(const std::vector<double>& v) {
    double sum = 0;
    for (double x : v) sum += x * x;
    return std::sqrt(sum);
}
// ||a - b|| / (||b|| + floor): below the floor values are rounding noise of exact zeros. NaN gives infinity.
inline double distance(const std::vector<double>& a, const std::vector<double>& b, double floor = 0) {
    REQUIRE(a.size() == b.size());
    double sum = 0;
    for (size_t i = 0; i < a.size(); i++) sum += (a[i] - b[i]) * (a[i] - b[i]);
    const double error = std::sqrt(sum);
    return error == error ? error / (length(b) + floor) : INFINITY;
}

// A model for tests that hold the engine against itself.
inline ModelConfig small_config(const std::string& residual, const std::string& norm, int layers, int channels,
                                int context, Arch arch = Arch::gpt2) {
    ModelConfig c = preset_config(arch == Arch::llama ? "llama-71m" : "gpt2-nano");
    c.layers = layers;
    c.heads = 4;
    c.kv_heads = arch == Arch::llama ? 2 : 4;
    c.channels = channels;
    c.ffn = channels / 4 * 9;
    c.context = context;
    c.vocab = 37;
    c.norm_scheme = norm;
    c.residual = residual;
    c.init = "normal02";
    return c;
}

inline std::vector<double> stored(const SafetensorsFile& file, const std::string& name) {
    const TensorView& view = file.tensors.at(name);
    std::vector<float> values(static_cast<size_t>(view.count()));
    tensor_to_float(values.data(), view, name);
    return to_double(values);
}

inline ModelConfig case_config(const nlohmann::json& one) {
    std::vector<std::string> notes;
    return config_from_json(one["config"].dump(), one["name"].get<std::string>(), notes);
}
