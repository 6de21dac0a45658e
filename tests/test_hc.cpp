// Hyper-Connections against a float64 network of several seams: first, middle and last, forward and backward.
#include "residual/hc.cuh"

#include <cstring>

#include "stream_reference.h"

namespace {

using Kind = StreamNet::Kind;

// A network on the device. Everything that it writes starts as NaN.
struct HcRun {
    StreamNet& net;
    DeviceTensors tensors;
    size_t NC = static_cast<size_t>(net.N) * net.C, K = static_cast<size_t>(net.n) * (net.n + 2);
    Device<float> scale{std::vector<float>{static_cast<float>(net.beta)}}, readout{static_cast<size_t>(net.n)};
    Device<floatX> x0{narrow_activations(net("x", 0))}, D{NC * net.n}, du{NC};
    Device<float> dB{static_cast<size_t>(net.N) * net.n};
    Device<float> scratch{stream_scratch_bytes(net.N, net.C, net.n) / sizeof(float)};
    struct Sublayer {
        Device<float> base, folded, c, m, rstd;
        HcModule parameters;
        HcGradients gradients;
        HcSaved saved;
    };
    struct Seam {
        Device<floatX> u, z, H;
        NormBuffers in, out;
    };
    std::vector<std::unique_ptr<Sublayer>> sublayers{1};
    std::vector<std::unique_ptr<Seam>> seams;
    std::vector<floatX> dx0;
    std::vector<std::vector<floatX>> dus;

    explicit HcRun(StreamNet& net_) : net(net_), tensors(net_) {
        std::vector<float> weights;
        for (int i = 0; i < net.n; i++) weights.push_back(i == 0 || !net.only_stream_0 ? static_cast<float>(net.readout) : 0);
        readout.write(weights);
        D.poison(), du.poison(), dB.poison(), scratch.poison();
        for (int s = 0; s <= net.S; s++) {
            seams.emplace_back(new Seam{Device<floatX>(NC), Device<floatX>(NC), Device<floatX>(NC * net.n),
                                        NormBuffers(net, tensors, "in", s), NormBuffers(net, tensors, "out", s)});
            seams[s]->z.poison(), seams[s]->H.poison();
            if (s == 0) continue;
            auto value = [&](const char* name) { return tensors(name, s); };
            auto grad = [&](const char* name) { return tensors.gradient(name, s); };
            size_t tokens = net.N;
            sublayers.emplace_back(new Sublayer{Device<float>(K), Device<float>((net.n + 2) * static_cast<size_t>(net.C)),
                                                Device<float>(tokens * K), Device<float>(tokens * K),
                                                Device<float>(tokens * net.n), {}, {}, {}});
            Sublayer& l = *sublayers[s];
            l.base.poison(), l.folded.poison(), l.c.poison(), l.m.poison(), l.rstd.poison();
            l.parameters = {net.rule == Kind::dynamic, net.tanh, value("alpha"), value("beta"), value("wa"), value("wb"),
                            value("sa"), value("sb"), value("gain"), l.base.data, l.folded.data};
            l.gradients = {grad("alpha"), grad("beta"), grad("wa"), grad("wb"), grad("sa"), grad("sb"), grad("gain")};
            l.saved = {l.c.data, l.m.data, l.rstd.data};
        }
    }
    Coefficients coefficients(int s) { return hc_coefficients(sublayers[s]->parameters, sublayers[s]->saved, net.n); }
    StreamWrite write(int s, floatX* H) {
        StreamWrite write{};
        write.before = s == 0 ? x0.data : seams[s - 1]->H.data;
        write.u = s == 0 ? nullptr : seams[s]->u.data;
        if (s > 0) write.c = coefficients(s);
        write.H = H;
        write.only_stream_0 = net.only_stream_0;
        write.out = seams[s]->out.norm;
        write.scale = net.beta != 1 ? scale.data : nullptr;
        return write;
    }
    void forward() {
        for (int s = 1; s <= net.S; s++) hc_prepare(sublayers[s]->parameters, net.C, net.n, nullptr);
        for (int s = 0; s <= net.S; s++) {
            if (s > 0) seams[s]->u.write(sublayer_output(net, s, s > 0 ? to_double(seams[s - 1]->z.read()) : Vec{}));
            HcForward seam{};
            seam.write = write(s, seams[s]->H.data);
            if (s < net.S) {
                seam.next = &sublayers[s + 1]->parameters;
                seam.saved = sublayers[s + 1]->saved;
            } else {
                seam.readout = readout.data;
            }
            seam.z = seams[s]->z.data;
            seam.in = seams[s]->in.norm;
            hc_forward(seam, net.shape(), nullptr);
        }
    }
    void backward() {
        dus.assign(net.S + 1, {});
        Vec du_host;
        for (int s = net.S; s >= 0; s--) {
            Device<floatX> dz(sublayer_gradient(net, s, du_host));
            HcBackward seam{};
            seam.dz = dz.data;
            seam.H = seams[s]->H.data;
            seam.D = D.data;
            if (s < net.S) {
                seam.next = &sublayers[s + 1]->parameters;
                seam.saved = sublayers[s + 1]->saved;
                seam.gradients = sublayers[s + 1]->gradients;
            } else {
                seam.readout = readout.data;
            }
            seam.dB = dB.data;
            seam.first = s == 0;
            seam.only_stream_0 = net.only_stream_0;
            seam.dx0 = dz.data;  // in place
            if (s > 0) {
                seam.write = coefficients(s);
                seam.u = seams[s]->u.data;
                seam.du = s % 2 ? du.data : dz.data;
            }
            seam.out = seams[s]->out.norm;
            seam.in = seams[s]->in.norm;
            if (net.beta != 1) seam.scale = seam.out_scale = scale.data;
            hc_backward(seam, net.shape(), scratch.data, nullptr);
            if (s == 0) dx0 = dz.read();
            else dus[s] = s % 2 ? du.read() : dz.read();
            if (s > 0) du_host = whole_gradient(net, dus[s]);
        }
    }
};

void check_hc(StreamNet net, Random& random) {
    INFO("N=" << net.N << " C=" << net.C << " n=" << net.n << " S=" << net.S << " kind=" << (net.kind == NormKind::rms ? "rms" : "layer")
              << " dynamic=" << (net.rule == Kind::dynamic) << " tanh=" << net.tanh << " in=" << net.in << " out=" << net.out
              << " closed=" << net.closed << " beta=" << net.beta << " e0=" << net.only_stream_0);
    net.fill(random);
    net.run();
    HcRun run(net);
    run.forward();
    run.backward();
    for (int s = 0; s <= net.S; s++) {
        Comparison c(net, s);
        c.close("z", to_double(run.seams[s]->z.read()), net.z[s], forward_tolerance(net));
        c.close("H", to_double(run.seams[s]->H.read()), net.H[s], forward_tolerance(net));
        if (s < net.S && net.rule == Kind::dynamic)
            c.close("c", to_double(run.sublayers[s + 1]->c.read()), net.c[s], forward_tolerance(net));
        if (s > 0 && !net.closed) c.close("du", whole_gradient(net, run.dus[s]), net.gradient("u", s), backward_tolerance(net));
    }
    Comparison(net, 0).close("dx_0", to_double(run.dx0), net.gradient("x", 0), backward_tolerance(net));
    check_gradients(net, run.tensors);

    // The write by itself, as in a replay, gives the same streams; and the whole the same bits again.
    for (int s = 0; s <= net.S; s++) {
        Device<floatX> H(run.NC * net.n);
        H.poison();
        stream_write(run.write(s, H.data), net.shape(), nullptr);
        CHECK(same_bits(H.read(), run.seams[s]->H.read()));
    }
    HcRun again(net);
    again.forward();
    again.backward();
    CHECK(same_bits(run.dx0, again.dx0));
    CHECK(same_bits(run.seams[net.S]->z.read(), again.seams[net.S]->z.read()));
    check_same_gradients(run.tensors, again.tensors);
}

}  // namespace

TEST_CASE("hc: the reference agrees with finite differences") {
    Random random(1);
    for (int variant = 0; variant < 6; variant++) {
        StreamNet net;
        net.N = 2, net.C = 16, net.n = variant % 3 + 1, net.S = 3;
        net.rule = variant < 2 ? Kind::fixed : Kind::dynamic;
        net.kind = variant % 2 ? NormKind::layer : NormKind::rms;
        net.out = variant % 3 == 1, net.in = variant != 4, net.tanh = variant != 3, net.closed = variant % 2;
        net.beta = variant == 1 ? 0.7 : 1, net.in_scale = 0.8, net.only_stream_0 = variant == 0;
        net.fill(random);
        net.check_differences(random);
    }
}

TEST_CASE("hc: every kind of seam") {
    Random random(2);
    for (int parts = 0; parts < 32; parts++) {
        StreamNet net;
        net.N = 5, net.C = 48 + 8 * (parts % 4), net.n = parts % 8 + 1;
        net.rule = parts & 1 ? Kind::dynamic : Kind::fixed;
        net.in = !(parts & 2), net.out = parts & 4, net.kind = parts & 8 ? NormKind::layer : NormKind::rms;
        net.tanh = parts % 3, net.final_norm = parts % 5;
        net.beta = parts & 16 ? 0.7 : 1, net.in_scale = 0.5;
        net.readout = parts % 2 ? 1 : 1.0 / net.n;
        net.only_stream_0 = parts % 7 == 0;
        check_hc(net, random);
    }
}

TEST_CASE("hc: awkward sizes") {
    Random random(3);
    for (int C : {PackX::size, 8, 264, 760, 1024})
        for (int n : {2, 4, 8})
            for (int N : {1, 19}) {
                if (N == 19 && C > 760) continue;
                StreamNet net;
                net.N = N, net.C = C, net.n = n, net.rule = Kind::dynamic;
                net.kind = N == 1 ? NormKind::layer : NormKind::rms;
                net.out = n == 2;
                check_hc(net, random);
            }
}

// More tokens than a grid has rows: blocks go round.
TEST_CASE("hc: many tokens") {
    Random random(4);
    for (int n : {2, 4}) {
        StreamNet net;
        net.N = 613, net.C = 40, net.n = n, net.rule = Kind::dynamic;
        check_hc(net, random);
    }
}

TEST_CASE("hc: a chain of sublayers") {
    Random random(5);
    for (int variant = 0; variant < 4; variant++) {
        StreamNet net;
        net.N = 6, net.C = 64, net.n = variant == 3 ? 8 : 4, net.S = 5, net.closed = true;
        net.rule = variant ? Kind::dynamic : Kind::fixed;
        net.out = variant == 2, net.beta = variant == 2 ? 0.6 : 1;
        net.kind = variant == 1 ? NormKind::layer : NormKind::rms;
        check_hc(net, random);
    }
}

// At A = [e_q | I], B = 1, W = 0 every stream is the plain residual stream, exactly.
TEST_CASE("hc: at its initialisation it is the vanilla residual") {
    Random random(6);
    for (int n : {1, 2, 4, 8}) {
        StreamNet net;
        net.N = 9, net.C = 136, net.n = n, net.S = 4, net.rule = Kind::dynamic, net.readout = 1.0 / n;
        net.kind = NormKind::layer;
        net.fill(random);
        for (int s = 1; s <= net.S; s++) {
            for (int i = 0; i < n; i++) {
                net("beta", s)[i] = 1;
                for (int j = 0; j <= n; j++) net("alpha", s)[i * (n + 1) + j] = j == 0 ? i == (s - 1) % n : j == i + 1;
            }
            for (auto name : {"wa", "wb"}) std::fill(net(name, s).begin(), net(name, s).end(), 0.0);
        }
        HcRun run(net);
        run.forward();
        run.backward();
        Device<floatX> x(narrow_activations(net("x", 0))), z(run.NC);
        for (int s = 0; s <= net.S; s++) {
            NormBuffers in(net, run.tensors, "in", s);
            SeamForward seam{x.data, s ? run.seams[s]->u.data : nullptr, x.data, z.data, nullptr, {}, {}, in.norm};
            vanilla_forward(seam, {net.N, net.C, net.kind, static_cast<float>(net.eps)}, nullptr);
            auto stream = x.read(), H = run.seams[s]->H.read();
            for (int t = 0; t < net.N; t++)
                for (int i = 0; i < n; i++)
                    CHECK(memcmp(&stream[t * net.C], &H[(t * n + i) * net.C], net.C * sizeof(floatX)) == 0);
            CHECK(relative_error(to_double(run.seams[s]->z.read()), to_double(z.read())) < unit_roundoff + 1e-6);
        }
        // Gradients of the dynamic weights do not vanish there.
        auto wa = to_double(run.tensors.grad["wa1"]->read());
        double size = 0;
        for (double g : wa) size += (g - 0.1) * (g - 0.1);
        CHECK(size > 0);
    }
}
