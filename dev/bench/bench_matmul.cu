// The products of a transformer layer and of the head, and the activation. A product's share of the ceiling is that of
// a large square product in the same run.
#include <algorithm>
#include <cstdint>

#include "dev/bench/array.h"
#include "dev/bench/bench.h"
#include "kernels/activation.cuh"
#include "kernels/bias.cuh"
#include "kernels/matmul.cuh"

namespace {

// Every product twice where the library leaves a choice: with what is measured to be the fastest, as training runs it,
// and with what the library's heuristic names first. A fused one stands beside the same work in two steps.
void products(Matmul* mm, Matmul* first, int N, int C, int OC) {
    const int64_t n = N;
    const std::string shape = format("N=%d C=%d OC=%d", N, C, OC);
    const double flops = 2.0 * N * C * OC;
    Array<floatX> inp(n * C, 1.0f), weight(static_cast<int64_t>(OC) * C, 0.05f), bias(OC, 1.0f), out(n * OC),
        pre(n * OC), dout(n * OC, 1.0f);
    Array<floatX> dinp(n * C), pre_in(n * C, 1.0f);
    Array<float> dweight(static_cast<int64_t>(OC) * C, 1.0f), dbias(OC, 1.0f), dbias_in(C, 1.0f),
        scratch(bias_scratch_bytes(std::max(C, OC)) / sizeof(float));
    using Work = std::function<void(Matmul*)>;
    const bool choice = matmul_has_choice(mm);
    auto report = [&](const char* name, const Work& work, const Work& two_steps = nullptr) {
        if (choice) {
            matmul_tune(mm, true);
            work(mm);
            matmul_tune(mm, false);
        }
        BenchRow row{.name = name, .shape = shape, .us = time_us([&] { work(mm); }), .flops = flops};
        const double first_us = choice ? time_us([&] { work(first); }) : 0;
        if (choice) row.numbers.emplace_back("heuristic_first_us", first_us);
        if (two_steps)
            row.reference_us = time_us([&] { two_steps(mm); }), row.reference = "two steps";
        else if (choice)
            row.reference_us = first_us, row.reference = "the heuristic's first";
        bench_report(row);
    };
    const auto gelu = Activation::gelu_new;
    const Work forward = [&](Matmul* m) {
        matmul_forward(m, pre.data, inp.data, weight.data, bias.data, N, C, OC, nullptr);
    };
    const Work backward = [&](Matmul* m) {
        matmul_backward_input(m, dinp.data, dout.data, weight.data, N, C, OC, false, nullptr);
    };
    const Work activation_backward_input = [&](Matmul* m) {
        matmul_activation_backward_input(m, dinp.data, dout.data, weight.data, pre_in.data, gelu, N, C, OC, nullptr);
    };
    const Work backward_weight = [&](Matmul* m) {
        matmul_backward_weight(m, dweight.data, dout.data, inp.data, N, C, OC, true, nullptr);
    };
    report("matmul_forward", forward);
    report(
        "matmul_activation_forward",
        [&](Matmul* m) {
            matmul_activation_forward(m, out.data, pre.data, inp.data, weight.data, bias.data, gelu, N, C, OC, nullptr);
        },
        [&](Matmul* m) { forward(m), activation_forward(out.data, pre.data, gelu, n * OC, nullptr); });
    report("matmul_backward_input", backward);
    report("matmul_activation_backward_input", activation_backward_input, [&](Matmul* m) {
        backward(m), activation_backward(dinp.data, dinp.data, pre_in.data, gelu, n * C, nullptr);
    });
    const Work input_bias_steps = [&](Matmul* m) {
        activation_backward_input(m);
        bias_backward(dbias_in.data, dinp.data, scratch.data, N, C, true, nullptr);
    };
    const Work input_bias = [&](Matmul* m) {
        if (!matmul_activation_backward_bias(m, dinp.data, dbias_in.data, dout.data, weight.data, pre_in.data, gelu,
                                             scratch.data, N, C, OC, true, nullptr))
            input_bias_steps(m);
    };
    if (sizeof(floatX) == 4) report("matmul_activation_backward_bias", input_bias, input_bias_steps);
    report("matmul_backward_weight", backward_weight);
    report(
        "matmul_backward_weight_bias",
        [&](Matmul* m) {
            matmul_backward_weight_bias(m, dweight.data, dbias.data, dout.data, inp.data, scratch.data, N, C, OC, true,
                                        nullptr);
        },
        [&](Matmul* m) {
            backward_weight(m), bias_backward(dbias.data, dout.data, scratch.data, N, OC, true, nullptr);
        });
}

void activations(int64_t N, int C) {
    const int64_t n = N * C;
    Array<floatX> a(n, 3.0f), b(n, 1.0f), c(n);
    for (Activation act : {Activation::gelu_new, Activation::gelu}) {
        const std::string shape =
            format("N=%d C=%d %s", static_cast<int>(N), C, act == Activation::gelu_new ? "gelu_new" : "gelu");
        bench_beside_copy("activation_forward", shape,
                          [&] { activation_forward(c.data, a.data, act, n, nullptr); });
        bench_beside_copy("activation_backward", shape,
                          [&] { activation_backward(c.data, b.data, a.data, act, n, nullptr); });
    }
}

}  // namespace

void bench_matmul(const BenchShape& shape) {
    Matmul *mm = matmul_create(), *first = matmul_create();
    struct Case {
        int N, C;
    };
    std::vector<Case> cases = {{512, 128}, {4096, 768}};
    if (multiprocessors() > 64) cases.push_back({16384, 1024});  // enough rows to fill a large GPU
    if (shape.C > 0) cases = {{(shape.B ? shape.B : 1) * (shape.T ? shape.T : 1024), shape.C}};
    for (const Case& at : cases) {
        products(mm, first, at.N, at.C, 3 * at.C);
        products(mm, first, at.N, at.C, 4 * at.C);
        products(mm, first, at.N, 4 * at.C, at.C);
        activations(at.N, 4 * at.C);
    }
    if (shape.vocab > 0) products(mm, first, cases[0].N, cases[0].C, (shape.vocab + 127) / 128 * 128);
    matmul_destroy(mm);
    matmul_destroy(first);
}
