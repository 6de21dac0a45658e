// Levels of recomputation: with each of them a model gives the same bits, for every rule and norm scheme, and takes the
// memory that is expected. Weights and models are those of the golden rules (tests/golden/rules/README.md).
#include "rule_model.h"
#include "tiny_run.h"

using nlohmann::json;

namespace {

constexpr bool bf16 = sizeof(floatX) == 2;
constexpr int B = 2, T = 6;
const std::vector<Recompute> levels = {Recompute::none, Recompute::gelu, Recompute::norm, Recompute::block};

const std::string& level_name(Recompute level) {
    return recompute_names()[static_cast<size_t>(level)];
}

// What updates give, the first of two micro-batches with an evaluation in between.
struct Outcome {
    std::vector<std::vector<float>> grads;
    std::vector<double> variances, numbers;  // losses and gradient norms
};

Outcome outcome(const ModelConfig& config, Recompute level, int updates = 2) {
    Outcome out;
    ModelPtr model = model_create(config, B, T, Use::training, level);
    const Registry& registry = model_registry(*model);
    static std::string last;  // levels of a model come one after the other, and share its weights
    static std::vector<float> arena;
    if (last != config_to_json(config)) arena = recipe_arena(registry, size_weights);
    last = config_to_json(config);
    model_write_master(*model, arena.data(), 1, 0);
    model_set_time(*model, 0, 2);
    model_watch(*model, true);
    auto learn = [&](int64_t first, int b, int t) {
        const std::vector<int> tokens = recipe_tokens(first, b * t + 1, config.vocab);
        model_forward_backward(*model, tokens.data(), tokens.data() + 1, b, t, 1.0 / (B * T));
    };
    for (int step = 1; step <= updates; step++) {
        learn(100 * step, B, T);
        const std::vector<int> other = recipe_tokens(7, T + 1, config.vocab);
        out.numbers.push_back(model_loss(*model, other.data(), other.data() + 1, 1, T));
        if (step == 1) learn(200, 1, T - 1);
        model_average_grads(*model, nullptr);
        out.grads.emplace_back(static_cast<size_t>(registry.arena));
        model_read_grads(*model, out.grads.back().data());
        for (double variance : model_stream_variances(*model)) out.variances.push_back(variance);
        out.numbers.push_back(model_take_loss(*model));
        model_update(*model, UpdateSettings{}, step);
        out.numbers.push_back(model_result(*model).grad_norm);
    }
    return out;
}

void check_same(const Outcome& got, const Outcome& want) {
    CHECK((got.grads == want.grads));  // not printed: they are long
    CHECK(got.variances == want.variances);
    CHECK(got.numbers == want.numbers);
}

void check_levels(const ModelConfig& config, const std::vector<Recompute>& compared = levels, int updates = 2) {
    const Outcome want = outcome(config, Recompute::none, updates);
    for (Recompute level : compared) {
        INFO("--recompute " << level_name(level));
        check_same(outcome(config, level, updates), want);
    }
}

ModelConfig config_of(const std::string& residual, const std::string& norm, int layers, Arch arch = Arch::gpt2) {
    ModelConfig c = small_config(residual, norm, layers, 32, T, arch);
    if (arch == Arch::gpt2) c.activation = Activation::gelu;  // never inside the product: see below
    return c;
}

}  // namespace

TEST_CASE("recomputation changes no bit with any rule and norm scheme", "[recompute]") {
    // The checking mode is twenty times slower: the plainest models only.
#ifdef SIMT_CHECK
    const std::string prefix = "gpt2_pre_vanilla";
#else
    const std::string prefix;
#endif
    const json all = json::parse(read_text(golden_rules + "sizes.json"));
    int cases = 0;
    for (const json& one : all["cases"]) {
        const std::string name = one["name"];
        // Rows of several packs a thread in fp32, of one in bf16.
        if (!ends_with(name, bf16 ? "_104" : "_264") || name.compare(0, prefix.size(), prefix) != 0) continue;
        INFO("case " << name);
        ModelConfig config = case_config(one);
        if (config.arch == Arch::gpt2) config.activation = Activation::gelu;
        check_levels(config, {Recompute::norm, Recompute::block}, 1);  // gelu asks nothing of a rule
        cases++;
    }
    CHECK(cases > (prefix.empty() ? 40 : 1));
}

TEST_CASE("recomputation changes no bit in deeper models", "[recompute]") {
    // mhc replays stretches of three seams here, of four at level block.
    check_levels(config_of("mhc", "pre", 8));
    check_levels(config_of("attnres", "sandwich", 5));
    check_levels(config_of("vanilla+prores+value", "pre", 4, Arch::llama));
    check_levels(config_of("review+value", "post", 3, Arch::llama));
    check_levels(config_of("hc", "outnorm", 1));
}

TEST_CASE("recomputation beside an activation inside its product", "[recompute]") {
    ModelConfig config = config_of("vanilla", "pre", 3);
    config.activation = Activation::gelu_new;
    config.ffn = 64;
    const Outcome none = outcome(config, Recompute::none), gelu = outcome(config, Recompute::gelu);
    check_same(outcome(config, Recompute::block), none);
    check_same(outcome(config, Recompute::norm), gelu);
    // The product's epilogue sees the activation's input before it is rounded to bf16; without rounding all is equal.
    if (!bf16) check_same(gelu, none);
    REQUIRE(none.numbers.size() == gelu.numbers.size());
    for (size_t i = 0; i < none.numbers.size(); i++) CHECK(gelu.numbers[i] == Approx(none.numbers[i]).epsilon(1e-2));
}

TEST_CASE("each level of recomputation saves what it says", "[recompute]") {
    const int batch = 8, seq = 64;
    auto bytes = [&](const ModelConfig& config, const std::string& segment) {
        std::vector<int64_t> out;
        for (Recompute level : levels) {
            int64_t sum = 0;
            for (const MemorySegment& s : model_memory(config, batch, seq, Use::training, level))
                if (segment.empty() || s.name == segment) sum += static_cast<int64_t>(s.bytes);
            out.push_back(sum);
        }
        return out;
    };
    ModelConfig config = preset_config("gpt2-nano");
    const int64_t L = config.layers, C = config.channels, N = batch * seq, item = sizeof(floatX), row = N * C * item;
    const int64_t lse = N * config.heads * 4, products = 2 * C * C;  // FLOPs of a product of C channels with C
    std::vector<int64_t> total = bytes(config, "");
    CHECK(total[0] - total[1] == (L - 1) * 4 * row);                        // act
    CHECK(total[1] - total[2] == 2 * L * row);                              // z
    CHECK(total[2] - total[3] == (L - 1) * ((3 + 1 + 4 + 1) * row + lse));  // qkv, attention, pre, the stream inside
    // SwiGLU's gradients move into what they are computed from.
    ModelConfig llama = config_of("vanilla", "pre", 2, Arch::llama);
    const std::vector<int64_t> backward = bytes(llama, "backward");
    const int64_t ffn = N * llama.padded_ffn() * item;
    CHECK(backward[0] - backward[1] == ffn);
    CHECK(backward[1] == backward[2]);
    CHECK(backward[2] - backward[3] == 2 * ffn);
    // Streams between layers are kept, those inside shared by all.
    config.residual = "hc";
    const std::vector<int64_t> streams = bytes(config, "streams");
    CHECK(streams[2] - streams[3] == (L - 1) * 4 * row);
    // Sources of attention over depth are needed to the end.
    config.residual = "attnres";
    const std::vector<int64_t> sources = bytes(config, "sublayer outputs");
    CHECK(sources[3] == sources[0]);

    auto more = [&](const char* residual, Recompute level) {
        config.residual = residual;
        return recompute_flops_per_token(config, seq, level);
    };
    const double attention = 4.0 * static_cast<double>(C) * seq / 2;
    auto layers = [&](int count) {
        return Approx(static_cast<double>(L) * (count * static_cast<double>(products) + attention));
    };
    CHECK(more("vanilla", Recompute::norm) == 0);
    CHECK(more("vanilla", Recompute::block) == layers(8));      // all products but the MLP's last
    CHECK(more("layerscale", Recompute::block) == layers(12));  // that too: its gradient needs u
    CHECK(more("highway", Recompute::block) == layers(14));     // and two of its own
    CHECK(more("attnres", Recompute::block) == layers(7));      // it has kept every u
}

TEST_CASE("a batch that does not fit is told which level would help", "[recompute]") {
    const ModelConfig config = preset_config("gpt2-nano");
    size_t free_bytes = 0, all_bytes = 0;
    CUDA_CHECK(cudaMemGetInfo(&free_bytes, &all_bytes));
    const int block = largest_batch(config, 128, Use::training, free_bytes, Recompute::block);
    auto message = [&](int batch, Recompute level) -> std::string {
        try {
            model_create(config, batch, 128, Use::training, level);
        } catch (const UserError& error) {
            return error.what();
        }
        return "";
    };
    // Other programs take and give memory meanwhile: far from the edge.
    CHECK(message(block / 2, Recompute::none).find("with --recompute") != std::string::npos);
    CHECK(message(block * 4, Recompute::norm).find("with --recompute block") != std::string::npos);
    const std::string last = message(block * 4, Recompute::block);
    CHECK(last.find("the largest batch that fits is") != std::string::npos);
    CHECK(last.find("--recompute") == std::string::npos);
}

TEST_CASE("--recompute may change when a run goes on", "[recompute]") {
    if (!have_program("train_gpt2")) SKIP_TEST("RESIDUAL_BUILD names no folder with the programs");
    TempFolder temp;
    write_tiny_data(temp.path + "/data");
    auto train = [&](const std::string& out, const std::string& level, const std::string& steps, bool resume) {
        std::vector<std::string> args =
            tiny_args(temp.path + "/data", temp.path + "/" + out,
                      {"--activation", "gelu", "--schedule", "constant", "--recompute", level, "--steps", steps});
        if (resume) args.push_back("--resume");
        const ProgramResult result = run_program("train_gpt2", args);
        INFO(result.err);
        CHECK(result.status == 0);
    };
    train("whole", "none", "6", false);
    train("parts", "block", "3", false);
    train("parts", "norm", "6", true);
    CHECK(read_losses(temp.path + "/parts") == read_losses(temp.path + "/whole"));
    CHECK(read_events(temp.path + "/parts", "start")[0].dump().find("\"recompute\":\"block\"") != std::string::npos);
}

TEST_CASE("--dry-run plans for another card", "[recompute]") {
    if (!have_program("train_gpt2")) SKIP_TEST("RESIDUAL_BUILD names no folder with the programs");
    auto plan = [](std::vector<std::string> more) {
        std::vector<std::string> args = {"--model", "gpt2", "--dry-run"};
        args.insert(args.end(), more.begin(), more.end());
        return run_program("train_gpt2", args);
    };
    const ProgramResult result = plan({"--memory", "24", "--recompute", "norm", "--batch", "2"});
    CHECK(result.status == 0);
    const ModelConfig config = preset_config("gpt2");
    const size_t room = (size_t{24} << 30) - (size_t{1536} << 20);
    for (Recompute level : levels) {
        const std::string largest = std::to_string(largest_batch(config, 1024, Use::training, room, level));
        INFO(level_name(level) << ' ' << largest << " in\n" << result.out);
        const size_t line = result.out.rfind("\n    " + level_name(level) + " ");
        REQUIRE(line != std::string::npos);
        const std::string row = result.out.substr(line + 1, result.out.find('\n', line + 1) - line - 1);
        CHECK(ends_with(row, " " + largest));
        if (level != Recompute::norm) continue;
        const std::string line_above = " " + largest + " sequences of 1024 tokens (22.50 GiB of 24.00 GiB";
        CHECK(result.out.find(line_above) != std::string::npos);
    }
    CHECK(plan({"--memory", "0"}).status == 1);
    CHECK(plan({"--recompute", "some"}).err.find("none, gelu, norm, block") != std::string::npos);
    const ProgramResult refused = run_program("train_gpt2", {"--model", "gpt2", "--memory", "24"});
    CHECK(refused.err.find("--memory belongs to --dry-run") != std::string::npos);
}
