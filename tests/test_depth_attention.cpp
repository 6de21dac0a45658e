// Depth attention: whole small networks of the three rules, run seam by seam as a model would, against the float64
// networks of tests/depth_network.h, whose backward pass is first checked by finite differences.
#include "residual/depth_attention.cuh"

#include <algorithm>
#include <cstring>
#include <memory>

#include "depth_network.h"

namespace {

using namespace depth_network;

std::vector<float> narrow(const Vec& v) {
    return {v.begin(), v.end()};
}
std::vector<floatX> rounded(const Vec& v) {
    std::vector<floatX> out;
    for (double x : v) out.push_back(from_float<floatX>(static_cast<float>(x)));
    return out;
}

// ---- the device side: what a model does ----

struct Engine {
    const Network& q;
    Use use;
    int P, slots, columns;
    size_t n;
    SeamShape shape;

    struct Place {
        Device<floatX> u, s, h, z, dh, dx, du, coef, later;
        Device<float> r, scores, lse, del, beta, out_mean, out_rstd, in_mean, in_rstd;
        Place(size_t n, int N, int slots, int columns)
            : u(n), s(n), h(n), z(n), dh(n), dx(n), du(n), coef(static_cast<size_t>(N) * columns), later(n), r(N),
              scores(static_cast<size_t>(slots) * N), lse(N), del(N), beta(1), out_mean(N), out_rstd(N), in_mean(N),
              in_rstd(N) {
            for (auto* x : {&u, &s, &h, &z, &dh, &dx, &du, &later}) x->poison();
            for (auto* x : {&r, &scores, &lse, &del}) x->poison();
            coef.zero();
        }
    };
    std::vector<std::unique_ptr<Place>> place;
    Device<float> w, gain, out_gain, in_gain, queries, dw, dgain, dqueries, dout_gain, din_gain, scratch, partial_lse;
    Device<floatX> partial;
    Device<DepthWeights> weights;
    Device<DepthSource> source_table;  // finished sources, in the order of their slots
    Device<DepthQuery> query_table;    // by position
    std::vector<DepthSource> sources;  // by position
    std::vector<DepthQuery> asked;     // by position
    std::vector<int> finished;         // positions whose sources others attend to

    Engine(const Network& q_, Use use_)
        : q(q_), use(use_), P(q.positions), slots(q.positions), columns(static_cast<int>(round_up(P, 8))), n(q.x0.size()),
          shape{q.N, q.C, q.kind, static_cast<float>(q.eps_norm)}, w(narrow(q.w)), gain(narrow(q.gain)),
          out_gain(narrow(q.out_gain)), in_gain(narrow(q.in_gain)), queries(P * q.C), dw(P * q.C), dgain(P * q.C),
          dqueries(P * q.C), dout_gain(P * q.C), din_gain(P * q.C), scratch(seam_scratch_bytes(q.C) / sizeof(float)),
          partial_lse(DEPTH_GROUP * q.N), partial(DEPTH_GROUP * n), weights(P), source_table(P), query_table(P) {
        for (auto* x : {&dw, &dgain, &dqueries, &dout_gain, &din_gain}) x->zero();
        scratch.poison();
        std::vector<DepthWeights> table;
        std::vector<DepthSource> in_order;
        for (int j = 0; j < P; j++) {
            place.push_back(std::make_unique<Place>(n, q.N, slots, columns));
            Place& at = *place[j];
            at.beta.write({static_cast<float>(q.beta[j])});
            table.push_back({w.data + j * q.C, q.gains ? gain.data + j * q.C : nullptr, dw.data + j * q.C,
                             q.gains ? dgain.data + j * q.C : nullptr});
            bool raw = !stores(j);
            sources.push_back({raw ? at.u.data : at.s.data, raw && q.scaled[j] ? at.beta.data : nullptr, at.r.data, q.slot[j]});
            asked.push_back({queries.data + j * q.C, at.scores.data, at.lse.data, at.dh.data, at.del.data, j});
            if (j == 0 || use == Use::full || (j + 1 < P ? q.older[j + 1].back() == j : true)) {
                finished.push_back(j);
                in_order.push_back(sources[j]);
            }
        }
        in_order.resize(P);
        weights.write(table), source_table.write(in_order), query_table.write(asked);
    }
    // The source is not the sublayer's output itself; nor can that be a running sum if it has a factor.
    bool stores(int j) const { return j > 0 && (q.out || q.sums[j] || (q.scaled[j] && use == Use::block)); }
    SeamNorm norm(const Device<float>& g, const Device<float>& dg, Device<float>& mean, Device<float>& rstd, int j) const {
        SeamNorm out;
        out.gain = g.data + j * q.C, out.dgain = dg.data + j * q.C, out.rstd = rstd.data;
        if (q.kind == NormKind::layer) out.mean = mean.data;
        return out;
    }
    SeamNorm out_norm(int j) { return j > 0 && q.out ? norm(out_gain, dout_gain, place[j]->out_mean, place[j]->out_rstd, j) : SeamNorm{}; }
    SeamNorm in_norm(int j) { return q.in ? norm(in_gain, din_gain, place[j]->in_mean, place[j]->in_rstd, j) : SeamNorm{}; }

    // The group of queries that position j belongs to: first .. first+count, all after the same older sources.
    struct Group {
        int first, count;
    };
    Group group(int j) const {
        if (use == Use::block) {  // the queries with the same older list, in pieces
            int first = j;
            while (first > 1 && q.older[first - 1] == q.older[j]) first--;
            first += (j - first) / DEPTH_GROUP * DEPTH_GROUP;
            int count = 1;
            while (count < DEPTH_GROUP && first + count < P && q.older[first + count] == q.older[j]) count++;
            return {first, count};
        }
        if (use == Use::full) {
            int first = 1 + (j - 1) / DEPTH_GROUP * DEPTH_GROUP;
            return {first, std::min(DEPTH_GROUP, P - first)};
        }
        return {j, 1};
    }
    floatX* z(int j) { return q.in ? place[j]->z.data : place[j]->h.data; }

    void run_forward() {
        depth_queries(queries.data, weights.data, P, q.C, nullptr);
        for (int j = 0; j < P; j++) {
            Place& at = *place[j];
            if (j == 0)
                at.u.write(rounded(q.x0));
            else
                at.u.write(rounded(linear(q, to_double(q.in ? place[j - 1]->z.read() : place[j - 1]->h.read()), q.A[j])));
            SeamForward seam{};
            seam.u = at.u.data, seam.x_new = at.h.data, seam.z = q.in ? at.z.data : nullptr;
            seam.out = out_norm(j), seam.in = in_norm(j);
            seam.scale = q.scaled[j] ? at.beta.data : nullptr;
            if (q.sums[j]) seam.x = q.stream ? place[j - 1]->h.data : place[j - 1]->s.data;
            if (q.sums[j] && !q.stream && !stores(j - 1)) seam.x = place[j - 1]->u.data;
            if (j > 0 && !q.asks[j]) {
                vanilla_forward(seam, shape, nullptr);
                continue;
            }
            DepthForward args;
            args.r = at.r.data, args.slot = q.slot[j], args.eps = static_cast<float>(q.eps);
            if (stores(j)) args.store = at.s.data;
            if (j > 0) {
                args.query = asked[j];
                Group g = group(j);
                int m = static_cast<int>(q.older[g.first].size());  // what stands before the group
                if (j == g.first)
                    depth_attention_older(partial.data, partial_lse.data, query_table.data + g.first, g.count,
                                          source_table.data, m, q.N, q.C, nullptr);
                args.partial = partial.data + (j - g.first) * n;
                args.partial_lse = partial_lse.data + (j - g.first) * q.N;
                for (size_t i = m; i < q.older[j].size(); i++) args.near_source[args.near++] = sources[q.older[j][i]];
            }
            depth_attention_forward(seam, shape, args, nullptr);
        }
    }

    // dq of every query += coef^T rows, the product that a model leaves to cuBLASLt.
    void add_queries(int j) {
        auto coef = place[j]->coef.read();
        auto rows = stores(j) ? place[j]->s.read() : place[j]->u.read();
        auto dq = dqueries.read();
        for (int k = 0; k < P; k++)
            for (int c = 0; c < q.C; c++) {
                double sum = 0;
                for (int t = 0; t < q.N; t++)
                    sum += static_cast<double>(to_float(coef[t * columns + k])) * to_float(rows[t * q.C + c]);
                dq[k * q.C + c] += static_cast<float>(sum);
            }
        dqueries.write(dq);
    }

    void run_backward(const Vec& dz_last) {
        Vec dz = dz_last;
        for (int j = P - 1; j >= 0; j--) {
            Place& at = *place[j];
            Device<floatX> dz_rows(rounded(dz));
            SeamBackward seam{};
            // Without N_in z is x_new itself.
            seam.dz = q.in ? dz_rows.data : nullptr;
            seam.dx_new = q.in ? nullptr : dz_rows.data;
            if (q.stream && j + 1 < P && q.in) seam.dx_new = place[j + 1]->dx.data;
            seam.x_new = at.h.data, seam.u = at.u.data;
            seam.dx = at.dx.data, seam.du = q.out && j > 0 ? at.du.data : at.dx.data;
            seam.out = out_norm(j), seam.in = in_norm(j);
            seam.out_scale = q.scaled[j] ? at.beta.data : nullptr;
            if (!q.out) seam.out_scale = nullptr;
            if (j > 0 && !q.asks[j]) {
                vanilla_backward(seam, shape, scratch.data, nullptr);
            } else {
                DepthBackward args;
                args.source = sources[j];
                args.coef = at.coef.data, args.coef_columns = columns;
                if (j > 0) args.query = asked[j], args.dq = dqueries.data + j * q.C;
                bool is_finished = std::count(finished.begin(), finished.end(), j) > 0;
                if (!is_finished) args.carry = place[j + 1]->dx.data;  // block: the running sum's
                if (is_finished) later_of(j, args);
                depth_attention_backward(seam, shape, args, scratch.data, nullptr);
                if (is_finished) add_queries(j);
            }
            if (j == 0) break;
            Vec du = to_double(q.out ? at.du.read() : at.dx.read());
            if (!q.out)
                for (double& x : du) x *= q.beta[j];
            dz = linear(q, du, q.A[j], true);
        }
        depth_queries_backward(dqueries.data, weights.data, P, q.C, nullptr);
    }
    // Queries that attend to the finished source of position j: near ones are left to the seam, farther ones are summed.
    void later_of(int j, DepthBackward& args) {
        if (use == Use::full) {
            Group g = j == 0 ? Group{0, 1} : group(j);
            int end = g.first + g.count;
            for (int k = j + 1; k < end; k++) args.near_query[args.near++] = asked[k];
            if (end == P) return;
            if (j == end - 1) {  // entering the group from behind: all of its sources at once
                DepthLater later;
                later.coef_columns = columns;
                for (int i = g.first; i < end; i++) add_source(later, i);
                depth_attention_later(later, query_table.data + end, P - end, q.N, q.C, nullptr);
            }
            args.later = place[j]->later.data;
            return;
        }
        std::vector<DepthQuery> list;
        for (int k = j + 1; k < P; k++)
            if (q.asks[k]) list.push_back(asked[k]);
        if (list.empty()) return;
        Device<DepthQuery> table(list);
        DepthLater later;
        later.coef_columns = columns;
        add_source(later, j);
        depth_attention_later(later, table.data, static_cast<int>(list.size()), q.N, q.C, nullptr);
        CUDA_CHECK(cudaDeviceSynchronize());  // the table goes
        args.later = place[j]->later.data;
    }
    void add_source(DepthLater& later, int i) {
        int at = later.sources++;
        later.source[at] = sources[i];
        later.dv[at] = place[i]->later.data;
        later.coef[at] = place[i]->coef.data;
    }
};

// Every position rounds z, u, h, dh and dx to floatX; the errors of up to 24 positions add up as independent ones do, and
// softmax and norms pass them on. Rows of 8 channels average little, and a short one is blown up by its norm. Measured
// worst in bf16: 8.9 roundings at C = 8, 4 beyond; in fp32 1e-6, where the kernels' own sums count.
double tolerance_of(int C) { return (C < 32 ? 12 : 6) * unit_roundoff + 4e-6; }

// Runs the network there and back, twice.
void check(Random& random, const Network& q, Use use) {
    INFO("use=" << static_cast<int>(use) << " N=" << q.N << " C=" << q.C << " positions=" << q.positions << " out=" << q.out
                << " in=" << q.in);
    const double tolerance = tolerance_of(q.C);
    State want = forward(q);
    Vec dz = to_double(random.normals<floatX>(q.x0.size()));
    Grads grads = backward(q, want, dz);
    Engine engine(q, use);
    engine.run_forward();
    engine.run_backward(dz);
    for (int j = 0; j < q.positions; j++)
        CHECK(relative_error(to_double(engine.place[j]->h.read()), want.h[j]) < tolerance);
    CHECK(relative_error(to_double(engine.place[0]->dx.read()), grads.x0) < tolerance);
    if (q.in) CHECK(relative_error(to_double(engine.din_gain.read()), grads.in_gain) < tolerance);
    if (q.out) CHECK(relative_error(to_double(engine.dout_gain.read()), grads.out_gain) < tolerance);
    // The weights ds of a query's gradient sum to zero only as far as h is known; their sum multiplies a mean of the kh,
    // a direction in which a query changes nearly nothing, but where sources are alike it is larger than the gradient.
    auto check_query = [&](const Vec& got, const Vec& exact) {
        double error = 0, size = grads.uncertain;
        for (size_t i = 0; i < got.size(); i++) {
            error += (got[i] - exact[i]) * (got[i] - exact[i]);
            size += exact[i] * exact[i];
        }
        CHECK(std::sqrt(error / size) < tolerance);
    };
    check_query(to_double(engine.dw.read()), grads.w);
    if (q.gains) check_query(to_double(engine.dgain.read()), grads.gain);

    auto same = [](const auto& a, const auto& b) { return memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0; };
    CHECK(same(engine.place[0]->h.read(), rounded(q.x0)));  // z_1 = x_0, exactly
    Engine again(q, use);
    again.run_forward();
    again.run_backward(dz);
    CHECK(same(engine.place[0]->dx.read(), again.place[0]->dx.read()));
    CHECK(same(engine.dw.read(), again.dw.read()));
    CHECK(same(engine.place[q.positions - 1]->h.read(), again.place[q.positions - 1]->h.read()));
}

}  // namespace

TEST_CASE("depth attention's reference agrees with finite differences") {
    Random random(1);
    for (Use use : {Use::full, Use::block, Use::mls}) {
        Network q = make_network(random, use, 5, 2, 2, 8, true, true, use == Use::full ? NormKind::layer : NormKind::rms, true);
        Vec dz = to_double(random.normals<float>(q.x0.size()));
        Grads g = backward(q, forward(q), dz);
        auto check = [&](double& value, double gradient) {
            auto loss = [&] { return row_dot(dz.data(), forward(q).z.back().data(), static_cast<int>(dz.size())); };
            const double h = 1e-5, kept = value;
            value = kept + h;
            double up = loss();
            value = kept - h;
            double down = loss();
            value = kept;
            CHECK(gradient == Approx((up - down) / (2 * h)).epsilon(1e-6).margin(1e-7));
        };
        for (int t = 0; t < 12; t++) {
            int i = random.below(static_cast<int>(q.x0.size())), c = random.below(q.positions * q.C);
            check(q.x0[i], g.x0[i]);
            check(q.w[c], g.w[c]);
            check(q.gain[c], g.gain[c]);
            check(q.in_gain[c], g.in_gain[c]);
            check(q.out_gain[c], g.out_gain[c]);
        }
    }
}

TEST_CASE("depth attention: the three rules") {
    Random random(2);
    for (Use use : {Use::full, Use::block, Use::mls})
        for (int parts = 0; parts < 4; parts++) {
            bool out = parts & 1, in = parts & 2 || use == Use::mls;  // mls without N_in: two gradients meet in h
            for (NormKind kind : {NormKind::layer, NormKind::rms})
                check(random, make_network(random, use, 7, 3, 5, 40, out, in, kind, kind == NormKind::rms), use);
        }
}

TEST_CASE("depth attention: awkward sizes") {
    Random random(3);
    for (Use use : {Use::full, Use::block, Use::mls})
        for (int C : {8, 104, 264, 760, 1600, 4096})
            for (int N : {1, 5, 37})
                if (N < 37 || C <= 264) check(random, make_network(random, use, 5, 2, N, C, N == 5, true, NormKind::rms, N == 5), use);
}

// All remainders of a group, blocks longer than a group, and lists of many sources and queries.
TEST_CASE("depth attention: depths") {
    Random random(4);
    for (int sublayers : {1, 2, 3, 4, 5, 8, 9, 23})
        for (Use use : {Use::full, Use::block, Use::mls})
            check(random, make_network(random, use, sublayers, sublayers > 8 ? 6 : 3, 3, 48, false, true, NormKind::layer), use);
}

// At w = 0 every source counts the same. At logits of some hundreds one takes all, and which may hang on a rounding: there
// only that nothing overflows is checked.
TEST_CASE("depth attention: extreme queries") {
    Random random(5);
    for (Use use : {Use::full, Use::block, Use::mls}) {
        Network q = make_network(random, use, 10, 4, 3, 64, false, true, NormKind::rms);
        for (double& w : q.w) w = 0;
        check(random, q, use);
        q = make_network(random, use, 10, 4, 3, 64, false, true, NormKind::rms);
        for (double& w : q.w) w = static_cast<float>(w * 500);
        Engine engine(q, use);
        engine.run_forward();
        engine.run_backward(to_double(random.normals<floatX>(q.x0.size())));
        for (double x : to_double(engine.dw.read())) CHECK(std::isfinite(x));
        for (double x : to_double(engine.place[0]->dx.read())) CHECK(std::isfinite(x));
    }
}
