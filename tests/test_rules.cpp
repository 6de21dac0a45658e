// Every residual rule with every norm scheme it is defined for, and every option: three updates of a tiny model against
// float64 PyTorch (dev/oracle). tests/golden/rules/README.md says how weights and tokens are made. Then what must hold
// between rules whatever the numbers are, and that evaluation computes what training does.
#include "rule_model.h"

using nlohmann::json;

namespace {

void check_case(const json& one, const SafetensorsFile& file) {
    const std::string name = one["name"];
    INFO("case " << name << ", " << one["what"].get<std::string>());
    const ModelConfig config = case_config(one);
    const int B = 2, T = 5, G = 2, steps = 3;
    ModelPtr model = model_create(config, B, T, Use::training);
    const Registry& registry = model_registry(*model);
    std::vector<float> arena = recipe_arena(registry, small_weights);
    model_write_master(*model, arena.data(), 1, 0);
    model_set_time(*model, 0, G);
    auto expected = [&](const std::string& what) { return stored(file, name + "/" + what); };
    const std::vector<double> losses = expected("loss"), norms = expected("grad_norm");
    UpdateSettings settings;
    settings.lr = settings.peak_lr = 5e-3;
    settings.eps = 1e-4;
    int64_t k = 0;
    for (int step = 1; step <= steps; step++) {
        for (int micro = 0; micro < G; micro++, k += B * T) {
            const std::vector<int> tokens = recipe_tokens(k, B * T + 1, config.vocab);
            model_forward_backward(*model, tokens.data(), tokens.data() + 1, B, T, 1.0 / (B * T * G));
        }
        model_average_grads(*model, nullptr);
        if (step == 1) {
            const Named all = gradients(*model);
            int compared = 0;
            for (const auto& [key, view] : file.tensors) {
                const std::string prefix = name + "/grad/";
                if (key.compare(0, prefix.size(), prefix) != 0) continue;
                const std::string tensor = key.substr(prefix.size());
                INFO("gradient of " << tensor);
                // The samples' tolerance: 2e-4 relative, with a floor for gradients that are zero but for rounding.
                CHECK(distance(all.at(tensor), expected("grad/" + tensor), 5e-3 * norms[0]) < 2e-4);
                compared++;
            }
            CHECK(compared > 3);
        }
        model_update(*model, settings, step);
        const UpdateResult result = model_result(*model);
        const double norm = result.grad_norm, loss = result.loss_sum / (B * T * G);
        INFO("update " << step);
        const size_t i = static_cast<size_t>(step - 1);
        CHECK(std::abs(loss - losses[i]) < 2e-5);
        // After the first update Adam divides by small second moments: float32 alone is 2e-4 away (golden_rules.py --noise).
        CHECK(std::abs(norm - norms[i]) < (step == 1 ? 1e-4 : 1e-3) * norms[i]);
    }
    model_read_master(*model, arena.data());
    const Named all = by_name(registry, arena);
    for (const auto& [key, view] : file.tensors) {
        const std::string prefix = name + "/final/";
        if (key.compare(0, prefix.size(), prefix) != 0) continue;
        const std::string tensor = key.substr(prefix.size());
        INFO("final " << tensor);
        CHECK(distance(all.at(tensor), expected("final/" + tensor)) < 1e-4);
    }
}

void check_file(const std::string& name) {
    if (sizeof(floatX) == 2) SKIP_TEST("golden rules have heads of 4 channels, which bf16 builds do not take");
    const json all = json::parse(read_text(golden_rules + "cases.json"));
    const SafetensorsFile file = safetensors_read(golden_rules + name + ".safetensors");
    int cases = 0;
    for (const json& one : all["cases"])
        if (one["file"] == name + ".safetensors") {
            check_case(one, file);
            cases++;
        }
    CHECK(cases > 0);
}

}  // namespace

TEST_CASE("rules against the oracle: vanilla", "[rules]") { check_file("vanilla"); }
TEST_CASE("rules against the oracle: rezero", "[rules]") { check_file("rezero"); }
TEST_CASE("rules against the oracle: skipinit", "[rules]") { check_file("skipinit"); }
TEST_CASE("rules against the oracle: layerscale", "[rules]") { check_file("layerscale"); }
TEST_CASE("rules against the oracle: lscale_block", "[rules]") { check_file("lscale_block"); }
TEST_CASE("rules against the oracle: lscale_input", "[rules]") { check_file("lscale_input"); }
TEST_CASE("rules against the oracle: lscale_sub", "[rules]") { check_file("lscale_sub"); }
TEST_CASE("rules against the oracle: prores", "[rules]") { check_file("prores"); }
TEST_CASE("rules against the oracle: gpas", "[rules]") { check_file("gpas"); }
TEST_CASE("rules against the oracle: hc", "[rules]") { check_file("hc"); }
TEST_CASE("rules against the oracle: mhc", "[rules]") { check_file("mhc"); }
TEST_CASE("rules against the oracle: attnres", "[rules]") { check_file("attnres"); }
TEST_CASE("rules against the oracle: attnres_block", "[rules]") { check_file("attnres_block"); }
TEST_CASE("rules against the oracle: attnres_mls", "[rules]") { check_file("attnres_mls"); }
TEST_CASE("rules against the oracle: review", "[rules]") { check_file("review"); }
TEST_CASE("rules against the oracle: highway", "[rules]") { check_file("highway"); }
TEST_CASE("rules against the oracle: dwa", "[rules]") { check_file("dwa"); }
TEST_CASE("rules against the oracle: value", "[rules]") { check_file("value"); }

// ---------------------------------------------------------------------------------------------------------------------
// Between rules

namespace {

// A tiny model and one batch of four sequences of five tokens, forward and backward.
struct Run {
    std::string residual = "vanilla", scheme = "pre";
    std::map<std::string, std::string> options = {};
    std::map<std::string, std::vector<float>> set = {};  // by the end of a name: values, repeated; none: the initial ones
    int64_t time = 0;                                    // completed updates
    int micro = 1;

    double loss = 0;
    Named grads = {}, weights = {};
    std::vector<double> variances = {};  // of the stream behind each layer

    Run& go() {
        INFO(residual << " with " << scheme);
        const int sequences = 4, T = 5, B = sequences / micro;
        ModelConfig config;
        config.layers = 4;
        config.heads = config.kv_heads = 2;
        config.channels = 8;
        config.ffn = 32;
        config.context = 6;
        config.vocab = 11;
        config.init = "normal02";
        config.norm_scheme = scheme;
        config.residual = residual;
        config.residual_options = options;
        config.residual_step = time;
        ModelPtr model = model_create(config, B, T, Use::training);
        const Registry& registry = model_registry(*model);
        std::vector<float> arena = recipe_arena(registry, small_weights);
        for (const auto& [end, values] : set) {
            int found = 0;
            for (const Tensor& t : registry.tensors) {
                if (!ends_with(t.name, end)) continue;
                std::vector<float> all;
                for (size_t i = 0; i < static_cast<size_t>(t.true_count()); i++)
                    all.push_back(values.empty() ? static_cast<float>(recipe_base(t, i)) : values[i % values.size()]);
                part_to_stored(arena.data() + t.offset, t, t.parts[0], all.data());
                found++;
            }
            REQUIRE(found > 0);
        }
        model_write_master(*model, arena.data(), 1, 0);
        model_set_time(*model, 0, micro);
        model_watch(*model, true);
        const std::vector<int> tokens = recipe_tokens(0, sequences * T + 1, config.vocab);
        for (int i = 0; i < micro; i++)
            model_forward_backward(*model, &tokens[i * B * T], &tokens[i * B * T + 1], B, T, 1.0 / (sequences * T));
        model_average_grads(*model, nullptr);
        loss = model_take_loss(*model) / (sequences * T);
        variances = model_stream_variances(*model);
        grads = gradients(*model);
        weights = by_name(registry, arena);
        return *this;
    }
    double total() const {
        double square = 0;
        for (const auto& [name, g] : grads) square += length(g) * length(g);
        return std::sqrt(square);
    }
    double grad(const std::string& name) const { return grads.at(name)[0]; }
};

// The same loss, and the same gradients of all parameters both have. Where the arithmetic differs it is that of fp32:
// some 50 roundings of 2^-24 in a row, relative to the gradient, or for small ones to the part of the whole that sums near
// zero are made of.
void check_same(const Run& a, const Run& b, double factor = 1) {
    INFO(a.residual << " and " << b.residual << " with " << a.scheme);
    CHECK(std::abs(a.loss - b.loss) < 2e-6 * factor);
    const double floor = 0.05 * a.total();
    int shared = 0;
    for (const auto& [name, g] : a.grads) {
        if (!b.grads.count(name)) continue;
        INFO("gradient of " << name);
        CHECK(distance(b.grads.at(name), g, floor) < 4e-6 * factor);
        shared++;
    }
    CHECK(shared > 40);
}

const std::vector<std::string> pre_schemes = {"pre", "sandwich", "peri", "lns", "outnorm"};
const std::vector<std::string> all_schemes = {"pre", "sandwich", "peri", "lns", "outnorm", "post", "deepnorm", "mix", "keel"};
const std::string small_only = "golden rules have heads of 4 channels, which bf16 builds do not take";

// The initial values of a rule's own parameters.
using Set = std::map<std::string, std::vector<float>>;
const Set hc_start = {{"hc_alpha", {}}, {"hc_beta", {}}, {"hc_wa", {}}, {"hc_wb", {}},
                      {"hc_sa", {}},    {"hc_sb", {}},   {"hc_norm", {}}};

}  // namespace

TEST_CASE("rules that start as vanilla, or end as it", "[rules]") {
    if (sizeof(floatX) == 2) SKIP_TEST(small_only);
    const int64_t done = 1000000000;
    for (const std::string& scheme : all_schemes) {
        const Run vanilla = Run{"vanilla", scheme}.go();
        auto same = [&](const std::string& residual, const std::map<std::string, std::string>& options, const Set& set) {
            check_same(vanilla, Run{residual, scheme, options, set, done}.go());
        };
        same("prores", {{"schedule", "equal"}}, {});
        same("rezero", {}, {{"res_weight", {1}}});
        same("skipinit", {}, {{"skip_alpha", {1}}});
        same("layerscale", {}, {{"ls_gamma", {1}}});
        same("lscale_sub", {{"x0", "1"}}, {{"resid_lambda", {1}}, {"post_lambda", {1}}, {"x0_lambda", {0}}});
        same("vanilla+value", {}, {{"vr_lambda", {0, 1}}});
        if (scheme != "keel") same("gpas", {}, {{"gpas_gate", {0}}});
        if (std::find(pre_schemes.begin(), pre_schemes.end(), scheme) == pre_schemes.end()) continue;
        same("lscale_block", {}, {{"resid_lambda", {1}}, {"x0_lambda", {0}}});
        same("lscale_input", {{"x0_norm", "0"}}, {{"resid_lambda", {1}}, {"x0_lambda", {0}}});
        same("dwa", {}, {{"dwa_alpha", {}}});
        if (scheme == "pre") same("prores_mls", {}, {});
    }
}

// <<dx_new, x'>> of sublayer k is what lscale_sub's two scalars see at (1,1): drho = <<dx_new, x>>, dpi = <<dx_new, u>>.
TEST_CASE("gpas: the gate's gradient at 0", "[rules]") {
    if (sizeof(floatX) == 2) SKIP_TEST(small_only);
    for (const std::string& scheme : pre_schemes) {
        INFO(scheme);
        const Run gpas = Run{"gpas", scheme, {}, {{"gpas_gate", {0}}}}.go();
        const Run sub = Run{"lscale_sub", scheme, {}, {{"resid_lambda", {1}}, {"post_lambda", {1}}}}.go();
        for (const char* layer : {"h.0.", "h.1.", "h.2.", "h.3."}) {
            double sum = 0;
            for (const char* part : {"residual_attn.resid_lambda", "residual_attn.post_lambda", "residual_mlp.resid_lambda",
                                     "residual_mlp.post_lambda"})
                sum += sub.grad(std::string(layer) + part);
            const double got = gpas.grad(std::string(layer) + "residual.gpas_gate");
            CHECK(std::abs(got + 0.5 * sum) < 4e-6 * (std::abs(got) + 0.05 * gpas.total()));
        }
    }
}

TEST_CASE("prores: at 0 the model is head(N_f(x_0)) and branches have no gradient", "[rules]") {
    if (sizeof(floatX) == 2) SKIP_TEST(small_only);
    for (const char* scheme : {"pre", "sandwich", "lns"}) {
        INFO(scheme);
        const Run run = Run{"prores", scheme}.go();
        for (const auto& [name, g] : run.grads) {
            INFO("gradient of " << name);
            if (name.compare(0, 2, "h.") == 0) CHECK(length(g) == 0);
            else CHECK(length(g) > 0);
        }
        const std::vector<int> tokens = recipe_tokens(0, 21, 11);
        const std::vector<double>&wte = run.weights.at("wte.weight"), &wpe = run.weights.at("wpe.weight"),
              &gain = run.weights.at("ln_f.weight"), &bias = run.weights.at("ln_f.bias");
        double loss = 0;
        for (size_t i = 0; i < 20; i++) {
            double x[8], mean = 0, square = 0, sum = 0, wanted = 0;
            for (size_t c = 0; c < 8; c++) x[c] = wte[static_cast<size_t>(tokens[i]) * 8 + c] + wpe[i % 5 * 8 + c];
            for (double v : x) mean += v / 8;
            for (double v : x) square += (v - mean) * (v - mean) / 8;
            for (size_t v = 0; v < 11; v++) {
                double logit = 0;
                for (size_t c = 0; c < 8; c++)
                    logit += (gain[c] * (x[c] - mean) / std::sqrt(square + 1e-5) + bias[c]) * wte[v * 8 + c];
                sum += std::exp(logit);
                if (static_cast<int>(v) == tokens[i + 1]) wanted = logit;
            }
            loss += (std::log(sum) - wanted) / 20;
        }
        CHECK(std::abs(run.loss - loss) < 2e-6);
    }
}

TEST_CASE("hc and mhc: the start is vanilla", "[rules]") {
    if (sizeof(floatX) == 2) SKIP_TEST(small_only);
    for (const std::string& scheme : pre_schemes) {
        INFO(scheme);
        const Run vanilla = Run{"vanilla", scheme}.go();
        auto near = [&](const Run& run, double allowed) {
            for (size_t l = 0; l < 4; l++) CHECK(std::abs(run.variances[l] / vanilla.variances[l] - 1) < allowed);
        };
        const Set fixed = {{"hc_alpha", {}}, {"hc_beta", {}}};
        for (const char* dynamic : {"0", "1"}) {
            const Set& start = dynamic[0] == '1' ? hc_start : fixed;
            const Run mean = Run{"hc", scheme, {{"dynamic", dynamic}, {"readout", "mean"}}, start}.go();
            near(mean, 4e-6);  // all streams are the vanilla stream
            CHECK(std::abs(mean.loss - vanilla.loss) < 2e-6);
            // The sum of four streams is four times as large, which the final norm removes but for its epsilon.
            const Run sum = Run{"hc", scheme, {{"dynamic", dynamic}}, start}.go();
            near(sum, 4e-6);
            CHECK(std::abs(sum.loss - vanilla.loss) < 1e-3);
        }
        check_same(vanilla, Run{"hc", scheme, {{"n", "1"}, {"dynamic", "0"}}, {{"hc_alpha", {1}}, {"hc_beta", {1}}}}.go());
        const Run stream_0 = Run{"hc", scheme, {{"preset", "hc_e0"}}, fixed}.go();
        CHECK(std::abs(stream_0.loss - vanilla.loss) < 2e-6);
        // mhc scales what a sublayer reads, which its norm removes but for its epsilon; outnorm has none there.
        if (scheme != "outnorm") near(Run{"mhc", scheme, {}, {{"mhc_phi", {}}, {"mhc_a", {}}, {"mhc_b", {}}}}.go(), 1e-3);
    }
}

TEST_CASE("review: gates of 1 and 1/2", "[rules]") {
    if (sizeof(floatX) == 2) SKIP_TEST(small_only);
    for (const char* scheme : {"pre", "sandwich", "peri", "lns", "outnorm", "post", "mix"}) {
        check_same(Run{"vanilla", scheme}.go(), Run{"review", scheme, {}, {{"rv_w", {0}}, {"rv_b", {40}}}}.go());
        const Run half = Run{"review", scheme, {}, {{"rv_w", {0}}, {"rv_b", {0}}}}.go();
        check_same(Run{"skipinit", scheme, {}, {{"skip_alpha", {0.5f}}}}.go(), half);
        for (const auto& [name, g] : half.grads)
            if (ends_with(name, "rv_w")) CHECK(length(g) > 1e-6 * half.total());
    }
}

// With queries 0 every block reads the mean of the states so far, the first one x_0: what dwa does with weights 1/(i+1).
TEST_CASE("attnres_mls: queries of 0 take means", "[rules]") {
    if (sizeof(floatX) == 2) SKIP_TEST(small_only);
    for (const std::string& scheme : pre_schemes) {
        const Set zero = {{"attnres_queries", {0}}, {"attnres_query_out", {0}}};
        const Run mls = Run{"attnres_mls", scheme, {{"block_size", "1"}}, zero}.go();
        const Set means = {{"h.0.residual.dwa_alpha", {1.0f / 2}}, {"h.1.residual.dwa_alpha", {1.0f / 3}},
                           {"h.2.residual.dwa_alpha", {1.0f / 4}}, {"h.3.residual.dwa_alpha", {1.0f / 5}}};
        check_same(Run{"dwa", scheme, {}, means}.go(), mls);
    }
}

TEST_CASE("rules: micro-batches give the gradients of one batch", "[rules]") {
    if (sizeof(floatX) == 2) SKIP_TEST(small_only);
    for (const char* residual : {"vanilla", "rezero", "skipinit", "layerscale", "lscale_block", "lscale_input", "lscale_sub",
                                 "prores", "gpas", "hc", "mhc", "attnres", "attnres_block", "attnres_mls", "review", "highway",
                                 "dwa", "vanilla+value", "hc+prores+value", "prores_mls"}) {
        // prores_mls counts forward passes: only when its schedule is over do they not matter.
        const int64_t time = std::string(residual) == "prores_mls" ? 4000 : 700;
        const Run whole = Run{residual, "pre", {}, {}, time}.go();
        for (int micro : {2, 4}) check_same(whole, Run{residual, "pre", {}, {}, time, micro}.go());
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Evaluation. A model for inference keeps nothing for a backward pass: buffers take turns, and a rule that read one too
// late would only be wrong here.

namespace {

void check_evaluation(const json& one) {
    const std::string name = one["name"];
    INFO("case " << name);
    const int B = 2, T = 5;
    const std::vector<int> tokens = recipe_tokens(0, B * T + 1, 11), other = recipe_tokens(100, B * T + 1, 11);
    struct Losses {
        double training, evaluation, inference;
    };
    auto losses = [&](const ModelConfig& config) {
        ModelPtr training = model_create(config, B, T, Use::training), inference = model_create(config, B, T, Use::inference);
        const std::vector<float> arena = recipe_arena(model_registry(*training), small_weights);
        for (Model* model : {training.get(), inference.get()}) {
            model_write_master(*model, arena.data(), 1, 0);
            model_set_time(*model, 0, 2);
            model_loss(*model, other.data(), other.data() + 1, 1, T);  // leaves other numbers in shared buffers
        }
        Losses out;
        out.inference = model_loss(*inference, tokens.data(), tokens.data() + 1, B, T) / (B * T);
        model_forward_backward(*training, tokens.data(), tokens.data() + 1, B, T, 1.0 / (B * T));
        out.training = model_take_loss(*training) / (B * T);
        out.evaluation = model_loss(*training, tokens.data(), tokens.data() + 1, B, T) / (B * T);
        return out;
    };
    ModelConfig config = case_config(one);
    // Two kinds of models are evaluated with a branch factor of 1, whatever training's is: equal when that is 1 too.
    if (config.residual.rfind("prores_mls", 0) == 0 || config.residual_options.count("prores_eval_one")) {
        const Losses now = losses(config);
        CHECK(std::abs(now.training - now.inference) > 1e-4);
        CHECK(now.evaluation == now.inference);
        config.residual_step = 1000000;
    }
    const Losses all = losses(config);
    // The same kernels on the same numbers.
    CHECK(all.inference == all.training);
    CHECK(all.evaluation == all.training);
}

}  // namespace

TEST_CASE("rules: evaluation computes the training forward pass", "[rules]") {
    if (sizeof(floatX) == 2) SKIP_TEST(small_only);
    const json all = json::parse(read_text(golden_rules + "cases.json"));
#ifdef SIMT_CHECK
    const int stride = 5;  // the checking mode is twenty times slower: one case in five
#else
    const int stride = 1;
#endif
    int cases = 0;
    for (const json& one : all["cases"]) {
        const std::string scheme = one["config"]["norm_scheme"];
        if (scheme != "pre" && scheme != "sandwich") continue;
        if (cases++ % stride == 0) check_evaluation(one);
    }
    CHECK(cases > 150);
}
