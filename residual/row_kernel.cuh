// The frame of every seam kernel (residual/seam.cuh), of the pieces of residual/row.cuh. It owns the loads and stores,
// both norms with their statistics, and the sums of parameter gradients over tokens; a rule adds its few lines in
// between. A norm reads what is stored: x_new and p are rounded to floatX first, so that the backward pass recomputes
// the same xh.
//
// A rule is a struct derived from RowFunction, with
//     Args                    kernel arguments: factors, device pointers to its parameters and further rows (N,C)
//     combine(lane, args, x, v) -> p
//     backward(lane, args, dp, Saved{v, p}, dx, dv, sums)    sets dx and dv; sums.add(i, row), sums.scalar[i] += ...
//     moves(args, N, C, backward)                            if it loads or stores rows or vectors of its own
// and what differs from RowFunction. A sum of two products is written as an fmaf: a compiler fuses either of them, and
// where it has the sum in two copies not always the same one. Rows it needs besides (x in the backward pass, x_0,
// earlier outputs) it fetches with lane.load(pointer); reductions over the row are lane.sum(values); it may lane.store()
// rows of its own. Rules with several streams have their own kernels, made of the same pieces.
#pragma once
#include "residual/row.cuh"

struct RowFunction {
    static constexpr int channel_sums = 0;  // (C) parameter gradients that it sums over tokens
    static constexpr int scalar_sums = 0;   // scalar ones
    // Its backward pass needs v = beta*N_out(u), which the frame then recomputes; or p, as stored.
    static constexpr bool reads_v = false, reads_p = false;
    // Which seams it stands in: others are not compiled. A rule that stands first too (there is no u) is compiled for
    // both widths of rows on every machine (row_grid).
    static constexpr bool allows_out = true, allows_post = true, allows_first = false;
    // Declares by MOVES_MORE what combine, or backward, loads and stores of its own: rows and vectors, not scalars.
    template <class Args>
    static void moves(const Args&, int64_t /*N*/, int /*C*/, bool /*backward*/) {}
};

// Which parts a seam has. rule: there is a u (all but the first seam).
template <bool RULE, bool OUT, bool POST, bool IN, NormKind KIND>
struct Seam {
    static constexpr bool rule = RULE, out = OUT, post = POST, in = IN;
    static constexpr NormKind kind = KIND;
};

// ---------------------------------------------------------------------------------------------------------------------
// The two kernels

template <class Rule, class S, int PACKS>
__global__ void __launch_bounds__(MAX_ROW_THREADS, 1)
    seam_forward_kernel(SeamForward seam, SeamShape shape, typename Rule::Args args) {
    wait_for_previous();
    launch_next_early();
    RowLane<PACKS> lane(shape, shared_as<RowShared>());
    InputRows input{seam.z, seam.z8};
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y; first < lane.N;
         first += gridDim.x * blockDim.y) {
        lane.row = first + threadIdx.y;
        Row<PACKS> x = lane.load(seam.x);
        if constexpr (S::rule) {
            Row<PACKS> v = lane.load(seam.u);
            if constexpr (S::out) v = norm_forward<S::kind>(lane, v, seam.out, 1.0f);
            if (seam.scale != nullptr) row_scale(v, *seam.scale);
            x = Rule::combine(lane, args, x, v);
            if constexpr (S::post) lane.store(seam.p, x);
        }
        if constexpr (S::post) x = norm_forward<S::kind>(lane, x, seam.post, 1.0f);
        if constexpr (S::rule || S::post) lane.store(seam.x_new, x);
        if constexpr (S::in) {
            float scale = seam.in.factor != nullptr ? seam.in.scale * *seam.in.factor : seam.in.scale;
            Row<PACKS> z = norm_forward<S::kind>(lane, x, seam.in, scale);
            input.store(lane, z);
        }
    }
    if constexpr (S::in) input.finish(lane.shared);
}

// Where the sums of each part stand: the rule's first, then N_out's, N_post's, N_in's (gain, bias).
template <class Rule, class S>
struct SumIndex {
    static constexpr int per_norm = S::kind == NormKind::layer ? 2 : 1;
    static constexpr int out = S::rule ? Rule::channel_sums : 0;
    static constexpr int post = out + (S::out ? per_norm : 0);
    static constexpr int in = post + (S::post ? per_norm : 0);
    static constexpr int channels = in + (S::in ? per_norm : 0);
    static constexpr int scalars = S::rule ? Rule::scalar_sums : 0;
    static_assert(channels <= MAX_PARTIAL_SUMS && scalars <= MAX_SCALAR_SUMS, "too many parameters in one seam");
};

template <class Rule, class S, int PACKS>
__global__ void __launch_bounds__(MAX_ROW_THREADS, 1)
    seam_backward_kernel(SeamBackward seam, SeamShape shape, typename Rule::Args args, float* partial, float* scalars) {
    wait_for_previous();
    launch_next_early();
    using Index = SumIndex<Rule, S>;
    RowShared& shared = shared_as<RowShared>();
    RowLane<PACKS> lane(shape, shared);
    TokenSums<Index::channels, Index::scalars, PACKS> sums(shared);
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y; first < lane.N;
         first += gridDim.x * blockDim.y) {
        lane.row = first + threadIdx.y;
        Row<PACKS> d = lane.load(seam.dx_new);
        row_scale(d, seam.dx_new_scale != nullptr ? seam.dx_new_factor * *seam.dx_new_scale : seam.dx_new_factor);
        Saved<PACKS> saved = {};
        if constexpr (S::in) {
            Row<PACKS> x_new = lane.load(seam.x_new);
            float scale = seam.in.scale;
            if (seam.in.factor != nullptr && seam.in.factor_backward) scale *= *seam.in.factor;
            Row<PACKS> dx = norm_backward<S::kind, Index::in>(lane, lane.load(seam.dz), x_new, seam.in, scale, sums);
#pragma unroll
            for (int i = 0; i < d.size; i++) d[i] += dx[i];
            if constexpr (S::rule && !S::post && Rule::reads_p) saved.p = x_new;
        } else {
            Row<PACKS> dz = lane.load(seam.dz);
#pragma unroll
            for (int i = 0; i < d.size; i++) d[i] += dz[i];
            if constexpr (S::rule && !S::post && Rule::reads_p) saved.p = lane.load(seam.x_new);
        }
        if constexpr (S::post) {
            Row<PACKS> p = lane.load(seam.p);
            d = norm_backward<S::kind, Index::post>(lane, d, p, seam.post, 1.0f, sums);
            if constexpr (S::rule && Rule::reads_p) saved.p = p;
        }
        if constexpr (!S::rule) {
            lane.store(seam.dx, d);
        } else {
            Row<PACKS> u = {}, dx, dv;
            if constexpr (S::out || Rule::reads_v) u = saved.v = lane.load(seam.u);
            if constexpr (S::out && Rule::reads_v) {
                float rstd;
                saved.v =
                    norm_apply<S::kind>(norm_input<S::kind>(lane, u, seam.out, rstd), lane.load_channels(seam.out.gain),
                                        lane.load_channels(seam.out.bias, seam.out.bias != nullptr), 1.0f);
            }
            if constexpr (Rule::reads_v)
                if (seam.scale != nullptr) row_scale(saved.v, *seam.scale);
            Rule::backward(lane, args, d, saved, dx, dv, sums);
            lane.store(seam.dx, dx);
            if constexpr (S::out) {
                if (seam.out_scale != nullptr) row_scale(dv, *seam.out_scale);
                dv = norm_backward<S::kind, Index::out>(lane, dv, u, seam.out, 1.0f, sums);
            }
            if (seam.du != nullptr && seam.du != seam.dx) lane.store(seam.du, dv);
        }
    }
    sums.write(lane, partial, scalars);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launches

// Calls f(std::integral_constant<int, PACKS>{}).
template <class Rule, class F>
void with_width(const RowGrid& grid, F&& f) {
    if constexpr (Rule::allows_first || WIDE_ROWS) {
        if (grid.wide) return f(std::integral_constant<int, WIDE_PACKS>{});
    }
    f(std::integral_constant<int, 1>{});
}

// Calls f(Seam<...>{}) for the seam these parts make. A seam without norms is the same for both kinds. No scheme has
// N_out and N_post at once; what a rule does not allow is not compiled.
template <class Rule, bool RULE, class F>
void with_seam(bool out, bool post, bool in, NormKind kind, F&& f) {
    constexpr bool OUT = RULE && Rule::allows_out, POST = !RULE || Rule::allows_post;
    CHECK(!(out && post) && (OUT || !out) && (POST || !post));
    auto with_kind = [&](auto kind_constant) {
        constexpr NormKind KIND = decltype(kind_constant)::value;
        if (out && in) {
            if constexpr (OUT) f(Seam<RULE, true, false, true, KIND>{});
        } else if (out) {
            if constexpr (OUT) f(Seam<RULE, true, false, false, KIND>{});
        } else if (post && in) {
            if constexpr (POST) f(Seam<RULE, false, true, true, KIND>{});
        } else if (post) {
            if constexpr (POST) f(Seam<RULE, false, true, false, KIND>{});
        } else if (in)
            f(Seam<RULE, false, false, true, KIND>{});
    };
    if (!out && !post && !in)
        f(Seam<RULE, false, false, false, NormKind::rms>{});
    else if (kind == NormKind::layer)
        with_kind(std::integral_constant<NormKind, NormKind::layer>{});
    else
        with_kind(std::integral_constant<NormKind, NormKind::rms>{});
}

template <class Rule, class S>
void declare_seam(const SeamForward& seam, const SeamShape& shape, const typename Rule::Args& args) {
    if (!traffic::counting) return;
    const int64_t n = shape.N * shape.C;
    MOVES("seam_forward", {reads(seam.x, n), reads(S::rule ? seam.u : nullptr, n),
                           writes(S::rule && S::post ? seam.p : nullptr, n),
                           writes(S::rule || S::post ? seam.x_new : nullptr, n)});
    if (S::in) input_moves(seam.z, seam.z8, n);
    norm_moves(seam.out, shape, false, true);
    norm_moves(seam.post, shape, false, true);
    norm_moves(seam.in, shape, false, true);
    if (S::rule) Rule::moves(args, shape.N, shape.C, false);
}
template <class Rule, class S>
void declare_seam_backward(const SeamBackward& seam, const SeamShape& shape, const typename Rule::Args& args,
                           const float* partial, int64_t partials) {
    if (!traffic::counting) return;
    const int64_t n = shape.N * shape.C;
    const bool reads_v = S::rule && Rule::reads_v, reads_p = S::rule && Rule::reads_p;
    MOVES("seam_backward",
          {reads(seam.dx_new, n), reads(seam.dz, n), reads(S::in || (reads_p && !S::post) ? seam.x_new : nullptr, n),
           reads(S::post ? seam.p : nullptr, n), reads(S::rule && (S::out || reads_v) ? seam.u : nullptr, n),
           writes(seam.dx, n), writes(S::rule ? seam.du : nullptr, n), writes(partial, partials)});
    norm_moves(seam.out, shape, true, reads_v);
    norm_moves(seam.post, shape, true, false);
    norm_moves(seam.in, shape, true, false);
    if (S::rule) Rule::moves(args, shape.N, shape.C, true);
}

// Runs the seam with the rule, or, without a u, the first seam of a network: norms alone.
template <class Rule>
void seam_forward(const SeamForward& seam, const SeamShape& shape, const typename Rule::Args& args,
                  cudaStream_t stream) {
    RowGrid grid = row_grid(shape.C, Rule::allows_first);
    if (shape.N == 0 || (seam.u == nullptr && !seam.post.gain && !seam.in.gain)) return;
    CHECK(seam.u != nullptr || (Rule::allows_first && seam.out.gain == nullptr));
    CHECK(seam.z8.data == nullptr || seam.in.gain != nullptr);
    auto run = [&](auto parts) {
        using S = decltype(parts);
        with_width<Rule>(grid, [&](auto packs) {
            declare_seam<Rule, S>(seam, shape, args);
            auto kernel = seam_forward_kernel<Rule, S, decltype(packs)::value>;
            launch_early(kernel, row_blocks(grid, shape.N, kernel, sizeof(RowShared)), grid.block, sizeof(RowShared),
                         stream, seam, shape, args);
        });
    };
    if (seam.u)
        with_seam<Rule, true>(seam.out.gain, seam.post.gain, seam.in.gain, shape.kind, run);
    else if constexpr (Rule::allows_first)
        with_seam<Rule, false>(false, seam.post.gain, seam.in.gain, shape.kind, run);
}

// Gradients of the rule's own parameters, accumulated (+=), in the order of its sums; null: not wanted.
struct RuleGradients {
    float* channels[MAX_PARTIAL_SUMS] = {};  // (C) each
    float* scalars[MAX_SCALAR_SUMS] = {};    // (1) each
};

template <class Rule>
void seam_backward(const SeamBackward& seam, const SeamShape& shape, const typename Rule::Args& args,
                   const RuleGradients& gradients, float* scratch, cudaStream_t stream) {
    RowGrid grid = row_grid(shape.C, Rule::allows_first);
    if (shape.N == 0) return;
    CHECK(!seam.first || (Rule::allows_first && seam.out.gain == nullptr));
    auto run = [&](auto parts) {
        using S = decltype(parts);
        using Index = SumIndex<Rule, S>;
        int blocks = 0;
        float* scalars = nullptr;  // behind the channels' partial sums
        with_width<Rule>(grid, [&](auto packs) {
            constexpr int PACKS = decltype(packs)::value;
            auto kernel = seam_backward_kernel<Rule, S, PACKS>;
            const size_t shared_bytes =
                sizeof(RowShared) + TokenSums<Index::channels, Index::scalars, PACKS>::shared_bytes(grid.block);
            blocks = row_blocks(grid, shape.N, kernel, shared_bytes);
            scalars = scratch + static_cast<size_t>(blocks) * Index::channels * shape.C;
            declare_seam_backward<Rule, S>(seam, shape, args, scratch,
                                           int64_t{blocks} * (Index::channels * shape.C + Index::scalars));
            launch_early(kernel, blocks, grid.block, shared_bytes, stream, seam, shape, args, scratch, scalars);
        });

        PartialTargets target, scalar_target;
        auto norm = [&](const SeamNorm& n, int first) {
            target.total[first] = n.dgain;
            if (S::kind == NormKind::layer) target.total[first + 1] = n.dbias;
        };
        for (int i = 0; i < Index::out; i++) target.total[i] = gradients.channels[i];
        if (S::out) norm(seam.out, Index::out);
        if (S::post) norm(seam.post, Index::post);
        if (S::in) norm(seam.in, Index::in);
        add_partials(target, scratch, blocks, Index::channels, shape.C, stream);
        for (int i = 0; i < Index::scalars; i++) scalar_target.total[i] = gradients.scalars[i];
        add_partials(scalar_target, scalars, blocks, Index::scalars, 1, stream);
    };
    if (!seam.first)
        with_seam<Rule, true>(seam.out.gain, seam.post.gain, seam.in.gain, shape.kind, run);
    else if constexpr (Rule::allows_first)
        with_seam<Rule, false>(false, seam.post.gain, seam.in.gain, shape.kind, run);
}
