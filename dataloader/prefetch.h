// Micro-batches read ahead: a thread of its own takes them from the loader (page faults and disk included), groups
// their tokens, and copies them to the device on a stream of its own, while the training thread and the device go on.
#pragma once
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "dataloader/loader.h"
#include "kernels/common.cuh"

struct Batch {
    const int* device;     // inputs (B,T) | targets (B,T) | groups of the inputs (kernels/embedding.cuh)
    size_t count;          // ints
    LoaderPosition after;  // where the loader stands behind it: what a checkpoint keeps
};

class Prefetcher {
  public:
    // Starts reading at the loader's position, at most `slots` - 1 micro-batches ahead (slots >= 2).
    explicit Prefetcher(Loader loader, int slots = 4);
    ~Prefetcher();
    Prefetcher(const Prefetcher&) = delete;
    Prefetcher& operator=(const Prefetcher&) = delete;

    // The next micro-batch, waiting for the loader if need be. Work queued on `stream` from here to the next call may
    // read it: `stream` waits for its copy, and its memory is only written again when the stream has passed that call.
    Batch next(cudaStream_t stream);

  private:
    struct Slot {
        int* pinned = nullptr;  // as in Batch
        int* device = nullptr;
        size_t count = 0;
        LoaderPosition after;
        cudaEvent_t copied = nullptr;  // it is on the device
        cudaEvent_t read = nullptr;    // it has been read there
    };
    void fill();
    Loader loader_;
    std::vector<Slot> slots_;
    std::mutex mutex_;
    std::condition_variable changed_;
    int64_t filled_ = 0, given_ = 0, released_ = 0;  // micro-batches so far; slot = number % slots
    bool stop_ = false;
    int device_ = 0;
    cudaStream_t stream_ = nullptr;
    std::thread thread_;
};
