// Seams that write what a sublayer reads in 8 bits, against the same seams in floatX with fp8_quantize behind them:
// every rule in every scheme, byte for byte.
#include <algorithm>
#include <cstring>
#include <limits>
#include <sstream>

#include "kernels/matmul.cuh"
#include "planned_memory.h"
#include "residual/rules.h"

namespace {

using Floats = std::vector<float>;
using Rows = std::vector<floatX>;

struct Handle {
    Matmul* mm = matmul_create();
    ~Handle() { matmul_destroy(mm); }
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}
template <class T>
void copy_in(T* to, const std::vector<T>& from) {
    CUDA_CHECK(cudaMemcpy(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
}
template <class T>
std::vector<T> copy_out(const T* from, size_t count) {
    std::vector<T> out(count);
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaMemcpy(out.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost));
    return out;
}

// Rows in 8 bits and their abs-max, as bytes and bits.
struct Quantized {
    std::vector<unsigned char> codes;
    float amax;
    bool operator==(const Quantized&) const = default;
};

// Memory for the 8-bit inputs of several seams.
struct Inputs8 {
    static constexpr size_t BEHIND = 16;  // bytes that must stay as they are
    size_t count;                         // numbers of one input
    std::vector<std::unique_ptr<Device<e4m3>>> data;
    Device<float> memory;
    Fp8Scales scales;
    std::vector<float> host;

    Inputs8(int inputs, size_t count_)
        : count(count_),
          memory(fp8_scales_bytes(inputs) / sizeof(float)),
          scales(fp8_scales_in(memory.data, inputs)),
          host(memory.count, 0.0f) {
        for (int i = 0; i < inputs; i++) {
            data.push_back(std::make_unique<Device<e4m3>>(count + BEHIND));
            host[static_cast<size_t>(i)] = std::exp2(static_cast<float>(4 + i % 4));  // the largest saturate at some
        }
        clear();
    }
    void clear() {
        for (auto& each : data) each->poison();
        memory.write(host);
    }
    Fp8Input operator[](int i) const { return {data[static_cast<size_t>(i)]->data, scales[i]}; }
    Quantized read(int i) const {
        Quantized out;
        const std::vector<e4m3> all = data[static_cast<size_t>(i)]->read();
        for (const e4m3& x : all) out.codes.push_back(x.__x);
        for (size_t k = count; k < all.size(); k++) CHECK(out.codes[k] == 0xFF);
        out.codes.resize(count);
        out.amax = memory.read()[2 * data.size() + static_cast<size_t>(i)];
        return out;
    }
    // What fp8_quantize makes of z (N,C) with the scale of input i. It takes rows by 16: zeros behind.
    Quantized expected(int i, const Rows& z, int C) const {
        Rows padded = z;
        const int rows = static_cast<int>(round_up(static_cast<int64_t>(z.size()) / C, 16));
        padded.resize(static_cast<size_t>(rows) * static_cast<size_t>(C), from_float<floatX>(0.0f));
        const Device<floatX> inp(padded);
        const Device<e4m3> out(padded.size());
        Device<unsigned> amax(std::vector<unsigned>{0});
        fp8_quantize<e4m3>(out.data, nullptr, inp.data, {scales.scale + i, scales.inverse + i, amax.data}, rows, C,
                           nullptr);
        Quantized want;
        for (const e4m3& x : out.read()) want.codes.push_back(x.__x);
        want.codes.resize(z.size());
        const unsigned bits = amax.read()[0];
        memcpy(&want.amax, &bits, sizeof bits);
        return want;
    }
};

// The seams of a network without sublayers: what these would write is random.
struct Seams {
    int C, N, last;
    RuleShape shape;
    PlannedMemory memory;
    std::vector<std::unique_ptr<Device<float>>> floats;
    std::vector<std::unique_ptr<Device<floatX>>> copies;
    Residual residual;
    std::vector<Rows> outputs;  // (2L+1), the embedding first
    std::unique_ptr<Device<char>> scratch;

    static RuleShape make_shape(int L, int C, int N, NormKind kind, bool fp8) {
        RuleShape shape;
        shape.L = L;
        shape.C = C;
        shape.N = N;
        shape.kind = kind;
        shape.fp8 = fp8;
        return shape;
    }
    Seams(const std::string& name, const std::string& scheme, int L, int C_, int N_, NormKind kind, bool fp8 = true)
        : C(C_), N(N_), last(2 * L), shape(make_shape(L, C_, N_, kind, fp8)) {
        Random random(static_cast<uint64_t>(C * 1000 + N));
        residual = make_residual(name, scheme, {}, shape);
        Rule& r = rule();
        const size_t width = static_cast<size_t>(C);
        auto keep = [&](const Floats& values) {
            floats.push_back(std::make_unique<Device<float>>(values));
            return floats.back()->data;
        };
        r.plan(memory);
        r.last_maps.resize(static_cast<size_t>(last) + 1);
        auto bind = [&](SeamNorm& norm) {
            norm.gain = keep(random.normals<float>(width, 0.3, 1.0));
            if (kind == NormKind::layer) norm.bias = keep(random.normals<float>(width, 0.3));
        };
        for (int s = 0; s <= last; s++) {
            const size_t i = static_cast<size_t>(s);
            if (r.shape().out(s)) bind(r.out_norms[i]);
            if (r.shape().post(s)) bind(r.post_norms[i]);
            if (r.shape().in(s)) bind(r.in_norms[i]);
            outputs.push_back(random.normals<floatX>(static_cast<size_t>(N) * width, 1.0, 0.2));
        }
        for (const RuleParameter& p : r.parameters) {
            size_t count = 1;
            for (int64_t extent : p.shape) count *= static_cast<size_t>(extent);
            Floats values = random.normals<float>(count, 0.1);
            for (size_t k = 0; k < count; k++) values[k] += p.initial[p.initial.size() == count ? k : 0];
            Rows copy;
            for (float x : values) copy.push_back(from_float<floatX>(x));
            copy.resize(count + 7 * static_cast<size_t>(p.shape.back()), from_float<floatX>(0.0f));  // padding of rows
            copies.push_back(std::make_unique<Device<floatX>>(copy));
            r.tensors.push_back({keep(values), copies.back()->data, nullptr});
        }
        scratch = std::make_unique<Device<char>>(r.scratch_bytes());
        r.ready(nullptr);
        r.set_time(3, 3, false, nullptr);
        if (r.has_beta()) r.set_alpha(Floats(static_cast<size_t>(last) + 1, 0.75f), nullptr);
    }
    Rule& rule() { return *residual.rule; }
    Pass pass(bool fp8) {
        static Handle handle;
        return {N, nullptr, handle.mm, reinterpret_cast<float*>(scratch->data), fp8};
    }
    size_t count() const { return static_cast<size_t>(N) * static_cast<size_t>(C); }
    Rows input(int s) { return copy_out(rule().input(s), count()); }
    void poison_input(int s) { CUDA_CHECK(cudaMemset(rule().input(s), 0xFF, count() * sizeof(floatX))); }
    bool input_is_poison(int s) {
        const Rows z = input(s);
        const auto* bytes = reinterpret_cast<const unsigned char*>(z.data());
        return std::all_of(bytes, bytes + z.size() * sizeof(floatX), [](unsigned char b) { return b == 0xFF; });
    }

    // What a seam leaves for others: streams and statistics.
    struct Left {
        Rows stream;
        Floats statistics;
    };
    Left left(int s) {
        const size_t i = static_cast<size_t>(s), rows = static_cast<size_t>(N);
        Left out;
        out.stream = copy_out(rule().stream(s), rows * static_cast<size_t>(rule().stream_channels()));
        for (const SeamNorm& norm : {rule().out_norms[i], rule().post_norms[i], rule().in_norms[i]})
            for (const float* values : {norm.mean, norm.rstd}) {
                if (norm.gain == nullptr || values == nullptr) continue;
                const Floats some = copy_out(values, rows);
                out.statistics.insert(out.statistics.end(), some.begin(), some.end());
            }
        return out;
    }
    // All seams in order; at(s) is called behind each of them.
    template <class F>
    void forward(bool fp8, F&& at) {
        rule().begin(pass(fp8));
        copy_in(rule().embedding(), outputs[0]);
        for (int s = 0; s <= last; s++) {
            if (s > 0) copy_in(rule().output(s), outputs[static_cast<size_t>(s)]);
            const bool quantized = fp8 && rule().quantizes(s);
            if (quantized) poison_input(s);
            rule().forward(pass(fp8), s);
            if (quantized) CHECK(input_is_poison(s));
            at(s);
        }
    }
};

void check(const std::string& name, const std::string& scheme, int L, int C, int N, NormKind kind) {
    INFO(name << ", " << scheme << ", C=" << C << " N=" << N << (kind == NormKind::layer ? " layer" : " rms"));
    Seams seams(name, scheme, L, C, N, kind);
    Rule& rule = seams.rule();
    Inputs8 inputs(seams.last, seams.count());
    for (int s = 0; s < seams.last; s++) rule.inputs8[static_cast<size_t>(s)] = inputs[s];
    std::vector<Rows> z;
    std::vector<Seams::Left> left;
    seams.forward(false, [&](int s) {
        z.push_back(seams.input(s));
        left.push_back(seams.left(s));
    });
    for (int s = 0; s < seams.last; s++) REQUIRE(inputs.read(s).amax == 0);

    auto check_input = [&](int s) {
        INFO("s=" << s);
        if (rule.quantizes(s))
            CHECK((inputs.read(s) == inputs.expected(s, z[static_cast<size_t>(s)], C)));
        else
            CHECK(same_bits(seams.input(s), z[static_cast<size_t>(s)]));
    };
    seams.forward(true, [&](int s) {
        check_input(s);
        const Seams::Left now = seams.left(s);
        CHECK(same_bits(now.stream, left[static_cast<size_t>(s)].stream));
        CHECK(same_bits(now.statistics, left[static_cast<size_t>(s)].statistics));
    });

    // Once more, in the order of a backward pass.
    inputs.clear();
    rule.begin_backward(seams.pass(true));
    for (int s = seams.last - 1; s >= 0; s--) {
        rule.input_again(seams.pass(false), s);
        CHECK(same_bits(seams.input(s), z[static_cast<size_t>(s)]));
        if (rule.quantizes(s)) seams.poison_input(s);
        rule.input_again(seams.pass(true), s);
        if (rule.quantizes(s)) CHECK(seams.input_is_poison(s));
        check_input(s);
    }
}

}  // namespace

TEST_CASE("every rule writes inputs in 8 bits", "[fp8][seam]") {
    for (const RuleSummary& summary : rule_summaries()) {
        std::istringstream schemes(summary.schemes);
        std::string scheme;
        while (schemes >> scheme) {
            check(summary.name, scheme, 4, 48, 21, NormKind::layer);
            check(summary.name, scheme, 4, 272, 5, NormKind::rms);
        }
    }
    check("vanilla+prores", "pre", 4, 48, 21, NormKind::layer);  // a seam with a branch of its own
}

TEST_CASE("inputs in 8 bits: awkward sizes", "[fp8][seam]") {
    for (int C : {16, 48, 272, 1040, 4112})
        for (int N : {1, 5, 21, 100}) {
            if (N == 100 && C > 1040) continue;
            check("vanilla", "pre", 1, C, N, NormKind::layer);
            check("vanilla", "peri", 1, C, N, N == 5 ? NormKind::layer : NormKind::rms);
        }
}

TEST_CASE("which inputs are written in 8 bits", "[fp8][seam]") {
    auto quantized = [](const char* rule, const char* scheme) {
        Seams seams(rule, scheme, 4, 16, 1, NormKind::rms);
        std::string out;
        for (int s = 0; s <= seams.last; s++) out += seams.rule().quantizes(s) ? '8' : '-';
        return out;
    };
    CHECK(quantized("vanilla", "pre") == "88888888-");
    CHECK(quantized("vanilla", "mix") == "--888888-");  // without N_in a sublayer reads the stream itself
    CHECK(quantized("vanilla", "post") == "---------");
    CHECK(quantized("attnres", "outnorm") == "---------");
    CHECK(quantized("mhc", "outnorm") == "88888888-");  // a mixture of streams is no stream
    CHECK(quantized("hc", "pre") == "88888888-");

    // In floatX they are then not kept.
    for (bool fp8 : {false, true}) {
        Seams seams("vanilla", "pre", 2, 16, 1, NormKind::rms, fp8);
        CHECK((seams.rule().input(0) == seams.rule().input(1)) == fp8);
    }
    // A pass that wants them, of a sublayer that does not: floatX.
    Seams seams("vanilla", "pre", 1, 16, 1, NormKind::rms);
    copy_in(seams.rule().embedding(), seams.outputs[0]);
    seams.poison_input(0);
    seams.rule().forward(seams.pass(true), 0);
    CHECK_FALSE(seams.input_is_poison(0));
}

TEST_CASE("inputs in 8 bits: rows behind the last do not count, NaN shows", "[fp8][seam]") {
    const int N = 5, C = 48;
    Random random(6);
    Rows x = random.normals<floatX>(static_cast<size_t>(N * C));
    for (size_t n = 0; n < N; n++) x[n * C] = from_float<floatX>(-20.0f);
    Floats gain(C, 1.0f), bias(C, 0.0f);
    bias[0] = 10.0f;  // what a row of zeros would give; in the rows that are there it is less
    const Device<float> d_gain(gain), d_bias(bias), mean(N), rstd(N);
    for (bool nan : {false, true}) {
        if (nan) x[2 * C + 7] = from_float<floatX>(std::numeric_limits<float>::quiet_NaN());
        const Device<floatX> d_x(x), z(x.size());
        SeamNorm norm;
        norm.gain = d_gain.data, norm.bias = d_bias.data, norm.mean = mean.data, norm.rstd = rstd.data;
        SeamForward seam = {};
        seam.x = d_x.data;
        seam.z = z.data;
        seam.in = norm;
        const SeamShape shape{N, C, NormKind::layer, 1e-5f};
        vanilla_forward(seam, shape, nullptr);
        Inputs8 inputs(1, x.size());
        const Quantized want = inputs.expected(0, z.read(), C);
        CHECK(want.amax > 1);
        CHECK(want.amax < 9);
        seam.z8 = inputs[0];
        vanilla_forward(seam, shape, nullptr);
        CHECK((inputs.read(0) == want));
        inputs.clear();
        norm_rows_again(d_x.data, nullptr, norm, shape, nullptr, inputs[0]);
        const Quantized again = inputs.read(0);
        CHECK((again == want));
        for (size_t i = 0; i < x.size(); i++) REQUIRE(((again.codes[i] & 0x7f) == 0x7f) == (nan && i / C == 2));
    }
}
