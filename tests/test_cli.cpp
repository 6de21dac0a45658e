// The command line of train_gpt2: what is accepted, what is refused and with which words, and --config files.
#include <fstream>

#include "driver/options.h"
#include "run_program.h"
#include "test.h"

namespace {

std::optional<TrainOptions> parse(std::vector<std::string> words) {
    words.insert(words.begin(), "train_gpt2");
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    return parse_train_options(static_cast<int>(argv.size()), argv.data());
}

// A complete command line, and more.
std::vector<std::string> with(std::vector<std::string> more) {
    std::vector<std::string> words = {"--model", "gpt2-nano", "--train", "t.bin", "--steps", "100", "--out", "o"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
}

// The message of the UserError; it is one line.
std::string refusal(const std::vector<std::string>& words) {
    try {
        parse(words);
    } catch (const UserError& error) {
        const std::string what = error.what();
        CHECK(what.find('\n') == std::string::npos);
        return what;
    }
    return "accepted";
}

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

std::string write_config(const TempFolder& temp, const std::string& text) {
    const std::string path = temp.path + "/run.toml";
    std::ofstream(path) << text;
    return path;
}

}  // namespace

TEST_CASE("defaults are those of the contract", "[cli]") {
    const TrainOptions o = *parse(with({}));
    CHECK(o.seed == 1337);
    CHECK(o.lr == 3e-4);
    CHECK(o.beta1 == 0.9);
    CHECK(o.beta2 == 0.95);
    CHECK(o.eps == 1e-8);
    CHECK(o.weight_decay == 0.1);
    CHECK(o.grad_clip == 1.0);
    CHECK(o.decay == "2d");
    CHECK(o.shuffle);
    CHECK(o.save_every == 0);
    const Schedule s = options_schedule(o);
    CHECK(s.kind == ScheduleKind::cosine);
    CHECK(s.warmup == 10);
    CHECK(s.final_ratio == 0.1);
}

TEST_CASE("of a repeated option the last counts, repeatable ones gather", "[cli]") {
    CHECK(parse(with({"--lr", "1", "--lr", "2"}))->lr == 2);
    CHECK(parse(with({"--steps", "7"}))->steps == 7);
    CHECK(parse(with({"--steps", "+0010"}))->steps == 10);
    CHECK_FALSE(parse(with({"--shuffle", "--no-shuffle"}))->shuffle);
    CHECK(parse(with({"--no-shuffle", "--shuffle"}))->shuffle);
    const TrainOptions o = *parse(with({"--freeze", "embed", "--freeze", "h.0.*"}));
    CHECK(o.freeze == std::vector<std::string>{"embed", "h.0.*"});
}

TEST_CASE("a preset is overridden by what is given", "[cli]") {
    std::vector<std::string> notes;
    const ModelConfig c = options_config(*parse(with({"--layers", "2", "--channels", "64", "--no-bias", "--no-tie",
                                                      "--activation", "gelu", "--norm-eps", "1e-3"})),
                                         "", notes);
    CHECK(c.layers == 2);
    CHECK(c.channels == 64);
    CHECK(c.ffn == 256);
    CHECK(c.heads == 4);
    CHECK_FALSE(c.bias);
    CHECK_FALSE(c.tie);
    CHECK(c.activation == Activation::gelu);
    CHECK(c.norm_eps == 1e-3f);
    CHECK(options_config(*parse(with({"--channels", "64", "--ffn", "100"})), "", notes).ffn == 100);
}

TEST_CASE("mistakes on the command line are refused in one line", "[cli]") {
    const struct {
        std::vector<std::string> words;
        std::string part;
    } cases[] = {
        {{"--unknown", "1"}, "--unknown"},
        {{"stray"}, "stray"},
        {{"--steps"}, "--steps"},
        {{"--steps", "many"}, "many"},
        {{"--steps", "0"}, "--steps 0"},
        {{"--batch", "0"}, "--batch 0"},
        {{"--seed", "-1"}, "--seed"},
        {{"--seed", "18446744073709551616"}, "no whole number"},
        {{"--seq", "0"}, "--seq 0"},
        {{"--seq", "129"}, "context of 128"},
        {{"--lr", "-1"}, "--lr -1"},
        {{"--lr", "nan"}, "--lr nan"},
        {{"--lr", "inf"}, "--lr inf: it must be finite"},
        {{"--lr", ""}, "--lr: '' is no number"},
        {{"--steps", "99999999999999999999"}, "--steps: '99999999999999999999' is no whole number in range"},
        {{"--seq", ""}, "--seq: '' is no whole number"},
        {{"--norm-eps", ""}, "--norm-eps: '' is no number"},
        {{"--hold-out", ""}, "--hold-out: '' is no number"},
        {{"--memory", "", "--dry-run"}, "--memory: '' is no number"},
        {{"--batch", "2", "--batch", "two"}, "--batch: 'two' is no whole number"},
        {{"--beta1", "1"}, "--beta1 1"},
        {{"--beta2", "-0.5"}, "--beta2 -0.5"},
        {{"--eps", "0"}, "--eps 0"},
        {{"--grad-clip", "-1"}, "--grad-clip"},
        {{"--model", "gpt5"}, "gpt2-nano"},
        {{"--heads", "3"}, "--heads 3"},
        {{"--kv-heads", "2"}, "--kv-heads"},
        {{"--rope-theta", "500000"}, "llama"},
        {{"--init", "zero"}, "gpt2_scaled"},
        {{"--activation", "relu"}, "gelu_new, gelu"},
        {{"--norm", "sandwitch"}, "sandwich, peri"},
        {{"--norm", "sandwich", "--init", "gpt2_scaled"}, "made for pre"},
        {{"--residual", "hyper"}, "there is no rule hyper"},
        {{"--residual", "gpas+review"}, "gpas+review"},
        {{"--residual", "review+prores+prores"}, "review+prores+prores"},
        {{"--residual", "lscale_block", "--norm", "post"}, "--residual lscale_block with --norm post"},
        {{"--residual", "gpas", "--norm", "keel"}, "--residual gpas with --norm keel"},
        {{"--residual", "review", "--residual-opt", "form=convex", "--norm", "mix"}, "review with form=convex and --norm mix"},
        {{"--residual", "gpas", "--norm", "outnorm", "--residual-opt", "place=after_norm"}, "outnorm"},
        {{"--residual-opt", "T=3"}, "T=3: rule vanilla with scheme pre does not read T"},
        {{"--residual", "prores", "--residual-opt", "schedule=fix_L", "--residual-opt", "T=3"}, "does not read T"},
        {{"--residual", "prores", "--residual-opt", "T=0.5"}, "T=0.5"},
        {{"--residual", "gpas", "--residual-opt", "act=gelu"}, "silu, identity"},
        {{"--norm", "lns", "--residual-opt", "lns=both"}, "forward, gaininit"},
        {{"--residual-opt", "T"}, "KEY=VALUE"},
        {{"--optimizer", "muon"}, "adamw"},
        {{"--layerwise-lr", "llr"}, "none"},
        {{"--muon-lr", "0.02"}, "--muon-lr"},
        {{"--decay", "3d"}, "matrix"},
        {{"--schedule", "step"}, "cosine, wsd, linear, constant, invsqrt"},
        {{"--decay-steps", "10"}, "--schedule wsd"},
        {{"--wsd-shape", "sqrt"}, "--schedule wsd"},
        {{"--schedule", "wsd", "--wsd-shape", "cubic"}, "sqrt, linear, cosine, exp"},
        {{"--schedule", "wsd", "--decay-steps", "101"}, "--decay-steps 101"},
        {{"--schedule", "constant", "--final-lr-ratio", "0.1"}, "--final-lr-ratio"},
        {{"--final-lr-ratio", "2"}, "between 0 and 1"},
        {{"--warmup", "101"}, "--warmup 101"},
        {{"--save-dtype", "fp8"}, "fp32, bf16"},
        {{"--val-every", "5"}, "--val"},
        {{"--val-batches", "5"}, "--val"},
        {{"--val", "v.bin", "--hold-out", "0.1"}, "exclude each other"},
        {{"--hold-out", "1"}, "--hold-out 1"},
        {{"--mix", "more.bin"}, "GLOB=SHARE"},
        {{"--mix", "more.bin=x"}, "GLOB=SHARE"},
        {{"--mix", "more.bin=1.5"}, "between 0 and 1"},
        {{"--mix", "a.bin=0.5", "--mix", "b.bin=0.5"}, "leaves --train nothing"},
        {{"--mix", "a.bin=0.5", "--no-shuffle"}, "--no-shuffle"},
        {{"--eval-every", "5"}, "--eval"},
        {{"--eval", "glue=f"}, "ppl, lambada, hellaswag"},
        {{"--eval", "ppl"}, "TASK=FILE"},
        {{"--sample-every", "5"}, "--prompt"},
        {{"--prompt", "Hello"}, "--sample-every"},
        {{"--init-only", "--resume"}, "--init-only"},
        {{"--init-from", "dir"}, "--model"},
    };
    for (const auto& c : cases) {
        const std::string message = refusal(with(c.words));
        INFO(c.words[0] << ": " << message);
        CHECK(contains(message, c.part));
    }
}

TEST_CASE("what is missing is named, but combinations come first", "[cli]") {
    CHECK(contains(refusal({}), "--model"));
    CHECK(contains(refusal({"--model", "gpt2"}), "--train"));
    CHECK(contains(refusal({"--model", "gpt2", "--train", "t"}), "--steps"));
    CHECK(contains(refusal({"--model", "gpt2", "--train", "t", "--steps", "1"}), "--out"));
    CHECK(contains(refusal({"--model", "gpt2", "--residual", "nonesuch"}), "nonesuch"));
    CHECK(contains(refusal({"--init-from", "d", "--layers", "2"}), "--layers"));
    CHECK(contains(refusal({"--decay-steps", "5"}), "wsd"));
    CHECK(parse({"--model", "gpt2", "--dry-run"}).has_value());
    CHECK(parse({"--model", "gpt2", "--init-only", "--out", "o"}).has_value());
    CHECK(parse({"--init-from", "d", "--train", "t", "--steps", "1", "--out", "o"}).has_value());
}

TEST_CASE("--config sets every option and the command line wins", "[cli]") {
    TempFolder temp;
    const std::string path = write_config(temp, R"(# a run
model = "gpt2-nano"     # the smallest
train = 'data/x#y_*.bin'
steps = 1_000
out = "o"
lr = 2e-3
no-tie = true
bias = false
shuffle = false
freeze = ["embed",
          "h.0.*"]
[watching]
sample-every = 10
prompt = "He said: \"#1,\nfine\""
)");
    const TrainOptions o = *parse({"--config", path, "--lr", "5e-4"});
    CHECK(o.model == "gpt2-nano");
    CHECK(o.train == "data/x#y_*.bin");
    CHECK(o.steps == 1000);
    CHECK(o.lr == 5e-4);
    CHECK(o.tie == std::optional<bool>(false));
    CHECK(o.bias == std::optional<bool>(false));
    CHECK_FALSE(o.shuffle);
    CHECK(o.freeze == std::vector<std::string>{"embed", "h.0.*"});
    CHECK(*o.prompt == "He said: \"#1,\nfine\"");
    CHECK(parse({"--config", path, "--shuffle"})->shuffle);
    CHECK(parse({"--config", path, "--tie"})->tie == std::optional<bool>(true));
    CHECK(parse({"--config", path, "--freeze", "norm"})->freeze == std::vector<std::string>{"norm"});
}

TEST_CASE("mistakes in a --config file name the file and what is wrong", "[cli]") {
    TempFolder temp;
    const struct {
        std::string text, part;
    } cases[] = {
        {"stepz = 3\n", "there is no option stepz"}, {"freeze = []\n", "line 1: an empty array"},
        {"steps = many\n", "line 1"},   {"a\n", "'='"},
        {"lr = \"x\n", "quote"},      {"lr = 1\nlr = 2\n", "line 2"}, {"freeze = [\"a\"\n", "array"},
        {"steps = 1 2\n", "follows"}, {"muon-lr = 0.1\n", "muon-lr"}, {"config = \"x\"\n", "config"},
    };
    for (const auto& c : cases) {
        const std::string path = write_config(temp, c.text);
        const std::string message = refusal({"--config", path});
        INFO(c.text << " -> " << message);
        CHECK(contains(message, c.part));
        CHECK(contains(message, "run.toml"));
    }
    CHECK(contains(refusal({"--config", temp.path + "/absent.toml"}), "absent.toml"));
    CHECK(contains(refusal({"--config", write_config(temp, "steps = \"many\"\n")}), "many"));
}

TEST_CASE("help, version and presets are printed and end with 0", "[cli]") {
    if (!have_program("train_gpt2")) SKIP_TEST("help: RESIDUAL_BUILD names no build");
    const ProgramResult help = run_program("train_gpt2", {"--help"});
    CHECK(help.status == 0);
    CHECK(help.err.empty());
    for (const char* part : {"--total-batch", "--residual-opt", "Optimizer", "1337", "0.0003", "--no-shuffle"}) {
        INFO(part);
        CHECK(contains(help.out, part));
    }
    const ProgramResult version = run_program("train_gpt2", {"--version"});
    CHECK(version.status == 0);
    CHECK(contains(version.out, "residual.cu"));
    const ProgramResult models = run_program("train_gpt2", {"--help-models"});
    CHECK(models.status == 0);
    for (const char* part : {"gpt2-nano", "gpt2-xl", "--channels 1600", "--layers 48"})
        CHECK(contains(models.out, part));
}
