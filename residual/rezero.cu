// ReZero (Bachlechner et al. 2020, arXiv 2003.04887): one learned scalar per layer on both of its branches, from zero.
//
//     p  = a*x + s_l*v            du = s_l*dp,   dx = a*dp,   ds_l = <<dp,v>> summed over both sublayers
//
//     res_weight  scalar, 0       one per layer, no decay
//
// At s = 0 every weight of the branch has zero gradient and s has not: that is how it starts. The norm-free original is
// not offered: N_in stays. Kernels and gradient of s: branch_factor.h.
#include "residual/branch_factor.h"

namespace {

class ReZero : public BranchFactorRule {
  public:
    ReZero(const RuleShape& shape, RuleOptions&) : BranchFactorRule(shape) {
        for (int l = 1; l <= shape.L; l++) add({"res_weight", Place::layer, l, {1}, {0.0f}});
    }

  protected:
    int factor(int s) const override { return layer_of(s) - 1; }
};

}  // namespace

extern const RuleEntry rezero_rule = {"rezero", "x + s*u, one s per layer, from 0", ALL_SCHEMES, make_rule<ReZero>,
                                      true};
