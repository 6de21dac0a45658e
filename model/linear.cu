#include "model/linear.h"

#include <algorithm>

#include "kernels/fp8_activation.cuh"
#include "kernels/swiglu.cuh"
#include "model/model_state.h"

LinearMap linear_map(const Model& m, int l, Map which) {
    const LayerOffsets& o = m.layers[static_cast<size_t>(l)];
    const int C = m.config.channels, number = MAPS * l + static_cast<int>(which);
    switch (which) {
        case Map::qkv:
            return {number, o.qkv.weight, o.qkv.bias, C, m.qkv_width()};
        case Map::attn_proj:
            return {number, o.attn_proj.weight, o.attn_proj.bias, C, C};
        case Map::fc:
            return {number, o.fc.weight, o.fc.bias, C, m.hidden_width()};
        default:
            return {number, o.mlp_proj.weight, o.mlp_proj.bias, m.config.padded_ffn(), C};
    }
}

namespace {

float* scratch(Model& m) {
    return static_cast<float*>(m.scratch);
}

Fp8Slot input_slot(const Model& m, int number) {
    return m.fp8.scales[number];
}
Fp8Slot weight_slot(const Model& m, int number) {
    return m.fp8.scales[m.fp8.numbers() + number];
}
Fp8Slot dout_slot(const Model& m, int number) {
    return m.fp8.scales[2 * m.fp8.numbers() + number];
}

bool calibrating(const Model& m) {
    return m.fp8.active && fp8_calibrates(m);
}

// The first scale of a tensor, from its own numbers.
template <class F>
void calibrate(Model& m, int slot, const floatX* x, int64_t count) {
    if (!calibrating(m)) return;
    fp8_amax(m.fp8.scales[slot].amax, x, count, m.stream);
    fp8_first_scales<F>(m.fp8.scales, slot, 1, m.stream);
}

// Where the gradient of a map's output is, by rows and transposed.
struct OutputGradient {
    e5m2 *rows, *columns;
};
OutputGradient output_gradient(const Model& m, const LinearMap& map) {
    const bool wide = map.number % MAPS == static_cast<int>(Map::qkv) || map.number % MAPS == static_cast<int>(Map::fc);
    return wide ? OutputGradient{m.fp8.dwide, m.fp8.dwide_t} : OutputGradient{m.fp8.dout, m.fp8.dout_t};
}

// dout (N,OC) in 8 bits, and the bias's gradient, times *scale.
void convert_output_gradient(Model& m, const LinearMap& map, const floatX* dout, int N, const float* scale) {
    const int slot = 2 * m.fp8.numbers() + map.number;
    calibrate<e5m2>(m, slot, dout, static_cast<int64_t>(N) * map.OC);
    const OutputGradient out = output_gradient(m, map);
    fp8_quantize_bias(out.rows, out.columns, m.grad(map.bias), dout, m.fp8.scales[slot], scratch(m), N, map.OC,
                      m.accumulated > 0, m.stream, scale);
}

void weight_product(Model& m, const LinearMap& map, int N, const float* scale) {
    matmul_fp8_backward_weight(
        m.mm, m.grad(map.weight), {output_gradient(m, map).columns, dout_slot(m, map.number).inverse},
        {m.fp8.input_t, input_slot(m, map.number).inverse}, N, map.IC, map.OC, m.accumulated > 0, m.stream, scale);
}

void input_product(Model& m, const LinearMap& map, floatX* dinp, int N, const float* scale) {
    const size_t i = static_cast<size_t>(map.number);
    matmul_fp8_backward_input(m.mm, dinp, {output_gradient(m, map).rows, dout_slot(m, map.number).inverse},
                              {m.fp8.weight_t[i], weight_slot(m, map.number).inverse}, N, map.IC, map.OC, m.stream,
                              scale);
}

}  // namespace

void linear_forward(Model& m, const LinearMap& map, floatX* out, const floatX* inp, int N, const floatX* add) {
    if (!m.fp8.active) {
        matmul_forward(m.mm, out, inp, m.param(map.weight), m.param(map.bias), N, map.IC, map.OC, m.stream, 0, add);
        return;
    }
    const size_t i = static_cast<size_t>(map.number);
    matmul_fp8_forward(m.mm, out, {m.fp8.input[i], input_slot(m, map.number).inverse},
                       {m.fp8.weight[i], weight_slot(m, map.number).inverse}, m.param(map.bias), N, map.IC, map.OC,
                       m.stream, add);
}

void convert_input(Model& m, const LinearMap& map, const floatX* inp, int N) {
    calibrate<e4m3>(m, map.number, inp, static_cast<int64_t>(N) * map.IC);
    fp8_quantize<e4m3>(m.fp8.input[static_cast<size_t>(map.number)], nullptr, inp, input_slot(m, map.number), N, map.IC,
                       m.stream);
}

void convert_activation(Model& m, int l, int N) {
    LayerValues& a = m.values[static_cast<size_t>(l)];
    const LinearMap proj = linear_map(m, l, Map::mlp_proj);
    if (calibrating(m)) {
        activate(m, a, N);
        convert_input(m, proj, a.act, N);
        return;
    }
    fp8_activation_forward(m.fp8.input[static_cast<size_t>(proj.number)], a.pre, m.config.activation,
                           input_slot(m, proj.number), N, proj.IC, m.stream);
}

void linear_backward(Model& m, const LinearMap& map, floatX* dinp, const floatX* dout, const floatX* inp, int N,
                     const float* scale, bool raw) {
    const float* weight_scale = raw ? nullptr : scale;
    if (!m.fp8.active) {
        const bool accumulate = m.accumulated > 0;
        if (map.bias >= 0)
            matmul_backward_weight_bias(m.mm, m.grad(map.weight), m.grad(map.bias), dout, inp, scratch(m), N, map.IC,
                                        map.OC, accumulate, m.stream, weight_scale);
        else
            matmul_backward_weight(m.mm, m.grad(map.weight), dout, inp, N, map.IC, map.OC, accumulate, m.stream,
                                   weight_scale);
        if (dinp)
            matmul_backward_input(m.mm, dinp, dout, m.param(map.weight), N, map.IC, map.OC, false, m.stream, scale);
        return;
    }
    if (dout) convert_output_gradient(m, map, dout, N, weight_scale);
    if (map.number % MAPS == static_cast<int>(Map::attn_proj))  // kept in floatX alone, for attention's own gradient
        fp8_quantize<e4m3>(nullptr, m.fp8.input_t, inp, input_slot(m, map.number), N, map.IC, m.stream);
    else
        fp8_transpose(m.fp8.input_t, m.fp8.input[static_cast<size_t>(map.number)], N, map.IC, m.stream);
    weight_product(m, map, N, weight_scale);
    input_product(m, map, dinp, N, scale);
}

void mlp_backward_to_fc(Model& m, int l, const floatX* du, int N, const float* scale, bool raw) {
    const Activation act = m.config.activation;
    LayerValues& a = m.values[static_cast<size_t>(l)];
    const LinearMap fc = linear_map(m, l, Map::fc), proj = linear_map(m, l, Map::mlp_proj);
    const int Fp = proj.IC;
    const bool swiglu = act == Activation::swiglu;
    floatX* dact = swiglu ? m.dact : m.dwide;
    convert_output_gradient(m, proj, du, N, raw ? nullptr : scale);
    if (calibrating(m)) {  // the gradient of fc's output has no scale yet
        activate(m, a, N);
        fp8_quantize<e4m3>(nullptr, m.fp8.input_t, a.act, input_slot(m, proj.number), N, Fp, m.stream);
        input_product(m, proj, dact, N, scale);
        if (swiglu)
            swiglu_backward(m.dwide, dact, a.pre, N, Fp, m.stream);
        else
            activation_backward(m.dwide, dact, a.pre, act, static_cast<int64_t>(N) * Fp, m.stream);
        convert_output_gradient(m, fc, m.dwide, N, nullptr);
    } else {
        input_product(m, proj, dact, N, scale);
        fp8_activation_backward(m.fp8.dwide, m.fp8.dwide_t, m.fp8.input_t, m.grad(fc.bias), dact, a.pre, act,
                                dout_slot(m, fc.number), input_slot(m, proj.number), scratch(m), N, Fp,
                                m.accumulated > 0, m.stream);
    }
    weight_product(m, proj, N, raw ? nullptr : scale);
}

static void convert_weights(Model& m) {
    for (int which = 0; which < MAPS; which++) {
        const LinearMap map = linear_map(m, 0, static_cast<Map>(which));
        const int layers = m.config.layers;
        fp8_quantize_each(m.fp8.weight_jobs + which * layers, layers, map.OC, map.IC, m.stream);
    }
}

bool fp8_calibrates(const Model& m) {
    return m.fp8.on && !m.fp8.settled && m.accumulated == 0;
}

// Whether every tensor has a scale, or there were updates enough to find one.
static bool is_settled(const Fp8State& state) {
    size_t most = 0;  // weights get an entry in every update
    bool all = true;
    for (size_t i = 0; i < state.scale.size(); i++) {
        const auto first = state.history.begin() + static_cast<int64_t>(i * FP8_HISTORY);
        const size_t entries =
            static_cast<size_t>(std::count_if(first, first + FP8_HISTORY, [](float amax) { return amax > 0.0f; }));
        most = std::max(most, entries);
        all &= entries > 0;
    }
    return all || most == FP8_HISTORY;
}

void fp8_update(Model& m, Comm* comm) {
    if (!m.fp8.on) return;
    const int n = m.fp8.numbers();
    comm_largest(comm, reinterpret_cast<float*>(m.fp8.scales.amax), static_cast<size_t>(3 * n), m.stream);
    fp8_update_scales<e4m3>(m.fp8.scales, 0, 2 * n, m.stream, m.clip);
    fp8_update_scales<e5m2>(m.fp8.scales, 2 * n, n, m.stream, m.clip);
    convert_weights(m);
    if (!m.fp8.settled) m.fp8.settled = is_settled(model_read_fp8(m));  // waits: in a run's first updates only
}

void fp8_ready(Model& m) {
    if (!m.fp8.on) return;
    std::vector<Fp8Job<e4m3>> jobs;
    for (int which = 0; which < MAPS; which++) {
        for (int l = 0; l < m.config.layers; l++) {
            const LinearMap map = linear_map(m, l, static_cast<Map>(which));
            const size_t i = static_cast<size_t>(map.number);
            jobs.push_back({m.fp8.weight[i], m.fp8.weight_t[i], m.param(map.weight), weight_slot(m, map.number)});
        }
    }
    CUDA_CHECK(cudaMemcpyAsync(m.fp8.weight_jobs, jobs.data(), jobs.size() * sizeof jobs[0], cudaMemcpyHostToDevice,
                               m.stream));
    CUDA_CHECK(cudaStreamSynchronize(m.stream));
}

void fp8_begin(Model& m) {
    if (!m.fp8.on) return;
    const int n = m.fp8.numbers();
    set_zero(m.fp8.scales_memory, fp8_scales_bytes(3 * n), m.stream);
    for (int number = 0; number < n; number++) {
        const LinearMap map = linear_map(m, number / MAPS, static_cast<Map>(number % MAPS));
        fp8_amax(weight_slot(m, number).amax, m.param(map.weight), static_cast<int64_t>(map.OC) * map.IC, m.stream);
    }
    fp8_update_scales<e4m3>(m.fp8.scales, n, n, m.stream);
    convert_weights(m);
    m.fp8.settled = false;
}

Fp8State model_read_fp8(Model& m) {
    Fp8State state;
    if (!m.fp8.on) return state;
    const size_t n = 3 * static_cast<size_t>(m.fp8.numbers());
    state.scale.resize(n);
    state.history.resize(n * FP8_HISTORY);
    CUDA_CHECK(
        cudaMemcpyAsync(state.scale.data(), m.fp8.scales.scale, n * sizeof(float), cudaMemcpyDeviceToHost, m.stream));
    CUDA_CHECK(cudaMemcpyAsync(state.history.data(), m.fp8.scales.history, n * FP8_HISTORY * sizeof(float),
                               cudaMemcpyDeviceToHost, m.stream));
    CUDA_CHECK(cudaStreamSynchronize(m.stream));
    return state;
}

void model_write_fp8(Model& m, const Fp8State& state) {
    if (!m.fp8.on || state.scale.empty()) return;
    const size_t n = 3 * static_cast<size_t>(m.fp8.numbers());
    if (state.scale.size() != n || state.history.size() != n * FP8_HISTORY)
        throw user_error("the scales of 8-bit products are of another model (%zu tensors, not %zu): use another checkpoint",
                         state.scale.size(), n);
    std::vector<float> inverse;
    for (float scale : state.scale) inverse.push_back(scale > 0 ? 1.0f / scale : 0.0f);
    set_zero(m.fp8.scales.amax, n * sizeof(unsigned), m.stream);
    for (const auto& [to, from] : {std::pair{m.fp8.scales.scale, &state.scale},
                                   {m.fp8.scales.inverse, &inverse},
                                   {m.fp8.scales.history, &state.history}})
        CUDA_CHECK(cudaMemcpyAsync(to, from->data(), from->size() * sizeof(float), cudaMemcpyHostToDevice, m.stream));
    CUDA_CHECK(cudaStreamSynchronize(m.stream));
    convert_weights(m);
    m.fp8.settled = is_settled(state);
}
