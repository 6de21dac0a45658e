// A float64 network for the rules of Attention Residuals: the reference of
// tests/test_depth_attention.cpp. Straight from the equations, without groups or phases.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "test.h"

namespace depth_network {

using Vec = std::vector<double>;

// ---- the network ----
//
// Position j of the network stands behind sublayer j (position 0: the embedding). Sublayers are linear maps A_j. At
// position j the newest source is v_j = beta_j*N_out(u_j), to which the running sum x is added where sums[j]; and, except at
// position 0 and where not asks[j], a query attends to it and to the listed older ones. z_j = N_in(h_j), u_j+1 = A_j+1 z_j.
struct Network {
    int N, C, positions;
    bool out, in;
    NormKind kind;
    double eps_norm = 1e-5, eps = 1e-6;
    std::vector<char> asks, sums;         // (positions); sums: x is the sum of the position before
    std::vector<std::vector<int>> older;  // (positions) the sources of a query besides its own position's
    std::vector<int> slot;                // (positions) of the source that is made there
    std::vector<char> scaled;             // beta given
    Vec x0, beta, w, gain;                // (N,C), (positions), (positions,C) twice
    std::vector<Vec> A;                   // (C,C), "out, in"; wide ones are diagonal
    Vec out_gain, in_gain;                // (positions,C)
    bool gains = true;                    // the queries have them
    bool stream = false;                  // the running sum goes on from h, not from the newest source (attnres_mls)
};

struct State {  // per position
    std::vector<Vec> u, n, s, h, z;  // sublayer output, N_out of it, newest source, DA, N_in
    std::vector<Vec> p;              // (sources,N): older ones in their order, then the newest
};
struct Grads {
    Vec x0, w, gain, out_gain, in_gain;
    // SUM |dh|^2 |h|^2 over queries and tokens: the square of what del = <dh,h> leaves uncertain in the gradient of the
    // queries, per unit of relative error of h (random over channels), since |kh| = sqrt(C).
    double uncertain = 0;
};

inline double row_dot(const double* a, const double* b, int C) {
    double sum = 0;
    for (int c = 0; c < C; c++) sum += a[c] * b[c];
    return sum;
}

// y = N(x), bias-free; and its transpose, which adds to dgain.
inline Vec norm(const Network& q, const Vec& x, const double* gain) {
    Vec y(x.size());
    for (int t = 0; t < q.N; t++) {
        const double* row = &x[t * q.C];
        double mean = 0, square = 0;
        for (int c = 0; c < q.C && q.kind == NormKind::layer; c++) mean += row[c] / q.C;
        for (int c = 0; c < q.C; c++) square += (row[c] - mean) * (row[c] - mean);
        double r = 1 / std::sqrt(square / q.C + q.eps_norm);
        for (int c = 0; c < q.C; c++) y[t * q.C + c] = gain[c] * (row[c] - mean) * r;
    }
    return y;
}
inline Vec norm_backward(const Network& q, const Vec& x, const Vec& dy, const double* gain, double* dgain) {
    Vec dx(x.size());
    for (int t = 0; t < q.N; t++) {
        const double* row = &x[t * q.C];
        const double* d = &dy[t * q.C];
        double mean = 0, square = 0, mean_a = 0, mean_axh = 0;
        for (int c = 0; c < q.C && q.kind == NormKind::layer; c++) mean += row[c] / q.C;
        for (int c = 0; c < q.C; c++) square += (row[c] - mean) * (row[c] - mean);
        double r = 1 / std::sqrt(square / q.C + q.eps_norm);
        for (int c = 0; c < q.C; c++) {
            double xh = (row[c] - mean) * r;
            dgain[c] += d[c] * xh;
            if (q.kind == NormKind::layer) mean_a += gain[c] * d[c] / q.C;
            mean_axh += gain[c] * d[c] * xh / q.C;
        }
        for (int c = 0; c < q.C; c++)
            dx[t * q.C + c] = r * (gain[c] * d[c] - mean_a - (row[c] - mean) * r * mean_axh);
    }
    return dx;
}

// h = DA(w*gain; sources), and its weights.
inline Vec attend(const Network& q, const Vec& query, const std::vector<const Vec*>& sources, Vec& p) {
    size_t m = sources.size();
    Vec h(static_cast<size_t>(q.N) * q.C, 0.0);
    p.assign(m * q.N, 0.0);
    for (int t = 0; t < q.N; t++) {
        double maximum = -INFINITY, total = 0;
        for (size_t i = 0; i < m; i++) {
            const double* v = &(*sources[i])[t * q.C];
            double r = 1 / std::sqrt(row_dot(v, v, q.C) / q.C + q.eps);
            p[i * q.N + t] = r * row_dot(v, query.data(), q.C);
            maximum = std::max(maximum, p[i * q.N + t]);
        }
        for (size_t i = 0; i < m; i++) total += p[i * q.N + t] = std::exp(p[i * q.N + t] - maximum);
        for (size_t i = 0; i < m; i++) {
            p[i * q.N + t] /= total;
            for (int c = 0; c < q.C; c++) h[t * q.C + c] += p[i * q.N + t] * (*sources[i])[t * q.C + c];
        }
    }
    return h;
}
// Adds to dsources and dquery.
inline void attend_backward(const Network& q, const Vec& query, const std::vector<const Vec*>& sources, const Vec& p, const Vec& dh,
                     const std::vector<Vec*>& dsources, Vec& dquery) {
    for (int t = 0; t < q.N; t++) {
        const double* d = &dh[t * q.C];
        double del = 0;
        for (size_t i = 0; i < sources.size(); i++) del += p[i * q.N + t] * row_dot(d, &(*sources[i])[t * q.C], q.C);
        for (size_t i = 0; i < sources.size(); i++) {
            const double* v = &(*sources[i])[t * q.C];
            double r = 1 / std::sqrt(row_dot(v, v, q.C) / q.C + q.eps), s = r * row_dot(v, query.data(), q.C);
            double pi = p[i * q.N + t], ds = pi * (row_dot(d, v, q.C) - del);
            for (int c = 0; c < q.C; c++) {
                (*dsources[i])[t * q.C + c] += pi * d[c] + ds * r * (query[c] - v[c] * r * s / q.C);
                dquery[c] += ds * r * v[c];
            }
        }
    }
}

// y (N,C) = x A^T, or x A. A (C,C), or (C) of a diagonal.
inline Vec linear(const Network& q, const Vec& x, const Vec& A, bool transposed = false) {
    Vec y(x.size(), 0.0);
    if (A.size() < x.size() / q.N * q.C) {
        for (size_t i = 0; i < x.size(); i++) y[i] = x[i] * A[i % q.C];
        return y;
    }
    for (int t = 0; t < q.N; t++)
        for (int o = 0; o < q.C; o++)
            for (int c = 0; c < q.C; c++)
                y[t * q.C + (transposed ? c : o)] += A[o * q.C + c] * x[t * q.C + (transposed ? o : c)];
    return y;
}

inline Vec query_of(const Network& q, int j) {
    Vec out(q.C);
    for (int c = 0; c < q.C; c++) out[c] = q.w[j * q.C + c] * (q.gains ? q.gain[j * q.C + c] : 1);
    return out;
}

inline State forward(const Network& q) {
    State f;
    int P = q.positions;
    f.u.resize(P), f.n.resize(P), f.s.resize(P), f.h.resize(P), f.z.resize(P), f.p.resize(P);
    for (int j = 0; j < P; j++) {
        f.u[j] = j == 0 ? q.x0 : linear(q, f.z[j - 1], q.A[j]);
        f.n[j] = j > 0 && q.out ? norm(q, f.u[j], &q.out_gain[j * q.C]) : f.u[j];
        f.s[j] = f.n[j];
        for (double& x : f.s[j]) x *= q.beta[j];
        if (q.sums[j])
            for (size_t i = 0; i < f.s[j].size(); i++) f.s[j][i] += (q.stream ? f.h : f.s)[j - 1][i];
        f.h[j] = f.s[j];
        if (q.asks[j]) {
            std::vector<const Vec*> sources;
            for (int i : q.older[j]) sources.push_back(&f.s[i]);
            sources.push_back(&f.s[j]);
            f.h[j] = attend(q, query_of(q, j), sources, f.p[j]);
        }
        f.z[j] = q.in ? norm(q, f.h[j], &q.in_gain[j * q.C]) : f.h[j];
    }
    return f;
}

// From the gradient of the last z.
inline Grads backward(const Network& q, const State& f, const Vec& dz_last) {
    int P = q.positions;
    size_t n = q.x0.size(), k = static_cast<size_t>(P) * q.C;
    Grads g{{}, Vec(k, 0.0), Vec(k, 0.0), Vec(k, 0.0), Vec(k, 0.0)};
    std::vector<Vec> ds(P, Vec(n, 0.0)), dstream(P, Vec(n, 0.0));  // of sources; of h, through the stream
    Vec dz = dz_last;
    for (int j = P - 1; j >= 0; j--) {
        Vec dh = q.in ? norm_backward(q, f.h[j], dz, &q.in_gain[j * q.C], &g.in_gain[j * q.C]) : dz;
        for (size_t i = 0; i < n; i++) dh[i] += dstream[j][i];
        if (q.asks[j]) {
            std::vector<const Vec*> sources;
            std::vector<Vec*> dsources;
            for (int i : q.older[j]) sources.push_back(&f.s[i]), dsources.push_back(&ds[i]);
            sources.push_back(&f.s[j]), dsources.push_back(&ds[j]);
            Vec dquery(q.C, 0.0), query = query_of(q, j);
            for (int t = 0; t < q.N; t++)
                g.uncertain += row_dot(&dh[t * q.C], &dh[t * q.C], q.C) * row_dot(&f.h[j][t * q.C], &f.h[j][t * q.C], q.C);
            attend_backward(q, query, sources, f.p[j], dh, dsources, dquery);
            for (int c = 0; c < q.C; c++) {
                g.w[j * q.C + c] += dquery[c] * (q.gains ? q.gain[j * q.C + c] : 1);
                if (q.gains) g.gain[j * q.C + c] += dquery[c] * q.w[j * q.C + c];
            }
        } else {
            for (size_t i = 0; i < n; i++) ds[j][i] += dh[i];
        }
        if (q.sums[j])
            for (size_t i = 0; i < n; i++) (q.stream ? dstream : ds)[j - 1][i] += ds[j][i];
        Vec du = ds[j];
        for (double& x : du) x *= q.beta[j];
        if (j > 0 && q.out) du = norm_backward(q, f.u[j], du, &q.out_gain[j * q.C], &g.out_gain[j * q.C]);
        if (j > 0) dz = linear(q, du, q.A[j], true);
        else g.x0 = du;
    }
    return g;
}

// ---- the three rules ----

enum class Use { full, block, mls };

// block: sublayers in a block (block, mls).
inline Network make_network(Random& random, Use use, int sublayers, int block, int N, int C, bool out, bool in, NormKind kind,
                     bool scaled = false) {
    Network q;
    q.N = N, q.C = C, q.positions = sublayers + 1, q.out = out, q.in = in, q.kind = kind;
    int P = q.positions;
    q.asks.assign(P, 1), q.sums.assign(P, 0), q.older.resize(P), q.slot.assign(P, 0), q.scaled.assign(P, 0);
    q.asks[0] = 0;
    q.stream = use == Use::mls;
    q.gains = use != Use::mls;
    if (use == Use::mls) q.eps = 0x1p-23;
    std::vector<int> made = {0};  // positions of finished sources
    for (int j = 1; j < P; j++) {
        bool ends = use == Use::full || j % block == 0 || j == P - 1;
        q.slot[j] = static_cast<int>(made.size());
        q.older[j] = made;
        if (use == Use::mls) q.asks[j] = ends;
        q.sums[j] = use == Use::mls || (use == Use::block && (j - 1) % block != 0);
        if (ends) made.push_back(j);
    }
    q.beta.assign(P, 1.0);
    for (int j = 1; j < P && scaled; j++)
        if (j % 3) q.scaled[j] = 1, q.beta[j] = static_cast<float>(0.3 + random.uniform());
    size_t n = static_cast<size_t>(N) * C, k = static_cast<size_t>(P) * C;
    q.x0 = to_double(random.normals<floatX>(n));
    // Logits of about 0.7 * a normal number: weights that differ, and none that vanishes.
    q.w = to_double(random.normals<float>(k, 0.7 / std::sqrt(C)));
    q.gain = to_double(random.normals<float>(k, 0.3, 1.0));
    q.out_gain = to_double(random.normals<float>(k, 0.3, 1.0));
    q.in_gain = to_double(random.normals<float>(k, 0.3, 1.0));
    for (int j = 0; j < P; j++) q.A.push_back(C > 300 ? to_double(random.normals<float>(C, 0.5, 0.5))
                                                   : to_double(random.normals<float>(static_cast<size_t>(C) * C, 1 / std::sqrt(C))));
    return q;
}

}  // namespace depth_network
