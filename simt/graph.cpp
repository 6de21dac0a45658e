// Stream capture and graphs of the CUDA runtime stand-in: what was recorded runs again in the same order.
#include <memory>
#include <utility>

#include "runtime.h"

using simt::done;

struct simt_graph {
    std::vector<simt::Node> nodes;
};
struct simt_graph_exec {
    std::vector<simt::Node> nodes;
};

cudaError_t simt::spoil(cudaStream_t stream, cudaError_t error) {
    stream->capture->spoiled = true;
    return done(error);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    if (simt::is_legacy(stream)) return done(cudaErrorStreamCaptureUnsupported);
    if (mode < cudaStreamCaptureModeGlobal || mode > cudaStreamCaptureModeRelaxed) return done(cudaErrorInvalidValue);
    if (stream->capture) return done(cudaErrorIllegalState);
    if (simt::capturing_stream) return done(cudaErrorNotSupported);
    stream->capture = new simt::Capture{{}, mode, false};
    simt::capturing_stream = stream;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    if (!graph) return done(cudaErrorInvalidValue);
    *graph = nullptr;
    if (!simt::is_capturing(stream)) return done(cudaErrorIllegalState);
    if (simt::capturing_stream != stream) return simt::spoil(stream, cudaErrorStreamCaptureWrongThread);
    const std::unique_ptr<simt::Capture> capture(std::exchange(stream->capture, nullptr));
    simt::capturing_stream = nullptr;
    if (capture->spoiled) return done(cudaErrorStreamCaptureInvalidated);
    *graph = new simt_graph{std::move(capture->nodes)};
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    if (!status) return done(cudaErrorInvalidValue);
    if (!simt::is_capturing(stream))
        *status = cudaStreamCaptureStatusNone;
    else
        *status = stream->capture->spoiled ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
    if (!graph || !count) return done(cudaErrorInvalidValue);
    if (nodes) return done(cudaErrorNotSupported);
    *count = graph->nodes.size();
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags) {
    SIMT_REFUSE_IN_CAPTURE();
    if (!exec || !graph || flags != 0) return done(cudaErrorInvalidValue);
    *exec = new simt_graph_exec{graph->nodes};
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    if (!exec) return done(cudaErrorInvalidValue);
    if (simt::is_capturing(stream)) return simt::spoil(stream, cudaErrorStreamCaptureUnsupported);
    return simt::enqueue(stream, [exec] {
        for (const simt::Node& node : exec->nodes)
            if (cudaError_t error = node(); error != cudaSuccess) return error;
        return cudaSuccess;
    });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    if (!exec) return done(cudaErrorInvalidValue);
    delete exec;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    if (!graph) return done(cudaErrorInvalidValue);
    delete graph;
    return cudaSuccess;
}
