// What a model allocates. One list serves the allocation, `--dry-run`, and the check that it will fit.
#include <algorithm>
#include <functional>

#include "kernels/attention.cuh"
#include "kernels/bias.cuh"
#include "model/model_state.h"
#include "optimizer/gradient_norm.cuh"
#include "residual/seam.cuh"

namespace {

// A stretch of device memory and the pointer that will point to it.
struct Request {
    size_t bytes;
    std::function<void(void*)> assign;
};
struct Segment {
    std::string name;
    std::vector<Request> requests;
    size_t bytes() const {
        size_t sum = 0;
        for (const Request& r : requests) sum += static_cast<size_t>(round_up(static_cast<int64_t>(r.bytes), 256));
        return sum;
    }
};

constexpr size_t matmul_workspace = size_t{32} << 20;
constexpr size_t logits_limit = size_t{512} << 20;  // bytes of logits alive at a time

template <class T>
Request request(int64_t count, T*& pointer) {
    return {static_cast<size_t>(count) * sizeof(T), [&pointer](void* p) { pointer = static_cast<T*>(p); }};
}

size_t scratch_bytes(const ModelConfig& c, const Registry& registry, int B, int T) {
    size_t bytes = attention_scratch_bytes(B, T, c.heads, c.kv_heads, c.head_size());
    bytes = std::max(bytes, bias_scratch_bytes(std::max(3 * c.channels, c.padded_ffn())));
    bytes = std::max(bytes, seam_scratch_bytes(c.channels));
    return std::max(bytes, gradient_norm_scratch_bytes(registry.arena));
}

// In inference every layer works in the same memory, because nothing is kept for a backward pass.
std::vector<Segment> plan(Model& model) {
    const ModelConfig& c = model.config;
    const bool training = model.use == Use::training;
    const int64_t N = static_cast<int64_t>(model.B) * model.T, C = c.channels, Fp = c.padded_ffn(), Vp = c.padded_vocab();
    const int64_t arena = model.registry.arena;

    const int64_t chunks = ceil_div(N * Vp * static_cast<int64_t>(sizeof(floatX)), static_cast<int64_t>(logits_limit));
    model.chunk = std::min(N, round_up(ceil_div(N, chunks), 128));

    std::vector<Segment> segments;
    segments.push_back({"parameters", {request(arena, model.params)}});
    if (sizeof(floatX) == 2 && training) segments.push_back({"fp32 masters", {request(arena, model.master)}});
    if (training) {
        segments.push_back({"gradients", {request(arena, model.grads)}});
        segments.push_back({"AdamW moments", {request(arena, model.m), request(arena, model.v)}});
    }

    model.seams.resize(2 * c.layers + 1);
    model.values.resize(c.layers);
    Segment streams{"stream and norms", {}}, attention{"attention", {}}, mlp{"MLP", {}};
    for (size_t s = 0; s < model.seams.size(); s++) {
        if (s > 0 && !training) break;
        SeamValues& seam = model.seams[s];
        for (floatX** p : {&seam.x, &seam.z}) streams.requests.push_back(request(N * C, *p));
        for (float** p : {&seam.mean, &seam.rstd}) streams.requests.push_back(request(N, *p));
    }
    for (size_t l = 0; l < model.values.size(); l++) {
        if (l > 0 && !training) break;
        LayerValues& layer = model.values[l];
        attention.requests.push_back(request(N * 3 * C, layer.qkv));
        attention.requests.push_back(request(N * C, layer.attn));
        attention.requests.push_back(request(N * c.heads, layer.lse));
        mlp.requests.push_back(request(N * Fp, layer.pre));
        mlp.requests.push_back(request(N * Fp, layer.act));
    }
    streams.requests.push_back(request(N * C, model.u));
    segments.push_back(streams);
    segments.push_back(attention);
    segments.push_back(mlp);
    segments.push_back({"logits", {request(model.chunk * Vp, model.logits), request(N, model.losses),
                                   request(1, model.loss_sum)}});
    Segment inputs{"tokens", {request(N, model.tokens), request(N, model.targets)}};
    if (training) {
        inputs.requests.push_back(request(static_cast<int64_t>(token_groups_capacity(static_cast<size_t>(N))), model.groups));
        const int64_t wide = std::max(3 * C, Fp);
        segments.push_back({"backward", {request(N * C, model.dx), request(N * C, model.dz), request(N * wide, model.dwide)}});

        int64_t num_chunks = 0;
        for (const Tensor& t : model.registry.tensors) num_chunks += ceil_div(t.count, static_cast<int64_t>(ADAMW_CHUNK));
        const size_t bytes = scratch_bytes(c, model.registry, model.B, model.T);
        segments.push_back({"scratch", {Request{bytes, [&model](void* p) { model.scratch = p; }}, request(2, model.clip),
                                        request(static_cast<int64_t>(model.registry.tensors.size()), model.adamw_tensors),
                                        request(num_chunks, model.adamw_chunk_list)}});
    }
    segments.push_back(inputs);
    return segments;
}

Model blueprint(const ModelConfig& config, int B, int T, Use use) {
    Model model;
    model.config = config;
    model.registry = build_registry(config);
    model.use = use;
    model.B = B;
    model.T = T;
    return model;
}

}  // namespace

std::vector<MemorySegment> model_memory(const ModelConfig& config, int B, int T, Use use) {
    Model model = blueprint(config, B, T, use);
    std::vector<MemorySegment> out;
    for (const Segment& segment : plan(model)) out.push_back({segment.name, segment.bytes()});
    out.push_back({"GEMM workspace", matmul_workspace});
    return out;
}

size_t total_bytes(const std::vector<MemorySegment>& segments) {
    size_t sum = 0;
    for (const MemorySegment& segment : segments) sum += segment.bytes;
    return sum;
}

int largest_batch(const ModelConfig& config, int T, Use use, size_t free_bytes) {
    auto fits = [&](int B) { return total_bytes(model_memory(config, B, T, use)) <= free_bytes; };
    if (!fits(1)) return 0;
    int low = 1, high = 2;
    // N = B*T must stay an int.
    const int limit = INT32_MAX / std::max(T, 1) / 4;
    while (high < limit && fits(high)) low = high, high *= 2;
    high = std::min(high, limit);
    while (high - low > 1) {
        int middle = low + (high - low) / 2;
        (fits(middle) ? low : high) = middle;
    }
    return low;
}

static std::string gib(size_t bytes) { return format("%.2f GiB", static_cast<double>(bytes) / (1 << 30)); }

ModelPtr model_create(const ModelConfig& config, int B, int T, Use use) {
    check_config(config);
    if (T > config.context)
        throw user_error("sequences of %d tokens: the model's context is %d", T, config.context);
    // The message of a batch that does not fit comes before anything is allocated.
    size_t free_bytes = 0, all_bytes = 0;
    CUDA_CHECK(cudaMemGetInfo(&free_bytes, &all_bytes));
    const size_t need = total_bytes(model_memory(config, B, T, use));
    if (need > free_bytes) {
        const int best = largest_batch(config, T, use, free_bytes);
        const std::string advice = best > 0 ? format("the largest batch that fits is %d", best)
                                            : std::string("not even a batch of 1 fits: use a smaller model or shorter sequences");
        throw user_error("a batch of %d x %d tokens needs %s of memory and %s are free: %s", B, T, gib(need).c_str(),
                         gib(free_bytes).c_str(), advice.c_str());
    }

    ModelPtr owner(new Model(blueprint(config, B, T, use)));
    Model& model = *owner;
    for (const Segment& segment : plan(model)) {
        char* memory = nullptr;
        if (cudaMalloc(reinterpret_cast<void**>(&memory), segment.bytes()) != cudaSuccess)
            throw user_error("out of memory while allocating %s for %s: use a smaller --batch", gib(segment.bytes()).c_str(),
                             segment.name.c_str());
        model.allocations.push_back(memory);
        for (const Request& r : segment.requests) {
            r.assign(memory);
            memory += round_up(static_cast<int64_t>(r.bytes), 256);
        }
    }
    if constexpr (sizeof(floatX) == 4) model.master = reinterpret_cast<float*>(model.params);
    if (use == Use::inference) {
        for (SeamValues& seam : model.seams) seam = model.seams[0];
        for (LayerValues& layer : model.values) layer = model.values[0];
    }

    auto offset = [&](const std::string& name) -> int64_t {
        for (const Tensor& t : model.registry.tensors)
            if (t.name == name) return t.offset;
        return -1;
    };
    model.wte = offset("wte.weight");
    model.wpe = offset("wpe.weight");
    model.ln_f_weight = offset("ln_f.weight");
    model.ln_f_bias = offset("ln_f.bias");
    model.head = config.tie ? model.wte : offset("lm_head.weight");
    for (int l = 0; l < config.layers; l++) {
        const std::string h = "h." + std::to_string(l) + ".";
        model.layers.push_back({offset(h + "ln_1.weight"), offset(h + "ln_1.bias"), offset(h + "attn.c_attn.weight"),
                                offset(h + "attn.c_attn.bias"), offset(h + "attn.c_proj.weight"), offset(h + "attn.c_proj.bias"),
                                offset(h + "ln_2.weight"), offset(h + "ln_2.bias"), offset(h + "mlp.c_fc.weight"),
                                offset(h + "mlp.c_fc.bias"), offset(h + "mlp.c_proj.weight"), offset(h + "mlp.c_proj.bias")});
    }

    CUDA_CHECK(cudaStreamCreate(&model.stream));
    model.mm = matmul_create();
    const size_t arena = static_cast<size_t>(model.registry.arena);
    CUDA_CHECK(cudaMemsetAsync(model.params, 0, arena * sizeof(floatX), model.stream));
    CUDA_CHECK(cudaMemsetAsync(model.loss_sum, 0, sizeof(double), model.stream));
    if (use == Use::training) {
        for (float* array : {model.grads, model.m, model.v})
            CUDA_CHECK(cudaMemsetAsync(array, 0, arena * sizeof(float), model.stream));
        CUDA_CHECK(cudaMemsetAsync(model.master, 0, arena * sizeof(float), model.stream));
    }
    return owner;
}

void ModelDeleter::operator()(Model* model) const {
    if (!model) return;
    if (model->stream) {
        cudaStreamSynchronize(model->stream);
        cudaStreamDestroy(model->stream);
    }
    if (model->mm) matmul_destroy(model->mm);
    for (void* memory : model->allocations) cudaFree(memory);
    delete model;
}
