// A training pass from its batch on, as a graph; and what an update found, on its way to the host.
//
// The first pass of its kind queues its kernels one by one, and libraries choose and load what they need. The second is
// recorded while it would be queued, and from then on one launch repeats it. Everything that changes from pass to pass
// is in device memory by then: the batch, and what schedules set before the pass.
#include <algorithm>
#include <cstring>

#include "kernels/upload.cuh"
#include "model/model_state.h"

namespace {

constexpr size_t MAX_GRAPHS = 16;  // kinds of passes that are remembered

// The pass as a graph, or null with a note of why not.
cudaGraphExec_t capture(Model& m, const StepKey& key) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    std::string why;
    // Of this thread alone: another one reads batches meanwhile and waits for their events.
    cudaError_t status = cudaStreamBeginCapture(m.stream, cudaStreamCaptureModeThreadLocal);
    if (status == cudaSuccess) {
        try {
            training_pass(m, key);
        } catch (const CaptureFailed& failed) {
            why = failed.what();
        }
        status = cudaStreamEndCapture(m.stream, &graph);
        if (!why.empty() && graph) CUDA_CHECK(cudaGraphDestroy(graph));  // a part of the pass
    }
    if (status == cudaSuccess && why.empty()) {
        status = cudaGraphInstantiate(&exec, graph, 0);
        CUDA_CHECK(cudaGraphDestroy(graph));
    }
    if (status == cudaSuccess && why.empty()) return exec;
    cudaGetLastError();  // it has been dealt with
    if (why.empty()) why = cudaGetErrorString(status);
    m.graphs->note = "no CUDA graph, kernels are launched one by one: " + why;
    return nullptr;
}

// The batch is where the pass reads it.
void run_pass(Model& m, const StepKey& key) {
    if (m.watching) m.watched = static_cast<int64_t>(key.b) * key.t * m.rule().stream_channels();
    set_schedule(m, false);
    StepGraphs& graphs = *m.graphs;
    if (!graphs.on || !graphs.note.empty()) return training_pass(m, key);
    auto known = std::find_if(graphs.known.begin(), graphs.known.end(), [&](const auto& g) { return g.key == key; });
    if (known == graphs.known.end()) {
        if (graphs.known.size() == MAX_GRAPHS) graphs.forget_oldest();
        graphs.known.push_back({key, nullptr});
        return training_pass(m, key);
    }
    if (!known->exec) known->exec = capture(m, key);
    if (!known->exec) return training_pass(m, key);
    CUDA_CHECK(cudaGraphLaunch(known->exec, m.stream));
}

StepKey step_key(const Model& m, int b, int t, double loss_scale) {
    CHECK(m.use == Use::training && b >= 1 && t >= 1 && static_cast<int64_t>(b) * t <= static_cast<int64_t>(m.B) * m.T);
    return {b, t, static_cast<float>(loss_scale), m.watching, m.accumulated > 0, fp8_calibrates(m)};
}

}  // namespace

void StepGraphs::forget_oldest() {
    if (known.front().exec) CUDA_CHECK(cudaGraphExecDestroy(known.front().exec));
    known.erase(known.begin());
}

StepGraphs::~StepGraphs() {
    while (!known.empty()) forget_oldest();
}

void model_use_graphs(Model& m, bool on) {
    m.graphs->on = on;
}

int model_graphs(const Model& m) {
    int recorded = 0;
    for (const StepGraph& graph : m.graphs->known) recorded += graph.exec != nullptr;
    return recorded;
}

const std::string& model_graph_note(const Model& m) {
    return m.graphs->note;
}

void model_forward_backward(Model& m, const int* inputs, const int* targets, int b, int t, double loss_scale) {
    const StepKey key = step_key(m, b, t, loss_scale);
    const size_t N = static_cast<size_t>(b) * static_cast<size_t>(t);
    m.host_groups.resize(token_groups_capacity(N));
    upload(m, m.tokens, inputs, N);
    upload(m, m.tokens + N, targets, N);
    upload(m, m.tokens + 2 * N, m.host_groups.data(), group_tokens(m.host_groups.data(), inputs, static_cast<int>(N)));
    run_pass(m, key);
    m.accumulated++;
}

void model_forward_backward_device(Model& m, const int* batch, size_t count, int b, int t, double loss_scale) {
    const StepKey key = step_key(m, b, t, loss_scale);
    CUDA_CHECK(cudaMemcpyAsync(m.tokens, batch, count * sizeof(int), cudaMemcpyDeviceToDevice, m.stream));
    run_pass(m, key);
    m.accumulated++;
}

double model_take_loss(Model& m) {
    const traffic::Range range("loss");
    double sum = 0;
    CUDA_CHECK(cudaMemcpyAsync(&sum, m.loss_sum, sizeof sum, cudaMemcpyDeviceToHost, m.stream));
    set_zero(m.loss_sum, sizeof sum, m.stream);
    CUDA_CHECK(cudaStreamSynchronize(m.stream));
    return sum;
}

// ---------------------------------------------------------------------------------------------------------------------
// Results of updates

namespace {

void make_event(cudaEvent_t& event) {  // who waits for it sleeps: nobody is in a hurry, a step is queued already
    if (!event) CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventBlockingSync));
}

}  // namespace

UpdateResults::~UpdateResults() {
    for (Slot& slot : slots) {
        if (slot.ready) cudaEventDestroy(slot.ready);
        if (slot.sums) cudaFreeHost(slot.sums);
    }
    if (start) cudaEventDestroy(start);
}

void queue_result(Model& m, Comm* comm, double mark) {
    UpdateResults& results = *m.results;
    CHECK(results.queued - results.taken < UpdateResults::MOST);
    UpdateResults::Slot& slot = results.slot(results.queued++);
    const size_t ranks = comm ? static_cast<size_t>(comm_size(comm)) : 1;
    if (slot.ranks < ranks) {  // the norm stands behind the sums
        if (slot.sums) CUDA_CHECK(cudaFreeHost(slot.sums));
        CUDA_CHECK(cudaMallocHost(&slot.sums, (2 * ranks + 1) * sizeof(double)));
    }
    slot.ranks = ranks;
    make_event(slot.ready);
    upload_values(m.loss_sum + 1, &mark, sizeof mark, m.stream);
    const double* sums = comm ? comm_gather(comm, m.loss_sum, 2, m.stream) : m.loss_sum;
    CUDA_CHECK(cudaMemcpyAsync(slot.sums, sums, 2 * ranks * sizeof(double), cudaMemcpyDeviceToHost, m.stream));
    CUDA_CHECK(cudaMemcpyAsync(slot.sums + 2 * ranks, m.clip, sizeof(float), cudaMemcpyDeviceToHost, m.stream));
    set_zero(m.loss_sum, sizeof(double), m.stream);
    CUDA_CHECK(cudaEventRecord(slot.ready, m.stream));
}

void model_start_clock(Model& m) {
    make_event(m.results->start);
    CUDA_CHECK(cudaEventRecord(m.results->start, m.stream));
    m.results->started = true;
}

UpdateResult model_result(Model& m) {
    UpdateResults& results = *m.results;
    CHECK(results.taken < results.queued);
    const UpdateResults::Slot& slot = results.slot(results.taken);
    CUDA_CHECK(cudaEventSynchronize(slot.ready));
    UpdateResult result = {slot.sums[0], 0.0, slot.sums[1], 0.0};
    for (size_t r = 1; r < slot.ranks; r++) {  // in the order of the ranks
        result.loss_sum += slot.sums[2 * r];
        result.mark += slot.sums[2 * r + 1];
    }
    float norm = 0;
    memcpy(&norm, slot.sums + 2 * slot.ranks, sizeof norm);
    result.grad_norm = norm;
    const cudaEvent_t since = results.started ? results.start : results.last;
    float ms = 0;
    if (since) CUDA_CHECK(cudaEventElapsedTime(&ms, since, slot.ready));
    result.ms = ms;
    results.started = false;
    results.last = slot.ready;
    results.taken++;
    return result;
}
