// Rules with one stream: x_s behind sublayer s, one frame kernel per seam. A rule says which functor runs at a seam.
#pragma once
#include "residual/rule.h"

class StreamRule : public Rule {
  public:
    using Rule::Rule;
    void plan(Planner& planner) override;
    void forward(const Pass& pass, int s) override;
    void backward(const Pass& pass, int s) override;
    void input_again(const Pass& pass, int s) override { norm_again(pass, s, x_[static_cast<size_t>(s)]); }
    floatX* embedding() override { return has_entry() ? entry_ : x_[0]; }
    floatX* input(int s) override { return shape_.in(s) ? z_[static_cast<size_t>(s)] : x_[static_cast<size_t>(s)]; }
    floatX* output(int s) override;
    const floatX* addend(int s) override { return adds_in_product(s) ? x_[static_cast<size_t>(s) - 1] : nullptr; }
    const floatX* d_output(int s) override { return separate_du(s) ? du_ : dx_; }
    const floatX* d_embedding() override { return dx_; }
    const floatX* stream(int s) override { return x_[static_cast<size_t>(s)]; }

  protected:
    bool can_drop_inside() const override { return true; }
    // The functor of seam s >= 1; the default is vanilla.
    virtual void seam_forward(const SeamForward& seam, const SeamShape& shape, const Pass& pass, int s);
    virtual void seam_backward(SeamBackward& seam, const SeamShape& shape, const Pass& pass, int s);
    // p_s = x_{s-1} + u_s and nothing more: the sublayer's last product makes the sum, and the seam is norms alone.
    virtual bool adds_in_product(int) const { return false; }
    bool has_u(int s) const override { return !adds_in_product(s); }
    // Whether du is not dx's memory.
    virtual bool separate_du(int s) const { return shape_.out(s) || shape_.norms(s).skip != 1.0f; }
    // The embedding is normed (N_emb) before it is x_0, and needed again in the backward pass.
    virtual bool has_entry() const { return shape_.post(0); }
    virtual int ring() const { return 1; }  // streams alive at a time in inference
    SeamForward forward_seam(const Pass& pass, int s);
    SeamBackward backward_seam(int s);

    std::vector<floatX*> x_, p_;            // (2L+1) of (N,C), by s; p: the sum before N_post
    floatX* entry_ = nullptr;               // (N,C) the embedding before N_emb
    floatX *dx_ = nullptr, *du_ = nullptr;  // (N,C)
};
