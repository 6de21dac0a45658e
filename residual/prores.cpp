#include "residual/prores.h"

#include <algorithm>
#include <cmath>

ProRes::ProRes(RuleOptions& options) {
    schedule = options.choice("schedule",
                              {"linear", "linear_sqrt", "linear_square", "equal", "reverse", "stagewise_0",
                               "stagewise_L", "stagewise_sqrtL", "stagewise_sqrtl", "fix_L", "fix_sqrtL", "fix_sqrtl"},
                              "linear");
    if (schedule.rfind("fix_", 0) != 0) T = options.integer("T", 1000, 1, 2000000000);
    eval_one = options.flag("prores_eval_one", false);
}

double ProRes::alpha(int l, int L, int64_t t) const {
    const double time = static_cast<double>(t) / T, linear = time / l;
    auto clip = [](double v) { return std::clamp(v, 0.0, 1.0); };
    // A stage: layer l waits T(l-1) updates, then rises from `low` to 1 in T.
    auto stage = [&](double low) { return low + (1 - low) * clip(time - (l - 1)); };
    if (schedule == "linear") return clip(linear);
    if (schedule == "linear_sqrt") return clip(std::sqrt(linear));
    if (schedule == "linear_square") return clip(linear * linear);
    if (schedule == "equal") return clip(time);
    if (schedule == "reverse") return clip(time / (L - l + 1));
    if (schedule == "stagewise_0") return stage(0);
    if (schedule == "stagewise_L") return stage(1.0 / L);
    if (schedule == "stagewise_sqrtL") return stage(1 / std::sqrt(static_cast<double>(L)));
    if (schedule == "stagewise_sqrtl") return stage(1 / std::sqrt(static_cast<double>(l)));
    if (schedule == "fix_L") return 1.0 / L;
    if (schedule == "fix_sqrtL") return 1 / std::sqrt(static_cast<double>(L));
    return 1 / std::sqrt(static_cast<double>(l));  // fix_sqrtl
}
