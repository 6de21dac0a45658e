// The network, forward and backward: read it top to bottom. Every kernel and every product of a training step is here.
#include <cstring>

#include "kernels/attention.cuh"
#include "kernels/bias.cuh"
#include "kernels/classifier.cuh"
#include "model/model_state.h"
#include "residual/seam.cuh"

namespace {

SeamShape seam_shape(const Model& m, int64_t N) {
    return {N, m.config.channels, NormKind::layer, m.config.norm_eps};
}

// Offsets of the norm that stands in seam s: ln_1 and ln_2 of the layers in turn, and ln_f in the last.
void seam_norm_offsets(const Model& m, int s, int64_t& weight, int64_t& bias) {
    if (s == 2 * m.config.layers) {
        weight = m.ln_f_weight, bias = m.ln_f_bias;
    } else if (s % 2 == 0) {
        weight = m.layers[s / 2].ln_1_weight, bias = m.layers[s / 2].ln_1_bias;
    } else {
        weight = m.layers[s / 2].ln_2_weight, bias = m.layers[s / 2].ln_2_bias;
    }
}

SeamNorm seam_norm(const Model& m, int s) {
    int64_t weight, bias;
    seam_norm_offsets(m, s, weight, bias);
    SeamNorm norm;
    norm.gain = m.param(weight);
    norm.bias = m.param(bias);
    norm.mean = m.seams[s].mean;
    norm.rstd = m.seams[s].rstd;
    if (m.use == Use::training) {
        norm.dgain = m.grad(weight);
        norm.dbias = m.grad(bias);
    }
    return norm;
}

// Seam s: x_s = x_{s-1} + u, z_s = N(x_s).
void seam_forward(Model& m, int s, int64_t N) {
    SeamForward seam = {};
    seam.x = s == 0 ? m.seams[0].x : m.seams[s - 1].x;
    seam.u = s == 0 ? nullptr : m.u;
    seam.x_new = m.seams[s].x;
    seam.z = m.seams[s].z;
    seam.in = seam_norm(m, s);
    vanilla_forward(seam, seam_shape(m, N), m.stream);
}

// dx <- dx + N^T(dz); at the last seam there is no dx yet. For vanilla, dx is the gradient of u too.
void seam_backward(Model& m, int s, int64_t N) {
    SeamBackward seam = {};
    seam.dx_new = s == 2 * m.config.layers ? nullptr : m.dx;
    seam.dz = m.dz;
    seam.x_new = m.seams[s].x;
    seam.dx = m.dx;
    seam.du = s == 0 ? nullptr : m.dx;
    seam.in = seam_norm(m, s);
    vanilla_backward(seam, seam_shape(m, N), static_cast<float*>(m.scratch), m.stream);
}

// tokens (b,t) -> z of the last seam, the head's input.
void forward(Model& m, int b, int t) {
    const ModelConfig& c = m.config;
    const int N = b * t, C = c.channels, Fp = c.padded_ffn();
    embedding_forward(m.seams[0].x, m.tokens, m.param(m.wte), m.param(m.wpe), b, t, C, m.stream);
    seam_forward(m, 0, N);
    for (int l = 0; l < c.layers; l++) {
        const LayerOffsets& o = m.layers[l];
        LayerValues& a = m.values[l];
        // attention
        matmul_forward(m.mm, a.qkv, m.seams[2 * l].z, m.param(o.qkv_weight), m.param(o.qkv_bias), N, C, 3 * C, m.stream);
        attention_forward(a.attn, a.lse, a.qkv, b, t, c.heads, c.kv_heads, c.head_size(), m.stream);
        matmul_forward(m.mm, m.u, a.attn, m.param(o.attn_proj_weight), m.param(o.attn_proj_bias), N, C, C, m.stream);
        seam_forward(m, 2 * l + 1, N);
        // MLP
        matmul_activation_forward(m.mm, a.act, a.pre, m.seams[2 * l + 1].z, m.param(o.fc_weight), m.param(o.fc_bias),
                                  c.activation, N, C, Fp, m.stream);
        matmul_forward(m.mm, m.u, a.act, m.param(o.mlp_proj_weight), m.param(o.mlp_proj_bias), N, Fp, C, m.stream);
        seam_forward(m, 2 * l + 2, N);
    }
}

// Losses of all rows, a chunk of logits at a time, so that the logits never exist whole. With backward: the gradient of
// the head's weight, and dz, the gradient of the head's input.
void head(Model& m, int64_t N, float dloss, bool backward) {
    const int C = m.config.channels, V = m.config.vocab, Vp = m.config.padded_vocab();
    const floatX* z = m.seams.back().z;
    for (int64_t row = 0; row < N; row += m.chunk) {
        const int n = static_cast<int>(row + m.chunk < N ? m.chunk : N - row);
        matmul_forward(m.mm, m.logits, z + row * C, m.param(m.head), nullptr, n, C, Vp, m.stream);
        classifier(m.logits, m.losses + row, m.targets + row, dloss, n, V, Vp, backward, m.stream);
        if (!backward) continue;
        matmul_backward_weight(m.mm, m.grad(m.head), m.logits, z + row * C, n, C, Vp, m.stream);
        matmul_backward_input(m.mm, m.dz + row * C, m.logits, m.param(m.head), n, C, Vp, false, m.stream);
    }
    sum_losses(m.loss_sum, m.losses, N, m.stream);
}

// A linear map's backward: weight and bias gradients from dout (N,OC) and its input (N,IC).
void linear_backward(Model& m, int64_t weight, int64_t bias, const floatX* dout, const floatX* inp, int N, int IC, int OC) {
    matmul_backward_weight(m.mm, m.grad(weight), dout, inp, N, IC, OC, m.stream);
    if (bias >= 0) bias_backward(m.grad(bias), dout, static_cast<float*>(m.scratch), N, OC, m.stream);
}

void backward(Model& m, int b, int t) {
    const ModelConfig& c = m.config;
    const int N = b * t, C = c.channels, Fp = c.padded_ffn();
    seam_backward(m, 2 * c.layers, N);
    for (int l = c.layers - 1; l >= 0; l--) {
        const LayerOffsets& o = m.layers[l];
        LayerValues& a = m.values[l];
        // MLP: dx is the gradient of its output
        linear_backward(m, o.mlp_proj_weight, o.mlp_proj_bias, m.dx, a.act, N, Fp, C);
        matmul_activation_backward_input(m.mm, m.dwide, m.dx, m.param(o.mlp_proj_weight), a.pre, c.activation, N, Fp, C,
                                         m.stream);
        linear_backward(m, o.fc_weight, o.fc_bias, m.dwide, m.seams[2 * l + 1].z, N, C, Fp);
        matmul_backward_input(m.mm, m.dz, m.dwide, m.param(o.fc_weight), N, C, Fp, false, m.stream);
        seam_backward(m, 2 * l + 1, N);
        // attention
        linear_backward(m, o.attn_proj_weight, o.attn_proj_bias, m.dx, a.attn, N, C, C);
        matmul_backward_input(m.mm, m.dz, m.dx, m.param(o.attn_proj_weight), N, C, C, false, m.stream);
        attention_backward(m.dwide, m.scratch, m.dz, a.qkv, a.attn, a.lse, b, t, c.heads, c.kv_heads, c.head_size(),
                           m.stream);
        linear_backward(m, o.qkv_weight, o.qkv_bias, m.dwide, m.seams[2 * l].z, N, C, 3 * C);
        matmul_backward_input(m.mm, m.dz, m.dwide, m.param(o.qkv_weight), N, C, 3 * C, false, m.stream);
        seam_backward(m, 2 * l, N);
    }
    embedding_backward_tokens(m.grad(m.wte), m.dx, m.groups, m.token_groups.num_unique, N, C, m.stream);
    embedding_backward_positions(m.grad(m.wpe), m.dx, b, t, C, m.stream);
}

void upload(Model& m, int* device, const int* host, size_t count) {
    CUDA_CHECK(cudaMemcpyAsync(device, host, count * sizeof(int), cudaMemcpyHostToDevice, m.stream));
}

}  // namespace

void model_forward_backward(Model& m, const int* inputs, const int* targets, int b, int t, double loss_scale) {
    CHECK(m.use == Use::training && b >= 1 && t >= 1 && static_cast<int64_t>(b) * t <= static_cast<int64_t>(m.B) * m.T);
    const size_t N = static_cast<size_t>(b) * static_cast<size_t>(t);
    upload(m, m.tokens, inputs, N);
    upload(m, m.targets, targets, N);
    group_tokens(m.token_groups, inputs, static_cast<int>(N));
    upload(m, m.groups, m.token_groups.data.data(), m.token_groups.data.size());
    forward(m, b, t);
    head(m, static_cast<int64_t>(N), static_cast<float>(loss_scale), true);
    backward(m, b, t);
}

double model_take_loss(Model& m) {
    double sum = 0;
    CUDA_CHECK(cudaMemcpyAsync(&sum, m.loss_sum, sizeof sum, cudaMemcpyDeviceToHost, m.stream));
    CUDA_CHECK(cudaMemsetAsync(m.loss_sum, 0, sizeof sum, m.stream));
    CUDA_CHECK(cudaStreamSynchronize(m.stream));
    return sum;
}

double model_loss(Model& m, const int* inputs, const int* targets, int b, int t) {
    CHECK(b >= 1 && t >= 1 && static_cast<int64_t>(b) * t <= static_cast<int64_t>(m.B) * m.T);
    const size_t N = static_cast<size_t>(b) * static_cast<size_t>(t);
    upload(m, m.tokens, inputs, N);
    upload(m, m.targets, targets, N);
    // The training loss that may be waiting in loss_sum is put aside.
    double waiting = model_take_loss(m);
    forward(m, b, t);
    head(m, static_cast<int64_t>(N), 0.0f, false);
    double loss = model_take_loss(m);
    CUDA_CHECK(cudaMemcpyAsync(m.loss_sum, &waiting, sizeof waiting, cudaMemcpyHostToDevice, m.stream));
    CUDA_CHECK(cudaStreamSynchronize(m.stream));
    return loss;
}

void model_last_logits(Model& m, const int* tokens, int t, float* logits) {
    CHECK(t >= 1 && t <= m.B * m.T);
    const int C = m.config.channels, V = m.config.vocab, Vp = m.config.padded_vocab();
    upload(m, m.tokens, tokens, static_cast<size_t>(t));
    forward(m, 1, t);
    matmul_forward(m.mm, m.logits, m.seams.back().z + static_cast<int64_t>(t - 1) * C, m.param(m.head), nullptr, 1, C, Vp,
                   m.stream);
    std::vector<floatX> row(static_cast<size_t>(V));
    CUDA_CHECK(cudaMemcpyAsync(row.data(), m.logits, row.size() * sizeof(floatX), cudaMemcpyDeviceToHost, m.stream));
    CUDA_CHECK(cudaStreamSynchronize(m.stream));
    for (int i = 0; i < V; i++) logits[i] = to_float(row[static_cast<size_t>(i)]);
}
