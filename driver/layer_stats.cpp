#include "driver/layer_stats.h"

#include <cmath>
#include <nlohmann/json.hpp>

using nlohmann::json;

void LayerStats::before_update(Model& model) {
    const size_t size = static_cast<size_t>(model_registry(model).arena);
    grads_.resize(size);
    before_.resize(size);
    model_read_grads(model, grads_.data());
    model_read_master(model, before_.data());
    factors_.clear();
    for (int l = 1; l <= model_config(model).layers; l++) factors_.push_back(model_branch_factor(model, l));
}

// "h.3.residual_attn.ls_gamma" -> "attn.ls_gamma", "h.3.residual.gpas_gate" -> "gpas_gate"; empty: not a rule's
// parameter.
static std::string gate_name(const std::string& name) {
    const size_t at = name.find(".residual");
    if (at == std::string::npos) return "";
    std::string rest = name.substr(at + std::string(".residual").size());
    return rest.substr(1);  // behind "." or "_"
}

static json gate_value(const Tensor& t, const std::vector<float>& arena) {
    const float* values = arena.data() + t.offset;
    if (t.true_count() == 1) return values[0];
    constexpr int64_t most_listed = 32;
    json list = json::array();
    double sum = 0, square = 0;
    for (int64_t r = 0; r < t.rows; r++)
        for (int64_t c = 0; c < t.cols; c++) {
            const double x = values[r * t.stored_cols + c];
            sum += x, square += x * x;
            if (t.true_count() <= most_listed) list.push_back(x);
        }
    const double n = static_cast<double>(t.true_count());
    if (t.true_count() <= most_listed) return list;
    return {{"mean", sum / n}, {"rms", std::sqrt(square / n)}};
}

void LayerStats::log(Model& model, Log& log, int64_t step) {
    const Registry& registry = model_registry(model);
    std::vector<float> after(grads_.size());
    model_read_master(model, after.data());
    const std::vector<double> variances = model_stream_variances(model);
    json layers = json::array();
    for (size_t l = 0; l < variances.size(); l++) {
        double grad = 0, weight = 0, update = 0;
        json gates = json::object();
        for (const Tensor& t : registry.tensors) {
            if (t.layer != static_cast<int>(l)) continue;
            for (int64_t i = t.offset; i < t.offset + t.count; i++) {
                const size_t at = static_cast<size_t>(i);
                const double g = grads_[at], w = after[at], d = static_cast<double>(after[at]) - before_[at];
                grad += g * g, weight += w * w, update += d * d;
            }
            const std::string name = gate_name(t.name);
            if (!name.empty()) gates[name] = gate_value(t, after);
        }
        json layer = {{"layer", l},
                      {"activation_variance", variances[l]},
                      {"grad_norm", std::sqrt(grad)},
                      {"weight_norm", std::sqrt(weight)},
                      {"update_norm", std::sqrt(update)}};
        if (parse_residual(model_config(model).residual).prores) layer["branch_factor"] = factors_[l];
        if (!gates.empty()) layer["gates"] = gates;
        layers.push_back(layer);
    }
    log_layers(log, step, layers.dump());
}
