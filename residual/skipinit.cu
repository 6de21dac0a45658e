// SkipInit (De & Smith 2020, arXiv 2002.10444): one learned scalar per branch, from zero.
//
//     p  = a*x + s_k*v            du = s_k*dp,   dx = a*dp,   ds_k = <<dp,v>>
//
//     skip_alpha  scalar, 0       one per sublayer, no decay
//
// Kernels and gradient of s: branch_factor.h.
#include "residual/branch_factor.h"

namespace {

class SkipInit : public BranchFactorRule {
  public:
    SkipInit(const RuleShape& shape, RuleOptions&) : BranchFactorRule(shape) {
        for (int k = 1; k <= shape.last(); k++) add({"skip_alpha", Place::sublayer, k, {1}, {0.0f}});
    }

  protected:
    int factor(int s) const override { return s - 1; }
};

}  // namespace

extern const RuleEntry skipinit_rule = {"skipinit", "x + s*u, one s per sublayer, from 0", ALL_SCHEMES,
                                        make_rule<SkipInit>, true};
