// ProRes (Chen et al. 2026, arXiv 2603.05369): a schedule alpha(l,t) multiplies every branch, the deeper the later.
//
//     x_new = a*x + alpha(l,t)*u          backward: du = alpha*dp; alpha has no gradient
//
// t = completed updates, T (option, 1000) the updates each layer takes. No parameters; the factor rides on the seam's
// kernel and, backwards, as the alpha of the branch's GEMMs, so that it costs no memory traffic. It multiplies u of any
// other rule as RULE+prores.
#pragma once
#include <string>

#include "residual/options.h"

struct ProRes {
    double T = 1000;
    std::string schedule = "linear";
    bool eval_one = false;  // evaluate with alpha = 1

    explicit ProRes(RuleOptions& options);
    // Layer l of L, from one, after t updates.
    double alpha(int l, int L, int64_t t) const;
};
