#include "dataloader/prefetch.h"

#include "kernels/embedding.cuh"

Prefetcher::Prefetcher(Loader loader, int slots) : loader_(std::move(loader)), slots_(static_cast<size_t>(slots)) {
    CHECK(slots >= 2);
    CUDA_CHECK(cudaGetDevice(&device_));
    const size_t count = static_cast<size_t>(loader_.settings.B) * static_cast<size_t>(loader_.settings.T);
    const size_t bytes = (2 * count + token_groups_capacity(count)) * sizeof(int);
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    for (Slot& slot : slots_) {
        CUDA_CHECK(cudaMallocHost(&slot.pinned, bytes));
        CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&slot.device), bytes));
        CUDA_CHECK(cudaEventCreateWithFlags(&slot.copied, cudaEventDisableTiming));
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
    cudaStreamSynchronize(stream_);
    for (Slot& slot : slots_) {
        cudaEventSynchronize(slot.read);
        cudaEventDestroy(slot.read);
        cudaEventDestroy(slot.copied);
        cudaFree(slot.device);
        cudaFreeHost(slot.pinned);
    }
    cudaStreamDestroy(stream_);
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
        loader_next(loader_, slot.pinned, slot.pinned + count);
        slot.after = loader_.at;
        slot.count = 2 * count + group_tokens(slot.pinned + 2 * count, slot.pinned, static_cast<int>(count));
        CUDA_CHECK(
            cudaMemcpyAsync(slot.device, slot.pinned, slot.count * sizeof(int), cudaMemcpyHostToDevice, stream_));
        CUDA_CHECK(cudaEventRecord(slot.copied, stream_));
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
    CUDA_CHECK(cudaStreamWaitEvent(stream, slot.copied));
    return {slot.device, slot.count, slot.after};
}
