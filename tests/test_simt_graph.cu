// Stream capture and graphs of the CPU machine: what is recorded, with which values, and what is refused.
#include "test.h"

#if __has_include(<simt.h>)  // the CPU machine's include path
#include <nccl.h>

#include <cstring>
#include <thread>

#include "kernels/matmul.cuh"
#include "parallel/comm.h"

namespace {

struct Step {
    int add, times;
};
__global__ void affine_kernel(int* p, Step step) {
    int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    p[i] = (p[i] + step.add) * step.times;
}

struct Stream {
    cudaStream_t stream = nullptr;
    explicit Stream(unsigned flags = cudaStreamDefault) { CUDA_CHECK(cudaStreamCreateWithFlags(&stream, flags)); }
    ~Stream() { cudaStreamDestroy(stream); }
    operator cudaStream_t() const { return stream; }
};

struct Graph {
    cudaGraphExec_t exec = nullptr;
    size_t nodes = 0;
    template <class Work>
    Graph(cudaStream_t stream, Work&& work) {
        CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        work();
        cudaGraph_t graph = nullptr;
        CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
        CUDA_CHECK(cudaGraphGetNodes(graph, nullptr, &nodes));
        CUDA_CHECK(cudaGraphInstantiate(&exec, graph));
        CUDA_CHECK(cudaGraphDestroy(graph));  // what was instantiated stays
    }
    ~Graph() { cudaGraphExecDestroy(exec); }
};

cudaStreamCaptureStatus status_of(cudaStream_t stream) {
    cudaStreamCaptureStatus status;
    CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
    return status;
}

}  // namespace

TEST_CASE("a graph does later what was called, with the values of then", "[graph]") {
    Stream stream;
    Device<int> a(std::vector<int>(64, 1)), b(std::vector<int>(64, 100));
    Step step = {2, 3};
    int* target = a.data;
    Graph graph(stream, [&] {
        CHECK(status_of(stream) == cudaStreamCaptureStatusActive);
        launch(affine_kernel, 2, 32, 0, stream, target, step);
        step = {50, 7};  // too late
        target = b.data;
        CUDA_CHECK(cudaMemcpyAsync(b.data, a.data, 32 * sizeof(int), cudaMemcpyDeviceToDevice, stream));
        CUDA_CHECK(cudaMemsetAsync(b.data + 63, 0, sizeof(int), stream));
        CHECK(a.data[0] == 1);  // nothing has happened: device memory is host memory here
        CHECK(b.data[0] == 100);
        CHECK(b.data[63] == 100);
    });
    CHECK(graph.nodes == 3);
    CHECK(status_of(stream) == cudaStreamCaptureStatusNone);
    CHECK(a.read()[5] == 1);
    CUDA_CHECK(cudaGraphLaunch(graph.exec, stream));
    CHECK(a.read()[5] == 9);
    CHECK(b.read()[5] == 9);
    CHECK(b.read()[40] == 100);
    CHECK(b.read()[63] == 0);
    a.write(std::vector<int>(64, -2));  // memory is read anew
    CUDA_CHECK(cudaGraphLaunch(graph.exec, stream));
    CHECK(a.read()[63] == 0);
    CHECK(b.read()[31] == 0);
}

TEST_CASE("a product in a graph keeps its descriptors, pointers and scalars", "[graph]") {
    constexpr int N = 16, C = 32, OC = 24;
    Stream stream;
    Random random(3);
    Matmul* mm = matmul_create();
    const auto x = random.normals<floatX>(N * C), w = random.normals<floatX>(OC * C);
    const auto first = random.normals<floatX>(OC), second = random.normals<floatX>(OC);
    Device<floatX> inp(x), weight(w), bias(first), other_bias(second), out(N * OC), want(N * OC), dout(N * OC);
    Device<float> dweight(OC * C), want_dweight(OC * C);
    dweight.zero();
    want_dweight.zero();
    dout.write(random.normals<floatX>(N * OC));
    auto forward = [&](floatX* to, const floatX* with) {
        matmul_forward(mm, to, inp.data, weight.data, with, N, C, OC, stream);
    };
    auto backward = [&](float* to) { matmul_backward_weight(mm, to, dout.data, inp.data, N, C, OC, true, stream); };
    forward(want.data, bias.data);
    backward(want_dweight.data);
    backward(want_dweight.data);
    out.zero();
    Graph graph(stream, [&] {
        forward(out.data, bias.data);
        backward(dweight.data);
    });
    CHECK(graph.nodes == 2);
    CHECK(to_float(out.read()[0]) == 0.0f);
    forward(out.data, other_bias.data);  // the same descriptor, with another pointer in it
    for (int i = 0; i < 2; i++) CUDA_CHECK(cudaGraphLaunch(graph.exec, stream));
    CHECK(memcmp(out.read().data(), want.read().data(), N * OC * sizeof(floatX)) == 0);
    CHECK(memcmp(dweight.read().data(), want_dweight.read().data(), OC * C * sizeof(float)) == 0);
    matmul_destroy(mm);
}

TEST_CASE("what cannot be recorded is refused and spoils the capture", "[graph]") {
    Stream stream;
    Device<int> a(std::vector<int>(8, 1));
    int pageable[8] = {};
    int* pinned = nullptr;
    CUDA_CHECK(cudaMallocHost(&pinned, sizeof pageable));
    cudaEvent_t event = nullptr;
    CUDA_CHECK(cudaEventCreate(&event));
    CUDA_CHECK(cudaEventRecord(event, stream));
    auto launch_on = [&](cudaStream_t on) {
        cudaLaunchConfig_t config = {};
        config.gridDim = 1;
        config.blockDim = 8;
        config.stream = on;
        return cudaLaunchKernelEx(&config, affine_kernel, a.data, Step{1, 1});
    };
    void* memory = nullptr;
    struct Refused {
        const char* what;
        cudaError_t error;
        std::function<cudaError_t()> call;
    };
    const cudaMemcpyKind kind = cudaMemcpyDefault;
    const std::vector<Refused> all = {
        {"wait for the stream", cudaErrorStreamCaptureUnsupported, [&] { return cudaStreamSynchronize(stream); }},
        {"wait for the device", cudaErrorStreamCaptureUnsupported, [&] { return cudaDeviceSynchronize(); }},
        {"wait for an event", cudaErrorStreamCaptureUnsupported, [&] { return cudaEventSynchronize(event); }},
        {"ask an event", cudaErrorStreamCaptureUnsupported, [&] { return cudaEventQuery(event); }},
        {"ask the stream", cudaErrorStreamCaptureUnsupported, [&] { return cudaStreamQuery(stream); }},
        {"allocate", cudaErrorStreamCaptureUnsupported, [&] { return cudaMalloc(&memory, 64); }},
        {"allocate pinned memory", cudaErrorStreamCaptureUnsupported, [&] { return cudaMallocHost(&memory, 64); }},
        {"free", cudaErrorStreamCaptureUnsupported, [&] { return cudaFree(a.data); }},
        {"a copy that waits", cudaErrorStreamCaptureUnsupported, [&] { return cudaMemcpy(pinned, a.data, 4, kind); }},
        {"a copy of pageable memory", cudaErrorStreamCaptureUnsupported,
         [&] { return cudaMemcpyAsync(a.data, pageable, sizeof pageable, kind, stream); }},
        {"a copy to pageable memory", cudaErrorStreamCaptureUnsupported,
         [&] { return cudaMemcpyAsync(pageable, a.data, sizeof pageable, kind, stream); }},
        {"a kernel on the legacy stream", cudaErrorStreamCaptureImplicit, [&] { return launch_on(nullptr); }},
        {"an event from outside", cudaErrorStreamCaptureIsolation, [&] { return cudaStreamWaitEvent(stream, event); }},
        {"the end of the stream", cudaErrorStreamCaptureUnsupported, [&] { return cudaStreamDestroy(stream); }},
    };
    for (const Refused& one : all) {
        INFO(one.what);
        CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        CHECK(launch_on(stream) == cudaSuccess);
        CHECK(one.call() == one.error);
        CHECK(cudaGetLastError() == one.error);
        CHECK(status_of(stream) == cudaStreamCaptureStatusInvalidated);
        CHECK(launch_on(stream) == cudaErrorStreamCaptureInvalidated);
        cudaGraph_t graph = reinterpret_cast<cudaGraph_t>(&stream);
        CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
        CHECK(graph == nullptr);
        CHECK(launch_on(stream) == cudaSuccess);  // the stream goes on
        cudaGetLastError();
    }
    CHECK(a.read()[0] == 1 + static_cast<int>(all.size()));

    // What may be recorded though it looks like those.
    Graph graph(stream, [&] {
        CUDA_CHECK(cudaMemcpyAsync(pinned, a.data, sizeof pageable, kind, stream));
        CUDA_CHECK(cudaEventRecord(event, stream));
        CUDA_CHECK(cudaStreamWaitEvent(stream, event));
    });
    CHECK(cudaEventSynchronize(event) == cudaErrorCapturedEvent);
    CUDA_CHECK(cudaGraphLaunch(graph.exec, stream));
    CHECK(pinned[7] == a.read()[7]);
    cudaEventDestroy(event);
    cudaFreeHost(pinned);
    cudaGetLastError();
}

TEST_CASE("captures: modes, threads and misuse", "[graph]") {
    Stream stream, free_stream(cudaStreamNonBlocking);
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal) == cudaErrorStreamCaptureUnsupported);
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorIllegalState);
    CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaErrorIllegalState);
    cudaError_t allocated = cudaErrorNotReady, ended = cudaErrorNotReady;
    std::thread([&] {  // another thread does what this one may not
        void* memory = nullptr;
        allocated = cudaMalloc(&memory, 64);
        cudaFree(memory);
    }).join();
    CHECK(allocated == cudaSuccess);
    CHECK(status_of(stream) == cudaStreamCaptureStatusActive);
    std::thread([&] { ended = cudaStreamEndCapture(stream, &graph); }).join();
    CHECK(ended == cudaErrorStreamCaptureWrongThread);
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);

    // Relaxed: nothing is kept from this thread. A stream that does not wait for the legacy one does not mind it.
    Device<int> a(std::vector<int>(8, 1));
    CUDA_CHECK(cudaStreamBeginCapture(free_stream, cudaStreamCaptureModeRelaxed));
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
    launch(affine_kernel, 1, 8, 0, nullptr, a.data, Step{1, 2});
    CHECK(a.read()[0] == 4);
    CUDA_CHECK(cudaStreamEndCapture(free_stream, &graph));
    size_t nodes = 7;
    CUDA_CHECK(cudaGraphGetNodes(graph, nullptr, &nodes));
    CHECK(nodes == 0);
    cudaGraphDestroy(graph);
    cudaGetLastError();
}

TEST_CASE("an error in a capture is an exception, not the end of the program", "[graph]") {
    Stream stream;
    CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    CHECK_THROWS_AS([&] { CUDA_CHECK(cudaStreamSynchronize(stream)); }(), CaptureFailed);
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
    cudaGetLastError();
}

TEST_CASE("collectives stay outside of graphs", "[graph]") {
    ncclUniqueId id;
    ncclComm_t comm = nullptr;
    REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
    REQUIRE(ncclCommInitRank(&comm, 1, id, 0) == ncclSuccess);
    Stream stream;
    Device<float> a(std::vector<float>(8, 1.0f));
    CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    CHECK(ncclAllReduce(a.data, a.data, 8, ncclFloat32, ncclSum, comm, stream) == ncclInvalidUsage);
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
    CHECK(ncclAllReduce(a.data, a.data, 8, ncclFloat32, ncclSum, comm, stream) == ncclSuccess);
    ncclCommDestroy(comm);
    cudaGetLastError();
}

#endif
