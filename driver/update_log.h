// The results of updates, which are read while the next update runs already, so that the device never waits for the
// host: what they are logged as, and what follows from them.
#pragma once
#include <deque>
#include <string>

#include "driver/layer_stats.h"
#include "driver/log.h"
#include "model/model.h"

constexpr int MAX_SKIPS = 10;  // updates without a finite gradient norm, in a row, before a run gives up

class UpdateLog {
  public:
    UpdateLog(Model& model, Log& log) : model_(model), log_(log) {}

    // An update has been queued: its record lacks loss, norm and time. With stats, begun before it, its layers are
    // logged too; nothing later may be queued then before its result is taken.
    void add(const StepRecord& record, LayerStats* stats);
    int waiting() const { return static_cast<int>(queued_.size()); }
    // Takes the result of the oldest update and logs it. Empty, or why the run has diverged with it.
    std::string take();

    int64_t last_taken() const { return last_taken_; }    // the update whose result came last
    int64_t last_change() const { return last_change_; }  // the last one that changed the weights; 0: none so far
    bool stop() const { return stop_; }                   // a rank has marked an update

  private:
    struct Queued {
        StepRecord record;
        LayerStats* stats;
    };
    Model& model_;
    Log& log_;
    std::deque<Queued> queued_;
    int64_t last_taken_ = 0, last_change_ = 0;
    int skips_ = 0;
    bool stop_ = false, note_said_ = false;
};
