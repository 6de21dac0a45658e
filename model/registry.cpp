#include "model/registry.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/common.cuh"
#include "kernels/error.h"

const char* class_name(ParamClass cls) {
    switch (cls) {
        case ParamClass::embed:
            return "embed";
        case ParamClass::head:
            return "head";
        case ParamClass::matrix:
            return "matrix";
        case ParamClass::auxmat:
            return "auxmat";
        case ParamClass::norm:
            return "norm";
        case ParamClass::bias:
            return "bias";
        case ParamClass::gate:
            return "gate";
    }
    return "?";
}

const Tensor& Registry::find(const std::string& name) const {
    if (const Tensor* tensor = find_or_null(name)) return *tensor;
    programming_error("no such tensor", name.c_str(), __FILE__, __LINE__);
}

const Tensor* Registry::find_or_null(const std::string& name) const {
    for (const Tensor& tensor : tensors)
        if (tensor.name == name) return &tensor;
    return nullptr;
}

// ---------------------------------------------------------------------------------------------------------------------
// Names

static bool is_llama(const ModelConfig& c) {
    return c.arch == Arch::llama;
}

static std::string layer_prefix(const ModelConfig& c, int l) {  // l from one
    return (is_llama(c) ? "model.layers." : "h.") + std::to_string(l - 1) + ".";
}

SublayerNames sublayer_names(const ModelConfig& c, int k) {
    const std::string prefix = layer_prefix(c, layer_of(k));
    const bool attention = k % 2 == 1;
    SublayerNames n;
    if (is_llama(c)) {
        n.in = prefix + (attention ? "input_layernorm" : "post_attention_layernorm");
        n.out = prefix + (attention ? "attn_out_layernorm" : "mlp_out_layernorm");
        n.last_weight = prefix + (attention ? "self_attn.o_proj.weight" : "mlp.down_proj.weight");
    } else {
        n.in = prefix + (attention ? "ln_1" : "ln_2");
        n.out = n.in + "_out";
        n.last_weight = prefix + (attention ? "attn" : "mlp") + ".c_proj.weight";
        n.last_bias = prefix + (attention ? "attn" : "mlp") + ".c_proj.bias";
    }
    // The only norm of a post layer has the first norm's name; keel has both.
    n.post = c.norm_scheme == "keel" ? n.out : n.in;
    return n;
}
std::string embed_norm_name(const ModelConfig& c) {
    return is_llama(c) ? "model.embed_layernorm" : "ln_emb";
}
std::string final_norm_name(const ModelConfig& c) {
    return is_llama(c) ? "model.norm" : "ln_f";
}

std::string parameter_name(const ModelConfig& c, const RuleParameter& p) {
    switch (p.place) {
        case Place::model:
            return "residual." + p.name;
        case Place::layer:
            return layer_prefix(c, p.index) + "residual." + p.name;
        case Place::sublayer:
            return layer_prefix(c, layer_of(p.index)) + (p.index % 2 == 1 ? "residual_attn." : "residual_mlp.") +
                   p.name;
    }
    return "";
}

Residual config_residual(const ModelConfig& c, int64_t N, bool training, Recompute recompute, bool fp8) {
    RuleShape shape;
    shape.L = c.layers;
    shape.C = c.channels;
    shape.kind = is_llama(c) ? NormKind::rms : NormKind::layer;
    shape.eps = c.norm_eps;
    shape.N = N;
    shape.training = training;
    shape.recompute = recompute;
    shape.fp8 = fp8;
    return make_residual(c.residual, c.norm_scheme, c.residual_options, shape);
}

// ---------------------------------------------------------------------------------------------------------------------

namespace {

// Standard deviations of a layer's matrices, residuals.md 0.4 in the papers' terms:
//     normal02      0.02 everywhere
//     gpt2_scaled   0.02/sqrt(2L) for the two output projections (Radford et al. 2019)
//     scaled_embed  embedding sqrt(2/5) (Takase et al. 2023, "Spike No More", times sqrt(C)); prores_init 0.02*sqrt(C)
//     ds_init       0.02/sqrt(2l) for the output projections of layer l
//     deepnorm      Xavier normal with gain (8L)^(-1/4) for value, output and MLP matrices, 1 for query and key
struct InitStd {
    const ModelConfig& c;
    bool deepnorm;
    float output_scale;  // a rule's wish for the output projections (Hyper-Connections)
    float embed() const {
        if (c.init == "scaled_embed") return std::sqrt(0.4f);
        if (c.init == "prores_init") return 0.02f * std::sqrt(static_cast<float>(c.channels));
        return 0.02f;
    }
    float matrix(int64_t in, int64_t out, bool query_or_key = false) const {
        if (!deepnorm) return 0.02f;
        const double gain = query_or_key ? 1.0 : std::pow(8.0 * c.layers, -0.25);
        return static_cast<float>(gain * std::sqrt(2.0 / static_cast<double>(in + out)));
    }
    float output(int64_t in, int64_t out, int l) const { return output_scale * base_output(in, out, l); }
    float base_output(int64_t in, int64_t out, int l) const {
        if (deepnorm) return matrix(in, out);
        if (c.init == "gpt2_scaled") return 0.02f / std::sqrt(2.0f * static_cast<float>(c.layers));
        if (c.init == "ds_init") return 0.02f / std::sqrt(2.0f * static_cast<float>(l));
        return 0.02f;
    }
};

struct Builder {
    const ModelConfig& config;
    InitStd init;
    Registry registry;

    Tensor& add(const std::string& name, ParamClass cls, int layer, int64_t rows, int64_t cols, float mean) {
        Tensor t;
        t.name = name;
        t.rows = t.stored_rows = rows;
        t.cols = t.stored_cols = cols;
        t.layer = layer;
        t.cls = cls;
        t.init_mean = mean;
        t.parts = {{name, 0, rows, false, 0}};
        t.exact = cls == ParamClass::norm || cls == ParamClass::gate;
        t.offset = t.count = 0;
        registry.tensors.push_back(t);
        return registry.tensors.back();
    }
    Tensor& normal(const std::string& name, ParamClass cls, int layer, int64_t rows, int64_t cols, float std) {
        Tensor& t = add(name, cls, layer, rows, cols, 0.0f);
        t.init_ranges = {{0, rows, std}};
        return t;
    }
    void norm(const std::string& name, int layer, float gain = 1.0f) {
        add(name + ".weight", ParamClass::norm, layer, config.channels, 1, gain);
        if (config.bias && !is_llama(config)) add(name + ".bias", ParamClass::norm, layer, config.channels, 1, 0.0f);
    }
    void norms(const SublayerNorms& norms, const SublayerNames& names, int layer) {
        if (norms.in) norm(names.in, layer, norms.in_init);
        if (norms.post) norm(names.post, layer);
        if (norms.out) norm(names.out, layer);
    }
    // A linear map in -> out of GPT-2, whose files hold it as [in,out].
    Tensor& linear(const std::string& name, int layer, int64_t in, int64_t out, int64_t stored_in, int64_t stored_out,
                   float std) {
        Tensor& weight = normal(name + ".weight", ParamClass::matrix, layer, out, in, std);
        weight.stored_rows = stored_out;
        weight.stored_cols = stored_in;
        weight.parts[0].transposed = true;
        const size_t index = registry.tensors.size() - 1;
        if (config.bias) add(name + ".bias", ParamClass::bias, layer, out, 1, 0.0f).stored_rows = stored_out;
        return registry.tensors[index];
    }
    void gpt2_layer(int l, const Scheme& scheme) {
        const std::string prefix = layer_prefix(config, l);
        const int64_t C = config.channels, F = config.ffn, Fp = config.padded_ffn();
        norms(scheme.sublayers[2 * l - 2], sublayer_names(config, 2 * l - 1), l - 1);
        Tensor& qkv = linear(prefix + "attn.c_attn", l - 1, C, 3 * C, C, 3 * C, 0.02f);
        qkv.init_ranges = {{0, 2 * C, init.matrix(C, C, true)}, {2 * C, C, init.matrix(C, C)}};
        linear(prefix + "attn.c_proj", l - 1, C, C, C, C, init.output(C, C, l));
        norms(scheme.sublayers[2 * l - 1], sublayer_names(config, 2 * l), l - 1);
        linear(prefix + "mlp.c_fc", l - 1, C, F, C, Fp, init.matrix(C, F));
        linear(prefix + "mlp.c_proj", l - 1, F, C, Fp, C, init.output(F, C, l));
    }
    void llama_layer(int l, const Scheme& scheme) {
        const std::string prefix = layer_prefix(config, l), attention = prefix + "self_attn.", mlp = prefix + "mlp.";
        const int64_t C = config.channels, KV = static_cast<int64_t>(config.kv_heads) * config.head_size();
        const int64_t F = config.ffn, Fp = config.padded_ffn();
        norms(scheme.sublayers[2 * l - 2], sublayer_names(config, 2 * l - 1), l - 1);
        Tensor& qkv = add(attention + "qkv_proj.weight", ParamClass::matrix, l - 1, C + 2 * KV, C, 0.0f);
        qkv.parts = {{attention + "q_proj.weight", 0, C, false, 0},
                     {attention + "k_proj.weight", C, KV, false, C},
                     {attention + "v_proj.weight", C + KV, KV, false, C + KV}};
        qkv.init_ranges = {
            {0, C, init.matrix(C, C, true)}, {C, KV, init.matrix(C, KV, true)}, {C + KV, KV, init.matrix(C, KV)}};
        normal(attention + "o_proj.weight", ParamClass::matrix, l - 1, C, C, init.output(C, C, l));
        norms(scheme.sublayers[2 * l - 1], sublayer_names(config, 2 * l), l - 1);
        Tensor& gate_up = normal(mlp + "gate_up_proj.weight", ParamClass::matrix, l - 1, 2 * F, C, init.matrix(C, F));
        gate_up.stored_rows = 2 * Fp;
        gate_up.parts = {{mlp + "gate_proj.weight", 0, F, false, 0}, {mlp + "up_proj.weight", F, F, false, Fp}};
        normal(mlp + "down_proj.weight", ParamClass::matrix, l - 1, C, F, init.output(F, C, l)).stored_cols = Fp;
    }
    void rule_parameter(const RuleParameter& p) {
        const int64_t rows = p.shape[0], cols = p.shape.size() > 1 ? p.shape[1] : 1;
        const int layer = p.place == Place::model ? -1 : (p.place == Place::layer ? p.index : layer_of(p.index)) - 1;
        // What decays is a matrix by role: the wd column of the rules' table decides, not the number of dimensions.
        Tensor& t = add(parameter_name(config, p), p.decays ? ParamClass::auxmat : ParamClass::gate, layer, rows, cols,
                        p.initial.size() == 1 ? p.initial[0] : 0.0f);
        if (p.initial.size() > 1) t.initial = p.initial;
        if (p.std > 0) t.init_ranges = {{0, rows, p.std}};
        t.exact = !p.product;
        if (p.product) t.stored_rows = round_up(rows, 8);
        t.lr_scale = p.lr_scale;
        t.own_lr = p.own_lr;
        t.beta1 = p.beta1;
        t.beta2 = p.beta2;
        t.own_decay = p.own_decay;
        t.frozen = p.frozen;
        t.clipped_gate = p.clipped_gate;
    }
    Registry finish() {
        std::stable_partition(registry.tensors.begin(), registry.tensors.end(),
                              [](const Tensor& t) { return !t.exact; });
        int64_t offset = 0;
        for (Tensor& t : registry.tensors) {
            if (!t.exact) registry.exact_start = offset + round_up(t.stored_rows * t.stored_cols, 64);
            t.offset = offset;
            t.count = round_up(t.stored_rows * t.stored_cols, 64);
            offset += t.count;
            registry.num_params += t.true_count();
        }
        registry.arena = offset;
        return std::move(registry);
    }
};

}  // namespace

Registry build_registry(const ModelConfig& c) {
    const Residual residual = config_residual(c, 1, true);
    const Scheme& scheme = residual.rule->shape().scheme;
    Builder b{c, {c, scheme.deepnorm_init, residual.rule->output_init_scale}, {}};
    const std::string embedding = is_llama(c) ? "model.embed_tokens.weight" : "wte.weight";
    b.normal(embedding, ParamClass::embed, -1, c.vocab, c.channels, b.init.embed()).stored_rows = c.padded_vocab();
    if (!is_llama(c)) b.normal("wpe.weight", ParamClass::embed, -1, c.context, c.channels, 0.02f);
    if (scheme.embed_norm) b.norm(embed_norm_name(c), -1);
    for (int l = 1; l <= c.layers; l++) is_llama(c) ? b.llama_layer(l, scheme) : b.gpt2_layer(l, scheme);
    if (scheme.final_norm) b.norm(final_norm_name(c), -1);
    if (!c.tie)
        b.normal("lm_head.weight", ParamClass::head, -1, c.vocab, c.channels, 0.02f).stored_rows = c.padded_vocab();
    for (const RuleParameter& p : residual.rule->parameters) b.rule_parameter(p);
    if (residual.name.value)
        for (int l = 2; l <= c.layers; l++) b.rule_parameter(value_parameter(l));
    return b.finish();
}

bool decays(const Tensor& t, const std::string& decay) {
    if (decay == "all") return true;
    if (decay == "none") return false;
    bool matrix = t.cls == ParamClass::matrix || t.cls == ParamClass::auxmat;
    if (decay == "matrix") return matrix;
    CHECK(decay == "2d");
    return matrix || t.cls == ParamClass::embed || t.cls == ParamClass::head;
}

std::vector<int64_t> part_shape(const Tensor& t, const FilePart& part) {
    if (t.vector()) return {part.rows};
    if (part.transposed) return {t.cols, part.rows};
    return {part.rows, t.cols};
}

// Calls f(stored index, file index) for every element of a part.
template <class F>
static void each_element(const Tensor& t, const FilePart& part, F f) {
    for (int64_t r = 0; r < part.rows; r++)
        for (int64_t c = 0; c < t.cols; c++)
            f((part.stored_row + r) * t.stored_cols + c, part.transposed ? c * part.rows + r : r * t.cols + c);
}

void part_to_stored(float* stored, const Tensor& t, const FilePart& part, const float* file) {
    each_element(t, part, [&](int64_t s, int64_t i) { stored[s] = file[i]; });
}

void stored_to_part(float* file, const Tensor& t, const FilePart& part, const float* stored) {
    each_element(t, part, [&](int64_t s, int64_t i) { file[i] = stored[s]; });
}
