// The shortest way to a rule: one functor F (residual/row_kernel.cuh) at every seam. What is left to say is the
// functor's arguments at seam s, and where its parameter gradients go.
#pragma once
#include "residual/row_kernel.cuh"
#include "residual/stream_rule.h"

template <class F>
class RowRule : public StreamRule {
  public:
    using StreamRule::StreamRule;

  protected:
    virtual typename F::Args args(int s) const = 0;
    virtual RuleGradients gradients(int) const { return {}; }
    bool keeps_u(int s) const override { return F::reads_v || StreamRule::keeps_u(s); }
    bool separate_du(int) const override { return true; }
    void seam_forward(const SeamForward& seam, const SeamShape& shape, const Pass& pass, int s) override {
        ::seam_forward<F>(seam, shape, args(s), pass.stream);
    }
    void seam_backward(SeamBackward& seam, const SeamShape& shape, const Pass& pass, int s) override {
        ::seam_backward<F>(seam, shape, args(s), gradients(s), pass.scratch, pass.stream);
    }
};
