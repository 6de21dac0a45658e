// Rules that mix the stream in front of a layer into the stream behind it (lscale_block, prores_mls). The gradient g_l
// at the end of layer l is needed again at its beginning, two seams later; two buffers take turns, so that it stays
// where it is:
//
//     seam 2l    reads the chain, leaves g_l in buffer (L-l) % 2; g_{l+1} of the layer above is still in the other
//     seam 2l-1  reads g_l, leaves the chain in the other buffer
#pragma once
#include "residual/stream_rule.h"

class LayerEndRule : public StreamRule {
  public:
    using StreamRule::StreamRule;
    void plan(Planner& planner) override {
        StreamRule::plan(planner);
        if (shape_.training) planner.want("backward", shape_.N * shape_.C, second_);
    }
    const floatX* d_output(int s) override { return separate_du(s) ? du_ : chain(s); }

  protected:
    int ring() const override { return 3; }  // x before the layer, between its sublayers, behind it
    floatX* chain(int s) const { return (shape_.L - layer_of(s) + s) % 2 == 0 ? dx_ : second_; }
    SeamBackward layer_end_seam(int s) {
        SeamBackward seam = backward_seam(s);
        seam.dx_new = s == shape_.last() ? nullptr : chain(s + 1);
        seam.dx = s > 0 ? chain(s) : chain(1);
        return seam;
    }
    const floatX* gradient_of_layer(int l) const { return chain(2 * l); }
    floatX* second_ = nullptr;  // (N,C)
};
