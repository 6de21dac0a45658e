// A network of residual streams in float64, for the tests of hc and mhc: S sublayers, S+1 seams, loss = SUM_s <g_s, z_s>.
// Written forwards only, on a tape of multiply-adds that is walked back for gradients; the tests check it by finite
// differences. What the kernels store in floatX can be rounded (the derivative of rounding counts as 1).
#pragma once
#include <cstring>
#include <initializer_list>
#include <map>
#include <memory>
#include <utility>

#include "residual/streams.cuh"
#include "test.h"

using Vec = std::vector<double>;
using Ids = std::vector<int>;

struct Tape {
    Vec value, weight, grad;
    Ids parent;
    std::vector<size_t> end;  // of each node's parents
    std::vector<int> rounded;  // nodes whose gradient is rounded to floatX, as the kernels store it
    int leaf(double x) {
        value.push_back(x);
        end.push_back(parent.size());
        return static_cast<int>(value.size()) - 1;
    }
    void from(int p, double w) { parent.push_back(p), weight.push_back(w); }
    int add(std::initializer_list<std::pair<int, double>> terms) {  // SUM weight*value
        double sum = 0;
        for (auto [p, w] : terms) from(p, w), sum += w * value[p];
        return leaf(sum);
    }
    int map(int x, double y, double slope) {
        from(x, slope);
        return leaf(y);
    }
    int mul(int x, int y) { return dot({x}, {y}); }
    int dot(const Ids& x, const Ids& y) {
        double sum = 0;
        for (size_t i = 0; i < x.size(); i++) {
            sum += value[x[i]] * value[y[i]];
            from(x[i], value[y[i]]);
            from(y[i], value[x[i]]);
        }
        return leaf(sum);
    }
    int sum(const Ids& x, double scale = 1) {
        double sum = 0;
        for (int p : x) from(p, scale), sum += scale * value[p];
        return leaf(sum);
    }
    int power(int x, double e) { return map(x, std::pow(value[x], e), e * std::pow(value[x], e - 1)); }
    int sigma(int x) {
        double s = 1 / (1 + std::exp(-value[x]));
        return map(x, s, s * (1 - s));
    }
    int exp(int x) { return map(x, std::exp(value[x]), std::exp(value[x])); }
    int tanh(int x) {
        double t = std::tanh(value[x]);
        return map(x, t, 1 - t * t);
    }
    void backward(int loss) {
        grad.assign(value.size(), 0);
        grad[loss] = 1;
        std::vector<bool> rounds(value.size());
        for (int x : rounded) rounds[x] = true;
        for (size_t i = value.size(); i-- > 0;) {
            if (rounds[i]) grad[i] = to_float(from_float<floatX>(static_cast<float>(grad[i])));
            for (size_t e = i ? end[i - 1] : 0; e < end[i]; e++) grad[parent[e]] += weight[e] * grad[i];
        }
    }
};

struct StreamNet {
    enum class Kind { fixed, dynamic, mhc } rule = Kind::fixed;
    int N = 5, C = 32, n = 4, S = 2;
    NormKind kind = NormKind::rms;
    bool in = true, out = false, final_norm = true, tanh = true, only_stream_0 = false, head = false;
    bool closed = false;  // u_s = z_{s-1} w_s^T; else u_s is given
    double eps = 1e-5, beta = 1, in_scale = 1, readout = 1;
    bool rounded = true;  // activations are stored in floatX
    std::map<std::string, Vec> values, gradients;  // by name; sublayer s = 1..S, seam s = 0..S
    std::vector<Vec> z, H, c;                      // by seam: (N,C), (N,n,C), and of the next module (N,n,n+2) or (N,n)
    double loss = 0;

    StreamShape shape() const { return {N, C, n, kind, static_cast<float>(eps)}; }
    bool has_in(int s) const { return s < S ? in : final_norm; }
    Vec& operator()(const std::string& name, int s) { return values[name + std::to_string(s)]; }
    const Vec& gradient(const std::string& name, int s) const { return gradients.at(name + std::to_string(s)); }

    void fill(Random& random) {
        auto put = [&](const std::string& name, int s, size_t count, double scale, double mean, bool activation = false) {
            (*this)(name, s) = activation ? to_double(random.normals<floatX>(count, scale, mean))
                                          : to_double(random.normals<float>(count, scale, mean));
        };
        size_t NC = static_cast<size_t>(N) * C;
        put("x", 0, NC, 1.0, 0.2, true);
        for (int s = 0; s <= S; s++) {
            put("g", s, NC, 1, 0, true);
            if (has_in(s)) put("in_gain", s, C, 0.3, 1);
            if (has_in(s) && kind == NormKind::layer) put("in_bias", s, C, 0.3, 0);
            if (s == 0) continue;
            if (closed) put("w", s, static_cast<size_t>(C) * C, 1 / std::sqrt(C), 0);
            else put("u", s, NC, 0.7, 0.1, true);
            if (out) put("out_gain", s, C, 0.3, 1);
            if (out && kind == NormKind::layer) put("out_bias", s, C, 0.3, 0);
            if (rule == Kind::mhc) {
                put("phi", s, static_cast<size_t>(n) * (n + 2) * n * C, 1 / std::sqrt(n * C), 0, true);
                put("a", s, 3, 0.2, 0.7);
                put("b", s, n * (n + 2), 1.0, 0);
                continue;
            }
            put("alpha", s, n * (n + 1), 0.4, 0.2);
            put("beta", s, n, 0.4, 0.8);
            if (rule == Kind::fixed) continue;
            put("wa", s, C * (n + 1), 1 / std::sqrt(C), 0);
            put("wb", s, C, 1 / std::sqrt(C), 0);
            put("sa", s, 1, 0.1, 0.4);
            put("sb", s, 1, 0.1, -0.5);
            put("gain", s, C, 0.3, 1);
        }
        if (head) {
            put("head_phi", 0, static_cast<size_t>(n) * n * C, 1 / std::sqrt(n * C), 0, true);
            put("head_a", 0, 1, 0.1, 0.6);
            put("head_b", 0, n, 0.5, 0);
        }
    }

    // Sets z, H, c, the loss and, if wanted, the gradients.
    void run(bool want_gradients = true) {
        Tape t;
        std::map<std::string, Ids> leaves;
        for (auto& [name, v] : values)
            for (double x : v) leaves[name].push_back(t.leaf(x));
        auto leaf = [&](const std::string& name, int s) -> const Ids& { return leaves[name + std::to_string(s)]; };
        auto stored = [&](int x) {  // value and gradient
            if (!rounded) return x;
            t.rounded.push_back(t.map(x, to_float(from_float<floatX>(static_cast<float>(t.value[x]))), 1));
            return t.rounded.back();
        };
        auto norm = [&](const Ids& x, const std::string& name, int s, double scale) {
            const Ids &gain = leaf(name + "_gain", s), &bias = leaf(name + "_bias", s);
            Ids xh = x, y;
            if (kind == NormKind::layer) {
                int mean = t.sum(x, 1.0 / C);
                for (int& v : xh) v = t.add({{v, 1}, {mean, -1}});
            }
            int square = t.dot(xh, xh);
            int r = t.power(t.map(square, t.value[square] / C + eps, 1.0 / C), -0.5);
            for (int c = 0; c < C; c++) {
                int v = t.mul(t.mul(xh[c], r), gain[c]);
                y.push_back(bias.empty() ? t.add({{v, scale}}) : t.add({{v, scale}, {bias[c], scale}}));
            }
            return y;
        };
        auto rms = [&](const Ids& x, double e) {
            int square = t.dot(x, x);
            double size = static_cast<double>(x.size());
            return t.power(t.map(square, t.value[square] / size + e, 1 / size), -0.5);
        };
        std::vector<std::vector<Ids>> folded(S + 1);  // g*W_q of each dynamic module
        for (int s = 1; s <= S && rule == Kind::dynamic; s++)
            for (int q = 0; q < n + 2; q++) {
                folded[s].emplace_back();
                for (int c = 0; c < C; c++)
                    folded[s][q].push_back(t.mul(leaf("gain", s)[c], q <= n ? leaf("wa", s)[c * (n + 1) + q] : leaf("wb", s)[c]));
            }
        std::vector<std::vector<Ids>> stream(N, std::vector<Ids>(n)), coefficient(N, std::vector<Ids>(n));
        std::vector<Ids> read(N);
        z.assign(S + 1, {}), H.assign(S + 1, {}), c.assign(S + 1, {});
        Ids terms;
        for (int s = 0; s <= S; s++) {
            for (int token = 0; token < N; token++) {
                auto& X = stream[token];
                auto& A = coefficient[token];
                size_t at = static_cast<size_t>(token) * C;
                if (s == 0) {
                    for (int i = 0; i < n; i++)
                        for (int c = 0; c < C; c++)
                            X[i].push_back(i == 0 || !only_stream_0 ? leaf("x", 0)[at + c] : t.leaf(0));
                } else {
                    Ids v;
                    for (int c = 0; c < C; c++) {
                        if (!closed) v.push_back(leaf("u", s)[at + c]);
                        else v.push_back(stored(t.dot(read[token], Ids(&leaf("w", s)[c * C], &leaf("w", s)[c * C] + C))));
                    }
                    if (out) v = norm(v, "out", s, 1);
                    auto before = X;
                    for (int j = 0; j < n; j++)
                        for (int c = 0; c < C; c++) {
                            Ids x{t.add({{v[c], beta}})}, y{A[j][n + 1]};
                            for (int i = 0; i < n; i++) x.push_back(before[i][c]), y.push_back(A[i][1 + j]);
                            X[j][c] = stored(t.dot(x, y));
                        }
                }
                Ids weight;
                if (s < S) {
                    A = rule == Kind::mhc ? mhc(t, X, rms, leaf("phi", s + 1), leaf("a", s + 1), leaf("b", s + 1))
                                          : hc(t, X, rms, leaf("alpha", s + 1), leaf("beta", s + 1), folded[s + 1],
                                               leaf("sa", s + 1), leaf("sb", s + 1));
                    for (int i = 0; i < n; i++) weight.push_back(A[i][0]);
                    for (auto& row : A)
                        for (int x : row) c[s].push_back(t.value[x]);
                } else if (head) {
                    weight = head_weights(t, X, rms, leaf("head_phi", 0), leaf("head_a", 0), leaf("head_b", 0));
                    for (int x : weight) c[s].push_back(t.value[x]);
                } else {
                    for (int i = 0; i < n; i++) weight.push_back(t.leaf(i == 0 || !only_stream_0 ? readout : 0));
                }
                Ids h;
                for (int c = 0; c < C; c++) {
                    Ids x;
                    for (int i = 0; i < n; i++) x.push_back(X[i][c]);
                    h.push_back(t.dot(x, weight));
                }
                if (rounded && rule == Kind::mhc) t.rounded.insert(t.rounded.end(), h.begin(), h.end());
                if (has_in(s)) h = norm(h, "in", s, s < S ? in_scale : 1);
                for (int& x : h) x = stored(x);
                read[token] = h;
                for (int x : h) z[s].push_back(t.value[x]);
                for (auto& row : X)
                    for (int x : row) H[s].push_back(t.value[x]);
                terms.push_back(t.dot(h, Ids(&leaf("g", s)[at], &leaf("g", s)[at] + C)));
            }
        }
        int total = t.sum(terms);
        loss = t.value[total];
        if (!want_gradients) return;
        t.backward(total);
        for (auto& [name, ids] : leaves) {
            Vec& g = gradients[name];
            g.clear();
            for (int x : ids) g.push_back(t.grad[x]);
        }
    }

    // Gradients against central differences, at a few random places of every tensor.
    void check_differences(Random& random) {
        rounded = false;
        run();
        auto kept_gradients = gradients;
        for (auto& [name, v] : values)
            for (int trial = 0; trial < 3; trial++) {
                int i = random.below(static_cast<int>(v.size()));
                const double h = 1e-5, kept = v[i];
                v[i] = kept + h;
                run(false);
                double up = loss;
                v[i] = kept - h;
                run(false);
                v[i] = kept;
                INFO(name << "[" << i << "]");
                CHECK(kept_gradients[name][i] == Approx((up - loss) / (2 * h)).epsilon(1e-5).margin(1e-6));
            }
        rounded = true;
    }

private:
    template <class Rms>
    std::vector<Ids> hc(Tape& t, const std::vector<Ids>& X, Rms& rms, const Ids& alpha, const Ids& beta_,
                        const std::vector<Ids>& folded, const Ids& sa, const Ids& sb) {
        std::vector<Ids> A(n);
        for (int i = 0; i < n; i++) {
            int r = rule == Kind::dynamic ? rms(X[i], eps) : 0;
            for (int q = 0; q < n + 2; q++) {
                int base = q <= n ? alpha[i * (n + 1) + q] : beta_[i];
                if (rule == Kind::dynamic) {
                    int m = t.mul(t.dot(X[i], folded[q]), r);
                    if (tanh) m = t.tanh(m);
                    base = t.add({{t.mul(q <= n ? sa[0] : sb[0], m), 1}, {base, 1}});
                }
                A[i].push_back(base);
            }
        }
        return A;
    }
    // Z = a*m + b, with groups of the entries' a.
    template <class Rms, class Group>
    Ids logits(Tape& t, const std::vector<Ids>& X, Rms& rms, const Ids& phi, const Ids& a, const Ids& b, Group group) {
        Ids vec, Z;
        for (auto& row : X) vec.insert(vec.end(), row.begin(), row.end());
        int r = rms(vec, 1e-6);
        for (int& x : vec) x = t.map(x, t.value[x], 1);
        if (rounded) t.rounded.insert(t.rounded.end(), vec.begin(), vec.end());  // dX
        for (size_t e = 0; e < b.size(); e++) {
            const int* line = &phi[e * vec.size()];
            int m = t.dot(vec, Ids(line, line + vec.size()));
            if (rounded) t.rounded.push_back(m);  // r*dm
            m = t.mul(m, r);
            Z.push_back(t.add({{t.mul(a[group(static_cast<int>(e))], m), 1}, {b[e], 1}}));
        }
        return Z;
    }
    template <class Rms>
    Ids head_weights(Tape& t, const std::vector<Ids>& X, Rms& rms, const Ids& phi, const Ids& a, const Ids& b) {
        Ids w = logits(t, X, rms, phi, a, b, [](int) { return 0; });
        for (int& x : w) x = t.sigma(x), x = t.map(x, t.value[x] + 1e-6, 1);
        return w;
    }
    template <class Rms>
    std::vector<Ids> mhc(Tape& t, const std::vector<Ids>& X, Rms& rms, const Ids& phi, const Ids& a, const Ids& b) {
        Ids Z = logits(t, X, rms, phi, a, b, [this](int e) { return e < n ? 0 : e < 2 * n ? 1 : 2; });
        std::vector<Ids> M(n, Ids(n));  // [k][j]
        for (int j = 0; j < n; j++) {
            Ids column;
            for (int k = 0; k < n; k++) column.push_back(t.exp(Z[2 * n + n * j + k]));
            int inverse = t.power(t.sum(column), -1);
            for (int k = 0; k < n; k++) {
                M[k][j] = t.mul(column[k], inverse);
                M[k][j] = t.map(M[k][j], t.value[M[k][j]] + 1e-6, 1);
            }
        }
        auto divide = [&](bool row) {
            for (int i = 0; i < n; i++) {
                Ids line;
                for (int o = 0; o < n; o++) line.push_back(row ? M[i][o] : M[o][i]);
                int q = t.sum(line);
                q = t.power(t.map(q, t.value[q] + 1e-6, 1), -1);
                for (int o = 0; o < n; o++) (row ? M[i][o] : M[o][i]) = t.mul(line[o], q);
            }
        };
        divide(true);
        for (int round = 1; round < 20; round++) divide(false), divide(true);
        std::vector<Ids> A(n, Ids(n + 2));
        for (int j = 0; j < n; j++) {
            int pre = t.sigma(Z[j]);
            A[j][0] = t.map(pre, t.value[pre] + 1e-6, 1);
            for (int k = 0; k < n; k++) A[j][1 + k] = M[k][j];
            A[j][n + 1] = t.add({{t.sigma(Z[n + j]), 2}});
        }
        return A;
    }
};

// The network's parameters on the device, by the names of StreamNet, with gradients that start at 0.1 everywhere, because
// kernels accumulate.
struct DeviceTensors {
    std::map<std::string, std::unique_ptr<Device<float>>> value, grad;
    explicit DeviceTensors(const StreamNet& net) {
        for (auto& [name, v] : net.values) {
            std::vector<float> narrow(v.begin(), v.end());
            value[name] = std::make_unique<Device<float>>(narrow);
            grad[name] = std::make_unique<Device<float>>(std::vector<float>(v.size(), 0.1f));
        }
    }
    float* operator()(const std::string& name, int s) const { return get(value, name, s); }
    float* gradient(const std::string& name, int s) const { return get(grad, name, s); }
    static float* get(const std::map<std::string, std::unique_ptr<Device<float>>>& from, const std::string& name, int s) {
        auto found = from.find(name + std::to_string(s));
        return found == from.end() ? nullptr : found->second->data;
    }
};

// Statistics and the SeamNorm of one norm; absent if the network has none of that name.
struct NormBuffers {
    Device<float> mean, rstd;
    SeamNorm norm;
    NormBuffers(const StreamNet& net, const DeviceTensors& tensors, const std::string& name, int s)
        : mean(net.N), rstd(net.N) {
        mean.poison(), rstd.poison();
        norm.gain = tensors(name + "_gain", s);
        norm.bias = tensors(name + "_bias", s);
        norm.dgain = tensors.gradient(name + "_gain", s);
        norm.dbias = tensors.gradient(name + "_bias", s);
        norm.mean = net.kind == NormKind::layer ? mean.data : nullptr;
        norm.rstd = rstd.data;
        if (name == "in" && s < net.S) norm.scale = static_cast<float>(net.in_scale);
    }
};

inline std::vector<floatX> narrow_activations(const Vec& v) {
    std::vector<floatX> out;
    for (double x : v) out.push_back(from_float<floatX>(static_cast<float>(x)));
    return out;
}

// Sublayer s of the test network: u_s from z_{s-1}, on the host.
inline std::vector<floatX> sublayer_output(StreamNet& net, int s, const Vec& z) {
    if (!net.closed) return narrow_activations(net("u", s));
    const Vec& w = net("w", s);
    Vec u(z.size(), 0);
    for (size_t t = 0; t < u.size() / net.C; t++)
        for (int o = 0; o < net.C; o++)
            for (int c = 0; c < net.C; c++) u[t * net.C + o] += w[o * net.C + c] * z[t * net.C + c];
    return narrow_activations(u);
}
// dz of seam s: g_s, and what comes back through sublayer s+1 from du, its whole output gradient.
inline std::vector<floatX> sublayer_gradient(StreamNet& net, int s, const Vec& du) {
    Vec dz = net("g", s);
    if (net.closed && s < net.S) {
        const Vec& w = net("w", s + 1);
        for (size_t t = 0; t < du.size() / net.C; t++)
            for (int o = 0; o < net.C; o++)
                for (int c = 0; c < net.C; c++) dz[t * net.C + c] += w[o * net.C + c] * du[t * net.C + o];
    }
    return narrow_activations(dz);
}
// Without N_out the kernels leave beta out of du; with it, the tests give them out_scale.
inline Vec whole_gradient(const StreamNet& net, const std::vector<floatX>& du) {
    Vec out = to_double(du);
    for (double& x : out) x *= net.out ? 1 : net.beta;
    return out;
}

// The reference rounds what the kernels round, values and gradients, so that both differ by fp32 arithmetic alone, except
// where that tips a rounding: then one element is a unit in the last place off, which matters where a sum over tokens
// cancels, and more from sublayer to sublayer of a chain: worst is 5 roundoffs. fp32: dots over up to n*C random products cancel to about the square root of their number, and some of the
// random networks are ill-conditioned: worst is 4e-5, most are under 1e-6. A wrong or missing term shows as 1e-2 and more.
inline double forward_tolerance(const StreamNet& net) {
    return sizeof(floatX) == 2 ? (net.closed ? 1.0 : 0.25) * unit_roundoff : net.closed ? 1e-5 : 3e-6;
}
inline double backward_tolerance(const StreamNet& net) {
    return sizeof(floatX) == 2 ? (net.closed ? 8 : 1) * unit_roundoff : 5e-5;
}

struct Comparison {
    const StreamNet& net;
    int s;
    Comparison(const StreamNet& net_, int s_) : net(net_), s(s_) {}
    void close(const std::string& what, const Vec& got, const Vec& want, double tolerance) const {
        INFO(what << " of " << s);
        REQUIRE(got.size() == want.size());
        double error = relative_error(got, want);
        if (getenv("SHOW_ERRORS")) printf("error %-12s %d %.3e %.2f\n", what.c_str(), s, error, error / tolerance);
        CHECK(error < tolerance);
    }
};
// All parameter gradients.
inline void check_gradients(const StreamNet& net, const DeviceTensors& tensors) {
    Vec scalars, want_scalars;  // one sum over all tokens may cancel: compared together
    for (auto& [name, device] : tensors.grad) {
        if (name[0] == 'x' || name[0] == 'u' || (name[0] == 'g' && name[1] != 'a') || (name[0] == 'w' && name.size() == 2))
            continue;  // activations and the sublayers' own weights
        if (name.find("phi") != std::string::npos) continue;  // the GEMM's, compared apart
        Vec got = to_double(device->read());
        for (double& x : got) x -= static_cast<double>(0.1f);
        const Vec& want = net.gradients.at(name);
        if (want.size() == 1) scalars.push_back(got[0]), want_scalars.push_back(want[0]);
        else Comparison(net, 0).close(name, got, want, backward_tolerance(net));
    }
    if (!scalars.empty()) Comparison(net, 0).close("scalars", scalars, want_scalars, backward_tolerance(net));
}
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}
inline void check_same_gradients(const DeviceTensors& a, const DeviceTensors& b) {
    for (auto& [name, device] : a.grad) {
        INFO(name);
        CHECK(same_bits(device->read(), b.grad.at(name)->read()));
    }
}
