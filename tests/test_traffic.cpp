// What launches declare to move (kernels/traffic.h) against the bytes of device memory that the checking mode sees them
// touch, launch by launch, over updates of small models with every residual rule. Then, in every build, the recorder
// itself, and a machine that only counts against one that really runs.
#include <touched.h>

#include <cstdlib>
#include <set>

#include "decode_model.h"
#include "kernels/attention.cuh"
#include "kernels/fp8_activation.cuh"
#include "residual/hc.cuh"
#include "run_program.h"
#include "test_fp8.h"

using nlohmann::json;

namespace {

struct Launch {
    traffic::Operation declared;
    simt::Touched touched;
};
std::vector<Launch> launches;

// Every launch of work(), with what it touched: everything between the launch before it and its own end.
template <class F>
std::vector<Launch> watch(F&& work) {
    launches.clear();
    traffic::listener = [](const traffic::Operation& declared) {
        launches.push_back({declared, simt::take_touched()});
    };
    simt::take_touched();
    traffic::start(false);
    work();
    traffic::stop();
    traffic::listener = nullptr;
    return launches;
}

// Single numbers behind pointers (factors, a rule's scalars, a few entries of tables) are not declared.
constexpr int64_t SLACK = 128;
// Tables of tensors and of dots are declared whole; a kernel reads the fields that it needs, and no padding.
constexpr int64_t TABLE_SLACK = 1024;
const std::set<std::string> WITH_TABLES = {"adamw", "branch_dots", "branch_totals"};
// What only the device knows is declared as its bound. Without gains (attnres_mls) queries read and write less; rows of
// the token embedding that several tokens share are declared once for each.
const std::set<std::string> BOUNDS = {"embedding_forward", "embedding_backward_rare"};

// The first launch of each name that moves something else than it declared, as text.
std::string differences(const std::vector<Launch>& all) {
    std::map<std::string, std::string> found;
    for (const auto& [declared, touched] : all) {
        const std::string& name = declared.name;
        auto close = [&](int64_t says, int64_t does) {
            const bool bound = name.rfind("depth_queries", 0) == 0 || BOUNDS.count(name) > 0;
            const int64_t slack = WITH_TABLES.count(name) > 0 ? TABLE_SLACK : SLACK;
            return std::abs(says - does) <= slack || (bound && does <= says);
        };
        if (close(declared.read, touched.read) && close(declared.written, touched.written)) continue;
        found.try_emplace(name, format("%s / %s: declared %lld read and %lld written, touched %lld and %lld\n",
                                       declared.range.c_str(), name.c_str(), static_cast<long long>(declared.read),
                                       static_cast<long long>(declared.written), static_cast<long long>(touched.read),
                                       static_cast<long long>(touched.written)));
    }
    std::string text;
    for (const auto& [name, line] : found) text += line;
    return text;
}

void one_update(Model& model, int B, int T) {
    const std::vector<int> tokens = recipe_tokens(0, B * T + 1, model_config(model).vocab);
    model_set_time(model, 0, 1);
    model_watch(model, true);  // the moments of the stream as well
    model_forward_backward(model, tokens.data(), tokens.data() + 1, B, T, 1.0 / (B * T));
    model_average_grads(model, nullptr);
    model_update(model, {}, 1);
    model_result(model);
}

constexpr const char* NO_MEASURING = "only the checking mode of the CPU machine sees what a launch touches";

}  // namespace

TEST_CASE("launches touch what they declare: updates with every rule", "[traffic]") {
    if (!simt::measures_touched) SKIP_TEST(NO_MEASURING);
    // In fp32 the wide rows too (264 channels), in bf16 the kernels of tensor cores. See test_rule_sizes.cpp.
    const std::string width = sizeof(floatX) == 2 ? "_104" : "_264", start = sizeof(floatX) == 2 ? "" : "gpt2_pre_";
    const json all = json::parse(read_text(golden_rules + "sizes.json"));
    int cases = 0;
    for (const json& one : all["cases"]) {
        const std::string name = one["name"];
        if (!ends_with(name, width) || name.compare(0, start.size(), start) != 0) continue;
        INFO("case " << name);
        ModelPtr model = small_model(case_config(one), 3, 19, Use::training, size_weights);
        CHECK(differences(watch([&] { one_update(*model, 3, 19); })) == "");
        cases++;
    }
    CHECK(cases > 20);
}

TEST_CASE("launches touch what they declare: updates in 8 bits", "[traffic]") {
    if (!simt::measures_touched) SKIP_TEST(NO_MEASURING);
    for (Arch arch : {Arch::gpt2, Arch::llama}) {
        const ModelConfig config = plain(arch);
        const int B = 4, T = CONTEXT - CONTEXT % 4;
        ModelPtr model = model_create(config, B, T, Use::training, Recompute::norm, true);
        model_write_master(*model, recipe_arena(model_registry(*model), small_weights).data(), 1, 0);
        // The first update finds scales, in passes of their own.
        CHECK(differences(watch([&] { one_update(*model, B, T); })) == "");
        const std::vector<Launch> all = watch([&] { one_update(*model, B, T); });
        CHECK(differences(all) == "");
        int fused = 0;
        for (const Launch& launch : all) fused += launch.declared.name.rfind("fp8_activation", 0) == 0;
        CHECK(fused == 2 * config.layers);
    }
}

TEST_CASE("launches touch what they declare: scoring and decoding", "[traffic]") {
    if (!simt::measures_touched) SKIP_TEST(NO_MEASURING);
    const ModelConfig config = plain(Arch::llama);
    const int B = 2, T = CONTEXT;
    ModelPtr model = small_model(config, B, T, Use::inference);
    const std::vector<int> tokens = recipe_tokens(0, B * T + 1, config.vocab);
    std::vector<float> losses(B * T), logits(static_cast<size_t>(B * config.vocab));
    std::vector<unsigned char> hits(B * T);
    DecoderPtr decoder = decoder_create(*model, B, T);
    const std::vector<Launch> all = watch([&] {
        model_token_losses(*model, tokens.data(), tokens.data() + 1, B, T, losses.data(), hits.data());
        decoder_restart(*decoder, tokens.data(), 3, logits.data());
        decoder_step(*decoder, tokens.data(), logits.data());
    });
    CHECK(differences(all) == "");
    CHECK(all.size() > 20);
}

TEST_CASE("launches touch what they declare: every kernel of attention", "[traffic]") {
    if (!simt::measures_touched) SKIP_TEST(NO_MEASURING);
    struct Case {
        AttentionKernels kernels;
        int B, T, NH, NKV, HS;
    };
    std::vector<Case> cases = {{AttentionKernels::portable, 2, 70, 2, 1, 32},
                               {AttentionKernels::portable, 1, 130, 2, 2, 64},
                               {AttentionKernels::portable, 1, 40, 2, 1, 128},
                               {AttentionKernels::portable, 1, 40, 1, 1, 256}};
    if (sizeof(floatX) == 2) {
        cases.push_back({AttentionKernels::hopper, 1, 150, 2, 1, 64});
        cases.push_back({AttentionKernels::hopper, 1, 100, 2, 2, 128});
    }
    for (const Case& c : cases) {
        INFO("T=" << c.T << " HS=" << c.HS << (c.kernels == AttentionKernels::hopper ? ", Hopper's" : ""));
        attention_choose(c.kernels);
        const size_t N = static_cast<size_t>(c.B * c.T), HS = static_cast<size_t>(c.HS);
        const size_t heads = static_cast<size_t>(c.NH), row = (heads + 2 * static_cast<size_t>(c.NKV)) * HS;
        Random random(3);
        Device<floatX> qkv(random.normals<floatX>(N * row)), dout(random.normals<floatX>(N * heads * HS));
        Device<floatX> out(N * heads * HS), dqkv(N * row);
        Device<float> lse(N * heads);
        Device<char> scratch(attention_scratch_bytes(c.B, c.T, c.NH, c.NKV, c.HS));
        const std::vector<Launch> all = watch([&] {
            attention_forward(out.data, lse.data, qkv.data, c.B, c.T, c.NH, c.NKV, c.HS, nullptr);
            attention_backward(dqkv.data, scratch.data, dout.data, qkv.data, out.data, lse.data, c.B, c.T, c.NH, c.NKV,
                               c.HS, nullptr);
        });
        CHECK(differences(all) == "");
        // Forward two products over all pairs of a query and a key it sees; backward five, and those computed again.
        const double product = 2.0 * c.HS * c.B * c.NH * c.T * (c.T + 1) / 2;
        double flops = 0;
        for (const Launch& launch : all) flops += launch.declared.flops;
        CHECK(flops >= 7 * product);
        CHECK(flops <= 11 * product);
    }
    attention_choose(AttentionKernels::best);
}

TEST_CASE("launches touch what they declare: tensors in 8 bits", "[traffic]") {
    if (!simt::measures_touched) SKIP_TEST(NO_MEASURING);
    const int N = 144, F = 112;
    Random random(4);
    Device<floatX> pre(random.normals<floatX>(area(N, 2 * F))), d(random.normals<floatX>(area(N, F)));
    Device<e4m3> out(area(N, F)), out_t(area(N, F));
    Device<e5m2> dpre(area(N, 2 * F)), dpre_t(area(N, 2 * F));
    Device<float> dbias(2 * F), scratch(fp8_bias_scratch_bytes(N, 2 * F) / sizeof(float));
    dbias.zero();
    Scaling scaling(1.0f), dscaling(1.0f);
    const Fp8Slot slot = scaling.scales[0], dslot = dscaling.scales[0];
    const int many = 50;
    Device<float> memory(fp8_scales_bytes(many) / sizeof(float));
    memory.zero();
    Device<e4m3> other(area(N, F)), other_t(area(N, F));
    const Device<Fp8Job<e4m3>> jobs(std::vector<Fp8Job<e4m3>>{{out.data, out_t.data, d.data, slot},
                                                              {other.data, other_t.data, pre.data, slot}});
    const std::vector<Launch> all = watch([&] {
        fp8_quantize(out.data, out_t.data, d.data, slot, N, F, nullptr);
        fp8_quantize<e4m3>(nullptr, out_t.data, d.data, slot, N, F, nullptr);
        fp8_quantize_bias(out.data, out_t.data, dbias.data, d.data, slot, scratch.data, N, F, true, nullptr);
        fp8_transpose(out_t.data, out.data, N, F, nullptr);
        fp8_amax(slot.amax, d.data, N * F, nullptr);
        fp8_update_scales<e4m3>(fp8_scales_in(memory.data, many), 3, many - 5, nullptr);
        fp8_first_scales<e4m3>(fp8_scales_in(memory.data, many), 3, many - 5, nullptr);
        fp8_quantize_each(jobs.data, 2, N, F, nullptr);
        for (Activation act : {Activation::gelu, Activation::gelu_new, Activation::swiglu}) {
            fp8_activation_forward(out.data, pre.data, act, slot, N, F, nullptr);
            fp8_activation_backward(dpre.data, dpre_t.data, out_t.data, dbias.data, d.data, pre.data, act, dslot, slot,
                                    scratch.data, N, F, false, nullptr);
        }
    });
    CHECK(differences(all) == "");
    CHECK(all.size() == 9 + 3 * 3);
}

TEST_CASE("launches touch what they declare: seams that write 8 bits", "[traffic]") {
    if (!simt::measures_touched) SKIP_TEST(NO_MEASURING);
    const int N = 19, C = 272, n = 4;
    const size_t rows = N, count = rows * C;
    Random random(5);
    const Device<floatX> x(random.normals<floatX>(count)), u(random.normals<floatX>(count)), x_new(count);
    const Device<floatX> streams(n * count);
    const Device<float> gain(random.normals<float>(C)), bias(random.normals<float>(C)), mean(rows), rstd(rows);
    const Device<float> base(random.normals<float>(n * (n + 2))), scales(std::vector<float>{8.0f, 0.125f, 0.0f});
    const Device<e4m3> out(count);
    const Fp8Input z8 = {out.data, {scales.data, scales.data + 1, reinterpret_cast<unsigned*>(scales.data + 2)}};
    SeamForward seam = {};
    seam.x = x.data, seam.u = u.data, seam.x_new = x_new.data;
    seam.in.gain = gain.data, seam.in.bias = bias.data, seam.in.mean = mean.data, seam.in.rstd = rstd.data;
    seam.z8 = z8;
    const SeamShape shape{N, C, NormKind::layer, 1e-5f};
    const StreamShape stream_shape{N, C, n, NormKind::layer, 1e-5f};
    HcModule module;
    module.base = base.data;
    HcForward hc = {};
    hc.write.before = x.data, hc.write.H = streams.data;
    hc.next = &module;
    hc.in = seam.in;
    hc.z8 = z8;
    const std::vector<Launch> all = watch([&] {
        vanilla_forward(seam, shape, nullptr);
        norm_rows_again(x_new.data, nullptr, seam.in, shape, nullptr, z8);
        hc_forward(hc, stream_shape, nullptr);
        stream_read({streams.data, Coefficients::fixed(base.data, n), nullptr, seam.in, z8}, stream_shape, nullptr);
    });
    CHECK(differences(all) == "");
    CHECK(all.size() == 4);
}

TEST_CASE("every launch of an update is declared, and products are counted", "[traffic]") {
    ModelConfig config;
    config.layers = 2, config.heads = config.kv_heads = 2, config.channels = 64, config.ffn = 256;
    config.context = 16, config.vocab = 128;
    const int B = 2, T = 16;
    ModelPtr model = small_model(config, B, T, Use::training);
    traffic::start(false);
    for (int i = 0; i < 2; i++) one_update(*model, B, T);
    const std::vector<traffic::Operation> operations = traffic::stop();
    one_update(*model, B, T);  // nobody counts any more
    CHECK(traffic::stop().empty());

    double products = 0;
    std::map<std::string, int64_t> launches_of;
    for (const traffic::Operation& op : operations) {
        CHECK(op.name != traffic::UNDECLARED);
        CHECK(op.range != "");
        if (op.product) products += op.flops;
        launches_of[op.range + " / " + op.name] += op.launches;
    }
    // Without padding in this model: six operations for each weight and token, in each of two updates.
    const double attention = 6.0 * config.channels * config.layers * T;
    CHECK(products == 2.0 * B * T * (flops_per_token(config, T) - attention));
    CHECK(launches_of["attention / attention_forward"] == 2 * config.layers);
    CHECK(launches_of["seam / seam_forward"] == 2 * (2 * config.layers + 1));
    CHECK(launches_of["optimizer / adamw"] == 2);
}

TEST_CASE("the recorder of traffic", "[traffic]") {
    Device<float> a(100), b(100);
    const float* none = nullptr;
    traffic::start(true);
    {
        const traffic::Range outer("outer", 3);
        {
            const traffic::Range inner("inner");
            MOVES("first", {reads(a.data, 100), reads(a.data, 100), reads(none, 50), writes(a.data, 100)}, 7.0);
            MOVES_MORE({reads(b.data, 10), updates(b.data, 100), reads_bytes(3), writes_bytes(5), writes_bytes(5)});
            const traffic::Launch launch(nullptr);
        }
        set_zero(b.data, 40, nullptr);
        const traffic::Launch launch(nullptr);  // nobody has declared it: what was declared last counts once
    }
    MOVES("lost", {reads(a.data, 1)});
    set_zero(b.data, 4, nullptr);
    const std::vector<traffic::Operation> all = traffic::stop();
    REQUIRE(all.size() == 4);
    CHECK(all[0].range == "inner");
    CHECK(all[0].name == "first");
    CHECK(all[0].launches == 1);
    CHECK(all[0].read == 400 + 40 + 400 + 3);  // parts of an array are arrays of their own
    CHECK(all[0].written == 400 + 400 + 10);
    CHECK(all[0].flops == 7.0);
    CHECK(all[0].ms > 0);
    CHECK(all[1].range == "outer");
    CHECK(all[1].name == "set_zero");
    CHECK(all[1].written == 40);
    CHECK(all[2].name == traffic::UNDECLARED);
    CHECK(all[3].range == "");
    CHECK(all[3].written == 4);
}

TEST_CASE("bench refuses to time a machine that executes nothing", "[traffic]") {
    if (!have_program("bench")) SKIP_TEST("needs the programs in RESIDUAL_BUILD");
    setenv("SIMT_DRY", "1", 1);
    const ProgramResult result = run_program("bench", {"--kernel", "step", "--model", "gpt2-nano"});
    unsetenv("SIMT_DRY");
    CHECK(result.status == 1);
    CHECK(result.out.empty());
    CHECK(result.err.find("--kernel step --count") != std::string::npos);
}

TEST_CASE("a dry machine counts what a real one does", "[traffic]") {
    if (!have_program("bench")) SKIP_TEST("needs the programs in RESIDUAL_BUILD");
    TempFolder folder;
    auto count = [&](const char* dry, const std::vector<std::string>& more) {
        setenv("SIMT_DRY", dry, 1);
        std::vector<std::string> args = {"--kernel", "step", "--count", "--json", folder.path + "/count.json"};
        args.insert(args.end(), more.begin(), more.end());
        const ProgramResult result = run_program("bench", args);
        unsetenv("SIMT_DRY");
        INFO(result.err);
        REQUIRE(result.status == 0);
        return json::parse(read_text(folder.path + "/count.json"));
    };
    for (const auto& [rule, fp8] : {std::pair{"vanilla", false}, {"mhc", false}, {"attnres", false},
                                    {"gpas+prores+value", false}, {"vanilla", true}}) {
        INFO(rule << (fp8 ? " --fp8" : ""));
        std::vector<std::string> small = {"--model", "gpt2-nano", "--shape", "2,32", "--residual", rule};
        if (fp8) small.push_back("--fp8");
        const json real = count("0", small);
        CHECK(real.size() > 20);
        CHECK(real == count("1", small));
        std::set<std::string> names;
        for (const json& row : real) names.insert(row["name"]);
        CHECK(names.count("mlp backward / fp8_activation_backward") == (fp8 ? 1 : 0));  // not in passes of its own
    }
    // Takes 100 GiB where it really runs.
    const json large = count("1", {"--model", "gpt2-xl", "--shape", "16,1024"});
    CHECK(large[0]["bytes_but_products"] > 100e9);
}
