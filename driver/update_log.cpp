#include "driver/update_log.h"

#include <cmath>

#include "kernels/error.h"

void UpdateLog::add(const StepRecord& record, LayerStats* stats) {
    queued_.push_back({record, stats});
}

std::string UpdateLog::take() {
    StepRecord record = queued_.front().record;
    LayerStats* stats = queued_.front().stats;
    queued_.pop_front();
    CHECK(stats == nullptr || queued_.empty());
    const UpdateResult result = model_result(model_);
    record.loss = result.loss_sum / static_cast<double>(record.update_tokens);
    record.grad_norm = result.grad_norm;
    record.ms = result.ms;
    last_taken_ = record.step;
    stop_ = stop_ || result.mark > 0;
    if (!note_said_ && !model_graph_note(model_).empty()) {
        log_line(log_, model_graph_note(model_));
        note_said_ = true;
    }
    log_step(log_, record);
    if (stats != nullptr) stats->log(model_, log_, record.step);

    // A gradient that is no number leaves the weights as they were (model_update); a loss that is none comes from the
    // weights themselves, and no further update mends them.
    const bool changed = std::isfinite(record.grad_norm);
    if (changed) last_change_ = record.step;
    skips_ = changed ? 0 : skips_ + 1;
    if (skips_ > 0) log_skip(log_, record.step, "the gradient norm is not finite");
    if (!std::isfinite(record.loss)) return "the loss is not finite";
    return skips_ == MAX_SKIPS ? format("%d updates in a row had no finite gradient", MAX_SKIPS) : "";
}
