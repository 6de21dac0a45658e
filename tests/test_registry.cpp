#include "model/registry.h"

#include "model/model.h"
#include "test.h"

TEST_CASE("preset sizes are the published ones", "[model]") {
    // Radford et al. 2019 as counted in the released checkpoints (embeddings included, head tied).
    const std::vector<std::pair<const char*, int64_t>> known = {
        {"gpt2", 124439808}, {"gpt2-medium", 354823168}, {"gpt2-large", 774030080}, {"gpt2-xl", 1557611200}};
    for (auto [name, count] : known) {
        INFO(name);
        CHECK(build_registry(preset_config(name)).num_params == count);
    }
    CHECK_THROWS_AS(preset_config("gpt3"), UserError);
}

TEST_CASE("the arena holds every tensor once, aligned, padded", "[model]") {
    ModelConfig config = preset_config("gpt2-nano");
    config.vocab = 61;
    config.ffn = 100;
    config.tie = false;
    const Registry registry = build_registry(config);
    int64_t end = 0, params = 0;
    for (const Tensor& t : registry.tensors) {
        INFO(t.name);
        CHECK(t.offset == end);
        CHECK(t.offset % 64 == 0);
        CHECK(t.count >= t.stored_rows * t.stored_cols);
        CHECK(t.stored_rows >= t.rows);
        end = t.offset + t.count;
        params += t.true_count();
    }
    CHECK(end == registry.arena);
    CHECK(params == registry.num_params);
    CHECK(registry.find("wte.weight").stored_rows == 64);
    CHECK(registry.find("h.1.mlp.c_fc.weight").stored_rows == 128);
    CHECK(registry.find("h.1.mlp.c_proj.weight").stored_cols == 128);
    CHECK(registry.find("lm_head.weight").cls == ParamClass::head);
}

TEST_CASE("file parts go in and come out unchanged, transposed and padded", "[model]") {
    ModelConfig config = preset_config("gpt2-nano");
    config.ffn = 100;
    const Registry registry = build_registry(config);
    const Tensor& t = registry.find("h.0.mlp.c_fc.weight");
    CHECK(part_shape(t, t.parts[0]) == std::vector<int64_t>{128, 100});
    std::vector<float> file(static_cast<size_t>(t.true_count())), stored(static_cast<size_t>(t.count), 0.0f), back(file.size());
    for (size_t i = 0; i < file.size(); i++) file[i] = static_cast<float>(i + 1);
    part_to_stored(stored.data(), t, t.parts[0], file.data());
    CHECK(stored[0 * 128 + 3] == file[3 * 100 + 0]);
    CHECK(stored[99 * 128 + 5] == file[5 * 100 + 99]);
    CHECK(stored[100 * 128] == 0.0f);
    stored_to_part(back.data(), t, t.parts[0], stored.data());
    CHECK(back == file);
}

TEST_CASE("decay masks by class", "[model]") {
    const Registry registry = build_registry(preset_config("gpt2-nano"));
    const Tensor &wte = registry.find("wte.weight"), &fc = registry.find("h.0.mlp.c_fc.weight"), &ln = registry.find("ln_f.weight"),
                 &bias = registry.find("h.0.mlp.c_fc.bias");
    CHECK((decays(wte, "2d") && decays(fc, "2d") && !decays(ln, "2d") && !decays(bias, "2d")));
    CHECK((!decays(wte, "matrix") && decays(fc, "matrix") && !decays(ln, "matrix")));
    CHECK((decays(ln, "all") && decays(bias, "all") && !decays(fc, "none")));
}

TEST_CASE("initial weights have the stated spread, and padding is zero", "[model]") {
    ModelConfig config = preset_config("gpt2-nano");
    config.vocab = 61;
    ModelPtr model = model_create(config, 1, 8, Use::training);
    model_init_weights(*model, 7);
    const Registry& registry = model_registry(*model);
    std::vector<float> host(static_cast<size_t>(registry.arena)), again(host.size());
    model_read_master(*model, host.data());
    auto spread = [&](const std::string& name) {
        const Tensor& t = registry.find(name);
        double sum = 0, squares = 0;
        for (int64_t r = 0; r < t.rows; r++)
            for (int64_t c = 0; c < t.cols; c++) {
                const double x = host[static_cast<size_t>(t.offset + r * t.stored_cols + c)];
                sum += x, squares += x * x;
            }
        const double n = static_cast<double>(t.true_count());
        CHECK(std::fabs(sum / n) < 5 * t.init_ranges[0].std / std::sqrt(n));  // five standard errors
        return std::sqrt(squares / n);
    };
    CHECK(spread("h.0.attn.c_attn.weight") == Approx(0.02).epsilon(0.02));
    CHECK(spread("h.3.mlp.c_proj.weight") == Approx(0.02 / std::sqrt(8.0)).epsilon(0.02));
    const Tensor& wte = registry.find("wte.weight");
    for (int64_t i = wte.true_count(); i < wte.count; i++) CHECK(host[static_cast<size_t>(wte.offset + i)] == 0.0f);
    const Tensor& ln = registry.find("h.2.ln_2.weight");
    CHECK(host[static_cast<size_t>(ln.offset)] == 1.0f);
    model_init_weights(*model, 7);
    model_read_master(*model, again.data());
    CHECK(host == again);
    model_init_weights(*model, 8);
    model_read_master(*model, again.data());
    CHECK(host != again);
}

TEST_CASE("memory is predicted and refused before it is taken", "[model]") {
    const ModelConfig config = preset_config("gpt2");
    const size_t one = total_bytes(model_memory(config, 1, 1024, Use::training));
    const size_t two = total_bytes(model_memory(config, 2, 1024, Use::training));
    CHECK(two > one);
    CHECK(largest_batch(config, 1024, Use::training, two) == 2);
    CHECK(largest_batch(config, 1024, Use::training, two - 1) == 1);
    CHECK(largest_batch(config, 1024, Use::training, one - 1) == 0);
    try {
        model_create(preset_config("gpt2-xl"), 4096, 1024, Use::training);
        FAIL("a batch of terabytes was accepted");
    } catch (const UserError& e) {
        CHECK(std::string(e.what()).find("GiB") != std::string::npos);
        CHECK(std::string(e.what()).find('\n') == std::string::npos);
    }
}
