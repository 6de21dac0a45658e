// Weights: initialisation, reading and writing, and the optimizer's update.
#include <cmath>
#include <fnmatch.h>
#include <thread>

#include "kernels/upload.cuh"
#include "model/model_state.h"
#include "optimizer/gradient_norm.cuh"
#include "residual/gate_clip.cuh"

const ModelConfig& model_config(const Model& model) {
    return model.config;
}
const Registry& model_registry(const Model& model) {
    return model.registry;
}
cudaStream_t model_stream(const Model& model) {
    return model.stream;
}

namespace {

uint64_t mix(uint64_t z) {  // splitmix64's finaliser: every input bit reaches every output bit
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

uint64_t hash_name(const std::string& name) {  // FNV-1a
    uint64_t h = 0xCBF29CE484222325ull;
    for (unsigned char ch : name) h = (h ^ ch) * 0x100000001B3ull;
    return h;
}

// Elements [first, last) of true index space, pairs of normals by Box and Muller from a counter. place(i) is where true
// element i lies in the stored tensor, deviation(row) the standard deviation there.
template <class Place, class Deviation>
void fill_normal(float* stored, const Tensor& t, uint64_t key, int64_t first, int64_t last, Place place,
                 Deviation deviation) {
    auto put = [&](int64_t i, double z) {
        const float std = i < last ? deviation(i / t.cols) : 0.0f;
        if (std > 0) stored[place(i)] = static_cast<float>(t.init_mean + std * z);
    };
    for (int64_t i = first; i < last; i += 2) {  // first is even
        const uint64_t bits = mix(key + 0x9E3779B97F4A7C15ull * static_cast<uint64_t>(i / 2 + 1));
        const double u = (static_cast<double>(bits >> 32) + 1.0) * 0x1p-32;  // (0,1]
        const double angle = static_cast<double>(bits & 0xFFFFFFFFu) * (0x1p-32 * 6.283185307179586);
        const double radius = std::sqrt(-2.0 * std::log(u));
        put(i, radius * std::cos(angle));
        put(i + 1, radius * std::sin(angle));
    }
}

void fill_tensor(float* stored, const Tensor& t, uint64_t seed) {
    auto place = [&](int64_t i) {
        const int64_t row = i / t.cols, column = i % t.cols;
        for (const FilePart& part : t.parts)
            if (row >= part.row && row < part.row + part.rows)
                return (part.stored_row + row - part.row) * t.stored_cols + column;
        return int64_t{0};
    };
    auto deviation = [&](int64_t row) {
        for (const InitRange& range : t.init_ranges)
            if (row >= range.row && row < range.row + range.rows) return range.std;
        return 0.0f;
    };
    for (int64_t i = 0; i < t.true_count(); i++)
        stored[place(i)] = t.initial.empty() ? t.init_mean : t.initial[static_cast<size_t>(i)];
    if (t.init_ranges.empty()) return;
    const uint64_t key = mix(seed * 0x9E3779B97F4A7C15ull ^ hash_name(t.name));
    const int64_t workers = std::max(1u, std::thread::hardware_concurrency());
    const int64_t share = round_up(ceil_div(t.true_count(), workers), 2);
    std::vector<std::thread> threads;
    for (int64_t first = 0; first < t.true_count(); first += share) {
        const int64_t last = std::min(first + share, t.true_count());
        auto fill = [=, &t] { fill_normal(stored, t, key, first, last, place, deviation); };
        if (share < 4096)
            fill();
        else
            threads.emplace_back(fill);
    }
    for (std::thread& thread : threads) thread.join();
}

}  // namespace

void model_init_weights(Model& model, uint64_t seed) {
    std::vector<float> host(static_cast<size_t>(model.registry.arena), 0.0f);
    for (const Tensor& t : model.registry.tensors) fill_tensor(host.data() + t.offset, t, seed);
    model_write_master(model, host.data(), seed, 0);
}

static void copy(Model& model, void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, kind, model.stream));
    CUDA_CHECK(cudaStreamSynchronize(model.stream));
}
static size_t arena_bytes(const Model& model) {
    return static_cast<size_t>(model.registry.arena) * sizeof(float);
}

void model_read_master(Model& model, float* host) {
    CHECK(model.master != nullptr);
    copy(model, host, model.master, arena_bytes(model), cudaMemcpyDeviceToHost);
}

void model_write_master(Model& model, const float* host, uint64_t seed, uint64_t step) {
    if (model.master) {
        copy(model, model.master, host, arena_bytes(model), cudaMemcpyHostToDevice);
        if constexpr (sizeof(floatX) == 2)
            round_params(model.params, model.master, 0, model.registry.arena, seed, step, model.stream);
        fp8_begin(model);
        return;
    }
    // bf16 inference keeps no masters: they pass through the memory of one tensor at a time.
    int64_t largest = 0;
    for (const Tensor& t : model.registry.tensors) largest = std::max(largest, t.count);
    float* staging = nullptr;
    CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&staging), static_cast<size_t>(largest) * sizeof(float)));
    for (const Tensor& t : model.registry.tensors) {
        copy(model, staging, host + t.offset, static_cast<size_t>(t.count) * sizeof(float), cudaMemcpyHostToDevice);
        round_params(model.params + t.offset, staging, t.offset, t.count, seed, step, model.stream);
    }
    CUDA_CHECK(cudaStreamSynchronize(model.stream));
    CUDA_CHECK(cudaFree(staging));
    if (!model.exact_tail) return;
    const int64_t start = model.registry.exact_start;
    copy(model, model.exact_tail, host + start, static_cast<size_t>(model.registry.arena - start) * sizeof(float),
         cudaMemcpyHostToDevice);
}

void model_read_moments(Model& model, float* m, float* v) {
    copy(model, m, model.m, arena_bytes(model), cudaMemcpyDeviceToHost);
    copy(model, v, model.v, arena_bytes(model), cudaMemcpyDeviceToHost);
}

void model_write_moments(Model& model, const float* m, const float* v) {
    copy(model, model.m, m, arena_bytes(model), cudaMemcpyHostToDevice);
    copy(model, model.v, v, arena_bytes(model), cudaMemcpyHostToDevice);
}

void model_read_grads(Model& model, float* host) {
    copy(model, host, model.grads, arena_bytes(model), cudaMemcpyDeviceToHost);
}

void model_set_time(Model& model, int64_t step, int64_t passes_per_update) {
    model.time = model.config.residual_step + step;
    model.passes_per_update = passes_per_update;
    model.passes = model.time * passes_per_update;
}

void model_average_grads(Model& model, Comm* comm) {
    const traffic::Range range("average");
    model.rule().finish_gradients({0, model.stream, model.mm, static_cast<float*>(model.scratch)});
    comm_average(comm, model.grads, static_cast<size_t>(model.registry.arena), model.stream);
}

static bool frozen(const Tensor& t, const std::vector<std::string>& patterns) {
    for (const std::string& pattern : patterns)
        if (pattern == class_name(t.cls) || fnmatch(pattern.c_str(), t.name.c_str(), 0) == 0) return true;
    return false;
}

void model_update(Model& model, const UpdateSettings& settings, int64_t step, Comm* comm, double mark) {
    const traffic::Range range("optimizer");
    CHECK(model.use == Use::training && step >= 1);
    const bool first = model.chunks_host.empty();
    model.adamw_host.clear();
    for (const Tensor& t : model.registry.tensors) {
        AdamWTensor a = {};
        a.offset = t.offset;
        a.count = t.count;
        // A tensor with a peak of its own follows the run's schedule from there.
        const double lr =
            t.own_lr > 0 && settings.peak_lr > 0 ? t.own_lr * settings.lr / settings.peak_lr : settings.lr;
        a.lr = static_cast<float>(lr * t.lr_scale);
        const double run_decay = decays(t, settings.decay) ? settings.weight_decay : 0.0;
        a.weight_decay = static_cast<float>(t.own_decay >= 0 ? t.own_decay : run_decay);
        a.beta1 = static_cast<float>(t.beta1 > 0 ? t.beta1 : settings.beta1);
        a.beta2 = static_cast<float>(t.beta2 > 0 ? t.beta2 : settings.beta2);
        a.eps = static_cast<float>(settings.eps);
        // Of the betas as the kernel has them: 0.999f is not 0.999, and 1 - beta^n would show it.
        a.correction1 = static_cast<float>(adamw_correction(a.beta1, step));
        a.correction2 = static_cast<float>(adamw_correction(a.beta2, step));
        a.frozen = t.frozen || frozen(t, settings.freeze);
        a.stored = model.stored[model.adamw_host.size()] ? 1 : 0;
        model.adamw_host.push_back(a);
    }
    upload_values(model.adamw_tensors, model.adamw_host.data(), model.adamw_host.size() * sizeof(AdamWTensor),
                  model.stream);
    if (first) {
        model.chunks_host = adamw_chunks(model.adamw_host);
        CUDA_CHECK(cudaMemcpyAsync(model.adamw_chunk_list, model.chunks_host.data(),
                                   model.chunks_host.size() * sizeof(AdamWChunk), cudaMemcpyHostToDevice,
                                   model.stream));
    }
    const int num_chunks = static_cast<int>(model.chunks_host.size());
    gradient_norm_moves(model.adamw_host);
    gradient_norm(model.clip, model.grads, model.adamw_tensors, model.adamw_chunk_list, num_chunks,
                  static_cast<float>(settings.grad_clip), model.scratch, model.stream);
    if (model.rule().gate_clip > 0) {
        std::vector<int64_t> gates;
        for (size_t i = 0; i < model.registry.tensors.size(); i++) {
            const Tensor& t = model.registry.tensors[i];
            if (t.clipped_gate && !model.adamw_host[i].frozen) gates.push_back(t.offset);
        }
        clip_gates(model.grads, gates, model.clip, static_cast<float>(model.rule().gate_clip), model.stream);
    }
    adamw_moves(model.adamw_host, true);
    adamw_update(model.params, model.master, model.grads, model.m, model.v, model.adamw_tensors, model.adamw_chunk_list,
                 num_chunks, model.clip, true, settings.seed, static_cast<uint64_t>(step), model.stream);
    fp8_update(model, comm);
    model.accumulated = 0;
    model.time = model.config.residual_step + step;
    queue_result(model, comm, mark);
}

double recompute_flops_per_token(const ModelConfig& c, int T, Recompute recompute) {
    if (recompute != Recompute::block) return 0;  // what the others repeat is no product
    const Residual residual = config_residual(c, 1, true, recompute);
    const Rule& rule = *residual.rule;
    const double C = c.channels, kv = static_cast<double>(c.kv_heads) * c.head_size();
    const double inner = (c.activation == Activation::swiglu ? 2.0 : 1.0) * C * c.ffn;
    double weights = c.layers * (C * (C + 2 * kv) + inner);
    for (int s = 1; s <= 2 * c.layers; s++) {
        if (rule.output_again(s)) weights += s % 2 == 1 ? C * C : C * c.ffn;
        for (const RuleParameter& p : rule.parameters)
            if (p.product && p.place == Place::sublayer && p.index == s && rule.seam_again(s))
                weights += static_cast<double>(p.shape[0]) * static_cast<double>(p.shape[1]);
    }
    return 2.0 * weights + 4.0 * C * c.layers * (T / 2.0);
}

double flops_per_token(const ModelConfig& c, int T) {
    // Each weight that a token meets in a product (the head included, embeddings not) is one multiply-add forward and
    // two backward: 6. Attention meets T/2 keys on average: q.k and p.v are 4*C per key forward, twice that backward.
    // What a kernel computes again to save memory is not counted: this is the model's work.
    const double C = c.channels, kv = static_cast<double>(c.kv_heads) * c.head_size();
    const double mlp = (c.activation == Activation::swiglu ? 3.0 : 2.0) * C * c.ffn;
    double weights = c.layers * (C * (C + 2 * kv) + C * C + mlp) + C * c.vocab;
    const Residual residual = config_residual(c, 1, false);
    for (const RuleParameter& p : residual.rule->parameters)
        if (p.product) weights += static_cast<double>(p.shape[0]) * static_cast<double>(p.shape[1]);
    const double attention = 3.0 * 4.0 * C * c.layers * (T / 2.0);
    return 6.0 * weights + attention;
}
