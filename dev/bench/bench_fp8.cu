// What 8 bits cost and gain: conversions and the activations that convert, each beside a plain copy of as many bytes as
// it must move; the seam that writes 8 bits beside the one that writes floatX; and the three products of a layer's
// linear maps beside the same products in floatX, in the same run.
#include <cstdio>
#include <memory>

#include "dev/bench/array.h"
#include "dev/bench/bench.h"
#include "kernels/fp8_activation.cuh"
#include "kernels/matmul_fp8.cuh"
#include "residual/seam.cuh"

namespace {

// Scales of an input, a weight and a gradient, whose largest numbers are 1.
struct Scales {
    Array<char> memory{fp8_scales_bytes(3)};
    Fp8Scales all = fp8_scales_in(memory.data, 3);
    Fp8Slot input = all[0], weight = all[1], gradient = all[2];
    Scales() {
        CUDA_CHECK(cudaMemset(memory.data, 0, fp8_scales_bytes(3)));
        const Array<floatX> one(16, [](uint32_t) { return from_float<floatX>(1.0f); });
        for (const Fp8Slot& slot : {input, weight, gradient}) fp8_amax(slot.amax, one.data, 16, nullptr);
        fp8_update_scales<e4m3>(all, 0, 2, nullptr);
        fp8_update_scales<e5m2>(all, 2, 1, nullptr);
        CUDA_CHECK(cudaDeviceSynchronize());
    }
};

std::string rows_of(int N, const char* name, int count) {
    return format("N=%d %s=%d", N, name, count);
}

void conversions(int N, int C) {
    const Scales scales;
    const size_t n = static_cast<size_t>(N) * C;
    const Array<floatX> x(n, 1.0f);
    const Array<e4m3> out(n), out_t(n);
    const Array<e5m2> dout(n), dout_t(n);
    const Array<float> dbias(C), scratch(fp8_bias_scratch_bytes(N, C) / sizeof(float));
    const std::string shape = rows_of(N, "C", C);
    e4m3* const none = nullptr;
    bench_beside_copy("fp8_quantize, rows", shape,
                      [&] { fp8_quantize(out.data, none, x.data, scales.input, N, C, nullptr); });
    bench_beside_copy("fp8_quantize, transposed", shape,
                      [&] { fp8_quantize(none, out_t.data, x.data, scales.input, N, C, nullptr); });
    bench_beside_copy("fp8_quantize, both", shape,
                      [&] { fp8_quantize(out.data, out_t.data, x.data, scales.input, N, C, nullptr); });
    bench_beside_copy("fp8_quantize_bias, both", shape, [&] {
        fp8_quantize_bias(dout.data, dout_t.data, dbias.data, x.data, scales.gradient, scratch.data, N, C, false,
                          nullptr);
    });
    bench_beside_copy("fp8_transpose", shape, [&] { fp8_transpose(out_t.data, out.data, N, C, nullptr); });
}

void activations(int N, int F, Activation act) {
    const Scales scales;
    const bool swiglu = act == Activation::swiglu;
    const int H = swiglu ? 2 * F : F;
    const size_t n = static_cast<size_t>(N) * F, wide = static_cast<size_t>(N) * H;
    const Array<floatX> pre(wide, 3.0f), dact(n, 1.0f);
    const Array<e4m3> out(n), out_t(n);
    const Array<e5m2> dpre(wide), dpre_t(wide);
    const Array<float> dbias(H), scratch(fp8_bias_scratch_bytes(N, H) / sizeof(float));
    const std::string shape = rows_of(N, "F", F) + (swiglu ? " swiglu" : " gelu_new");
    bench_beside_copy("fp8_activation_forward", shape,
                      [&] { fp8_activation_forward(out.data, pre.data, act, scales.input, N, F, nullptr); });
    bench_beside_copy("fp8_activation_backward", shape, [&] {
        fp8_activation_backward(dpre.data, dpre_t.data, out_t.data, dbias.data, dact.data, pre.data, act,
                                scales.gradient, scales.input, scratch.data, N, F, false, nullptr);
    });
}

void seam(int N, int C) {
    const Scales scales;
    const size_t n = static_cast<size_t>(N) * C;
    const Array<floatX> x(n, 1.0f), u(n, 1.0f), x_new(n), z(n);
    const Array<e4m3> z8(n);
    const Array<float> gain(C, 1.0f), bias(C, 1.0f), mean(N), rstd(N);
    const SeamShape dims{N, C, NormKind::layer, 1e-5f};
    SeamForward f{x.data, u.data, x_new.data, z.data, nullptr, {}, {}, {}};
    f.in.gain = gain.data, f.in.bias = bias.data, f.in.mean = mean.data, f.in.rstd = rstd.data;
    SeamForward f8 = f;
    f8.z8 = {z8.data, scales.input};
    auto wide = [&] { vanilla_forward(f, dims, nullptr); };
    auto narrow = [&] { vanilla_forward(f8, dims, nullptr); };
    BenchRow row{"seam forward, pre, to fp8", rows_of(N, "C", C), time_us(narrow), declared_bytes(narrow)};
    row.reference_us = time_us(wide), row.reference = "to floatX";
    bench_report(row);
}

// As training runs them: with the algorithms that are measured to be the fastest.
void products(Matmul* mm, int N, int C, int OC) {
    const Scales scales;
    const size_t inputs = static_cast<size_t>(N) * C, outputs = static_cast<size_t>(N) * OC,
                 weights = static_cast<size_t>(OC) * C;
    const Array<floatX> inp(inputs, 1.0f), weight(weights, 1.0f), bias(OC, 1.0f), dout(outputs, 1.0f);
    const Array<floatX> out(outputs), dinp(inputs);
    const Array<float> dweight(weights, 1.0f);
    const Array<e4m3> inp8(inputs), inp8_t(inputs), weight8(weights), weight8_t(weights);
    const Array<e5m2> dout8(outputs), dout8_t(outputs);
    fp8_quantize(inp8.data, inp8_t.data, inp.data, scales.input, N, C, nullptr);
    fp8_quantize(weight8.data, weight8_t.data, weight.data, scales.weight, OC, C, nullptr);
    fp8_quantize(dout8.data, dout8_t.data, dout.data, scales.gradient, N, OC, nullptr);
    const float *of_input = scales.input.inverse, *of_weight = scales.weight.inverse,
                *of_gradient = scales.gradient.inverse;
    auto tuned_us = [&](const std::function<void()>& work) {
        matmul_tune(mm, matmul_has_choice(mm));
        work();
        matmul_tune(mm, false);
        return time_us(work);
    };
    auto report = [&](const char* name, const std::function<void()>& narrow, const std::function<void()>& wide) {
        BenchRow row{.name = name, .shape = format("N=%d C=%d OC=%d", N, C, OC), .us = tuned_us(narrow)};
        row.flops = 2.0 * N * C * OC;
        row.reference_us = tuned_us(wide), row.reference = sizeof(floatX) == 2 ? "bf16" : "fp32";
        row.numbers.emplace_back("reference_tflops", row.flops / row.reference_us * 1e-6);
        bench_report(row);
    };
    report(
        "matmul_fp8_forward",
        [&] {
            matmul_fp8_forward(mm, out.data, {inp8.data, of_input}, {weight8.data, of_weight}, bias.data, N, C, OC,
                               nullptr);
        },
        [&] { matmul_forward(mm, out.data, inp.data, weight.data, bias.data, N, C, OC, nullptr); });
    report(
        "matmul_fp8_backward_input",
        [&] {
            matmul_fp8_backward_input(mm, dinp.data, {dout8.data, of_gradient}, {weight8_t.data, of_weight}, N, C, OC,
                                      nullptr);
        },
        [&] { matmul_backward_input(mm, dinp.data, dout.data, weight.data, N, C, OC, false, nullptr); });
    report(
        "matmul_fp8_backward_weight",
        [&] {
            matmul_fp8_backward_weight(mm, dweight.data, {dout8_t.data, of_gradient}, {inp8_t.data, of_input}, N, C, OC,
                                       true, nullptr);
        },
        [&] { matmul_backward_weight(mm, dweight.data, dout.data, inp.data, N, C, OC, true, nullptr); });
}

}  // namespace

void bench_fp8(const BenchShape& asked) {
    const bool small = multiprocessors() < 16;  // fewer rows than a large GPU needs to fill
    const int B = asked.B ? asked.B : small ? 1 : 32, T = asked.T ? asked.T : 1024;
    const int C = asked.C ? asked.C : small ? 256 : 1024, N = B * T;
    if (C % 16 != 0 || N % 16 != 0) throw user_error("--shape: --kernel fp8 wants B x T and C in multiples of 16");
    conversions(N, C);
    conversions(N, 4 * C);
    activations(N, 4 * C, Activation::gelu_new);
    activations(N, static_cast<int>(round_up(C * 8 / 3, 64)), Activation::swiglu);
    seam(N, C);
    const std::unique_ptr<Matmul, void (*)(Matmul*)> mm(matmul_create(), matmul_destroy);
    if (!matmul_fp8_supported(mm.get())) {
        std::printf("no 8-bit products: this card, or its cuBLASLt, lacks them (compute capability 8.9 or later)\n");
        return;
    }
    products(mm.get(), N, C, 3 * C);
    products(mm.get(), N, C, C);
    products(mm.get(), N, C, 4 * C);
    products(mm.get(), N, 4 * C, C);
}
