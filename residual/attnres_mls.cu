// full_attnres of MLS-Bench's llm-pretrain-residual: attention over the streams at block boundaries. block_size layers
// make a block, with ordinary residual connections inside; before each block but the first, and before the head, the
// stream is mixed anew from all streams so far:
//
//     s_0 = x_0,   s_b = the stream at the end of block b;   block 1 starts from x_0,
//     block b >= 2 from h = SUM_{i<b} p_i*s_i,  p = softmax_i <q_{b-1}, RMS0(s_i)>;   the head reads the same, with
//     q_out
//
//     attnres_queries    [nblk-1, C], 0    one per model, no decay
//     attnres_query_out  [C], 0            one per model, no decay
//
// RMS0 without gain, eps 2^-23. Options: block_size (4) in layers, or blocks, from which block_size = ceil(L/blocks);
// the last block may be shorter. Gradient: attnres.cu with gam = 1; sources are streams, and their gradients flow on
// down the block.
#include "residual/depth_rule.h"

namespace {

class AttnResMls : public DepthRule {
  public:
    AttnResMls(const RuleShape& shape, RuleOptions& options) : DepthRule(shape) {
        const int size = block_size(options, shape.L, 0, 4);
        blocks_ = ceil_div(shape.L, size);
        if (blocks_ > 1) add({"attnres_queries", Place::model, 0, {blocks_ - 1, shape.C}, {0.0f}});
        add({"attnres_query_out", Place::model, 0, {shape.C}, {0.0f}});

        eps_ = 0x1p-23f;
        stream_ = true;
        first_weights_ = 1;
        sites_.resize(static_cast<size_t>(shape.last()) + 1);
        sites_[0].gathered = {0};
        for (int s = 1; s <= shape.last(); s++) {
            Site& site = sites_[static_cast<size_t>(s)];
            site.active = s % (2 * size) == 0 || s == shape.last();
            if (!site.active) continue;
            const int block = ceil_div(s, 2 * size);
            site.sums = true;
            site.slot = site.query = site.older = block;
            site.piece_size = 1;
            site.gathered = {s};
        }
    }

  protected:
    void ready_weights() override {
        weights_.push_back({});
        for (int b = 1; b < blocks_; b++) {
            const int64_t row = static_cast<int64_t>(b - 1) * shape_.C;
            weights_.push_back({value(0) + row, nullptr, grad(0) ? grad(0) + row : nullptr, nullptr});
        }
        const int out = blocks_ > 1 ? 1 : 0;
        weights_.push_back({value(out), nullptr, grad(out), nullptr});
    }
    bool u_is_state() const override { return false; }
    int blocks_;
};

}  // namespace

extern const RuleEntry attnres_mls_rule = {"attnres_mls", "attention over the streams at block boundaries (MLS-Bench)",
                                           PRE_SCHEMES, make_rule<AttnResMls>};
