// Shared by runtime.cpp, memory.cpp, graph.cpp and the stand-in libraries.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <vector>

namespace simt {

cudaError_t done(cudaError_t error);   // remembers a failure for cudaGetLastError
size_t read_number(const char* path);  // the file's first word; 0 if there is none
size_t total_memory();                 // of the machine or the container

// What a graph does, one after the other.
using Node = std::function<cudaError_t()>;
struct Capture {
    std::vector<Node> nodes;
    cudaStreamCaptureMode mode;
    bool spoiled = false;
};

}  // namespace simt

struct simt_stream {
    int priority;
    simt::Capture* capture = nullptr;
    bool is_blocking = true;  // waits for the legacy stream, and that one for it
};

namespace simt {

// What the calling thread captures, or null. One capture at a time.
inline thread_local simt_stream* capturing_stream = nullptr;

inline bool is_legacy(cudaStream_t stream) {
    return !stream || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
}
inline bool is_capturing(cudaStream_t stream) {
    return !is_legacy(stream) && stream->capture;
}
// Spoils the capture of `stream` and gives the error back.
cudaError_t spoil(cudaStream_t stream, cudaError_t error);
// What a call that waits, allocates or frees begins with: refused in a thread that captures.
inline cudaError_t refuse_in_capture() {
    if (!capturing_stream || capturing_stream->capture->mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
    return spoil(capturing_stream, cudaErrorStreamCaptureUnsupported);
}
// What a call that queues work on a stream does: now, or as a node of the graph that the stream captures. The legacy
// stream would wait for the capturing one, which is refused.
template <class Work>
cudaError_t enqueue(cudaStream_t stream, Work&& work) {
    if (!capturing_stream) [[likely]]
        return is_capturing(stream) ? spoil(stream, cudaErrorStreamCaptureWrongThread) : work();
    if (is_legacy(stream) && capturing_stream->is_blocking)
        return spoil(capturing_stream, cudaErrorStreamCaptureImplicit);
    if (!is_capturing(stream)) return work();
    if (stream->capture->spoiled) return done(cudaErrorStreamCaptureInvalidated);
    stream->capture->nodes.emplace_back(std::forward<Work>(work));
    return cudaSuccess;
}
#define SIMT_REFUSE_IN_CAPTURE() \
    if (cudaError_t refused = simt::refuse_in_capture(); refused != cudaSuccess) return refused

}  // namespace simt
