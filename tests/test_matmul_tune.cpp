// Which algorithm a product runs: measuring, and choices given from elsewhere.
#include <cublasLt.h>

#include <cstring>

#include "environment.h"
#include "kernels/bias.cuh"
#include "kernels/matmul.cuh"
#include "test.h"

namespace {

struct Handle {
    Matmul* mm = matmul_create();
    ~Handle() { matmul_destroy(mm); }
};

constexpr int N = 512, C = 64, OC = 48;

// The products of a linear map and of an MLP's, by every function that has an epilogue.
struct Work {
    Random random{7};
    Device<floatX> inp{random.normals<floatX>(N * C)}, weight{random.normals<floatX>(OC * C, 0.125)},
        dout{random.normals<floatX>(N * OC)}, bias{random.normals<floatX>(OC)}, pre{N * OC}, out{N * OC}, dpre{N * C},
        pre_in{random.normals<floatX>(N * C)};
    Device<float> dweight{OC * C}, dbias{OC}, dbias_in{C}, scratch{bias_scratch_bytes(C) / sizeof(float)};
    void run(Matmul* mm) {
        const auto gelu = Activation::gelu_new;
        matmul_activation_forward(mm, out.data, pre.data, inp.data, weight.data, bias.data, gelu, N, C, OC, nullptr);
        matmul_activation_backward_bias(mm, dpre.data, dbias_in.data, dout.data, weight.data, pre_in.data, gelu,
                                        scratch.data, N, C, OC, false, nullptr);
        matmul_activation_backward_input(mm, dpre.data, dout.data, weight.data, pre_in.data, gelu, N, C, OC, nullptr);
        matmul_backward_weight_bias(mm, dweight.data, dbias.data, dout.data, inp.data, scratch.data, N, C, OC, false,
                                    nullptr);
    }
    std::vector<double> results() const {
        std::vector<double> all;
        for (const Device<floatX>* x : {&pre, &out, &dpre})
            for (double value : to_double(x->read())) all.push_back(value);
        for (const Device<float>* x : {&dweight, &dbias})
            for (double value : to_double(x->read())) all.push_back(value);
        return all;
    }
};

cublasLtMatmulAlgo_t parse(const std::string& hex) {
    cublasLtMatmulAlgo_t algo = {};
    REQUIRE(hex.size() == 2 * sizeof algo);
    unsigned char bytes[sizeof algo];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = static_cast<unsigned char>(std::stoi(hex.substr(2 * i, 2), nullptr, 16));
    memcpy(&algo, bytes, sizeof bytes);
    return algo;
}

std::vector<MatmulChoice> measured(Work& work) {
    const Environment more("SIMT_GEMM_ALGOS", "4");
    Handle handle;
    REQUIRE(matmul_has_choice(handle.mm));
    matmul_tune(handle.mm, true);
    work.run(handle.mm);
    matmul_tune(handle.mm, false);
    return matmul_choices(handle.mm);
}

}  // namespace

TEST_CASE("matmul: measuring chooses among algorithms and between one step and two", "[matmul]") {
    Work work;
    const std::vector<MatmulChoice> choices = measured(work);
    REQUIRE(choices.size() >= 3);
    size_t compared = 0;
    for (size_t i = 0; i < choices.size(); i++) {
        const MatmulChoice& c = choices[i];
        INFO(c.product);
        if (i > 0) CHECK(choices[i - 1].product < c.product);
        parse(c.algorithm);
        CHECK(c.us > 0);
        CHECK(c.us <= c.first_us);
        compared += c.two_steps_us > 0;
        if (c.two_steps_us == 0) CHECK(c.fused);
    }
    CHECK(compared >= 3);

    // What is measured gives the same results, but for the order of sums, as what is not.
    Handle tuned, plain;
    matmul_use(tuned.mm, choices);
    work.run(tuned.mm);
    const std::vector<double> got = work.results();
    CHECK(matmul_choices(tuned.mm).size() >= 3);
    work.run(plain.mm);
    CHECK(worst_error(got, work.results(), 64 * 0x1p-24 * N, 2 * unit_roundoff) <= 1);
    CHECK(matmul_choices(plain.mm).empty());
}

TEST_CASE("matmul: choices that are known are not measured again", "[matmul]") {
    Work work;
    std::vector<MatmulChoice> choices = measured(work);
    for (MatmulChoice& c : choices) c.us = 1e9;
    const Environment more("SIMT_GEMM_ALGOS", "4");
    Handle handle;
    matmul_use(handle.mm, choices);
    matmul_tune(handle.mm, true);
    work.run(handle.mm);
    const std::vector<MatmulChoice> after = matmul_choices(handle.mm);
    CHECK(after == choices);
}

TEST_CASE("matmul: a choice given from elsewhere decides the bits", "[matmul]") {
    Work work;
    std::vector<MatmulChoice> choices = measured(work);
    // Another configuration of every algorithm: k in two parts. A real library may refuse it for some.
    for (MatmulChoice& c : choices) {
        cublasLtMatmulAlgo_t algo = parse(c.algorithm);
        const int32_t parts = 2;
        cublasLtMatmulAlgoConfigSetAttribute(&algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &parts, sizeof parts);
        unsigned char bytes[sizeof algo];
        memcpy(bytes, &algo, sizeof bytes);
        c.algorithm.clear();
        for (unsigned char byte : bytes) c.algorithm += format("%02x", byte);
    }
    auto run = [&](const std::vector<MatmulChoice>& given) {
        Handle handle;
        matmul_use(handle.mm, given);
        work.run(handle.mm);
        return work.results();
    };
    const std::vector<double> plain = run({}), split = run(choices);
    CHECK(plain == run({}));
    CHECK(split == run(choices));
    if (split == plain) SKIP_TEST("matmul: this library's algorithms cannot be split");
    CHECK(worst_error(split, plain, 64 * 0x1p-24 * N, 2 * unit_roundoff) <= 1);

    // What cannot be meant for these products is passed over.
    std::vector<MatmulChoice> wrong = choices;
    for (size_t i = 0; i < wrong.size(); i++) {
        if (i % 3 == 0) wrong[i].algorithm = "no hexadecimal number";
        if (i % 3 == 1) wrong[i].algorithm = std::string(128, '0');
        if (i % 3 == 2) wrong[i].algorithm = choices[(i + 1) % choices.size()].algorithm;  // of another product
    }
    CHECK(run(wrong) == plain);
}

TEST_CASE("matmul: the slower of one step and two is not taken", "[matmul]") {
    Work work;
    std::vector<MatmulChoice> choices = measured(work);
    std::vector<double> results[2];
    for (bool fused : {false, true}) {
        for (MatmulChoice& c : choices) c.fused = fused;
        Handle handle;
        matmul_use(handle.mm, choices);
        const bool taken = matmul_activation_backward_bias(
            handle.mm, work.dpre.data, work.dbias_in.data, work.dout.data, work.weight.data, work.pre_in.data,
            Activation::gelu_new, work.scratch.data, N, C, OC, false, nullptr);
        if (sizeof(floatX) == 4) CHECK(taken == fused);
        work.run(handle.mm);
        results[fused] = work.results();
    }
    // Two steps round between them, which shows in bf16.
    if (sizeof(floatX) == 2) CHECK(results[0] != results[1]);
    CHECK(worst_error(results[0], results[1], 64 * 0x1p-24 * N, 4 * unit_roundoff) <= 1);
}
