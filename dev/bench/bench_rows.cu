// The memory-bound kernels: seam, embedding, bias, classifier, AdamW, gradient norm, rotary embedding, SwiGLU, value
// residual. Each is set beside a plain copy of as many bytes as the kernel must move, measured in the same run.
#include <cstdint>

#include "dev/bench/array.h"
#include "dev/bench/bench.h"
#include "kernels/bias.cuh"
#include "kernels/classifier.cuh"
#include "kernels/embedding.cuh"
#include "kernels/rope.cuh"
#include "kernels/swiglu.cuh"
#include "optimizer/adamw.cuh"
#include "optimizer/gradient_norm.cuh"
#include "residual/seam.cuh"
#include "residual/value_residual.cuh"

namespace {

float positive(uint32_t bits) { return static_cast<float>(bits >> 8) * 0x1p-24f; }

void seam(int64_t N, int C) {
    std::string shape = format("N=%lld C=%d", static_cast<long long>(N), C);
    size_t n = static_cast<size_t>(N) * C;
    Array<floatX> x(n, 1.0f), u(n, 1.0f), x_new(n, 1.0f), z(n, 1.0f), p(n, 1.0f), d(n, 1.0f);
    Array<float> gain(C, 1.0f), bias(C, 1.0f);
    Array<float> stats(6 * N), dparams(6 * static_cast<size_t>(C)), scratch(seam_scratch_bytes(C) / sizeof(float));
    auto norm = [&](int i) {
        SeamNorm out;
        out.gain = gain.data, out.bias = bias.data;
        out.mean = stats.data + 2 * i * N, out.rstd = stats.data + (2 * i + 1) * N;
        out.dgain = dparams.data + 2 * i * C, out.dbias = dparams.data + (2 * i + 1) * C;
        return out;
    };
    struct Case {
        const char* name;
        bool out, post, in;
        NormKind kind;
    };
    for (const Case& c : {Case{"pre", false, false, true, NormKind::layer}, Case{"pre rms", false, false, true, NormKind::rms},
                          Case{"post", false, true, false, NormKind::layer}, Case{"sandwich", true, false, true, NormKind::layer},
                          Case{"keel", false, true, true, NormKind::layer}}) {
        SeamShape dims{N, C, c.kind, 1e-5f};
        SeamForward f{x.data, u.data, x_new.data, c.in ? z.data : nullptr, c.post ? p.data : nullptr, {}, {}, {}};
        SeamBackward b{d.data, c.in ? z.data : nullptr, x_new.data, c.post ? p.data : nullptr, c.out ? u.data : nullptr,
                       x.data, c.out ? z.data : x.data, {}, {}, {}};
        if (c.out) f.out = b.out = norm(0);
        if (c.post) f.post = b.post = norm(1);
        if (c.in) f.in = b.in = norm(2);
        bench_beside_copy(std::string("seam forward, ") + c.name, shape, [&] { vanilla_forward(f, dims, nullptr); });
        bench_beside_copy(std::string("seam backward, ") + c.name, shape,
               [&] { vanilla_backward(b, dims, scratch.data, nullptr); });
    }
}

void embedding(int B, int T, int C, int V) {
    std::string shape = format("B=%d T=%d C=%d V=%d", B, T, C, V);
    int N = B * T;
    size_t n = static_cast<size_t>(N) * C;
    std::vector<int> tokens(N);
    uint32_t state = 7;
    for (int& t : tokens) {  // squared: some tokens are frequent, as in text
        double u = positive(state = state * 1664525u + 1013904223u);
        t = static_cast<int>(u * u * u * V);
    }
    std::vector<int> groups(token_groups_capacity(static_cast<size_t>(N)));
    groups.resize(group_tokens(groups.data(), tokens.data(), N));
    Array<int> device_tokens(tokens), device_groups(groups);
    Array<floatX> wte(static_cast<size_t>(V) * C, 1.0f), wpe(static_cast<size_t>(T) * C, 1.0f), x(n, 1.0f);
    Array<float> dwte(static_cast<size_t>(V) * C, 1.0f), dwpe(static_cast<size_t>(T) * C, 1.0f);
    bench_beside_copy("embedding forward", shape, [&] {
        embedding_forward(x.data, device_tokens.data, wte.data, wpe.data, B, T, C, nullptr);
    });
    bench_beside_copy("embedding backward, tokens", shape, [&] {
        embedding_backward_tokens(dwte.data, x.data, device_groups.data, N, V, C, nullptr);
    });
    bench_beside_copy("embedding backward, positions", shape, [&] {
        embedding_backward_positions(dwpe.data, x.data, B, T, C, nullptr);
    });
}

void bias(int64_t N, int OC) {
    Array<floatX> dout(static_cast<size_t>(N) * OC, 1.0f);
    Array<float> dbias(OC, 1.0f), scratch(bias_scratch_bytes(OC) / sizeof(float));
    bench_beside_copy("bias backward", format("N=%lld OC=%d", static_cast<long long>(N), OC),
           [&] { bias_backward(dbias.data, dout.data, scratch.data, N, OC, true, nullptr); });
}

void classify(int64_t N, int V) {
    int Vp = static_cast<int>(round_up(V, 128));
    Array<floatX> logits(static_cast<size_t>(N) * Vp, 1.0f);
    Array<float> losses(N);
    Array<int> targets(std::vector<int>(static_cast<size_t>(N), V / 2));
    std::string shape = format("N=%lld V=%d", static_cast<long long>(N), V);
    // In place: from the second call on the "logits" are gradients, which cost the same.
    bench_beside_copy("classifier, loss and gradient", shape,
           [&] { classifier(logits.data, losses.data, targets.data, 1e-3f, N, V, Vp, true, nullptr); });
    for (auto [kernel, name] : {std::pair{ClassifierKernel::cached, "cached"}, {ClassifierKernel::resident, "resident"}}) {
        if (kernel == ClassifierKernel::resident && !classifier_row_fits(Vp)) continue;
        bench_beside_copy(format("classifier, %s rows", name), shape, [&, kernel = kernel] {
            classifier_with(kernel, logits.data, losses.data, targets.data, 1e-3f, N, V, Vp, true, nullptr);
        });
    }
    bench_beside_copy("classifier, loss only", shape,
           [&] { classifier(logits.data, losses.data, targets.data, 1e-3f, N, V, Vp, false, nullptr); });
}

void rope(int B, int T, int NH, int HS) {
    Array<floatX> qkv(static_cast<size_t>(B) * T * 3 * NH * HS, 1.0f);
    Array<float> table(rope_table_count(T, HS));
    rope_table(table.data, T, HS, 10000.0, nullptr);
    std::string shape = format("B=%d T=%d NH=%d HS=%d", B, T, NH, HS);
    bench_beside_copy("rope forward", shape, [&] { rope_forward(qkv.data, table.data, B, T, NH, NH, HS, nullptr); });
    bench_beside_copy("rope backward", shape, [&] { rope_backward(qkv.data, table.data, B, T, NH, NH, HS, nullptr); });
}

void swiglu(int64_t N, int F) {
    size_t n = static_cast<size_t>(N) * F;
    Array<floatX> gate_up(2 * n, 1.0f), act(n, 1.0f), dgate_up(2 * n);
    std::string shape = format("N=%lld F=%d", static_cast<long long>(N), F);
    bench_beside_copy("swiglu forward", shape, [&] { swiglu_forward(act.data, gate_up.data, N, F, nullptr); });
    bench_beside_copy("swiglu backward", shape,
                      [&] { swiglu_backward(dgate_up.data, act.data, gate_up.data, N, F, nullptr); });
}

void value_residual(int64_t N, int C) {
    size_t n = static_cast<size_t>(N) * C;
    Array<floatX> qkv(3 * n, 1.0f), own(n, 1.0f), first(n, 1.0f);
    Array<float> dfirst(n, 1.0f), lambda(std::vector<float>{0.5f, 0.5f}), dlambda(2);
    Array<float> scratch(value_scratch_bytes() / sizeof(float));
    std::string shape = format("N=%lld KV=%d", static_cast<long long>(N), C);
    bench_beside_copy("value residual forward", shape,
           [&] { value_mix(qkv.data, own.data, first.data, lambda.data, N, 3 * C, C, nullptr); });
    bench_beside_copy("value residual backward", shape, [&] {
        value_mix_backward(qkv.data, dfirst.data, false, dlambda.data, own.data, first.data, lambda.data, scratch.data, N, 3 * C, C, nullptr);
    });
    bench_beside_copy("value residual backward, first", shape,
           [&] { value_first_backward(qkv.data, dfirst.data, N, 3 * C, C, nullptr); });
}

void optimizer(int64_t count) {
    size_t n = static_cast<size_t>(count);
    Array<float> master(n, 1.0f), grads(n, 1.0f), m(n, 1.0f), v(n, positive), clip(std::vector<float>{1.0f, 1.0f});
    Array<floatX> working(sizeof(floatX) == 4 ? 1 : n);
    floatX* params = sizeof(floatX) == 4 ? reinterpret_cast<floatX*>(master.data) : working.data;
    AdamWTensor tensor{0, count, 1e-9f, 0.1f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.05f, 0};
    std::vector<AdamWChunk> list = adamw_chunks({tensor});
    Array<AdamWTensor> tensors(std::vector<AdamWTensor>{tensor});
    Array<AdamWChunk> chunks(list);
    std::string shape = format("%lld M", static_cast<long long>(count) / 1000000);
    const Array<char> scratch(gradient_norm_scratch_bytes(list.size()));
    bench_beside_copy("gradient norm", shape, [&] {
        gradient_norm_moves({tensor});
        gradient_norm(clip.data, grads.data, tensors.data, chunks.data, static_cast<int>(list.size()), 1.0f, scratch.data,
                      nullptr);
    });
    bench_beside_copy("AdamW", shape, [&] {
        adamw_moves({tensor}, true);
        adamw_update(params, master.data, grads.data, m.data, v.data, tensors.data, chunks.data,
                     static_cast<int>(list.size()), clip.data, true, 1, 2, nullptr);
    });
}

}  // namespace

void bench_rows(const BenchShape& asked) {
    bool small = multiprocessors() < 16;  // fewer rows than a large GPU needs to fill
    int B = asked.B ? asked.B : small ? 2 : 32, T = asked.T ? asked.T : 1024;
    int64_t N = static_cast<int64_t>(B) * T;
    std::vector<int> widths = asked.C ? std::vector<int>{asked.C} : std::vector<int>{128, 768, 1600, 4096};
    for (int C : widths) seam(N, C);
    int C = asked.C ? asked.C : 768, V = asked.vocab ? asked.vocab : 50257;
    embedding(B, T, C, V);
    if (!asked.vocab) embedding(B, T, 128, 256);
    bias(N, C);
    bias(N, 4 * C);
    classify(small ? N / 4 : N, V);
    if (!asked.vocab) classify(N, 256);
    if (C % 64 == 0) rope(B, T, C / 64, 64);
    swiglu(N, static_cast<int>(round_up(C * 8 / 3, 64)));
    value_residual(N, C);
    optimizer(small ? 32'000'000 : 124'000'000);
}
