// Training passes as graphs give the same bits as kernels launched one by one, with every rule; and results of updates
// that are asked for later are those that were there at once.
#include "residual/rules.h"
#include "rule_model.h"

namespace {

constexpr int B = 2, T = 16;

ModelConfig tiny_config(const std::string& residual) {
    ModelConfig config = preset_config("gpt2-nano");
    config.layers = 2;
    config.heads = 2;
    config.kv_heads = 2;
    config.channels = 32;
    config.ffn = 128;
    config.context = T;
    config.residual = residual;
    for (const RuleSummary& rule : rule_summaries())
        if (rule.name == parse_residual(residual).rule)
            config.norm_scheme = rule.schemes.substr(0, rule.schemes.find(' '));
    return config;
}

struct Found {
    std::vector<UpdateResult> results;
    std::vector<float> master, m, v;
    int graphs;
};

// Updates of `micro` micro-steps; results are taken `late` updates later. Every third update is watched, and behind the
// second comes an evaluation.
Found train(const std::string& residual, bool graphs, int micro, int late, int updates = 4) {
    const ModelConfig config = tiny_config(residual);
    ModelPtr model = model_create(config, B, T, Use::training);
    model_init_weights(*model, 7);
    model_use_graphs(*model, graphs);
    model_set_time(*model, 0, micro);
    Found found;
    UpdateSettings settings;
    settings.freeze = {"h.0.ln_1.*"};
    int64_t k = 0;
    for (int step = 1; step <= updates; step++) {
        model_watch(*model, step % 3 == 0);
        for (int i = 0; i < micro; i++, k += B * T) {
            const std::vector<int> tokens = recipe_tokens(k, B * T + 1, config.vocab);
            model_forward_backward(*model, tokens.data(), tokens.data() + 1, B, T, 1.0 / (B * T * micro));
        }
        model_average_grads(*model, nullptr);
        settings.lr = settings.peak_lr = 1e-2 / step;
        model_update(*model, settings, step, nullptr, step);
        if (step > late) found.results.push_back(model_result(*model));
        if (step == 2) {
            const std::vector<int> tokens = recipe_tokens(k, T + 1, config.vocab);
            CHECK(std::isfinite(model_loss(*model, tokens.data(), tokens.data() + 1, 1, T)));
        }
    }
    while (found.results.size() < static_cast<size_t>(updates)) found.results.push_back(model_result(*model));
    const size_t size = static_cast<size_t>(model_registry(*model).arena);
    found.master.resize(size);
    found.m.resize(size);
    found.v.resize(size);
    model_read_master(*model, found.master.data());
    model_read_moments(*model, found.m.data(), found.v.data());
    CHECK(model_graph_note(*model) == "");
    found.graphs = model_graphs(*model);
    return found;
}

void check_same(const Found& a, const Found& b) {
    REQUIRE(a.results.size() == b.results.size());
    for (size_t i = 0; i < a.results.size(); i++) {
        INFO("update " << i + 1);
        CHECK(a.results[i].loss_sum == b.results[i].loss_sum);
        CHECK(a.results[i].grad_norm == b.results[i].grad_norm);
        CHECK(a.results[i].mark == static_cast<double>(i + 1));
        CHECK(b.results[i].mark == static_cast<double>(i + 1));
    }
    CHECK((a.master == b.master));
    CHECK((a.m == b.m));
    CHECK((a.v == b.v));
}

}  // namespace

TEST_CASE("training passes as graphs are the same bits, with every rule", "[graph]") {
    for (const RuleSummary& rule : rule_summaries()) {
        INFO(rule.name);
        const Found plain = train(rule.name, false, 2, 0), graph = train(rule.name, true, 2, 0);
        check_same(plain, graph);
        CHECK(plain.graphs == 0);
        CHECK(graph.graphs == 2);  // the first pass of an update and the second; the watched update runs but once
    }
}

TEST_CASE("training passes as graphs: schedules on top, one and three micro-steps", "[graph]") {
    for (const char* residual : {"vanilla", "vanilla+prores", "gpas+prores+value"}) {
        for (int micro : {1, 3}) {
            INFO(residual << ", " << micro << " micro-steps");
            const Found plain = train(residual, false, micro, 0, 6), graph = train(residual, true, micro, 0, 6);
            check_same(plain, graph);
            CHECK(graph.graphs == (micro == 1 ? 2 : 4));  // watched and not; the first pass of an update and others
            CHECK(plain.results[0].loss_sum != plain.results[1].loss_sum);  // updates do differ
        }
    }
}

TEST_CASE("results of updates are the same when they are taken late", "[graph]") {
    const Found at_once = train("vanilla", true, 1, 0), late = train("vanilla", true, 1, 1);
    check_same(at_once, late);
}

TEST_CASE("the time of an update begins with the result before it, or with the clock", "[graph]") {
    ModelPtr model = model_create(tiny_config("vanilla"), B, T, Use::training);
    model_init_weights(*model, 7);
    const std::vector<int> tokens = recipe_tokens(0, B * T + 1, 256);
    auto update = [&](int step) {
        model_forward_backward(*model, tokens.data(), tokens.data() + 1, B, T, 1.0 / (B * T));
        model_update(*model, {}, step);
    };
    update(1);
    CHECK(model_result(*model).ms == 0);  // nothing to count from
    update(2);
    CHECK(model_result(*model).ms > 0);
    model_start_clock(*model);
    update(3);
    update(4);
    const double third = model_result(*model).ms, fourth = model_result(*model).ms;
    CHECK(third > 0);
    CHECK(fourth > 0);
    CHECK(third + fourth < 60e3);
}

TEST_CASE("batches of several sizes take turns, each with its own graph", "[graph]") {
    const std::vector<int> tokens = recipe_tokens(0, B * T + 1, 256);
    auto losses = [&](bool graphs) {
        ModelPtr model = model_create(tiny_config("vanilla"), B, T, Use::training);
        model_init_weights(*model, 7);
        model_use_graphs(*model, graphs);
        std::vector<double> found;
        for (int i = 0; i < 9; i++) {
            const int b = i % 2 + 1, t = i % 3 == 2 ? T / 2 : T;
            model_forward_backward(*model, tokens.data() + i % 4, tokens.data() + i % 4 + 1, b, t, 1.0 / (b * t));
            found.push_back(model_take_loss(*model));
            found.push_back(model_loss(*model, tokens.data(), tokens.data() + 1, B, T));
        }
        CHECK(model_graphs(*model) == (graphs ? 3 : 0));  // of four sizes, one of which came once
        return found;
    };
    CHECK((losses(true) == losses(false)));
}

#if __has_include(<simt.h>)  // the CPU machine records one stream of a thread at a time
TEST_CASE("where no graph can be recorded training goes on without, and says so once", "[graph]") {
    const std::vector<int> tokens = recipe_tokens(0, B * T + 1, 256);
    auto losses = [&](bool disturbed) {
        ModelPtr model = model_create(tiny_config("vanilla+prores"), B, T, Use::training);
        model_init_weights(*model, 7);
        std::vector<double> found;
        for (int step = 1; step <= 4; step++) {
            cudaStream_t other = nullptr;
            CUDA_CHECK(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
            const bool now = disturbed && step == 2;
            if (now) CUDA_CHECK(cudaStreamBeginCapture(other, cudaStreamCaptureModeThreadLocal));
            model_forward_backward(*model, tokens.data(), tokens.data() + 1, B, T, 1.0 / (B * T));
            cudaGraph_t graph = nullptr;
            if (now) CUDA_CHECK(cudaStreamEndCapture(other, &graph));
            if (now) CUDA_CHECK(cudaGraphDestroy(graph));
            CUDA_CHECK(cudaStreamDestroy(other));
            model_update(*model, {}, step);
            found.push_back(model_result(*model).loss_sum);
        }
        CHECK(model_graphs(*model) == (disturbed ? 0 : 1));
        CHECK(model_graph_note(*model).empty() == !disturbed);
        CHECK(cudaGetLastError() == cudaSuccess);
        return found;
    };
    CHECK((losses(true) == losses(false)));
}
#endif
