// Micro-batches read ahead: a thread of its own takes them from the loader (page faults and disk included) and puts
// them into pinned memory, from which the device copies them while the training thread goes on.
#pragma once
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "dataloader/loader.h"
#include "kernels/common.cuh"

struct Batch {
    const int* inputs;     // (B,T) pinned
    const int* targets;    // (B,T) pinned
    LoaderPosition after;  // where the loader stands behind it: what a checkpoint keeps
};

class Prefetcher {
  public:
    // Starts reading at the loader's position, at most `slots` - 1 micro-batches ahead (slots >= 2).
    explicit Prefetcher(Loader loader, int slots = 4);
    ~Prefetcher();
    Prefetcher(const Prefetcher&) = delete;
    Prefetcher& operator=(const Prefetcher&) = delete;

    // The next micro-batch, waiting for it if need be; it stays valid until the next call. What has been queued on
    // `stream` by then may still read it: its memory is only written again when the stream has passed this point.
    Batch next(cudaStream_t stream);

  private:
    struct Slot {
        int* tokens = nullptr;  // (2,B,T) pinned: inputs, targets
        LoaderPosition after;
        cudaEvent_t read = nullptr;  // passed when the device has read it
    };
    void fill();
    Loader loader_;
    std::vector<Slot> slots_;
    std::mutex mutex_;
    std::condition_variable changed_;
    int64_t filled_ = 0, given_ = 0, released_ = 0;  // micro-batches so far; slot = number % slots
    bool stop_ = false;
    int device_ = 0;
    std::thread thread_;
};
