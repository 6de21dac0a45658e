#include "dataloader/prefetch.h"

#include "kernels/error.h"

Prefetcher::Prefetcher(Loader loader, int slots) : loader_(std::move(loader)), slots_(static_cast<size_t>(slots)) {
    CHECK(slots >= 2);
    CUDA_CHECK(cudaGetDevice(&device_));
    const size_t count = static_cast<size_t>(loader_.settings.B) * static_cast<size_t>(loader_.settings.T);
    for (Slot& slot : slots_) {
        CUDA_CHECK(cudaMallocHost(&slot.tokens, 2 * count * sizeof(int)));
        CUDA_CHECK(cudaEventCreateWithFlags(&slot.read, cudaEventDisableTiming | cudaEventBlockingSync));
    }
    thread_ = std::thread([this] { fill(); });
}

Prefetcher::~Prefetcher() {
    {
        std::lock_guard lock(mutex_);
        stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
    for (Slot& slot : slots_) {
        cudaEventSynchronize(slot.read);
        cudaEventDestroy(slot.read);
        cudaFreeHost(slot.tokens);
    }
}

void Prefetcher::fill() {
    CUDA_CHECK(cudaSetDevice(device_));  // a thread begins on the first one, and would leave a context there
    const int64_t slots = static_cast<int64_t>(slots_.size());
    const int64_t count = static_cast<int64_t>(loader_.settings.B) * loader_.settings.T;
    for (int64_t number = 0;; number++) {
        Slot& slot = slots_[static_cast<size_t>(number % slots)];
        {
            std::unique_lock lock(mutex_);
            changed_.wait(lock, [&] { return stop_ || number - released_ < slots; });
            if (stop_) return;
        }
        CUDA_CHECK(cudaEventSynchronize(slot.read));
        loader_next(loader_, slot.tokens, slot.tokens + count);
        slot.after = loader_.at;
        {
            std::lock_guard lock(mutex_);
            filled_ = number + 1;
        }
        changed_.notify_all();
    }
}

Batch Prefetcher::next(cudaStream_t stream) {
    const int64_t slots = static_cast<int64_t>(slots_.size());
    std::unique_lock lock(mutex_);
    if (given_ > released_) {
        CUDA_CHECK(cudaEventRecord(slots_[static_cast<size_t>(released_ % slots)].read, stream));
        released_ = given_;
        changed_.notify_all();
    }
    changed_.wait(lock, [&] { return filled_ > given_; });
    const Slot& slot = slots_[static_cast<size_t>(given_++ % slots)];
    const int64_t count = static_cast<int64_t>(loader_.settings.B) * loader_.settings.T;
    return {slot.tokens, slot.tokens + count, slot.after};
}
