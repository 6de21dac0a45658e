// Stream rules whose branch carries a learned scalar: x_new = a*x + s*v. The seam's kernel is vanilla's, with beta =
// alpha*s as its branch scale; the gradient of s comes from the last linear map's (branch_scale.cuh), so that nothing
// is stored and no byte is moved that vanilla does not move.
#pragma once
#include "residual/branch_scale.cuh"
#include "residual/stream_rule.h"

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
    size_t scratch_bytes() const override { return std::max(StreamRule::scratch_bytes(), branch_dot_scratch_bytes()); }

  protected:
    virtual int factor(int s) const = 0;  // which parameter is sublayer s's factor
    const float** factors_ = nullptr;     // (2L+1) device table
};

// *total += *weight * <<grad, value>> over the last map of sublayer s (or N_out's gain and bias), then scales the
// gradients.
void last_map_dot(float* total, const float* weight, const float* scale, const LastMap& map, const SeamNorm& out, int C,
                  const Pass& pass);
