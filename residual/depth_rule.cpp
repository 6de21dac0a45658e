#include "residual/depth_rule.h"

int DepthRule::block_size(RuleOptions& options, int units, int default_blocks, int default_size) {
    if (options.given("blocks") && options.given("block_size"))
        throw user_error("--residual-opt blocks and block_size: one follows from the other, give one of them");
    const int blocks = options.integer("blocks", default_blocks, 1, 1 << 20);
    return options.integer("block_size", blocks > 0 ? ceil_div(units, blocks) : default_size, 1, 1 << 20);
}

void DepthRule::plan(Planner& planner) {
    Rule::plan(planner);
    const int64_t N = shape_.N, C = shape_.C;
    const bool training = shape_.training;
    const size_t seams = static_cast<size_t>(shape_.last()) + 1;
    x_.assign(seams, nullptr);
    stored_.assign(seams, nullptr);
    r_.assign(seams, nullptr);
    scores_.assign(seams, nullptr);
    lse_.assign(seams, nullptr);
    del_.assign(seams, nullptr);

    planner.want("depth inputs", N * C, x_[0]);
    want_seams(planner, "depth inputs", N * C, x_, training, 1, [](int s) { return s > 0; });
    // Sources live through the whole pass, in inference too.
    want_seams(planner, "sources", N * C, stored_, true, 1,
               [&](int s) { return s > 0 && makes_source(s) && !source_is_u(s); });
    if (shape_.post(0)) planner.want("sources", N * C, entry_);
    want_seams(planner, "depth attention", N, r_, true, 1, [&](int s) { return makes_source(s); });
    int64_t scores = 0;
    for (size_t s = 0; s < seams; s++) {
        if (!sites_[s].query) continue;
        scores = (sites_[s].slot + 1) * N;
        if (training) planner.want("depth attention", scores, scores_[s]);
    }
    if (!training)  // nobody reads them again; the last query has the most
        planner.request("depth attention", static_cast<size_t>(scores) * sizeof(float), [this](void* p) {
            for (float*& pointer : scores_) pointer = static_cast<float*>(p);
        });
    want_seams(planner, "depth attention", N, lse_, training, DEPTH_GROUP,
               [&](int s) { return sites_[static_cast<size_t>(s)].query > 0; });
    planner.want("depth attention", DEPTH_GROUP * N * C, partial_);
    planner.want("depth attention", DEPTH_GROUP * N, partial_lse_);
    planner.want("depth attention", (queries() + 1) * C, q_);
    planner.want("depth attention", shape_.last() + 1, source_table_);
    planner.want("depth attention", queries() + 1, query_table_);
    planner.want("depth attention", queries() + 1, weight_table_);
    if (!training) return;
    want_seams(planner, "depth attention", N, del_, true, 1,
               [&](int s) { return sites_[static_cast<size_t>(s)].query > 0; });
    planner.want("backward", coef_columns() * C, dq_);
    planner.want("backward", DEPTH_GROUP * N * coef_columns(), coef_);
    planner.want("backward", DEPTH_GROUP * N * C, gathered_);
    planner.want("backward", N * C, dx_);
    if (shape_.out(1)) planner.want("backward", N * C, du_);
}

void DepthRule::add_sublayer_queries() {
    for (int k = 1; k <= shape_.last(); k++) {
        add({"ar_query", Place::sublayer, k, {shape_.C}, {0.0f}});
        add({"ar_gain", Place::sublayer, k, {shape_.C}, {1.0f}});
    }
    add({"final_ar_query", Place::model, 0, {shape_.C}, {0.0f}});
    add({"final_ar_gain", Place::model, 0, {shape_.C}, {1.0f}});
}

void DepthRule::ready_weights() {
    for (int j = 0; j <= shape_.last(); j++)
        weights_.push_back({value(2 * j), value(2 * j + 1), grad(2 * j), grad(2 * j + 1)});
}

int DepthRule::seam_of_query(int number) const {
    for (int s = 0; s <= shape_.last(); s++)
        if (sites_[static_cast<size_t>(s)].query == number) return s;
    return 0;
}

DepthSource DepthRule::source(int s) const {
    const size_t i = static_cast<size_t>(s);
    if (s == 0) return {x_[0], nullptr, r_[0], 0};
    if (source_is_u(s)) return {u_[i], seam_scale(s), r_[i], sites_[i].slot};
    return {stored_[i], nullptr, r_[i], sites_[i].slot};
}

// dh takes h's place: the thread that writes it has read h, and nobody reads h again.
DepthQuery DepthRule::query(int number) const {
    const size_t i = static_cast<size_t>(seam_of_query(number));
    return {q_ + static_cast<int64_t>(number) * shape_.C, scores_[i], lse_[i], x_[i], del_[i], number};
}

void DepthRule::ready(cudaStream_t stream) {
    ready_weights();
    std::vector<DepthSource> sources(static_cast<size_t>(shape_.last()) + 1);
    for (int s = 0; s <= shape_.last(); s++) {
        const Site& site = sites_[static_cast<size_t>(s)];
        if (site.active && site.complete) sources[static_cast<size_t>(site.slot)] = source(s);
    }
    std::vector<DepthQuery> all(1);
    for (int number = 1; number <= queries(); number++) all.push_back(query(number));
    auto upload = [&](void* to, const void* from, size_t bytes) {
        CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream));
    };
    upload(source_table_, sources.data(), sources.size() * sizeof(DepthSource));
    upload(query_table_, all.data(), all.size() * sizeof(DepthQuery));
    upload(weight_table_, weights_.data(), weights_.size() * sizeof(DepthWeights));
    CUDA_CHECK(cudaStreamSynchronize(stream));
}

void DepthRule::begin(const Pass& pass) {
    Rule::begin(pass);
    const int first = first_weights_;
    depth_queries(q_ + first * shape_.C, weight_table_ + first, queries() + 1 - first, shape_.C, pass.stream);
}

void DepthRule::forward(const Pass& pass, int s) {
    const size_t i = static_cast<size_t>(s);
    const Site& site = sites_[i];
    SeamForward seam = {};
    seam.x_new = x_[i];
    seam.z = z_[i];
    seam.z8 = input8(pass, s);
    seam.in = in_norms[i];
    if (s == 0) {
        if (shape_.post(0)) norm_rows_forward(entry_, x_[0], post_norms[0], seam_shape(pass, 0), pass.stream);
        seam.u = x_[0];
    } else {
        seam.u = u_[i];
        seam.out = out_norms[i];
        seam.scale = seam_scale(s);
    }
    if (!site.active) {
        seam.x = x_[i - 1];
        return vanilla_forward(seam, seam_shape(pass, s), pass.stream);
    }
    if (site.piece_size > 0 && site.older > 0)
        depth_attention_older(partial_, partial_lse_, query_table_ + site.query, site.piece_size, source_table_,
                              site.older, pass.N, shape_.C, pass.stream);
    if (site.sums) seam.x = stream_ ? x_[i - 1] : sites_[i - 1].complete ? nullptr : stored_[i - 1];
    DepthForward args;
    args.r = r_[i];
    args.slot = site.slot;
    args.eps = eps_;
    args.store = s > 0 && !source_is_u(s) ? stored_[i] : nullptr;
    if (site.query > 0) {
        args.query = query(site.query);
        if (site.older > 0) {
            args.partial = partial_ + site.piece * pass.N * shape_.C;
            args.partial_lse = partial_lse_ + site.piece * pass.N;
        }
        for (int near : site.near) args.near_source[args.near++] = source(near);
    }
    depth_attention_forward(seam, seam_shape(pass, s), args, pass.stream);
}

void DepthRule::begin_backward(const Pass& pass) {
    const size_t columns = static_cast<size_t>(coef_columns());
    set_zero(dq_, columns * static_cast<size_t>(shape_.C) * sizeof(float), pass.stream);
    set_zero(coef_, DEPTH_GROUP * static_cast<size_t>(pass.N) * columns * sizeof(floatX), pass.stream);
}

void DepthRule::backward(const Pass& pass, int s) {
    const size_t i = static_cast<size_t>(s);
    const int64_t N = pass.N, C = shape_.C;
    const Site& site = sites_[i];
    SeamBackward seam = {};
    seam.dx_new = stream_ && s < shape_.last() ? dx_ : nullptr;
    seam.dz = dz_;
    seam.x_new = x_[i];
    seam.u = s > 0 ? u_[i] : nullptr;
    seam.dx = dx_;
    seam.du = s > 0 ? const_cast<floatX*>(d_output(s)) : nullptr;
    seam.in = in_norms[i];
    if (s > 0) {
        seam.out = out_norms[i];
        seam.scale = seam_scale(s);
        seam.out_scale = seam_out_scale(s);
    }
    if (!site.active) return vanilla_backward(seam, seam_shape(pass, s), pass.scratch, pass.stream);

    auto gathered = [&](int place) { return gathered_ + place * N * C; };
    auto coefficients = [&](int place) { return coef_ + place * N * coef_columns(); };
    // The first query that is gathered: behind the last seam of the gathering.
    int last_query = site.query;
    for (int number : site.near_queries) last_query = std::max(last_query, number);
    const int later_count = site.complete ? queries() - last_query : 0;
    if (!site.gathered.empty() && later_count > 0) {
        DepthLater later;
        later.coef_columns = coef_columns();
        for (int other : site.gathered) {
            const int place = sites_[static_cast<size_t>(other)].gather_place;
            later.source[later.sources] = source(other);
            later.dv[later.sources] = gathered(place);
            later.coef[later.sources] = coefficients(place);
            later.sources++;
        }
        depth_attention_later(later, query_table_ + last_query + 1, later_count, N, shape_.C, pass.stream);
    }
    DepthBackward args;
    args.source = source(s);
    if (site.query > 0) {
        args.query = query(site.query);
        args.dq = dq_ + static_cast<int64_t>(site.query) * C;
    }
    for (int number : site.near_queries) args.near_query[args.near++] = query(number);
    args.carry = site.complete ? nullptr : dx_;
    args.later = later_count > 0 ? gathered(site.gather_place) : nullptr;
    args.coef = site.complete ? coefficients(site.gather_place) : nullptr;
    args.coef_columns = coef_columns();
    depth_attention_backward(seam, seam_shape(pass, s), args, pass.scratch, pass.stream);
    if (site.complete)
        matmul_backward_weight(pass.mm, dq_, args.coef, args.source.rows, static_cast<int>(N), shape_.C, coef_columns(),
                               true, pass.stream);
    if (s == 0 && shape_.post(0))
        norm_rows_backward(dx_, entry_, post_norms[0], seam_shape(pass, 0), pass.scratch, pass.stream);
}

void DepthRule::end_backward(const Pass& pass) {
    const int first = first_weights_;
    depth_queries_backward(dq_ + first * shape_.C, weight_table_ + first, queries() + 1 - first, shape_.C, pass.stream);
}
