// The network, forward and backward: read it top to bottom. Everything that a pass launches is started from here; what a
// linear map launches stands in model/linear.cu, what a seam launches in residual/, the optimizer in model/update.cpp.
#include <algorithm>

#include "kernels/attention.cuh"
#include "kernels/attention_decode.cuh"
#include "kernels/classifier.cuh"
#include "kernels/rope.cuh"
#include "kernels/scoring.cuh"
#include "kernels/swiglu.cuh"
#include "model/model_state.h"
#include "model/moments.cuh"
#include "residual/value_residual.cuh"

namespace {

float* scratch(Model& m) {
    return static_cast<float*>(m.scratch);
}

Pass make_pass(Model& m, int64_t N) {
    return {N, m.stream, m.mm, scratch(m), m.fp8.active && !fp8_calibrates(m)};
}

}  // namespace

void set_schedule(Model& m, bool evaluation) {
    Rule& rule = m.rule();
    const int64_t pass = evaluation ? m.passes : ++m.passes;
    rule.set_time(m.time, pass, evaluation, m.stream);
    if (!rule.has_beta() || (m.alpha_time == m.time && m.alpha_evaluation == evaluation)) return;
    const int last = 2 * m.config.layers;
    std::vector<float> alpha(static_cast<size_t>(last) + 1, 1.0f);
    if (m.residual.prores && !(evaluation && m.residual.prores->eval_one))
        for (int k = 1; k <= last; k++)
            alpha[static_cast<size_t>(k)] =
                static_cast<float>(m.residual.prores->alpha(layer_of(k), m.config.layers, m.time));
    rule.set_alpha(alpha, m.stream);
    m.alpha_time = m.time;
    m.alpha_evaluation = evaluation;
}

namespace {

// In 8 bits: what sublayer s+1 reads, unless the seam has written it so.
void convert_seam(Model& m, const Pass& pass, int s) {
    if (!m.fp8.active || s == 2 * m.config.layers || (pass.fp8 && m.rule().quantizes(s))) return;
    const LinearMap map = linear_map(m, s / 2, s % 2 == 0 ? Map::qkv : Map::fc);
    convert_input(m, map, m.rule().input(s), static_cast<int>(pass.N));
}

void run_seam(Model& m, const Pass& pass, int s) {
    const traffic::Range range("seam", s);
    m.rule().forward(pass, s);
    convert_seam(m, pass, s);
    m.input_at = s;
}

// With a cache the tokens stand behind those whose keys and values are in it, and theirs are added. output: whether the
// projection that ends the sublayer is wanted.
void attention_sublayer(Model& m, int l, int b, int t, const KvCache* cache, bool output = true) {
    const traffic::Range range("attention", l);
    const ModelConfig& c = m.config;
    const LayerOffsets& o = m.layers[static_cast<size_t>(l)];
    LayerValues& a = m.values[static_cast<size_t>(l)];
    const int N = b * t, W = m.qkv_width(), KV = m.kv_channels(), HS = c.head_size();
    const int position = cache ? cache->position : 0;
    const LinearMap qkv = linear_map(m, l, Map::qkv), proj = linear_map(m, l, Map::attn_proj);
    Rule& rule = m.rule();
    linear_forward(m, qkv, a.qkv, rule.input(2 * l), N);
    if (m.rope)
        rope_forward(a.qkv, m.rope + static_cast<int64_t>(position) * HS, b, t, c.heads, c.kv_heads, HS, m.stream);
    if (m.first_value && l == 0) value_copy(m.first_value, a.qkv, N, W, KV, m.stream);
    if (m.first_value && l > 0) value_mix(a.qkv, a.value, m.first_value, m.exact(o.value_lambda), N, W, KV, m.stream);
    if (cache)
        attention_cache_write(cache->layer(l), cache->first, cache->rows, position, cache->capacity, a.qkv, b, t,
                              c.heads, c.kv_heads, HS, m.stream);
    if (position > 0)
        attention_decode(a.attn, cache->scratch, a.qkv, cache->layer(l), b, position + 1, cache->capacity, c.heads,
                         c.kv_heads, HS, m.stream);
    else
        attention_forward(a.attn, a.lse, a.qkv, b, t, c.heads, c.kv_heads, HS, m.stream);
    if (!output) return;
    if (m.fp8.active) convert_input(m, proj, a.attn, N);
    linear_forward(m, proj, rule.output(2 * l + 1), a.attn, N, rule.addend(2 * l + 1));
}

// Whether the activation alone is computed again; at level block it comes with its layer.
bool activates_again(const Model& m) {
    return m.recompute == Recompute::gelu || m.recompute == Recompute::norm;
}

}  // namespace

void activate(Model& m, LayerValues& a, int N) {
    const int Fp = m.config.padded_ffn();
    if (m.config.activation == Activation::swiglu)
        swiglu_forward(a.act, a.pre, N, Fp, m.stream);
    else
        activation_forward(a.act, a.pre, m.config.activation, static_cast<int64_t>(N) * Fp, m.stream);
}

namespace {

void mlp_sublayer(Model& m, int l, int N, bool output = true) {
    const traffic::Range range("mlp", l);
    const Activation act = m.config.activation;
    LayerValues& a = m.values[static_cast<size_t>(l)];
    const LinearMap fc = linear_map(m, l, Map::fc), proj = linear_map(m, l, Map::mlp_proj);
    Rule& rule = m.rule();
    const floatX* z = rule.input(2 * l + 1);
    // An activation inside the product sees its input before that is rounded, and could not be had again from it.
    if (m.fp8.active) {
        linear_forward(m, fc, a.pre, z, N);
        if (output) convert_activation(m, l, N);
    } else if (act == Activation::swiglu || activates_again(m)) {
        linear_forward(m, fc, a.pre, z, N);
        activate(m, a, N);
    } else {
        matmul_activation_forward(m.mm, a.act, a.pre, z, m.param(fc.weight), m.param(fc.bias), act, N, fc.IC, fc.OC,
                                  m.stream);
    }
    if (!output) return;
    linear_forward(m, proj, rule.output(2 * l + 2), a.act, N, rule.addend(2 * l + 2));
}

// All but the schedules.
void network(Model& m, int b, int t, bool evaluation, const KvCache* cache) {
    const traffic::Range range("forward");
    const int N = b * t;
    const int64_t position = cache ? cache->position : 0;
    CHECK(position == 0 || t == 1);
    m.fp8.active = m.fp8.on && !evaluation;
    const Pass pass = make_pass(m, N);
    Rule& rule = m.rule();
    rule.begin(pass);
    embedding_forward(rule.embedding(), m.tokens, m.param(m.wte),
                      m.param(m.wpe < 0 ? -1 : m.wpe + position * m.config.channels), b, t, m.config.channels,
                      m.stream);
    run_seam(m, pass, 0);
    for (int l = 0; l < m.config.layers; l++) {
        attention_sublayer(m, l, b, t, cache);
        run_seam(m, pass, 2 * l + 1);
        mlp_sublayer(m, l, N);
        run_seam(m, pass, 2 * l + 2);
        if (m.watching && !evaluation)
            moments(m.layer_moments + 2 * l, rule.stream(2 * l + 2), static_cast<int64_t>(N) * rule.stream_channels(),
                    scratch(m), m.stream);
    }
}

}  // namespace

void forward(Model& m, int b, int t, bool evaluation, const KvCache* cache) {
    set_schedule(m, evaluation);
    network(m, b, t, evaluation, cache);
}

void upload(Model& m, int* device, const int* host, size_t count) {
    CUDA_CHECK(cudaMemcpyAsync(device, host, count * sizeof(int), cudaMemcpyHostToDevice, m.stream));
}

void logits_of(Model& m, int64_t first, int rows, float* logits) {
    const int C = m.config.channels, V = m.config.vocab, Vp = m.config.padded_vocab();
    CHECK(rows <= m.chunk);
    matmul_forward(m.mm, m.logits, m.rule().input(2 * m.config.layers) + first * C, m.param(m.head), nullptr, rows, C,
                   Vp, m.stream);
    std::vector<floatX> host(static_cast<size_t>(rows) * static_cast<size_t>(Vp));
    CUDA_CHECK(cudaMemcpyAsync(host.data(), m.logits, host.size() * sizeof(floatX), cudaMemcpyDeviceToHost, m.stream));
    CUDA_CHECK(cudaStreamSynchronize(m.stream));
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < V; i++)
            logits[static_cast<int64_t>(r) * V + i] =
                to_float(host[static_cast<size_t>(r) * static_cast<size_t>(Vp) + static_cast<size_t>(i)]);
}

namespace {

// Losses of all rows, a chunk of logits at a time, so that the logits never exist whole. With backward: the gradient of
// the head's weight, and of the head's input.
void head(Model& m, const int* targets, int64_t N, float dloss, bool backward) {
    const traffic::Range range("head");
    const int C = m.config.channels, V = m.config.vocab, Vp = m.config.padded_vocab();
    const floatX* z = m.rule().input(2 * m.config.layers);
    for (int64_t row = 0; row < N; row += m.chunk) {
        const int n = static_cast<int>(row + m.chunk < N ? m.chunk : N - row);
        matmul_forward(m.mm, m.logits, z + row * C, m.param(m.head), nullptr, n, C, Vp, m.stream);
        classifier(m.logits, m.losses + row, targets + row, dloss, n, V, Vp, backward, m.stream);
        if (!backward) continue;
        matmul_backward_weight(m.mm, m.grad(m.head), m.logits, z + row * C, n, C, Vp, m.accumulated > 0 || row > 0,
                               m.stream);
        matmul_backward_input(m.mm, m.rule().d_input() + row * C, m.logits, m.param(m.head), n, C, Vp, false, m.stream);
    }
    sum_losses(m.loss_sum, m.losses, N, m.stream);
}

// Losses and hits of n gathered rows, whose numbers stand in m.rows and targets in m.targets. What the head reads of
// them is put where attention's output was, which nobody needs any more.
void head_of_rows(Model& m, int64_t n) {
    const int C = m.config.channels, V = m.config.vocab, Vp = m.config.padded_vocab();
    floatX* z = m.values[0].attn;
    gather_rows(z, m.rule().input(2 * m.config.layers), m.rows, n, C, m.stream);
    for (int64_t row = 0; row < n; row += m.chunk) {
        const int count = static_cast<int>(row + m.chunk < n ? m.chunk : n - row);
        matmul_forward(m.mm, m.logits, z + row * C, m.param(m.head), nullptr, count, C, Vp, m.stream);
        greedy_hits(m.hits + row, m.logits, m.targets + row, count, V, Vp, m.stream);
        classifier(m.logits, m.losses + row, m.targets + row, 0.0f, count, V, Vp, false, m.stream);
    }
}

// What a sublayer read at seam s, where it was not kept and the buffer holds another's.
void input_again(Model& m, const Pass& pass, int s) {
    if (m.recompute < Recompute::norm || m.input_at == s) return;
    m.rule().input_again(pass, s);
    convert_seam(m, pass, s);
    m.input_at = s;
}

// Layer l's forward pass once more, as far as the backward pass reads what it makes.
void layer_again(Model& m, const Pass& pass, int l, int b, int t) {
    const Rule& rule = m.rule();
    const int s = 2 * l + 1;
    input_again(m, pass, s - 1);
    attention_sublayer(m, l, b, t, nullptr, rule.output_again(s));
    if (rule.seam_again(s))
        run_seam(m, pass, s);
    else
        input_again(m, pass, s);
    mlp_sublayer(m, l, b * t, rule.output_again(s + 1));
    if (rule.seam_again(s + 1)) run_seam(m, pass, s + 1);
}

void mlp_backward(Model& m, const Pass& pass, int l) {
    const traffic::Range range("mlp backward", l);
    const Activation act = m.config.activation;
    LayerValues& a = m.values[static_cast<size_t>(l)];
    const int s = 2 * l + 2, N = static_cast<int>(pass.N);
    LinearMap fc = linear_map(m, l, Map::fc);
    const LinearMap proj = linear_map(m, l, Map::mlp_proj);
    const int C = proj.OC, Fp = proj.IC;
    Rule& rule = m.rule();
    const floatX *du = rule.d_output(s), *weight = m.param(proj.weight);
    const float* scale = rule.branch_scale(s);
    if (m.fp8.active) {
        mlp_backward_to_fc(m, l, du, N, scale, rule.raw_last_map(s));
    } else {
        if (activates_again(m)) activate(m, a, N);
        linear_backward(m, proj, nullptr, du, a.act, N, scale, rule.raw_last_map(s));
        if (act == Activation::swiglu) {
            matmul_backward_input(m.mm, m.dact, du, weight, N, Fp, C, false, m.stream, scale);
            swiglu_backward(m.dwide, m.dact, a.pre, N, Fp, m.stream);
        } else if (fc.bias >= 0 &&
                   matmul_activation_backward_bias(m.mm, m.dwide, m.grad(fc.bias), du, weight, a.pre, act, scratch(m),
                                                   N, Fp, C, m.accumulated > 0, m.stream, scale)) {
            fc.bias = -1;  // its gradient is there
        } else {
            matmul_activation_backward_input(m.mm, m.dwide, du, weight, a.pre, act, N, Fp, C, m.stream, scale);
        }
    }
    input_again(m, pass, s - 1);
    linear_backward(m, fc, rule.d_input(), m.fp8.active ? nullptr : m.dwide, rule.input(s - 1), N);
}

void attention_sublayer_backward(Model& m, const Pass& pass, int l, int b, int t) {
    const traffic::Range range("attention backward", l);
    const ModelConfig& c = m.config;
    const LayerOffsets& o = m.layers[static_cast<size_t>(l)];
    LayerValues& a = m.values[static_cast<size_t>(l)];
    const int s = 2 * l + 1, N = b * t, W = m.qkv_width(), KV = m.kv_channels();
    Rule& rule = m.rule();
    floatX* dattn = rule.d_input();  // free until this sublayer's own input gradient goes there
    linear_backward(m, linear_map(m, l, Map::attn_proj), dattn, rule.d_output(s), a.attn, N, rule.branch_scale(s),
                    rule.raw_last_map(s));
    attention_backward(m.dwide, m.scratch, dattn, a.qkv, a.attn, a.lse, b, t, c.heads, c.kv_heads, c.head_size(),
                       m.stream);
    if (m.first_value && l > 0)
        value_mix_backward(m.dwide, m.dfirst_value, l == c.layers - 1, m.grad(o.value_lambda), a.value, m.first_value,
                           m.exact(o.value_lambda), scratch(m), N, W, KV, m.stream);
    if (m.first_value && l == 0 && c.layers > 1) value_first_backward(m.dwide, m.dfirst_value, N, W, KV, m.stream);
    if (m.rope) rope_backward(m.dwide, m.rope, b, t, c.heads, c.kv_heads, c.head_size(), m.stream);
    input_again(m, pass, s - 1);
    linear_backward(m, linear_map(m, l, Map::qkv), rule.d_input(), m.dwide, rule.input(s - 1), N);
}

void seam_backward(Rule& rule, const Pass& pass, int s) {
    const traffic::Range range("seam backward", s);
    rule.backward(pass, s);
}

void backward(Model& m, int b, int t) {
    const traffic::Range range("backward");
    const int N = b * t, C = m.config.channels;
    const Pass pass = make_pass(m, N);
    Rule& rule = m.rule();
    rule.begin_backward(pass);
    for (int l = m.config.layers - 1; l >= 0; l--) {
        if (m.recompute == Recompute::block) layer_again(m, pass, l, b, t);
        seam_backward(rule, pass, 2 * l + 2);
        mlp_backward(m, pass, l);
        seam_backward(rule, pass, 2 * l + 1);
        attention_sublayer_backward(m, pass, l, b, t);
    }
    seam_backward(rule, pass, 0);
    rule.end_backward(pass);
    embedding_backward_tokens(m.grad(m.wte), rule.d_embedding(), m.tokens + 2 * N, N, m.config.vocab, C, m.stream);
    if (m.wpe >= 0) embedding_backward_positions(m.grad(m.wpe), rule.d_embedding(), b, t, C, m.stream);
}

}  // namespace

void model_watch(Model& m, bool on) {
    m.watching = on;
}

std::vector<double> model_stream_variances(Model& m) {
    std::vector<float> sums(static_cast<size_t>(2 * m.config.layers));
    CUDA_CHECK(
        cudaMemcpyAsync(sums.data(), m.layer_moments, sums.size() * sizeof(float), cudaMemcpyDeviceToHost, m.stream));
    CUDA_CHECK(cudaStreamSynchronize(m.stream));
    std::vector<double> variances;
    for (size_t l = 0; l < sums.size() / 2; l++) {
        const double n = static_cast<double>(m.watched), mean = sums[2 * l] / n;
        variances.push_back(sums[2 * l + 1] / n - mean * mean);
    }
    return variances;
}

double model_branch_factor(const Model& m, int l) {
    return m.residual.prores ? m.residual.prores->alpha(l, m.config.layers, m.time) : 1.0;
}

void training_pass(Model& m, const StepKey& key) {
    const int64_t N = static_cast<int64_t>(key.b) * key.t;
    network(m, key.b, key.t, false, nullptr);
    head(m, m.tokens + N, N, key.loss_scale, true);
    backward(m, key.b, key.t);
}

double model_loss(Model& m, const int* inputs, const int* targets, int b, int t) {
    CHECK(b >= 1 && t >= 1 && static_cast<int64_t>(b) * t <= static_cast<int64_t>(m.B) * m.T);
    const size_t N = static_cast<size_t>(b) * static_cast<size_t>(t);
    upload(m, m.tokens, inputs, N);
    upload(m, m.targets, targets, N);
    // The training loss that may be waiting in loss_sum is put aside.
    double waiting = model_take_loss(m);
    forward(m, b, t, true);
    head(m, m.targets, static_cast<int64_t>(N), 0.0f, false);
    double loss = model_take_loss(m);
    CUDA_CHECK(cudaMemcpyAsync(m.loss_sum, &waiting, sizeof waiting, cudaMemcpyHostToDevice, m.stream));
    CUDA_CHECK(cudaStreamSynchronize(m.stream));
    return loss;
}

void model_token_losses(Model& m, const int* inputs, const int* targets, int b, int t, float* losses,
                        unsigned char* greedy) {
    const int64_t room = static_cast<int64_t>(m.B) * m.T, N = static_cast<int64_t>(b) * t;
    CHECK(b >= 1 && t >= 1 && N <= room);
    std::vector<int> rows, chosen;
    for (int i = 0; i < N; i++) {
        losses[i] = 0.0f;
        greedy[i] = 0;
        if (targets[i] < 0) continue;
        rows.push_back(i);
        chosen.push_back(targets[i]);
    }
    const size_t n = rows.size();
    // Masked rows fill up to a multiple of 64, so that the head meets few different shapes.
    const size_t padded = static_cast<size_t>(std::min(round_up(static_cast<int64_t>(n), 64), room));
    rows.resize(padded, 0);
    chosen.resize(padded, -1);
    upload(m, m.tokens, inputs, static_cast<size_t>(N));
    upload(m, m.rows, rows.data(), padded);
    upload(m, m.targets, chosen.data(), padded);
    forward(m, b, t, true);
    head_of_rows(m, static_cast<int64_t>(padded));
    std::vector<float> row_losses(n);
    std::vector<unsigned char> row_hits(n);
    CUDA_CHECK(cudaMemcpyAsync(row_losses.data(), m.losses, n * sizeof(float), cudaMemcpyDeviceToHost, m.stream));
    CUDA_CHECK(cudaMemcpyAsync(row_hits.data(), m.hits, n, cudaMemcpyDeviceToHost, m.stream));
    CUDA_CHECK(cudaStreamSynchronize(m.stream));
    for (size_t i = 0; i < n; i++) {
        losses[rows[i]] = row_losses[i];
        greedy[rows[i]] = row_hits[i];
    }
}

void model_last_logits(Model& m, const int* tokens, int t, float* logits) {
    CHECK(t >= 1 && t <= m.B * m.T);
    upload(m, m.tokens, tokens, static_cast<size_t>(t));
    forward(m, 1, t, true);
    logits_of(m, t - 1, 1, logits);
}
