// Attention Residuals over blocks (Kimi Team 2026, arXiv 2603.15031): S sublayers make a block, N = ceil(2L/S) blocks;
// within a block outputs add up as usual, and queries attend over the sums of whole blocks and the running one:
//
//     b_0 = x_0;   sublayer i = 1..S of block n:   z = DA(w_k, gam_k; b_0..b_{n-1}, p_{i-1})    (i = 1: without p)
//     p_1 = u_k,  p_i = p_{i-1} + u_k,  b_n = p at the block's end;     x = DA(w_f, gam_f; b_0..b_N) before the head
//
//     ar_query  [C], 0      one per sublayer, and final_ar_query; no decay          DA and its gradient: attnres.cu
//     ar_gain   [C], 1      one per sublayer, and final_ar_gain; no decay
//
// Options: blocks (8), from which S = ceil(2L/blocks), or block_size = S; the last block may be shorter. S = 1 is
// attnres. A block's queries go in pieces of DEPTH_GROUP over the finished blocks; each then adds the running sum at
// its own seam.
#include "residual/depth_rule.h"

namespace {

class AttnResBlock : public DepthRule {
  public:
    AttnResBlock(const RuleShape& shape, RuleOptions& options) : DepthRule(shape) {
        const int last = shape.last(), S = std::min(block_size(options, last, 8, 0), last);
        add_sublayer_queries();
        sites_.resize(static_cast<size_t>(last) + 1);
        sites_[0].gathered = {0};
        for (int s = 1; s <= last; s++) {
            Site& site = sites_[static_cast<size_t>(s)];
            const int block = ceil_div(s, S), first = (block - 1) * S + 1, end = std::min(block * S, last),
                      i = s - first;
            site.sums = true;
            site.complete = s == end;
            site.slot = block;
            site.query = s;
            site.older = block;
            site.piece = i % DEPTH_GROUP;
            if (site.piece == 0) site.piece_size = std::min(DEPTH_GROUP, end - s + 1);
            if (site.complete) site.gathered = {s};
        }
    }
};

}  // namespace

extern const RuleEntry attnres_block_rule = {"attnres_block", "attention over the sums of blocks of sublayers",
                                             PRE_SCHEMES, make_rule<AttnResBlock>};
