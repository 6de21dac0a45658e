// Stream rules whose branch carries a learned scalar: x_new = a*x + s*v. The seam's kernel is vanilla's, with beta =
// alpha*s as its branch scale; the gradient of s comes from the last linear map's (branch_scale.cuh), so that nothing
// is stored and no byte is moved that vanilla does not move.
#pragma once
#include "residual/branch_scale.cuh"
#include "residual/stream_rule.h"

// The dot products of last maps with their gradients, all of a rule in one go.
class LastMapDots {
  public:
    void plan(Planner& planner, const RuleShape& shape);
    // *total += *weight * <<grad, value>> over N_out's gain and bias, or without N_out over the last map; then the
    // gradients are scaled by *scale. weight, scale may be null: 1. Calls with the same total follow each other.
    void add(float* total, const float* weight, const float* scale, const LastMap& map, const SeamNorm& out, int C);
    void ready(cudaStream_t stream);  // behind the last add()
    void run(const Pass& pass) const;
    static size_t scratch_bytes(const RuleShape& shape) { return branch_dots_scratch_bytes(limit(shape)); }

  private:
    static int limit(const RuleShape& shape) { return 2 * (shape.last() + 1); }
    void add(const BranchDot& dot);
    std::vector<BranchDot> dots_;
    BranchDot* table_ = nullptr;  // the same on the device
};

class BranchFactorRule : public StreamRule {
  public:
    using StreamRule::StreamRule;
    void plan(Planner& planner) override;
    void ready(cudaStream_t stream) override;
    void begin(const Pass& pass) override;
    void finish_gradients(const Pass& pass) override;
    bool has_beta() const override { return true; }
    const float* branch_scale(int s) const override { return beta_ + s; }
    bool raw_last_map(int s) const override { return !shape_.out(s); }
    size_t scratch_bytes() const override {
        return std::max(StreamRule::scratch_bytes(), LastMapDots::scratch_bytes(shape_));
    }

  protected:
    virtual int factor(int s) const = 0;  // which parameter is sublayer s's factor
    const float** factors_ = nullptr;     // (2L+1) device table
    LastMapDots dots_;
};
