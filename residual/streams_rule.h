// Rules with several streams (hc, mhc): what their host sides share. The kernels are those of streams.cuh.
#pragma once
#include "residual/rule.h"
#include "residual/streams.cuh"

class StreamsRule : public Rule {
  public:
    // UserError when n streams of so many channels are too many for one block's registers.
    StreamsRule(const RuleShape& shape, int n);
    void plan(Planner& planner) override;
    size_t scratch_bytes() const override {
        return std::max(Rule::scratch_bytes(), stream_scratch_bytes(shape_.N, shape_.C, n_));
    }
    floatX* embedding() override { return shape_.post(0) ? entry_ : x0_; }
    floatX* input(int s) override { return shape_.in(s) ? z_[static_cast<size_t>(s)] : read_[static_cast<size_t>(s)]; }
    // The mixture that a sublayer reads is a buffer of its own, without N_in too.
    bool quantizes(int s) const override { return s < shape_.last(); }
    const floatX* d_output(int) override { return du_; }
    const floatX* d_embedding() override { return du_; }
    int stream_channels() const override { return n_ * shape_.C; }

  protected:
    bool keeps_u(int) const override { return true; }
    StreamShape streams(const Pass& pass) const { return {pass.N, shape_.C, n_, shape_.kind, shape_.eps}; }
    // N_emb around x_0, in scheme peri.
    void entry_forward(const Pass& pass);
    void entry_backward(const Pass& pass);

    int n_;
    floatX *x0_ = nullptr, *entry_ = nullptr;  // (N,C)
    std::vector<floatX*> read_;                // (2L+1) of (N,C), by s: inputs without N_in
    floatX* D_ = nullptr;                      // (N,n,C) gradient of what the sublayer behind a seam wrote
    floatX* du_ = nullptr;                     // (N,C)
};
