// mHC against a float64 network of several seams, with the GEMMs that the host runs between the kernels.
#include "residual/mhc.cuh"

#include <algorithm>
#include <cstring>

#include "kernels/matmul.cuh"
#include "stream_reference.h"

namespace {

using Kind = StreamNet::Kind;

struct MhcRun {
    StreamNet& net;
    DeviceTensors tensors;
    const int n = net.n, nC = n * net.C, Mp = mhc_columns(n, false);
    size_t NC = static_cast<size_t>(net.N) * net.C, K = static_cast<size_t>(n) * (n + 2);
    Device<float> scale{std::vector<float>{static_cast<float>(net.beta)}}, readout{static_cast<size_t>(n)};
    Device<floatX> x0{narrow_activations(net("x", 0))}, D{NC * n}, dX{NC * n}, du{NC}, dh{NC};
    Device<floatX> rdm{static_cast<size_t>(net.N) * Mp};
    Device<float> dc{net.N * K}, kappa{static_cast<size_t>(net.N)};
    Device<float> scratch{stream_scratch_bytes(net.N, net.C, n) / sizeof(float)};
    Matmul* mm = matmul_create();
    // A sublayer's module, or the head's.
    struct Module {
        Device<floatX> phi;                // (Mp,nC)
        Device<float> dphi, c, m_raw;      // (Mp,nC), (N,n,n+2) or (N,n), (N,Mp)
        MhcModule parameters;
        MhcGradients gradients;
        int Mp;
    };
    struct Seam {
        Device<floatX> u, z, H;
        Device<float> rstd;
        NormBuffers in, out;
    };
    std::vector<std::unique_ptr<Module>> modules{1};  // 1..S, and S+1: the head
    std::vector<std::unique_ptr<Seam>> seams;
    std::vector<floatX> dx0;
    std::vector<std::vector<floatX>> dus;

    explicit MhcRun(StreamNet& net_) : net(net_), tensors(net_) {
        readout.write(std::vector<float>(n, static_cast<float>(net.readout)));
        D.poison(), dX.poison(), du.poison(), dh.poison(), rdm.poison(), dc.poison(), kappa.poison(), scratch.poison();
        for (int s = 0; s <= net.S; s++) {
            seams.emplace_back(new Seam{Device<floatX>(NC), Device<floatX>(NC), Device<floatX>(NC * n),
                                        Device<float>(net.N), NormBuffers(net, tensors, "in", s),
                                        NormBuffers(net, tensors, "out", s)});
            seams[s]->z.poison(), seams[s]->H.poison(), seams[s]->rstd.poison();
        }
        for (int s = 1; s <= net.S; s++) add_module(false, "", s);
        if (net.head) add_module(true, "head_", 0);
    }
    ~MhcRun() { matmul_destroy(mm); }
    void add_module(bool head, const std::string& prefix, int s) {
        int columns = mhc_columns(n, head);
        Vec phi = net(prefix + "phi", s);
        phi.resize(static_cast<size_t>(columns) * nC, 0.0);
        modules.emplace_back(new Module{Device<floatX>(narrow_activations(phi)), Device<float>(phi.size()),
                                        Device<float>(net.N * K), Device<float>(static_cast<size_t>(net.N) * columns),
                                        {}, {}, columns});
        Module& l = *modules.back();
        l.dphi.zero(), l.c.poison(), l.m_raw.poison();
        l.parameters = {head, tensors(prefix + "a", s), tensors(prefix + "b", s)};
        l.gradients = {tensors.gradient(prefix + "a", s), tensors.gradient(prefix + "b", s)};
    }
    Module* next(int s) { return s < net.S || net.head ? modules[s + 1].get() : nullptr; }
    // What seam s reads with.
    Coefficients read(int s) {
        Module* module = next(s);
        return module ? mhc_strides(module->c.data, n, module->parameters.head) : Coefficients::read_fixed(readout.data);
    }
    StreamWrite write(int s, floatX* H, const floatX* before) {
        StreamWrite write{};
        write.before = s == 0 ? x0.data : before;
        write.u = s == 0 ? nullptr : seams[s]->u.data;
        if (s > 0) write.c = read(s - 1);
        write.H = H;
        write.out = seams[s]->out.norm;
        write.scale = net.beta != 1 ? scale.data : nullptr;
        return write;
    }
    void forward() {
        for (int s = 0; s <= net.S; s++) {
            Seam& seam = *seams[s];
            if (s > 0) seam.u.write(sublayer_output(net, s, to_double(seams[s - 1]->z.read())));
            Module* module = next(s);
            StreamWrite stream = write(s, seam.H.data, s > 0 ? seams[s - 1]->H.data : nullptr);
            if (module) stream.rstd = seam.rstd.data, stream.rstd_eps = MHC_EPS_NORM;
            stream_write(stream, net.shape(), nullptr);
            if (module) {
                matmul_forward_fp32(mm, module->m_raw.data, seam.H.data, module->phi.data, net.N, nC, module->Mp, nullptr);
                mhc_coefficients(module->c.data, module->m_raw.data, seam.rstd.data, module->parameters, net.N, n, nullptr);
            }
            stream_read({seam.H.data, read(s), seam.z.data, seam.in.norm}, net.shape(), nullptr);
        }
    }
    void backward() {
        dus.assign(net.S + 1, {});
        Vec du_host;
        for (int s = net.S; s >= 0; s--) {
            Seam& seam = *seams[s];
            Module* module = next(s);
            Device<floatX> dz(sublayer_gradient(net, s, du_host));
            bool last = s == net.S;
            stream_read_backward({dz.data, seam.H.data, last ? nullptr : D.data, read(s), dh.data,
                                  module ? dc.data : nullptr, seam.in.norm}, net.shape(), scratch.data, nullptr);
            if (module) {
                mhc_coefficients_backward(rdm.data, kappa.data, module->gradients, dc.data, module->m_raw.data,
                                          seam.rstd.data, module->parameters, net.N, n, net.C, scratch.data, nullptr);
                matmul_backward_weight(mm, module->dphi.data, rdm.data, seam.H.data, net.N, nC, module->Mp, true, nullptr);
                matmul_backward_input(mm, dX.data, rdm.data, module->phi.data, net.N, nC, module->Mp, false, nullptr);
            }
            StreamWriteBackward write{};
            write.dh = dh.data;
            write.read = read(s);
            write.D = D.data;
            write.last = last;
            write.first = s == 0;
            write.dX = module ? dX.data : nullptr;
            write.H = seam.H.data;
            write.kappa = kappa.data;
            write.dx0 = dz.data;
            if (s > 0) {
                write.write = read(s - 1);
                write.u = seam.u.data;
                write.du = s % 2 ? du.data : dz.data;
                write.dwrite = dc.data;
            }
            write.out = seam.out.norm;
            if (net.beta != 1) write.scale = write.out_scale = scale.data;
            stream_write_backward(write, net.shape(), scratch.data, nullptr);
            if (s == 0) dx0 = dz.read();
            else dus[s] = s % 2 ? du.read() : dz.read();
            if (s > 0) du_host = whole_gradient(net, dus[s]);
        }
    }
};

void check_mhc(StreamNet net, Random& random) {
    net.rule = Kind::mhc;
    INFO("N=" << net.N << " C=" << net.C << " n=" << net.n << " S=" << net.S << " kind=" << (net.kind == NormKind::rms ? "rms" : "layer")
              << " in=" << net.in << " out=" << net.out << " closed=" << net.closed << " beta=" << net.beta << " head=" << net.head);
    net.fill(random);
    net.run();
    MhcRun run(net);
    run.forward();
    run.backward();
    for (int s = 0; s <= net.S; s++) {
        Comparison c(net, s);
        c.close("z", to_double(run.seams[s]->z.read()), net.z[s], forward_tolerance(net));
        c.close("H", to_double(run.seams[s]->H.read()), net.H[s], forward_tolerance(net));
        if (s > 0 && !net.closed) c.close("du", whole_gradient(net, run.dus[s]), net.gradient("u", s), backward_tolerance(net));
        auto* module = run.next(s);
        if (!module) continue;
        bool head = module->parameters.head;
        Vec got = to_double(module->c.read()), dphi = to_double(module->dphi.read());
        got.resize(net.c[s].size());
        c.close("c", got, net.c[s], forward_tolerance(net));
        const Vec& want = head ? net.gradient("head_phi", 0) : net.gradient("phi", s + 1);
        for (size_t i = want.size(); i < dphi.size(); i++) CHECK(dphi[i] == 0);  // the padding
        dphi.resize(want.size());
        c.close("phi", dphi, want, backward_tolerance(net));
    }
    Comparison(net, 0).close("dx_0", to_double(run.dx0), net.gradient("x", 0), backward_tolerance(net));
    check_gradients(net, run.tensors);

    // Streams replayed from the first seam on, in place, are the same.
    Device<floatX> H(run.NC * net.n);
    H.poison();
    for (int s = 0; s <= net.S; s++) {
        stream_write(run.write(s, H.data, H.data), net.shape(), nullptr);
        CHECK(same_bits(H.read(), run.seams[s]->H.read()));
    }
    MhcRun again(net);
    again.forward();
    again.backward();
    CHECK(same_bits(run.dx0, again.dx0));
    CHECK(same_bits(run.seams[net.S]->z.read(), again.seams[net.S]->z.read()));
    check_same_gradients(run.tensors, again.tensors);
}

}  // namespace

TEST_CASE("mhc: the reference agrees with finite differences") {
    Random random(1);
    for (int variant = 0; variant < 4; variant++) {
        StreamNet net;
        net.rule = Kind::mhc;
        net.N = 2, net.C = 16, net.n = variant + 1, net.S = 2;
        net.kind = variant % 2 ? NormKind::layer : NormKind::rms;
        net.out = variant == 1, net.in = variant != 2, net.closed = variant % 2, net.head = variant % 2;
        net.beta = variant == 1 ? 0.7 : 1, net.in_scale = 0.8;
        net.fill(random);
        net.check_differences(random);
    }
}

TEST_CASE("mhc: every kind of seam") {
    Random random(2);
    for (int parts = 0; parts < 32; parts++) {
        StreamNet net;
        net.N = 5, net.C = 48 + 8 * (parts % 4), net.n = parts % 8 + 1;
        net.in = !(parts & 2), net.out = parts & 4, net.kind = parts & 8 ? NormKind::layer : NormKind::rms;
        net.final_norm = parts % 5, net.head = parts & 1;
        net.beta = parts & 16 ? 0.7 : 1, net.in_scale = 0.5;
        check_mhc(net, random);
    }
}

TEST_CASE("mhc: awkward sizes") {
    Random random(3);
    for (int C : {PackX::size, 8, 264, 760})
        for (int n : {2, 4, 8})
            for (int N : {1, 19}) {
                if (N == 19 && C * n > 2000) continue;
                StreamNet net;
                net.N = N, net.C = C, net.n = n, net.kind = N == 1 ? NormKind::layer : NormKind::rms;
                net.out = n == 2;
                check_mhc(net, random);
            }
}

TEST_CASE("mhc: many tokens") {
    Random random(4);
    for (int n : {2, 4}) {
        StreamNet net;
        net.N = 437, net.C = 24, net.n = n, net.head = n == 4;
        check_mhc(net, random);
    }
}

TEST_CASE("mhc: a chain of sublayers") {
    Random random(5);
    for (int variant = 0; variant < 3; variant++) {
        StreamNet net;
        net.N = 6, net.C = 64, net.n = variant == 2 ? 8 : 4, net.S = 4, net.closed = true;
        net.out = variant == 1, net.beta = variant == 1 ? 0.6 : 1, net.head = variant == 1;
        net.kind = variant == 1 ? NormKind::layer : NormKind::rms;
        check_mhc(net, random);
    }
}

// A.5: H_res is positive, rows sum to one within 2e-6; columns for unit-normal logits to about 1e-3; and the weights at
// the initialisation.
TEST_CASE("mhc: H_res is nearly doubly stochastic") {
    Random random(6);
    const int N = 1000, n = 4, Mp = mhc_columns(n, false);
    for (double size : {0.0, 1.0, 4.0}) {
        std::vector<float> b(n * (n + 2), 0.0f), one(N, 1.0f);
        for (int j = 0; j < n && size == 0; j++)
            for (int k = 0; k < n; k++) b[2 * n + n * j + k] = j == k ? 0.0f : -8.0f;
        Device<float> m(random.normals<float>(static_cast<size_t>(N) * Mp, size)), rstd(one), bias(b);
        Device<float> a(std::vector<float>(3, 1.0f)), c(static_cast<size_t>(N) * n * (n + 2));
        mhc_coefficients(c.data, m.data, rstd.data, {false, a.data, bias.data}, N, n, nullptr);
        auto got = to_double(c.read());
        double worst_row = 0, worst_column = 0, smallest = 1;
        for (int t = 0; t < N; t++)
            for (int i = 0; i < n; i++) {
                double row = 0, column = 0;
                for (int o = 0; o < n; o++) {
                    row += got[(t * n + o) * (n + 2) + 1 + i];
                    column += got[(t * n + i) * (n + 2) + 1 + o];
                    smallest = std::min(smallest, got[(t * n + i) * (n + 2) + 1 + o]);
                }
                worst_row = std::max(worst_row, std::abs(row - 1));
                worst_column = std::max(worst_column, std::abs(column - 1));
            }
        CHECK(smallest > 0);
        CHECK(worst_row < 2e-6);
        if (size <= 1) CHECK(worst_column < 1e-3);
        if (size > 0) continue;
        CHECK(got[1] == Approx(0.99899).margin(1e-5));
        CHECK(got[2] == Approx(3.36e-4).margin(1e-6));
        CHECK(got[n + 1] == 1.0);
    }
}

// A.5: at its initialisation every stream is the plain residual stream, to about 1e-6 (and a rounding) per sublayer.
TEST_CASE("mhc: at its initialisation it is the vanilla residual") {
    Random random(7);
    const int n = 4;
    StreamNet net;
    net.rule = Kind::mhc;
    net.N = 9, net.C = 136, net.n = n, net.S = 4;
    net.fill(random);
    for (int s = 1; s <= net.S; s++) {
        std::fill(net("phi", s).begin(), net("phi", s).end(), 0.0);
        Vec& b = net("b", s);
        for (int i = 0; i < n; i++) {
            b[i] = i == (s - 1) % n ? 1 : -1;
            b[n + i] = 0;
            for (int k = 0; k < n; k++) b[2 * n + n * i + k] = i == k ? 0 : -8;
        }
    }
    MhcRun run(net);
    run.forward();
    Vec x = net("x", 0);
    for (int s = 0; s <= net.S; s++) {
        if (s > 0)
            for (size_t i = 0; i < x.size(); i++) x[i] += net("u", s)[i];
        Vec want, H = to_double(run.seams[s]->H.read());
        for (int t = 0; t < net.N; t++)
            for (int i = 0; i < n; i++) want.insert(want.end(), &x[t * net.C], &x[t * net.C] + net.C);
        CHECK(relative_error(H, want) < s * (unit_roundoff + 2e-6) + 1e-12);
    }
}
