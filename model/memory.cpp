// What a model allocates. One list serves the allocation, `--dry-run`, and the check that it will fit.
#include <algorithm>
#include <functional>
#include <numeric>

#include "kernels/attention.cuh"
#include "kernels/bias.cuh"
#include "kernels/rope.cuh"
#include "model/model_state.h"
#include "model/moments.cuh"
#include "optimizer/gradient_norm.cuh"
#include "residual/value_residual.cuh"

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

int64_t optimizer_chunks(const Model& model) {
    int64_t count = 0;
    for (const Tensor& t : model.registry.tensors) count += ceil_div(t.count, static_cast<int64_t>(ADAMW_CHUNK));
    return count;
}

size_t scratch_bytes(const Model& model) {
    const ModelConfig& c = model.config;
    size_t bytes = attention_scratch_bytes(model.B, model.T, c.heads, c.kv_heads, c.head_size());
    bytes = std::max(bytes, bias_scratch_bytes(std::max(model.qkv_width(), model.hidden_width())));
    if (model.fp8.on)
        bytes = std::max(bytes,
                         fp8_bias_scratch_bytes(model.B * model.T, std::max(model.qkv_width(), model.hidden_width())));
    bytes = std::max(bytes, model.rule().scratch_bytes());
    bytes = std::max(bytes, std::max(value_scratch_bytes(), moments_scratch_bytes()));
    return std::max(bytes, gradient_norm_scratch_bytes(optimizer_chunks(model)));
}

// The rule's requests join the list by the names of their segments.
class Plan : public Planner {
  public:
    std::vector<Segment> segments;
    void request(const std::string& name, size_t bytes, std::function<void(void*)> assign) override {
        segment(name).requests.push_back({bytes, std::move(assign)});
    }
    Segment& segment(const std::string& name) {
        for (Segment& s : segments)
            if (s.name == name) return s;
        segments.push_back({name, {}});
        return segments.back();
    }
};

// A buffer for what each layer computes, from layer `first` on; or one that all of them share, because it is not kept
// for a backward pass, or is computed again there.
template <class T>
void want_layers(Plan& plan, const std::string& segment, int64_t count, std::vector<LayerValues>& layers,
                 T* LayerValues::*member, bool shared, size_t first = 0) {
    if (!shared) {
        for (size_t l = first; l < layers.size(); l++) plan.want(segment, count, layers[l].*member);
        return;
    }
    plan.request(segment, static_cast<size_t>(count) * sizeof(T), [&layers, member](void* p) {
        for (LayerValues& layer : layers) layer.*member = static_cast<T*>(p);
    });
}

// What the layers' products in 8 bits need: weights both ways, the inputs of qkv and fc, which the backward pass
// transposes, and what is alive at a time of everything else.
void plan_fp8(Plan& plan, Model& model) {
    Fp8Maps& fp8 = model.fp8;
    const int64_t N = static_cast<int64_t>(model.B) * model.T, C = model.config.channels,
                  Fp = model.config.padded_ffn();
    const int64_t W = model.qkv_width(), H = model.hidden_width(), wide = N * std::max(W, H);
    const size_t layers = static_cast<size_t>(model.config.layers), n = MAPS * layers;
    const bool again = model.recompute >= Recompute::norm;
    const std::string name = "8-bit products";
    for (std::vector<e4m3*>* list : {&fp8.input, &fp8.weight, &fp8.weight_t}) list->assign(n, nullptr);
    plan.request(name, fp8_scales_bytes(static_cast<int>(3 * n)), [&fp8, n](void* p) {
        fp8.scales_memory = p;
        fp8.scales = fp8_scales_in(p, static_cast<int>(3 * n));
    });
    plan.want(name, static_cast<int64_t>(n), fp8.weight_jobs);
    const int64_t inner[] = {C, C, C, Fp}, outer[] = {W, C, H, C};
    for (size_t i = 0; i < n; i++)
        for (std::vector<e4m3*>* list : {&fp8.weight, &fp8.weight_t})
            plan.want(name, inner[i % MAPS] * outer[i % MAPS], (*list)[i]);
    for (size_t which = 0; which < MAPS; which++) {
        const bool kept = !again && (which == static_cast<size_t>(Map::qkv) || which == static_cast<size_t>(Map::fc));
        for (size_t l = 0; kept && l < layers; l++) plan.want(name, N * inner[which], fp8.input[MAPS * l + which]);
        if (kept) continue;
        plan.request(name, static_cast<size_t>(N * inner[which]), [&fp8, n, which](void* p) {
            for (size_t i = which; i < n; i += MAPS) fp8.input[i] = static_cast<e4m3*>(p);
        });
    }
    plan.want(name, N * std::max(C, Fp), fp8.input_t);
    plan.want(name, N * C, fp8.dout);
    plan.want(name, N * C, fp8.dout_t);
    plan.want(name, wide, fp8.dwide);
    plan.want(name, wide, fp8.dwide_t);
}

std::vector<Segment> plan(Model& model) {
    const ModelConfig& c = model.config;
    const bool training = model.use == Use::training;
    const int64_t N = static_cast<int64_t>(model.B) * model.T, C = c.channels, Fp = c.padded_ffn(),
                  Vp = c.padded_vocab();
    const int64_t W = model.qkv_width(), H = model.hidden_width(), KV = model.kv_channels();
    const int64_t arena = model.registry.arena;
    const bool value = model.residual.name.value, swiglu = c.activation == Activation::swiglu;

    model.chunk = logits_rows(c, N);

    Plan plan;
    plan.want("parameters", arena, model.params);
    if (sizeof(floatX) == 2 && training) plan.want("fp32 masters", arena, model.master);
    if (sizeof(floatX) == 2 && !training) plan.want("parameters", arena - model.registry.exact_start, model.exact_tail);
    if (training) {
        plan.want("gradients", arena, model.grads);
        plan.want("AdamW moments", arena, model.m);
        plan.want("AdamW moments", arena, model.v);
    }
    model.rule().plan(plan);
    model.values.assign(static_cast<size_t>(c.layers), {});
    const bool block = model.recompute == Recompute::block, share = block || !training,
               share_act = !training || model.recompute >= Recompute::gelu || model.fp8.on;
    // SwiGLU's gradients take the place of what they are computed from, where that is not another layer's.
    const bool dwide_is_pre = swiglu && block, dact_is_act = swiglu && training && share_act;
    const int64_t wide = N * std::max(W, H);
    want_layers(plan, "attention", N * W, model.values, &LayerValues::qkv, share);
    want_layers(plan, "attention", N * C, model.values, &LayerValues::attn, share);
    want_layers(plan, "attention", N * c.heads, model.values, &LayerValues::lse, share);
    want_layers(plan, "MLP", dwide_is_pre ? wide : N * H, model.values, &LayerValues::pre, share);
    want_layers(plan, "MLP", N * Fp, model.values, &LayerValues::act, share_act);
    if (value && training) want_layers(plan, "value residual", N * KV, model.values, &LayerValues::value, share, 1);
    if (value) plan.want("value residual", N * KV, model.first_value);
    if (value && training) plan.want("value residual", N * KV, model.dfirst_value);
    if (c.arch == Arch::llama)
        plan.want("rotary table", static_cast<int64_t>(rope_table_count(c.context, c.head_size())), model.rope);
    plan.want("logits", model.chunk * Vp, model.logits);
    plan.want("logits", N, model.losses);
    plan.want("logits", 2, model.loss_sum);
    if (training) {
        if (!dwide_is_pre) plan.want("backward", wide, model.dwide);
        if (swiglu && !dact_is_act) plan.want("backward", N * Fp, model.dact);
        plan.request("scratch", scratch_bytes(model), [&model](void* p) { model.scratch = p; });
        plan.want("scratch", 2, model.clip);
        plan.want("scratch", 2 * c.layers, model.layer_moments);
        plan.want("scratch", static_cast<int64_t>(model.registry.tensors.size()), model.adamw_tensors);
        plan.want("scratch", optimizer_chunks(model), model.adamw_chunk_list);
    }
    if (model.fp8.on) plan_fp8(plan, model);
    const size_t groups = training ? token_groups_capacity(static_cast<size_t>(N)) : 0;
    plan.want("tokens", 2 * N + static_cast<int64_t>(groups), model.tokens);
    plan.want("tokens", N, model.rows);
    plan.want("tokens", N, model.hits);
    return std::move(plan.segments);
}

Model blueprint(const ModelConfig& config, int B, int T, Use use, Recompute recompute, bool fp8) {
    CHECK(use == Use::training || (recompute == Recompute::none && !fp8));
    Model model;
    model.config = config;
    model.registry = build_registry(config);
    model.use = use;
    model.B = B;
    model.T = T;
    model.recompute = recompute;
    model.fp8.on = fp8;
    model.residual = config_residual(config, static_cast<int64_t>(B) * T, use == Use::training, recompute, fp8);
    model.time = config.residual_step;
    return model;
}

// Tells the model and its rule where their tensors lie.
void bind_tensors(Model& model) {
    const ModelConfig& c = model.config;
    const bool training = model.use == Use::training;
    auto offset = [&](const std::string& name) -> int64_t {
        const Tensor* t = model.registry.find_or_null(name);
        return t ? t->offset : -1;
    };
    auto linear = [&](const std::string& name) {
        return LinearOffsets{offset(name + ".weight"), offset(name + ".bias")};
    };
    const bool llama = c.arch == Arch::llama;
    model.wte = offset(llama ? "model.embed_tokens.weight" : "wte.weight");
    model.wpe = offset("wpe.weight");
    model.head = c.tie ? model.wte : offset("lm_head.weight");
    for (int l = 0; l < c.layers; l++) {
        const std::string prefix = (llama ? "model.layers." : "h.") + std::to_string(l) + ".";
        LayerOffsets o;
        o.qkv = linear(prefix + (llama ? "self_attn.qkv_proj" : "attn.c_attn"));
        o.attn_proj = linear(prefix + (llama ? "self_attn.o_proj" : "attn.c_proj"));
        o.fc = linear(prefix + (llama ? "mlp.gate_up_proj" : "mlp.c_fc"));
        o.mlp_proj = linear(prefix + (llama ? "mlp.down_proj" : "mlp.c_proj"));
        if (model.residual.name.value && l > 0) o.value_lambda = offset(parameter_name(c, value_parameter(l + 1)));
        model.layers.push_back(o);
    }

    std::vector<int64_t> products = {model.head};
    for (const LayerOffsets& o : model.layers)
        for (const LinearOffsets* linear : {&o.qkv, &o.attn_proj, &o.fc, &o.mlp_proj})
            products.insert(products.end(), {linear->weight, linear->bias});
    for (const Tensor& t : model.registry.tensors)
        model.stored.push_back(std::find(products.begin(), products.end(), t.offset) != products.end());

    Rule& rule = model.rule();
    auto bind = [&](SeamNorm& norm, const std::string& name) {
        norm.gain = model.exact(offset(name + ".weight"));
        norm.bias = model.exact(offset(name + ".bias"));
        if (!training) return;
        norm.dgain = model.grad(offset(name + ".weight"));
        norm.dbias = model.grad(offset(name + ".bias"));
    };
    const RuleShape& shape = rule.shape();
    rule.last_maps.resize(static_cast<size_t>(shape.last()) + 1);
    for (int s = 0; s <= shape.last(); s++) {
        const size_t i = static_cast<size_t>(s);
        if (s == 0 && shape.post(0)) bind(rule.post_norms[i], embed_norm_name(c));
        if (s == shape.last() && shape.in(s)) bind(rule.in_norms[i], final_norm_name(c));
        if (s < shape.last() && shape.in(s)) bind(rule.in_norms[i], sublayer_names(c, s + 1).in);
        if (s == 0) continue;
        const SublayerNames names = sublayer_names(c, s);
        if (shape.out(s)) bind(rule.out_norms[i], names.out);
        if (shape.post(s)) bind(rule.post_norms[i], names.post);
        const LayerOffsets& o = model.layers[static_cast<size_t>(layer_of(s) - 1)];
        const LinearOffsets& last = s % 2 == 1 ? o.attn_proj : o.mlp_proj;
        LastMap& map = rule.last_maps[i];
        map.weight = model.param(last.weight);
        map.bias = model.param(last.bias);
        map.weight_count = model.registry.find(names.last_weight).count;
        if (last.bias >= 0) map.bias_count = model.registry.find(names.last_bias).count;
        if (training) map.dweight = model.grad(last.weight), map.dbias = model.grad(last.bias);
    }
    rule.inputs8.resize(static_cast<size_t>(shape.last()) + 1);
    for (int s = 0; model.fp8.on && s < shape.last(); s++) {
        const LinearMap map = linear_map(model, s / 2, s % 2 == 0 ? Map::qkv : Map::fc);
        rule.inputs8[static_cast<size_t>(s)] = {model.fp8.input[static_cast<size_t>(map.number)],
                                                model.fp8.scales[map.number]};
    }
    for (const RuleParameter& p : rule.parameters) {
        const Tensor& t = model.registry.find(parameter_name(c, p));
        RuleTensor bound;
        if (t.exact) bound.value = model.exact(t.offset);
        bound.copy = model.param(t.offset);
        if (training) bound.grad = model.grad(t.offset);
        rule.tensors.push_back(bound);
    }
}

}  // namespace

int64_t logits_rows(const ModelConfig& config, int64_t N) {
    const int64_t bytes = N * config.padded_vocab() * static_cast<int64_t>(sizeof(floatX));
    const int64_t chunks = ceil_div(bytes, static_cast<int64_t>(logits_limit));
    return std::min(N, round_up(ceil_div(N, chunks), 128));
}

std::vector<MemorySegment> model_memory(const ModelConfig& config, int B, int T, Use use, Recompute recompute,
                                        bool fp8) {
    Model model = blueprint(config, B, T, use, recompute, fp8);
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

int largest_batch(const ModelConfig& config, int T, Use use, size_t free_bytes, Recompute recompute, bool fp8) {
    auto fits = [&](int B) { return total_bytes(model_memory(config, B, T, use, recompute, fp8)) <= free_bytes; };
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
    if (fp8) low -= low % (16 / std::gcd(16, T));
    return low;
}

static std::string gib(size_t bytes) {
    return format("%.2f GiB", static_cast<double>(bytes) / (1 << 30));
}

// What to do about a micro-batch of B that does not fit: the largest that does, and the largest at the first further
// level of recomputation where B fits, or at the last.
static std::string memory_advice(const ModelConfig& config, int B, int T, Use use, Recompute recompute, bool fp8,
                                 size_t free_bytes) {
    const int best = largest_batch(config, T, use, free_bytes, recompute, fp8);
    int more = best;
    Recompute level = recompute;
    while (use == Use::training && more < B && level < Recompute::block) {
        level = static_cast<Recompute>(static_cast<int>(level) + 1);
        more = largest_batch(config, T, use, free_bytes, level, fp8);
    }
    if (more == 0) return "not even a batch of 1 fits: use a smaller model or shorter sequences";
    const std::string with = "with --recompute " + recompute_names()[static_cast<size_t>(level)];
    if (best == 0) return format("%s the largest batch that fits is %d", with.c_str(), more);
    return format("the largest batch that fits is %d", best) +
           (more > best ? format(", %s %d", with.c_str(), more) : "");
}

// Products in 8 bits go by blocks of 16.
void check_fp8(const ModelConfig& c, int B, int T) {
    const int kv = c.kv_heads * c.head_size();
    if (c.channels % 16 != 0 || kv % 16 != 0)
        throw user_error("--fp8 needs channels in multiples of 16; this model has %d, and %d of them in its keys",
                         c.channels, kv);
    if (static_cast<int64_t>(B) * T % 16 != 0)
        throw user_error("--fp8 needs batch x seq to be a multiple of 16; %d x %d = %lld is none", B, T,
                         static_cast<long long>(B) * T);
}

ModelPtr model_create(const ModelConfig& config, int B, int T, Use use, Recompute recompute, bool fp8) {
    check_config(config);
    if (fp8) check_fp8(config, B, T);
    if (T > config.context) throw user_error("sequences of %d tokens: the model's context is %d", T, config.context);
    // The message of a batch that does not fit comes before anything is allocated.
    size_t free_bytes = 0, all_bytes = 0;
    CUDA_CHECK(cudaMemGetInfo(&free_bytes, &all_bytes));
    const size_t need = total_bytes(model_memory(config, B, T, use, recompute, fp8));
    if (need > free_bytes)
        throw user_error("a batch of %d x %d tokens needs %s of memory and %s are free: %s", B, T, gib(need).c_str(),
                         gib(free_bytes).c_str(), memory_advice(config, B, T, use, recompute, fp8, free_bytes).c_str());

    ModelPtr owner(new Model(blueprint(config, B, T, use, recompute, fp8)));
    Model& model = *owner;
    model.mm = matmul_create();
    if (fp8 && !matmul_fp8_supported(model.mm))
        throw user_error(
            "--fp8: this card, or its cuBLASLt, has no 8-bit products (compute capability 8.9 or later); "
            "train without it");
    for (const Segment& segment : plan(model)) {
        char* memory = nullptr;
        if (cudaMalloc(reinterpret_cast<void**>(&memory), segment.bytes()) != cudaSuccess)
            throw user_error("out of memory while allocating %s for %s: use a smaller --batch%s",
                             gib(segment.bytes()).c_str(), segment.name.c_str(),
                             use == Use::training && recompute != Recompute::block ? " or more --recompute" : "");
        model.allocations.push_back(memory);
        for (const Request& r : segment.requests) {
            r.assign(memory);
            memory += round_up(static_cast<int64_t>(r.bytes), 256);
        }
    }
    if constexpr (sizeof(floatX) == 4) model.master = reinterpret_cast<float*>(model.params);
    if (use == Use::training && !model.dwide) model.dwide = model.values[0].pre;  // see plan()
    if (use == Use::training && !model.dact) model.dact = model.values[0].act;
    bind_tensors(model);
    model.targets = model.tokens + static_cast<int64_t>(B) * T;

    CUDA_CHECK(cudaStreamCreate(&model.stream));
    const size_t arena = static_cast<size_t>(model.registry.arena);
    CUDA_CHECK(cudaMemsetAsync(model.params, 0, arena * sizeof(floatX), model.stream));
    CUDA_CHECK(cudaMemsetAsync(model.loss_sum, 0, sizeof(double), model.stream));
    if (use == Use::training) {
        for (float* array : {model.grads, model.m, model.v})
            CUDA_CHECK(cudaMemsetAsync(array, 0, arena * sizeof(float), model.stream));
        CUDA_CHECK(cudaMemsetAsync(model.master, 0, arena * sizeof(float), model.stream));
    }
    if (model.rope) rope_table(model.rope, config.context, config.head_size(), config.rope_theta, model.stream);
    model.rule().ready(model.stream);
    fp8_ready(model);
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
