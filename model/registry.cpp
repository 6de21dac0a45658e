#include "model/registry.h"

#include <cmath>
#include <cstring>

#include "kernels/common.cuh"
#include "kernels/error.h"

const char* class_name(ParamClass cls) {
    switch (cls) {
        case ParamClass::embed: return "embed";
        case ParamClass::head: return "head";
        case ParamClass::matrix: return "matrix";
        case ParamClass::auxmat: return "auxmat";
        case ParamClass::norm: return "norm";
        case ParamClass::bias: return "bias";
        case ParamClass::gate: return "gate";
    }
    return "?";
}

const Tensor& Registry::find(const std::string& name) const {
    for (const Tensor& tensor : tensors)
        if (tensor.name == name) return tensor;
    programming_error("no such tensor", name.c_str(), __FILE__, __LINE__);
}

namespace {

// Appends tensors in the order in which they lie in the arena.
struct Builder {
    const ModelConfig& config;
    Registry registry;

    Tensor& add(const std::string& name, ParamClass cls, int layer, int64_t rows, int64_t cols, float mean, float std) {
        Tensor t;
        t.name = name;
        t.rows = t.stored_rows = rows;
        t.cols = t.stored_cols = cols;
        t.layer = layer;
        t.cls = cls;
        t.init_mean = mean;
        t.init_std = std;
        t.parts = {{name, 0, rows, false}};
        t.offset = t.count = 0;
        registry.tensors.push_back(t);
        return registry.tensors.back();
    }
    void norm(const std::string& name, int layer) {
        add(name + ".weight", ParamClass::norm, layer, config.channels, 1, 1.0f, 0.0f);
        if (config.bias) add(name + ".bias", ParamClass::norm, layer, config.channels, 1, 0.0f, 0.0f);
    }
    // A linear map in -> out; GPT-2 files hold it as [in,out].
    void linear(const std::string& name, int layer, int64_t in, int64_t out, int64_t stored_in, int64_t stored_out,
                float std) {
        Tensor& weight = add(name + ".weight", ParamClass::matrix, layer, out, in, 0.0f, std);
        weight.stored_rows = stored_out;
        weight.stored_cols = stored_in;
        weight.parts[0].transposed = true;
        if (!config.bias) return;
        Tensor& bias = add(name + ".bias", ParamClass::bias, layer, out, 1, 0.0f, 0.0f);
        bias.stored_rows = stored_out;
    }
    Registry finish() {
        int64_t offset = 0;
        for (Tensor& t : registry.tensors) {
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
    Builder b{c, {}};
    const float std = 0.02f;
    const float std_out = c.init == "gpt2_scaled" ? std / std::sqrt(2.0f * static_cast<float>(c.layers)) : std;
    Tensor& wte = b.add("wte.weight", ParamClass::embed, -1, c.vocab, c.channels, 0.0f, std);
    wte.stored_rows = c.padded_vocab();
    b.add("wpe.weight", ParamClass::embed, -1, c.context, c.channels, 0.0f, std);
    for (int l = 0; l < c.layers; l++) {
        const std::string prefix = "h." + std::to_string(l) + ".";
        const int64_t C = c.channels, F = c.ffn, Fp = c.padded_ffn();
        b.norm(prefix + "ln_1", l);
        b.linear(prefix + "attn.c_attn", l, C, 3 * C, C, 3 * C, std);
        b.linear(prefix + "attn.c_proj", l, C, C, C, C, std_out);
        b.norm(prefix + "ln_2", l);
        b.linear(prefix + "mlp.c_fc", l, C, F, C, Fp, std);
        b.linear(prefix + "mlp.c_proj", l, F, C, Fp, C, std_out);
    }
    b.norm("ln_f", -1);
    if (!c.tie) {
        Tensor& head = b.add("lm_head.weight", ParamClass::head, -1, c.vocab, c.channels, 0.0f, std);
        head.stored_rows = c.padded_vocab();
    }
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
            f((part.row + r) * t.stored_cols + c, part.transposed ? c * part.rows + r : r * t.cols + c);
}

void part_to_stored(float* stored, const Tensor& t, const FilePart& part, const float* file) {
    each_element(t, part, [&](int64_t s, int64_t i) { stored[s] = file[i]; });
}

void stored_to_part(float* file, const Tensor& t, const FilePart& part, const float* stored) {
    each_element(t, part, [&](int64_t s, int64_t i) { file[i] = stored[s]; });
}
