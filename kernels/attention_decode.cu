// Attention of one new query per sequence over a cache, split over the keys (Dao et al. 2023, "Flash-Decoding"):
//
//     split i of the keys:  m_i = max s[k],  l_i = SUM exp(s[k] - m_i),  O_i = SUM exp(s[k] - m_i) V[k]
//     together:             M = max m_i,  w_i = exp(m_i - M),  O = SUM w_i O_i / SUM w_i l_i
//
// The work is reading the cache, once: a block takes one split of one key head, for all query heads that share it. Each
// thread has one 16-byte pack of channels and walks over keys, a block's loads being whole rows, independent of each
// other. The length of a split depends on the head size alone, not on the batch or the machine, so a sequence gets the
// same bits alone and among others.
#include "kernels/attention_decode.cuh"

namespace {

constexpr int THREADS = 128;
constexpr int MAX_GROUP = 8;        // query heads of a block; a larger group takes several blocks
constexpr int MAX_KEYS = 128;       // of a split
constexpr int SPLIT_PACKS = 1024;   // about the packs of keys in a split: 16 KB, and as much of values
constexpr int KEY_PADDING = 4;      // against bank conflicts

struct DecodeShape {
    int B, length, capacity, NH, NKV, HS;
    float scale;           // 1/sqrt(HS)
    int group, chunks;     // query heads per key head; blocks that share them out
    int packs, slots;      // of a key; keys that a block's threads read at a time
    int keys, splits;      // of a split; of the whole length

    __host__ __device__ int score_stride() const { return keys + KEY_PADDING; }
    // Of the unfinished sums of head h: O (B,NH,splits,HS), m and l (B,NH,splits,2).
    __host__ __device__ int64_t partial(int b, int h, int split) const {
        return (static_cast<int64_t>(b) * NH + h) * splits + split;
    }
};

// Shared memory: reduce, then the parts of scores (GROUP,packs,score_stride) fp32. Of pack 0, the exponentials later.
struct Shared {
    alignas(16) float reduce[THREADS * PackX::size];  // (slots,HS)
    float scores[];
};

// out is written when there is one split only, else partial and sums.
template <int GROUP>
__global__ void __launch_bounds__(THREADS, 4)
    attention_decode_kernel(floatX* out, float* partial, float* sums, const floatX* qkv, const floatX* cache,
                            DecodeShape s) {
    Shared& shared = shared_as<Shared>();
    const int t = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
    const int split = block % s.splits, chunk = block / s.splits % s.chunks;
    const int kv = block / s.splits / s.chunks % s.NKV, b = block / s.splits / s.chunks / s.NKV;
    const int first_head = kv * s.group + chunk * GROUP;
    const int heads = s.group - chunk * GROUP < GROUP ? s.group - chunk * GROUP : GROUP;
    const int first_key = split * s.keys;
    const int keys = s.length - first_key < s.keys ? s.length - first_key : s.keys;
    const int slot = t / s.packs, pack = t % s.packs, channel = pack * PackX::size;
    const int64_t row = 2 * s.HS;
    const floatX* tile = cache + (static_cast<int64_t>(b * s.NKV + kv) * s.capacity + first_key) * row + channel;
    const int stride = s.score_stride();

    if (slot < s.slots) {
        const floatX* query = qkv + static_cast<int64_t>(b) * (s.NH + 2 * s.NKV) * s.HS + first_head * s.HS + channel;
        float q[GROUP][PackX::size];
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            PackX p = {};
            if (g < heads) p = load_pack(query + g * s.HS);
#pragma unroll
            for (int e = 0; e < PackX::size; e++) q[g][e] = to_float(p[e]) * s.scale;
        }
#pragma unroll 4
        for (int k = slot; k < keys; k += s.slots) {
            const PackX key = load_pack(tile + k * row);
            float dot[GROUP] = {};
#pragma unroll
            for (int e = 0; e < PackX::size; e++) {
                const float x = to_float(key[e]);
#pragma unroll
                for (int g = 0; g < GROUP; g++) dot[g] += q[g][e] * x;
            }
#pragma unroll
            for (int g = 0; g < GROUP; g++)
                if (g < heads) shared.scores[(g * s.packs + pack) * stride + k] = dot[g];
        }
    }
    __syncthreads();

    // A warp per head: whole scores, their maximum, exponentials, their sum.
    const int lane = t % WARP;
    for (int g = t / WARP; g < heads; g += THREADS / WARP) {
        float* scores = shared.scores + g * s.packs * stride;
        float x[MAX_KEYS / WARP], maximum = -INFINITY, sum = 0.0f;
#pragma unroll
        for (int i = 0; i < MAX_KEYS / WARP; i++) {
            const int k = lane + i * WARP;
            x[i] = k < keys ? 0.0f : -INFINITY;
            for (int p = 0; p < s.packs && k < keys; p++) x[i] += scores[p * stride + k];
            maximum = x[i] > maximum ? x[i] : maximum;
        }
        maximum = warp_max(maximum);
#pragma unroll
        for (int i = 0; i < MAX_KEYS / WARP; i++) {
            const int k = lane + i * WARP;
            if (k >= keys) break;
            x[i] = expf(x[i] - maximum);
            sum += x[i];
            scores[k] = x[i];
        }
        sum = warp_sum(sum);
        if (s.splits == 1) {
#pragma unroll
            for (int i = 0; i < MAX_KEYS / WARP; i++)
                if (lane + i * WARP < keys) scores[lane + i * WARP] = x[i] / sum;
        } else if (lane == 0) {
            float* to = sums + 2 * s.partial(b, first_head + g, split);
            to[0] = maximum;
            to[1] = sum;
        }
    }
    __syncthreads();

    float acc[GROUP][PackX::size] = {};
    if (slot < s.slots) {
#pragma unroll 4
        for (int k = slot; k < keys; k += s.slots) {
            const PackX value = load_pack(tile + k * row + s.HS);
#pragma unroll
            for (int g = 0; g < GROUP; g++) {
                const float p = g < heads ? shared.scores[g * s.packs * stride + k] : 0.0f;
#pragma unroll
                for (int e = 0; e < PackX::size; e++) acc[g][e] += p * to_float(value[e]);
            }
        }
    }
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
        if (g == heads) break;
        if (g > 0) __syncthreads();  // the head before is added up
        if (slot < s.slots) {
#pragma unroll
            for (int e = 0; e < PackX::size; e += 4)
                store_pack(shared.reduce + slot * s.HS + channel + e,
                           Pack<float>{{acc[g][e], acc[g][e + 1], acc[g][e + 2], acc[g][e + 3]}});
        }
        __syncthreads();
        const int used = keys < s.slots ? keys : s.slots;
        for (int c = t; c < s.HS; c += THREADS) {
            float sum = 0.0f;
            for (int i = 0; i < used; i++) sum += shared.reduce[i * s.HS + c];
            const int h = first_head + g;
            if (s.splits == 1)
                out[(static_cast<int64_t>(b) * s.NH + h) * s.HS + c] = from_float<floatX>(sum);
            else
                partial[s.partial(b, h, split) * s.HS + c] = sum;
        }
    }
}

// out (B,NH*HS) from partial and sums; a thread per channel.
__global__ void __launch_bounds__(THREADS)
    attention_decode_combine_kernel(floatX* out, const float* partial, const float* sums, DecodeShape s) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x, row = i / s.HS;  // row = (b,h)
    if (row >= static_cast<int64_t>(s.B) * s.NH) return;
    const float* sum = sums + row * s.splits * 2;
    const float* o = partial + row * s.splits * s.HS + i % s.HS;
    float maximum = -INFINITY, total = 0.0f, acc = 0.0f;
    for (int j = 0; j < s.splits; j++) maximum = sum[2 * j] > maximum ? sum[2 * j] : maximum;
#pragma unroll 4
    for (int j = 0; j < s.splits; j++) {
        const float weight = expf(sum[2 * j] - maximum);
        total += weight * sum[2 * j + 1];
        acc += weight * o[static_cast<int64_t>(j) * s.HS];
    }
    out[i] = from_float<floatX>(acc / total);
}

// A thread per pack of the new keys and values, (rows,T,2*NKV,HS).
__global__ void __launch_bounds__(THREADS)
    attention_cache_write_kernel(floatX* cache, int first, int rows, int position, int capacity, const floatX* qkv,
                                 int B, int T, int NH, int NKV, int HS) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    const int packs = HS / PackX::size;
    const int pack = static_cast<int>(i % packs), head = static_cast<int>(i / packs % (2 * NKV));
    const int64_t token = i / packs / (2 * NKV);
    const int t = static_cast<int>(token % T), r = static_cast<int>(token / T);
    if (r >= rows) return;
    const int64_t from = (static_cast<int64_t>(r % B) * T + t) * (NH + 2 * NKV) + NH + head;
    const int64_t place = (static_cast<int64_t>(first + r) * NKV + head % NKV) * capacity + position + t;
    store_pack(cache + (2 * place + head / NKV) * HS + pack * PackX::size,
               load_pack(qkv + from * HS + pack * PackX::size));
}

DecodeShape decode_shape(int B, int length, int capacity, int NH, int NKV, int HS) {
    CHECK(B > 0 && length > 0 && length <= capacity && NH > 0 && NKV > 0 && NH % NKV == 0);
    CHECK(HS > 0 && HS <= 256 && HS % PackX::size == 0);
    DecodeShape s = {};
    s.B = B, s.length = length, s.capacity = capacity, s.NH = NH, s.NKV = NKV, s.HS = HS;
    s.scale = 1.0f / sqrtf(static_cast<float>(HS));
    s.group = NH / NKV;
    s.chunks = ceil_div(s.group, MAX_GROUP);
    s.packs = HS / PackX::size;
    s.slots = THREADS / s.packs;
    const int fitting = SPLIT_PACKS / s.packs / 16 * 16;
    s.keys = fitting < MAX_KEYS ? fitting : MAX_KEYS;
    s.splits = ceil_div(length, s.keys);
    return s;
}

size_t partial_count(const DecodeShape& s) {
    return static_cast<size_t>(round_up(s.partial(s.B, 0, 0) * s.HS, 64));
}

template <int GROUP>
void decode(floatX* out, float* scratch, const floatX* qkv, const floatX* cache, const DecodeShape& s,
            cudaStream_t stream) {
    const int64_t blocks = static_cast<int64_t>(s.splits) * s.chunks * s.NKV * s.B;
    CHECK(blocks < INT32_MAX);
    const size_t bytes = sizeof(Shared) + static_cast<size_t>(GROUP * s.packs * s.score_stride()) * sizeof(float);
    const int64_t heads = static_cast<int64_t>(s.B) * s.NH, whole = s.splits == 1;
    MOVES("attention_decode",
          {reads(qkv, heads * s.HS), reads(cache, static_cast<int64_t>(s.B) * s.NKV * s.length * 2 * s.HS),
           writes(whole ? out : nullptr, heads * s.HS),
           writes(whole ? nullptr : scratch, heads * s.splits * (s.HS + 2))});
    launch(attention_decode_kernel<GROUP>, dim3(static_cast<unsigned>(blocks)), dim3(THREADS), bytes, stream, out,
           scratch, scratch + partial_count(s), qkv, cache, s);
}

}  // namespace

void attention_cache_write(floatX* cache, int first, int rows, int position, int capacity, const floatX* qkv, int B,
                           int T, int NH, int NKV, int HS, cudaStream_t stream) {
    CHECK((B == rows || B == 1) && rows > 0 && T > 0 && position >= 0 && position + T <= capacity);
    CHECK(HS % PackX::size == 0);
    const int64_t threads = static_cast<int64_t>(rows) * T * 2 * NKV * (HS / PackX::size);
    const int64_t row = 2 * static_cast<int64_t>(T) * NKV * HS;
    MOVES("attention_cache_write", {reads(qkv, B * row), writes(cache, rows * row)});
    launch(attention_cache_write_kernel, dim3(static_cast<unsigned>(ceil_div(threads, int64_t{THREADS}))),
           dim3(THREADS), 0, stream, cache, first, rows, position, capacity, qkv, B, T, NH, NKV, HS);
}

size_t attention_decode_scratch_bytes(int B, int length, int NH, int NKV, int HS) {
    const DecodeShape s = decode_shape(B, length, length, NH, NKV, HS);
    return (partial_count(s) + static_cast<size_t>(2 * s.partial(B, 0, 0))) * sizeof(float);
}

void attention_decode(floatX* out, void* scratch, const floatX* qkv, const floatX* cache, int B, int length,
                      int capacity, int NH, int NKV, int HS, cudaStream_t stream) {
    const DecodeShape s = decode_shape(B, length, capacity, NH, NKV, HS);
    float* sums = static_cast<float*>(scratch);
    if (s.group == 1)
        decode<1>(out, sums, qkv, cache, s, stream);
    else if (s.group == 2)
        decode<2>(out, sums, qkv, cache, s, stream);
    else if (s.group <= 4)
        decode<4>(out, sums, qkv, cache, s, stream);
    else
        decode<MAX_GROUP>(out, sums, qkv, cache, s, stream);
    if (s.splits == 1) return;
    const int64_t channels = static_cast<int64_t>(B) * NH * HS;
    MOVES("attention_decode_combine",
          {reads(sums, static_cast<int64_t>(B) * NH * s.splits * (HS + 2)), writes(out, channels)});
    launch(attention_decode_combine_kernel, dim3(static_cast<unsigned>(ceil_div(channels, int64_t{THREADS}))),
           dim3(THREADS), 0, stream, out, sums, sums + partial_count(s), s);
}
