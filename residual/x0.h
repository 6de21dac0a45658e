// x_0, the normed embedding that the lscale rules come back to, and its gradient in fp32.
//
//     e (embedding) -> N_emb(e), in scheme peri -> RMS0(.), with the option x0_norm -> x_0    RMS0: no gain, eps 1e-6
#pragma once
#include "residual/rule.h"

class X0 {
  public:
    explicit X0(bool rms0) : rms0_(rms0) {}
    bool has_entry(const RuleShape& shape) const { return rms0_ || shape.post(0); }
    void plan(Planner& planner, const RuleShape& shape, bool gradient);
    void ready(const RuleShape& shape, cudaStream_t stream);
    // x0 (N,C) from entry (N,C); nothing to do without has_entry().
    void forward(const RuleShape& shape, const SeamNorm& embed_norm, const floatX* entry, floatX* x0,
                 const Pass& pass) const;
    // dx (N,C) holds the chain's gradient of x_0; in place: + its own part + (*factor - 1) * extra (N,C), then back to
    // the embedding. extra may be null.
    void backward(const RuleShape& shape, const SeamNorm& embed_norm, const floatX* entry, floatX* dx,
                  const floatX* extra, const float* factor, const Pass& pass) const;
    // (N,C) fp32: what the seams accumulate; written by the first of them.
    float* gradient() const { return gradient_; }

  private:
    SeamShape rms0_shape(const RuleShape& shape, const Pass& pass) const {
        return {pass.N, shape.C, NormKind::rms, 1e-6f};
    }
    bool rms0_;
    floatX* normed_ = nullptr;  // (N,C) N_emb(e), when RMS0 follows
    float* gradient_ = nullptr;
    float* ones_ = nullptr;  // (C)
    SeamNorm rms0_norm_;
};
