// Checkpoint folders without a model: what is written is read back, damage is found, and Hugging Face's variants of a
// weight file are taken or refused.
#include <filesystem>
#include <fstream>

#include "checkpoint/checkpoint.h"
#include "checkpoint/files.h"
#include "checkpoint/huggingface.h"
#include "run_program.h"
#include "test.h"

namespace fs = std::filesystem;

namespace {

ModelConfig small_config(bool tie = true) {
    ModelConfig c = preset_config("gpt2-nano");
    c.layers = 2;
    c.heads = c.kv_heads = 2;
    c.channels = 16;
    c.context = 8;
    c.vocab = 13;
    c.ffn = 24;  // neither is a multiple of the padding
    c.tie = tie;
    return c;
}

// Random true elements, zero padding.
std::vector<float> random_arena(const Registry& registry, uint64_t seed) {
    std::vector<float> arena(static_cast<size_t>(registry.arena), 0.0f);
    Random random(seed);
    for (const Tensor& tensor : registry.tensors) {
        for (const FilePart& part : tensor.parts) {
            const std::vector<float> values = random.normals<float>(static_cast<size_t>(part.rows * tensor.cols));
            part_to_stored(arena.data() + tensor.offset, tensor, part, values.data());
        }
    }
    return arena;
}

RunState some_state(int64_t step) {
    RunState s;
    s.step = step;
    s.tokens = step * 640;
    s.last_change = step - 1;
    s.at = {1, 2, {{3, 4}, {5, 6}}};
    s.seed = 18446744073709551557ull;  // more than a double or an int64 holds
    s.world_size = 3;
    s.train_tokens = 12345;
    s.settings = {{"lr", "0.001"}, {"freeze", "embed \"x\""}};
    s.versions = {{"residual", "test"}};
    return s;
}

struct Saved {
    TempFolder temp;
    ModelConfig config = small_config();
    Registry registry = build_registry(config);
    std::vector<float> master = random_arena(registry, 1), m = random_arena(registry, 2), v = random_arena(registry, 3);
    Fp8State fp8 = {{1.0f, 0.5f, 4.0f}, std::vector<float>(48, 3.25f)};
    std::string save(int64_t step, Dtype dtype = Dtype::f32) {
        return checkpoint_save(temp.path, some_state(step), config, registry,
                               {master.data(), m.data(), v.data(), fp8}, dtype, {});
    }
};

void truncate_file(const std::string& path, uintmax_t bytes) {
    fs::resize_file(path, bytes);
}

void flip_byte(const std::string& path, std::streamoff at) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(at);
    const char c = static_cast<char>(file.get());
    file.seekp(at);
    file.put(static_cast<char>(c ^ 1));
}

template <class Body>
std::string message_of(Body body) {
    try {
        body();
    } catch (const UserError& error) {
        const std::string what = error.what();
        CHECK(what.find('\n') == std::string::npos);
        return what;
    }
    return "no error";
}
bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a checkpoint is read back as it was written", "[checkpoint]") {
    for (Dtype dtype : {Dtype::f32, Dtype::bf16}) {
        Saved s;
        const std::string folder = s.save(7, dtype);
        CHECK(folder == s.temp.path + "/step_00000007");
        CHECK(checkpoint_fault(folder).empty());
        CHECK_FALSE(fs::exists(folder + ".tmp"));
        const char* said = dtype == Dtype::f32 ? "\"torch_dtype\": \"float32\"" : "\"torch_dtype\": \"bfloat16\"";
        CHECK(read_text(folder + "/config.json").find(said) != std::string::npos);

        const RunState want = some_state(7), got = checkpoint_read_state(folder);
        CHECK(got.step == want.step);
        CHECK(got.tokens == want.tokens);
        CHECK(got.last_change == want.last_change);
        CHECK(got.at == LoaderPosition{1, 2, {{3, 4}, {5, 6}}});
        CHECK(got.seed == want.seed);
        CHECK(got.world_size == 3);
        CHECK(got.train_tokens == 12345);
        CHECK(got.settings == want.settings);
        CHECK(got.versions == want.versions);

        const size_t size = s.master.size();
        std::vector<float> master(size), m(size), v(size);
        weights_read(folder, s.registry, master.data());
        if (dtype == Dtype::f32)
            CHECK(master == s.master);
        else
            CHECK(relative_error(to_double(master), to_double(s.master)) < 0x1p-8);  // rounded to 8 bits
        Fp8State fp8;
        checkpoint_read_optimizer(folder, s.registry, m.data(), v.data(), master.data(), fp8);
        CHECK(master == s.master);  // exact in either case: bf16 keeps the masters beside the moments
        CHECK(m == s.m);
        CHECK(v == s.v);
        CHECK(fp8.scale == s.fp8.scale);
        CHECK(fp8.history == s.fp8.history);

        std::vector<std::string> notes;
        const ModelConfig config = config_from_json(read_text(folder + "/config.json"), "config.json", notes);
        CHECK(config.residual_step == 7);
        CHECK(config.vocab == 13);
        CHECK(config.ffn == 24);
    }
}

TEST_CASE("file shapes are the true ones, under Hugging Face's names", "[checkpoint]") {
    Saved s;
    const SafetensorsFile file = safetensors_read(s.save(1) + "/model.safetensors");
    CHECK(file.tensors.at("wte.weight").shape == std::vector<int64_t>{13, 16});
    CHECK(file.tensors.at("h.1.attn.c_attn.weight").shape == std::vector<int64_t>{16, 48});
    CHECK(file.tensors.at("h.0.mlp.c_fc.weight").shape == std::vector<int64_t>{16, 24});
    CHECK(file.tensors.at("h.0.mlp.c_proj.weight").shape == std::vector<int64_t>{24, 16});
    CHECK(file.tensors.at("ln_f.bias").shape == std::vector<int64_t>{16});
    CHECK(file.tensors.count("lm_head.weight") == 0);
    CHECK(file.metadata.at("format") == "pt");
}

TEST_CASE("damage to any file of a checkpoint is found, and the newest intact one is used", "[checkpoint]") {
    const struct {
        const char* name;
        int kind;  // 0 truncated, 1 a bit flipped, 2 deleted
    } damages[] = {
        {"model.safetensors", 0}, {"model.safetensors", 1}, {"model.safetensors", 2}, {"optimizer_0000.safetensors", 0},
        {"config.json", 1},       {"state.json", 0},        {"state.json", 2}};
    for (const auto& damage : damages) {
        Saved s;
        s.save(5);
        const std::string path = s.save(10) + "/" + damage.name;
        std::vector<std::string> notes;
        REQUIRE(checkpoint_newest(s.temp.path, notes) == 10);
        REQUIRE(notes.empty());
        if (damage.kind == 0) truncate_file(path, fs::file_size(path) / 2);
        if (damage.kind == 1) flip_byte(path, static_cast<std::streamoff>(fs::file_size(path) - 5));
        if (damage.kind == 2) fs::remove(path);
        INFO(damage.name << " " << damage.kind);
        CHECK(contains(checkpoint_fault(s.temp.path + "/step_00000010"), damage.name));
        CHECK(checkpoint_newest(s.temp.path, notes) == 5);
        REQUIRE(notes.size() == 1);
        CHECK(contains(notes[0], damage.name));
        CHECK(model_folder(s.temp.path, notes) == s.temp.path + "/step_00000005");
        // A folder whose optimizer alone is gone still holds a model.
        if (contains(damage.name, "model") || contains(damage.name, "config"))
            CHECK(contains(message_of([&] { model_folder(s.temp.path + "/step_00000010/", notes); }), damage.name));
    }
}

TEST_CASE("writing a step again replaces it, and what was left half done goes", "[checkpoint]") {
    Saved s;
    const std::string folder = s.save(3);
    truncate_file(folder + "/model.safetensors", 10);
    fs::create_directories(s.temp.path + "/step_00000004.tmp");
    s.save(3);
    CHECK(checkpoint_fault(folder).empty());
    CHECK(checkpoint_steps(s.temp.path) == std::vector<int64_t>{3});
    checkpoint_prune(s.temp.path, 0);
    CHECK_FALSE(fs::exists(s.temp.path + "/step_00000004.tmp"));
}

TEST_CASE("--keep leaves the newest checkpoints", "[checkpoint]") {
    Saved s;
    for (int64_t step : {2, 4, 6, 8}) s.save(step);
    checkpoint_prune(s.temp.path, 0);
    CHECK(checkpoint_steps(s.temp.path).size() == 4);
    checkpoint_prune(s.temp.path, 2);
    CHECK(checkpoint_steps(s.temp.path) == std::vector<int64_t>{6, 8});
    CHECK(list_folder(s.temp.path).size() == 2);
}

TEST_CASE("a folder that holds no model is refused by name", "[checkpoint]") {
    TempFolder temp;
    std::vector<std::string> notes;
    CHECK(contains(message_of([&] { model_folder(temp.path, notes); }), temp.path));
    CHECK(contains(message_of([&] { model_folder(temp.path + "/none", notes); }), temp.path + "/none"));
}

// ---------------------------------------------------------------------------------------------------------------------

namespace {

// A weight file to change: what weights_write makes, as tensors that own their bytes.
struct Editable {
    std::vector<TensorOut> tensors;
    std::vector<std::vector<char>> storage;
    TempFolder temp;
    Registry registry;
    std::vector<float> arena;
    explicit Editable(const ModelConfig& config, Dtype dtype = Dtype::f32)
        : registry(build_registry(config)), arena(random_arena(registry, 5)) {
        gather_parts(tensors, storage, registry, arena.data(), "", dtype);
    }
    TensorOut& at(const std::string& name) {
        for (TensorOut& tensor : tensors) {
            if (tensor.name == name) return tensor;
        }
        throw std::runtime_error("no tensor " + name);
    }
    void add(const std::string& name, std::vector<int64_t> shape, float value) {
        size_t count = 1;
        for (int64_t n : shape) count *= static_cast<size_t>(n);
        std::vector<float> values(count, value);
        std::vector<char>& bytes = storage.emplace_back(count * 4);
        std::copy_n(reinterpret_cast<const char*>(values.data()), bytes.size(), bytes.data());
        tensors.push_back({name, Dtype::f32, shape, bytes.data()});
    }
    // Empty when it was taken and gave the weights back.
    std::string read() {
        safetensors_write(temp.path + "/model.safetensors", tensors);
        std::vector<float> got(arena.size());
        const std::string error = message_of([&] { weights_read(temp.path, registry, got.data()); });
        if (error == "no error") return got == arena ? "" : "other weights";
        return error;
    }
};

}  // namespace

TEST_CASE("Hugging Face variants of a weight file are taken", "[checkpoint]") {
    SECTION("as it is") {
        CHECK(Editable(small_config()).read() == "");
    }
    SECTION("untied") {
        CHECK(Editable(small_config(false)).read() == "");
    }
    SECTION("transformer. prefix, masks") {
        Editable e(small_config());
        for (TensorOut& tensor : e.tensors) tensor.name = "transformer." + tensor.name;
        for (int l = 0; l < 2; l++) {
            e.add(format("transformer.h.%d.attn.bias", l), {1, 1, 8, 8}, 1);
            e.add(format("transformer.h.%d.attn.masked_bias", l), {}, -1e4f);
        }
        CHECK(e.read() == "");
    }
    SECTION("a tied head that is repeated") {
        Editable e(small_config());
        e.tensors.push_back({"lm_head.weight", Dtype::f32, e.at("wte.weight").shape, e.at("wte.weight").data});
        CHECK(e.read() == "");
    }
    SECTION("bf16") {
        Editable e(small_config(), Dtype::bf16);
        const std::string rounded = e.read();
        CHECK(rounded == "other weights");
        std::vector<float> got(e.arena.size());
        weights_read(e.temp.path, e.registry, got.data());
        CHECK(relative_error(to_double(got), to_double(e.arena)) < 0x1p-8);
    }
}

TEST_CASE("tensors that are missing, unknown or misshapen are refused by name", "[checkpoint]") {
    Editable e(small_config());
    SECTION("missing") {
        std::erase_if(e.tensors, [](const TensorOut& t) { return t.name == "h.0.ln_1.bias"; });
        CHECK(contains(e.read(), "h.0.ln_1.bias is missing"));
    }
    SECTION("unknown") {
        e.add("h.0.attn.rotary", {3}, 0);
        CHECK(contains(e.read(), "h.0.attn.rotary"));
    }
    SECTION("of another layer") {
        e.add("h.2.ln_1.weight", {16}, 0);
        CHECK(contains(e.read(), "h.2.ln_1.weight"));
    }
    SECTION("misshapen") {
        e.at("h.1.attn.c_attn.weight").shape = {48, 16};
        const std::string error = e.read();
        CHECK(contains(error, "h.1.attn.c_attn.weight"));
        CHECK(contains(error, "[48,16]"));
        CHECK(contains(error, "[16,48]"));
    }
    SECTION("a tied head that differs") {
        e.add("lm_head.weight", {13, 16}, 0.5f);
        CHECK(contains(e.read(), "tie_word_embeddings"));
    }
}

TEST_CASE("weights move into a model with other parameters, which keep their values and are listed", "[checkpoint]") {
    // Only one norm scheme and rule exist, so the difference is made by biases: the machinery is the same.
    ModelConfig with_bias = small_config(), without = with_bias;
    without.bias = false;
    const Registry have = build_registry(without), want = build_registry(with_bias);
    TempFolder temp;
    const std::vector<float> source = random_arena(have, 9);
    weights_write(temp.path + "/model.safetensors", have, source.data(), Dtype::f32);
    std::vector<float> arena(static_cast<size_t>(want.arena), 0.25f);
    std::vector<std::string> notes;
    weights_read_into(temp.path, have, want, arena.data(), notes);
    REQUIRE(notes.size() == 1);
    CHECK(contains(notes[0], "h.1.mlp.c_fc.bias"));
    CHECK_FALSE(contains(notes[0], "ln_f.weight"));
    CHECK(arena[static_cast<size_t>(want.find("ln_f.bias").offset)] == 0.25f);
    CHECK(arena[static_cast<size_t>(want.find("ln_f.weight").offset)] ==
          source[static_cast<size_t>(have.find("ln_f.weight").offset)]);

    std::vector<float> back(static_cast<size_t>(have.arena));
    TempFolder other;
    weights_write(other.path + "/model.safetensors", want, arena.data(), Dtype::f32);
    notes.clear();
    weights_read_into(other.path, want, have, back.data(), notes);
    CHECK(back == source);
    REQUIRE(notes.size() == 1);
    CHECK(contains(notes[0], "left out"));
}
