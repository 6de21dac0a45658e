// Depth attention: the seam's rule, and the two kernels that hold a group of queries or of sources in registers while
// the rows of the other side pass by, loaded one step ahead of the reductions. A row is spread over threads as in
// residual/row_kernel.cuh. What a row has once (logits, weights) every thread of it computes for itself.
#include "residual/depth_attention.cuh"

#include "residual/row_kernel.cuh"

namespace {

constexpr int STEP = 2;  // rows that share a reduction
// Rows of registers are many in the group kernels: wide ones leave room for fewer threads.
constexpr int WIDE_THREADS = 256;
static_assert(STEP * DEPTH_GROUP <= MAX_ROW_SUMS && 2 + DEPTH_NEAR <= MAX_ROW_SUMS);

// A row as it lies in memory: in bf16 half the registers of a Row, two channels in a word (single bf16 values would
// take a register each).
template <int PACKS>
struct RawRow {
    static constexpr int size = Row<PACKS>::size, per_word = 4 / sizeof(floatX);
    Pack<uint32_t> pack[PACKS];
    __device__ __forceinline__ float operator[](int i) const {
        uint32_t word = pack[i / PackX::size][i % PackX::size / per_word];
        if constexpr (per_word == 1)
            return __uint_as_float(word);
        else
            return __uint_as_float(i % 2 ? word & 0xffff0000u : word << 16);
    }
};

template <int PACKS>
__device__ __forceinline__ RawRow<PACKS> load_raw(const RowLane<PACKS>& lane, const floatX* rows) {
    RawRow<PACKS> out;
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        out.pack[p] = {};
        if (rows && lane.row < lane.N && lane.has(p))
            out.pack[p] = load_pack(reinterpret_cast<const uint32_t*>(rows + lane.row * lane.C + lane.channel(p)));
    }
    return out;
}

// A row that is needed again behind a reduction: kept if that takes few registers, else loaded again, from a cache.
template <int PACKS>
__device__ __forceinline__ RawRow<PACKS> again(const RowLane<PACKS>& lane, const RawRow<PACKS>& row,
                                               const floatX* rows) {
    return PACKS == 1 ? row : load_raw(lane, rows);
}

// This thread's part of <a,b>.
template <class A, class B>
__device__ __forceinline__ float dot(const A& a, const B& b) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < B::size; i++) sum += a[i] * b[i];
    return sum;
}
template <class Out, class X>
__device__ __forceinline__ void add_scaled(Out& out, float factor, const X& x) {
#pragma unroll
    for (int i = 0; i < Out::size; i++) out[i] += factor * x[i];
}

// The present row's entry of a vector (N); zero behind the last row.
template <class Lane>
__device__ __forceinline__ float entry(const Lane& lane, const float* vector, int slot = 0) {
    return lane.row < lane.N ? vector[slot * lane.N + lane.row] : 0.0f;
}
template <class Lane>
__device__ __forceinline__ bool writes_entries(const Lane& lane) {
    return threadIdx.x == 0 && lane.row < lane.N;
}

__device__ __forceinline__ float scale_of(const DepthSource& source) {
    return source.scale ? *source.scale : 1.0f;
}

// ---------------------------------------------------------------------------------------------------------------------
// The seam's rule. Its two halves take different arguments, so they are two rules for the frame.

struct DepthSeam : RowFunction {
    static constexpr int channel_sums = 1;  // dq
    static constexpr bool reads_p = true, allows_post = false;
};

struct DepthCombine : DepthSeam {
    using Args = DepthForward;

    static void moves(const Args& args, int64_t N, int C, bool) {
        const DepthQuery& query = args.query;
        MOVES_MORE({reads(query.q, C), reads(args.partial, N * C), reads(args.partial_lse, N),
                    writes(args.store, N * C), writes(args.r, N), writes(query.q ? query.scores : nullptr, (1 + args.near) * N),
                    writes(query.q ? query.lse : nullptr, N)});
        for (int j = 0; j < args.near; j++)
            MOVES_MORE({reads(args.near_source[j].rows, N * C), reads(args.near_source[j].r, N)});
    }

    template <class Lane, class Row = typename Lane::Row>
    static __device__ __forceinline__ Row combine(const Lane& lane, const Args& args, const Row& x, const Row& v) {
        Row newest;
#pragma unroll
        for (int i = 0; i < Row::size; i++) newest[i] = x[i] + v[i];
        if (args.store) lane.store(args.store, newest);
        const bool asks = args.query.q != nullptr;
        RawRow<Lane::PACKS> near[DEPTH_NEAR];
        auto near_rows = [&](int j) { return j < args.near ? args.near_source[j].rows : nullptr; };
#pragma unroll
        for (int j = 0; j < DEPTH_NEAR; j++) near[j] = load_raw(lane, near_rows(j));

        float sums[2 + DEPTH_NEAR];
        {
            Row q = lane.load_channels(args.query.q, asks);
            sums[0] = dot(newest, newest);
            sums[1] = dot(newest, q);
#pragma unroll
            for (int j = 0; j < DEPTH_NEAR; j++) sums[2 + j] = dot(near[j], q);
        }
        lane.sum(sums);
        const float r = rsqrtf(sums[0] * lane.inv_C + args.eps);
        if (writes_entries(lane)) args.r[lane.row] = r;
        if (!asks) return newest;

        // Logits, then weights: the newest, all the older ones together, the near ones.
        float s[2 + DEPTH_NEAR];
        s[0] = sums[1] * r;
        s[1] = args.partial ? entry(lane, args.partial_lse) : -INFINITY;
#pragma unroll
        for (int j = 0; j < DEPTH_NEAR; j++) {
            s[2 + j] = -INFINITY;
            if (j < args.near)
                s[2 + j] = sums[2 + j] * scale_of(args.near_source[j]) * entry(lane, args.near_source[j].r);
        }
        float maximum = s[0], total = 0.0f;
#pragma unroll
        for (float logit : s) maximum = fmaxf(maximum, logit);
        float weight[2 + DEPTH_NEAR];
#pragma unroll
        for (int j = 0; j < 2 + DEPTH_NEAR; j++) total += weight[j] = expf(s[j] - maximum);
        if (writes_entries(lane)) {
            args.query.scores[args.slot * lane.N + lane.row] = s[0];
#pragma unroll
            for (int j = 0; j < DEPTH_NEAR; j++)
                if (j < args.near) args.query.scores[args.near_source[j].slot * lane.N + lane.row] = s[2 + j];
            args.query.lse[lane.row] = maximum + logf(total);
        }
        const float inverse = 1.0f / total;
        row_scale(newest, weight[0] * inverse);
        add_scaled(newest, weight[1] * inverse, load_raw(lane, args.partial));
#pragma unroll
        for (int j = 0; j < DEPTH_NEAR; j++)
            if (j < args.near)
                add_scaled(newest, weight[2 + j] * inverse * scale_of(args.near_source[j]),
                           again(lane, near[j], near_rows(j)));
        return newest;
    }
};

struct DepthGather : DepthSeam {
    using Args = DepthBackward;

    static void moves(const Args& args, int64_t N, int C, bool) {
        const DepthSource& source = args.source;
        MOVES_MORE({reads(source.rows, N * C), reads(source.r, N), reads(args.carry, N * C), reads(args.later, N * C)});
        auto gathers = [&](const DepthQuery& query) {
            MOVES_MORE({reads(query.q, C), reads(query.scores + source.slot * N, N), reads(query.lse, N)});
        };
        if (args.query.q) {
            gathers(args.query);
            MOVES_MORE({writes(args.query.dh, N * C), writes(args.query.del, N)});
        }
        for (int j = 0; j < args.near; j++) {
            gathers(args.near_query[j]);
            MOVES_MORE({reads(args.near_query[j].dh, N * C), reads(args.near_query[j].del, N),
                        writes(args.coef + j, N)});
        }
    }

    template <class Lane, class Saved, class Sums, class Row = typename Lane::Row>
    static __device__ __forceinline__ void backward(const Lane& lane, const Args& args, const Row& dp,
                                                    const Saved& saved, Row& dx, Row& dv, Sums& sums) {
        const bool asks = args.query.q != nullptr;
        Row dh = dp;
        if (asks) lane.store(args.query.dh, dh);  // the farther sources see it rounded; so does the newest
        const float scale = scale_of(args.source);
        const RawRow<Lane::PACKS> source = load_raw(lane, args.source.rows);
        RawRow<Lane::PACKS> near[DEPTH_NEAR];
        auto near_rows = [&](int j) { return j < args.near ? args.near_query[j].dh : nullptr; };
#pragma unroll
        for (int j = 0; j < DEPTH_NEAR; j++) near[j] = load_raw(lane, near_rows(j));
        float dots[2 + DEPTH_NEAR] = {dot(saved.p, dh), dot(source, dh)};
#pragma unroll
        for (int j = 0; j < DEPTH_NEAR; j++) dots[2 + j] = dot(near[j], source);
        lane.sum(dots);
        if (Lane::PACKS > 1 && asks) dh = lane.load(args.query.dh);  // what `again` does

        // One query's part. pull: SUM_k ds_k*s_k.
        const float r = entry(lane, args.source.r);
        float pull = 0.0f;
        auto gather = [&](const DepthQuery& query, float dh_v, float del, const auto& row) {
            float s = entry(lane, query.scores, args.source.slot), p = expf(s - entry(lane, query.lse));
            float ds = p * (dh_v * scale - del);
            pull += ds * s;
            add_scaled(dv, p, row);
            add_scaled(dv, ds * r, lane.load_channels(query.q));
            return ds * r * scale;
        };
        dv = lane.load(args.carry);
        add_scaled(dv, 1.0f, load_raw(lane, args.later));
        if (asks) {
            float coef = gather(args.query, dots[1], dots[0], dh);
            if (writes_entries(lane)) args.query.del[lane.row] = dots[0];
            Row dq = {};
            add_scaled(dq, coef, again(lane, source, args.source.rows));
            sums.add(0, dq);
        } else {
            add_scaled(dv, 1.0f, dh);
        }
#pragma unroll
        for (int j = 0; j < DEPTH_NEAR; j++) {
            if (j >= args.near) break;
            const DepthQuery& query = args.near_query[j];  // dh once more, from a cache: held, three rows cost too much
            float coef = gather(query, dots[2 + j], entry(lane, query.del), load_raw(lane, query.dh));
            if (writes_entries(lane)) args.coef[lane.row * args.coef_columns + query.column] = from_float<floatX>(coef);
        }
        add_scaled(dv, -scale * r * r * pull * lane.inv_C, again(lane, source, args.source.rows));
        dx = dv;
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// Groups

struct OlderArgs {
    floatX* partial;     // (count,N,C)
    float* partial_lse;  // (count,N)
    const DepthQuery* queries;
    const DepthSource* sources;
    int count, m;
};

// The running softmax of the group: O = SUM e^(s-maximum) v, total = SUM e^(s-maximum).
template <int PACKS, int THREADS>
__global__ void __launch_bounds__(THREADS) older_kernel(OlderArgs args, SeamShape shape) {
    RowLane<PACKS> lane(shape, shared_as<RowShared>());
    Row<PACKS> q[DEPTH_GROUP];
#pragma unroll
    for (int j = 0; j < DEPTH_GROUP; j++)
        q[j] = lane.load_channels(j < args.count ? args.queries[j].q : nullptr, j < args.count);
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y; first < lane.N;
         first += gridDim.x * blockDim.y) {
        lane.row = first + threadIdx.y;
        Row<PACKS> O[DEPTH_GROUP] = {};
        float maximum[DEPTH_GROUP], total[DEPTH_GROUP] = {};
#pragma unroll
        for (float& value : maximum) value = -INFINITY;
        RawRow<PACKS> next[STEP], v[STEP];
        auto fetch = [&](int i) {
#pragma unroll
            for (int b = 0; b < STEP; b++)
                next[b] = load_raw(lane, i + b < args.m ? args.sources[i + b].rows : nullptr);
        };
        fetch(0);
        for (int i = 0; i < args.m; i += STEP) {
#pragma unroll
            for (int b = 0; b < STEP; b++) v[b] = next[b];
            fetch(i + STEP);
            float sums[STEP * DEPTH_GROUP], scale[STEP] = {}, r[STEP] = {};
#pragma unroll
            for (int b = 0; b < STEP; b++) {
                if (i + b < args.m) {
                    scale[b] = scale_of(args.sources[i + b]);
                    r[b] = entry(lane, args.sources[i + b].r);
                }
#pragma unroll
                for (int j = 0; j < DEPTH_GROUP; j++) sums[b * DEPTH_GROUP + j] = dot(v[b], q[j]);
            }
            lane.sum(sums);
#pragma unroll
            for (int b = 0; b < STEP; b++) {
                if (i + b >= args.m) break;
                const int slot = args.sources[i + b].slot;
                float* s = sums + b * DEPTH_GROUP;
                float weight[DEPTH_GROUP], larger[DEPTH_GROUP], keep[DEPTH_GROUP];
#pragma unroll
                for (int j = 0; j < DEPTH_GROUP; j++) {
                    s[j] *= scale[b] * r[b];
                    larger[j] = fmaxf(maximum[j], s[j]);
                    weight[j] = expf(s[j] - larger[j]);
                    keep[j] = expf(maximum[j] - larger[j]);  // 0 at the first source
                    total[j] = total[j] * keep[j] + weight[j];
                    maximum[j] = larger[j];
                }
#pragma unroll
                for (int j = 0; j < DEPTH_GROUP; j++) {
                    if (j >= args.count) break;
                    if (writes_entries(lane)) args.queries[j].scores[slot * lane.N + lane.row] = s[j];
                    row_scale(O[j], keep[j]);
                    add_scaled(O[j], weight[j] * scale[b], v[b]);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < DEPTH_GROUP; j++) {
            if (j >= args.count) break;
            row_scale(O[j], 1.0f / total[j]);
            lane.store(args.partial + j * lane.N * lane.C, O[j]);
            if (writes_entries(lane)) args.partial_lse[j * lane.N + lane.row] = maximum[j] + logf(total[j]);
        }
    }
}

template <int PACKS, int THREADS>
__global__ void __launch_bounds__(THREADS)
    later_kernel(DepthLater args, const DepthQuery* queries, int count, SeamShape shape) {
    RowLane<PACKS> lane(shape, shared_as<RowShared>());
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y; first < lane.N;
         first += gridDim.x * blockDim.y) {
        lane.row = first + threadIdx.y;
        RawRow<PACKS> v[DEPTH_GROUP], next[STEP], dh[STEP];
        auto source_rows = [&](int j) { return j < args.sources ? args.source[j].rows : nullptr; };
        Row<PACKS> dv[DEPTH_GROUP];
        float pull[DEPTH_GROUP] = {};  // pull: SUM_k ds_k*s_k
#pragma unroll
        for (int j = 0; j < DEPTH_GROUP; j++) {
            v[j] = load_raw(lane, source_rows(j));
            dv[j] = lane.load(j < args.sources ? args.carry[j] : static_cast<const floatX*>(nullptr));
        }
        auto fetch = [&](int k) {
#pragma unroll
            for (int b = 0; b < STEP; b++) next[b] = load_raw(lane, k + b < count ? queries[k + b].dh : nullptr);
        };
        fetch(0);
        for (int k = 0; k < count; k += STEP) {
            float dots[STEP * DEPTH_GROUP];
#pragma unroll
            for (int b = 0; b < STEP; b++) {
                dh[b] = next[b];
                Row<PACKS> wide;
#pragma unroll
                for (int i = 0; i < wide.size; i++) wide[i] = dh[b][i];
#pragma unroll
                for (int j = 0; j < DEPTH_GROUP; j++)
                    dots[b * DEPTH_GROUP + j] = dot(again(lane, v[j], source_rows(j)), wide);
            }
            fetch(k + STEP);
            lane.sum(dots);
#pragma unroll
            for (int b = 0; b < STEP; b++) {
                if (k + b >= count) break;
                const DepthQuery& query = queries[k + b];
                const float lse = entry(lane, query.lse), del = entry(lane, query.del);
                Row<PACKS> q = lane.load_channels(query.q);
#pragma unroll
                for (int j = 0; j < DEPTH_GROUP; j++) {
                    if (j >= args.sources) break;
                    const DepthSource& source = args.source[j];
                    float s = entry(lane, query.scores, source.slot), p = expf(s - lse), scale = scale_of(source);
                    float ds = p * (dots[b * DEPTH_GROUP + j] * scale - del), factor = ds * entry(lane, source.r);
                    pull[j] += ds * s;
                    add_scaled(dv[j], p, dh[b]);
                    add_scaled(dv[j], factor, q);
                    if (writes_entries(lane))
                        args.coef[j][lane.row * args.coef_columns + query.column] = from_float<floatX>(factor * scale);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < DEPTH_GROUP; j++) {
            if (j >= args.sources) break;
            float r = entry(lane, args.source[j].r);
            add_scaled(dv[j], -scale_of(args.source[j]) * r * r * pull[j] * lane.inv_C,
                       again(lane, v[j], source_rows(j)));
            lane.store(args.dv[j], dv[j]);
        }
    }
}

template <class... Params, class... Args>
void launch_group(void (*narrow)(Params...), void (*wide)(Params...), int64_t N, int C, cudaStream_t stream,
                  Args&&... args) {
    RowGrid grid = row_grid(C, false);
    CHECK(!grid.wide || grid.block.x <= WIDE_THREADS);
    if (N == 0) return;
    SeamShape shape{N, C, NormKind::rms, 0.0f};
    launch(grid.wide ? wide : narrow, row_blocks(grid, N), grid.block, sizeof(RowShared), stream, args..., shape);
}

// ---------------------------------------------------------------------------------------------------------------------
// Queries

constexpr int QUERY_THREADS = 256;

__global__ void __launch_bounds__(QUERY_THREADS) queries_kernel(float* q, const DepthWeights* weights, int C) {
    const DepthWeights& weight = weights[blockIdx.y];
    int c = blockIdx.x * QUERY_THREADS + threadIdx.x;
    if (c >= C) return;
    q[static_cast<int64_t>(blockIdx.y) * C + c] = weight.gain ? weight.w[c] * weight.gain[c] : weight.w[c];
}

__global__ void __launch_bounds__(QUERY_THREADS)
    queries_backward_kernel(const float* dq, const DepthWeights* weights, int C) {
    const DepthWeights& weight = weights[blockIdx.y];
    int c = blockIdx.x * QUERY_THREADS + threadIdx.x;
    if (c >= C) return;
    float d = dq[static_cast<int64_t>(blockIdx.y) * C + c];
    weight.dw[c] += weight.gain ? d * weight.gain[c] : d;
    if (weight.gain) weight.dgain[c] += d * weight.w[c];
}

}  // namespace

void depth_queries(float* q, const DepthWeights* weights, int K, int C, cudaStream_t stream) {
    if (K == 0) return;
    const int64_t count = static_cast<int64_t>(K) * C, bytes = count * static_cast<int64_t>(sizeof(float));
    MOVES("depth_queries", {reads(weights, K), reads_bytes(2 * bytes), writes(q, count)});  // w and gain
    launch(queries_kernel, dim3(ceil_div(C, QUERY_THREADS), K), QUERY_THREADS, 0, stream, q, weights, C);
}

void depth_queries_backward(const float* dq, const DepthWeights* weights, int K, int C, cudaStream_t stream) {
    if (K == 0) return;
    const int64_t count = static_cast<int64_t>(K) * C, bytes = count * static_cast<int64_t>(sizeof(float));
    MOVES("depth_queries_backward", {reads(dq, count), reads(weights, K), reads_bytes(4 * bytes),
                                     writes_bytes(2 * bytes)});
    launch(queries_backward_kernel, dim3(ceil_div(C, QUERY_THREADS), K), QUERY_THREADS, 0, stream, dq, weights, C);
}

void depth_attention_older(floatX* partial, float* partial_lse, const DepthQuery* queries, int count,
                           const DepthSource* sources, int m, int64_t N, int C, cudaStream_t stream) {
    CHECK(count >= 1 && count <= DEPTH_GROUP && m >= 1);
    // A source's row and its r; of a query's entry two pointers.
    const int64_t X = sizeof(floatX), F = sizeof(float), row = C * X + F, pointers = 2 * sizeof(void*);
    MOVES("depth_attention_older",
          {reads(sources, m), reads_bytes(m * N * row + count * (C * F + pointers)), writes(partial, count * N * C),
           writes(partial_lse, count * N), writes_bytes(static_cast<int64_t>(count) * m * N * F)});
    launch_group(older_kernel<1, MAX_ROW_THREADS>, older_kernel < WIDE_ROWS ? WIDE_PACKS : 1, WIDE_THREADS >, N, C,
                 stream, OlderArgs{partial, partial_lse, queries, sources, count, m});
}

void depth_attention_later(const DepthLater& later, const DepthQuery* queries, int count, int64_t N, int C,
                           cudaStream_t stream) {
    CHECK(later.sources >= 1 && later.sources <= DEPTH_GROUP && count >= 1);
    const int64_t X = sizeof(floatX), F = sizeof(float), S = later.sources, Q = count;
    MOVES("depth_attention_later",
          {reads(queries, Q), reads_bytes(S * N * (C * X + F) + Q * N * (C * X + 2 * F) + S * Q * N * F + Q * C * F),
           writes_bytes(S * N * C * X + S * Q * N * X)});
    for (int i = 0; i < later.sources; i++) MOVES_MORE({reads(later.carry[i], N * C)});
    launch_group(later_kernel<1, MAX_ROW_THREADS>, later_kernel < WIDE_ROWS ? WIDE_PACKS : 1, WIDE_THREADS >, N, C,
                 stream, later, queries, count);
}

void depth_attention_forward(const SeamForward& seam, const SeamShape& shape, const DepthForward& args,
                             cudaStream_t stream) {
    CHECK(args.near >= 0 && args.near <= DEPTH_NEAR);
    seam_forward<DepthCombine>(seam, shape, args, stream);
}

void depth_attention_backward(const SeamBackward& seam, const SeamShape& shape, const DepthBackward& args,
                              float* scratch, cudaStream_t stream) {
    CHECK(args.near >= 0 && args.near <= DEPTH_NEAR && !seam.first);
    RuleGradients gradients;
    gradients.channels[0] = args.dq;
    seam_backward<DepthGather>(seam, shape, args, gradients, scratch, stream);
}
