#include "kernels/traffic.h"

#include <nvtx3/nvToolsExt.h>

#include <cstdio>

#include "kernels/common.cuh"

namespace traffic {

namespace {

// Two events around each launch that is timed.
struct Timed {
    size_t operation;
    cudaEvent_t begin, end;
};

struct Recorder {
    bool timed = false;
    bool declared = false;  // `next` holds a declaration that no launch has taken yet
    Operation next;
    std::vector<Array> arrays;  // of `next`
    std::vector<Operation> operations;
    std::vector<Timed> times;
    cudaEvent_t begin = nullptr;
};
Recorder recorder;
const char* current_range = "";

void take(const char* name, std::initializer_list<Array> arrays, double flops, bool product) {
    recorder.next = {current_range, name, 1, 0, 0, flops, 0, product};
    recorder.declared = true;
    recorder.arrays.clear();
    declare_more(arrays);
}

// Among a few dozen.
size_t find(const Operation& one) {
    for (size_t i = 0; i < recorder.operations.size(); i++)
        if (recorder.operations[i].name == one.name && recorder.operations[i].range == one.range) return i;
    recorder.operations.push_back({one.range, one.name, 0, 0, 0, 0, 0, one.product});
    return recorder.operations.size() - 1;
}

cudaEvent_t event_now(cudaStream_t stream) {
    cudaEvent_t event = nullptr;
    CUDA_CHECK(cudaEventCreate(&event));
    CUDA_CHECK(cudaEventRecord(event, stream));
    return event;
}

}  // namespace

void start(bool timed) {
    recorder = {};
    recorder.timed = timed;
    counting = true;
}

std::vector<Operation> stop() {
    counting = false;
    for (const Timed& t : recorder.times) {
        float ms = 0;
        CUDA_CHECK(cudaEventSynchronize(t.end));
        CUDA_CHECK(cudaEventElapsedTime(&ms, t.begin, t.end));
        recorder.operations[t.operation].ms += ms;
        CUDA_CHECK(cudaEventDestroy(t.begin));
        CUDA_CHECK(cudaEventDestroy(t.end));
    }
    return std::move(recorder.operations);
}

void declare(const char* name, std::initializer_list<Array> arrays, double flops) {
    take(name, arrays, flops, false);
}
void declare_more(std::initializer_list<Array> arrays) {
    for (const Array& a : arrays) {
        bool read = a.read, written = a.written;
        for (const Array& b : recorder.arrays) {
            if (!a.data || b.data != a.data || b.bytes != a.bytes) continue;
            read &= !b.read;
            written &= !b.written;
        }
        recorder.arrays.push_back(a);
        recorder.next.read += read ? a.bytes : 0;
        recorder.next.written += written ? a.bytes : 0;
    }
}
void declare_product(const char* name, std::initializer_list<Array> arrays, double flops) {
    take(name, arrays, flops, true);
}

void begin_launch(cudaStream_t stream) {
    if (!recorder.declared) take(UNDECLARED, {}, 0, false);
    recorder.declared = false;
    if (recorder.timed) recorder.begin = event_now(stream);
}

void end_launch(cudaStream_t stream) {
    const size_t i = find(recorder.next);
    Operation& sum = recorder.operations[i];
    sum.launches++;
    sum.read += recorder.next.read;
    sum.written += recorder.next.written;
    sum.flops += recorder.next.flops;
    if (recorder.timed) recorder.times.push_back({i, recorder.begin, event_now(stream)});
    if (listener) listener(recorder.next);
}

Range::Range(const char* name, int layer) : outer_(current_range) {
    current_range = name;
    char text[64];
    if (layer >= 0) snprintf(text, sizeof text, "%s %d", name, layer);
    nvtxRangePushA(layer >= 0 ? text : name);
}
Range::~Range() {
    nvtxRangePop();
    current_range = outer_;
}

}  // namespace traffic
