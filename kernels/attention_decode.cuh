// Attention of text that grows token by token: each sequence has one new query, and the keys and values of everything
// before it wait in a cache. The same softmax(q k^T / sqrt(HS)) v as kernels/attention.cuh gives for the last row.
//
// cache (rows,NKV,capacity,2,HS): of a sequence and key head, position by position, the key (turned by rope where the
// model has it) and the value, so that what one block reads lies in one piece. qkv is packed as in attention.cuh.
// HS * sizeof(floatX) is a multiple of 16 bytes, HS <= 256; NH is a multiple of NKV.
#pragma once
#include "kernels/common.cuh"

constexpr int64_t attention_cache_count(int rows, int NKV, int capacity, int HS) {
    return static_cast<int64_t>(rows) * NKV * capacity * 2 * HS;
}

// cache rows first .. first+rows-1, positions position .. position+T-1 = the keys and values of qkv
// (B,T,(NH+2*NKV)*HS). B is `rows`, or 1: then all these rows begin alike.
void attention_cache_write(floatX* cache, int first, int rows, int position, int capacity, const floatX* qkv, int B,
                           int T, int NH, int NKV, int HS, cudaStream_t stream);

// Bytes of scratch for attention_decode of up to `length` positions, 256-byte aligned.
size_t attention_decode_scratch_bytes(int B, int length, int NH, int NKV, int HS);

// out (B,NH*HS): the queries of qkv (B,(NH+2*NKV)*HS) over positions 0..length-1 of cache rows 0..B-1; the token's own
// key and value are the last of them and are in the cache already. A row's result does not depend on the others.
// Deterministic.
void attention_decode(floatX* out, void* scratch, const floatX* qkv, const floatX* cache, int B, int length,
                      int capacity, int NH, int NKV, int HS, cudaStream_t stream);
