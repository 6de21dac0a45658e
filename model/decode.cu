// Decoding with a cache of keys and values. Everything between sublayers works on token rows, whatever the residual
// rule, so a step is the ordinary forward pass of one token per sequence; only attention looks back.
#include <algorithm>

#include "kernels/attention_decode.cuh"
#include "model/model_state.h"

struct Decoder {
    Model& model;
    int rows, length = 0;
    KvCache cache;
};

namespace {

int64_t layer_count(const ModelConfig& c, int rows, int capacity) {
    return attention_cache_count(rows, c.kv_heads, capacity, c.head_size());
}
size_t cache_bytes(const ModelConfig& c, int rows, int capacity) {
    const size_t bytes = static_cast<size_t>(c.layers * layer_count(c, rows, capacity)) * sizeof(floatX);
    return static_cast<size_t>(round_up(static_cast<int64_t>(bytes), 256));
}

// Rows first .. first+rows-1 of the cache, from b sequences of t tokens at the decoder's position.
void pass(Decoder& d, int first, int rows, const int* tokens, int b, int t) {
    d.cache.first = first;
    d.cache.rows = rows;
    d.cache.position = d.length;
    upload(d.model, d.model.tokens, tokens, static_cast<size_t>(b) * static_cast<size_t>(t));
    forward(d.model, b, t, true, &d.cache);
}

}  // namespace

size_t decoder_bytes(const ModelConfig& config, int rows, int capacity) {
    return cache_bytes(config, rows, capacity) +
           attention_decode_scratch_bytes(rows, capacity, config.heads, config.kv_heads, config.head_size());
}

int decoder_rows(const Model& m, int wanted, int capacity) {
    size_t free_bytes = 0, all_bytes = 0;
    CUDA_CHECK(cudaMemGetInfo(&free_bytes, &all_bytes));
    int rows = static_cast<int>(std::min<int64_t>({wanted, m.chunk, static_cast<int64_t>(m.B) * m.T}));
    // Half of what is free is left to the host and to the workspaces of products.
    while (rows > 1 && decoder_bytes(m.config, rows, capacity) > free_bytes / 2) rows = (rows + 1) / 2;
    return rows;
}

DecoderPtr decoder_create(Model& m, int rows, int capacity) {
    CHECK(rows >= 1 && rows <= m.chunk && rows <= m.B * m.T);
    CHECK(capacity >= 1 && capacity <= m.config.context && capacity <= m.B * m.T);
    const size_t bytes = decoder_bytes(m.config, rows, capacity);
    void* memory = nullptr;
    if (cudaMalloc(&memory, bytes) != cudaSuccess)
        throw user_error("out of memory: %.2f GiB for the keys and values of %d x %d tokens of text to be generated",
                         static_cast<double>(bytes) / (1 << 30), rows, capacity);
    DecoderPtr decoder(new Decoder{m, rows, 0, {}});
    KvCache& cache = decoder->cache;
    cache.data = static_cast<floatX*>(memory);
    cache.layer_count = layer_count(m.config, rows, capacity);
    cache.capacity = capacity;
    cache.scratch = static_cast<char*>(memory) + cache_bytes(m.config, rows, capacity);
    return decoder;
}

void DecoderDeleter::operator()(Decoder* decoder) const {
    CUDA_CHECK(cudaStreamSynchronize(decoder->model.stream));
    CUDA_CHECK(cudaFree(decoder->cache.data));
    delete decoder;
}

int decoder_length(const Decoder& decoder) {
    return decoder.length;
}

void decoder_start(Decoder& d, const int* tokens, int t, float* logits) {
    CHECK(t >= 1 && t <= d.cache.capacity);
    d.length = 0;
    pass(d, 0, d.rows, tokens, 1, t);
    logits_of(d.model, t - 1, 1, logits);
    d.length = t;
}

void decoder_restart(Decoder& d, const int* tokens, int t, float* logits) {
    CHECK(t >= 1 && t <= d.cache.capacity);
    d.length = 0;
    for (int r = 0; r < d.rows; r++) {  // one at a time: the model's buffers need not hold all
        pass(d, r, 1, tokens + static_cast<int64_t>(r) * t, 1, t);
        logits_of(d.model, t - 1, 1, logits + static_cast<int64_t>(r) * d.model.config.vocab);
    }
    d.length = t;
}

void decoder_step(Decoder& d, const int* tokens, float* logits) {
    CHECK(d.length >= 1 && d.length < d.cache.capacity);
    pass(d, 0, d.rows, tokens, d.rows, 1);
    logits_of(d.model, 0, d.rows, logits);
    d.length++;
}
