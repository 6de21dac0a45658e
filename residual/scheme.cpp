#include "residual/scheme.h"

#include <algorithm>
#include <cmath>

#include "kernels/error.h"
#include "residual/options.h"

static const std::vector<std::string> names = {"pre", "post", "sandwich", "peri",   "deepnorm",
                                               "mix", "lns",  "keel",     "outnorm"};

bool is_scheme(const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
}

std::string scheme_names() {
    std::string all;
    for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
    return all;
}

bool is_scheme_option(const std::string& key) {
    return key == "final_norm" || key == "deepnorm_init" || key == "lns";
}

Scheme make_scheme(const std::string& name, int layers, RuleOptions& options) {
    if (!is_scheme(name)) throw user_error("--norm %s: there are %s", name.c_str(), scheme_names().c_str());
    Scheme scheme;
    scheme.name = name;
    scheme.final_norm = options.flag("final_norm", true);
    scheme.embed_norm = name == "peri";
    scheme.deepnorm_init = name == "deepnorm" && options.flag("deepnorm_init", true);
    const bool gain_init = name == "lns" && options.choice("lns", {"forward", "gaininit"}, "forward") == "gaininit";
    for (int l = 1; l <= layers; l++) {
        SublayerNorms norms;
        const bool post_layer = name == "mix" && l <= layers / 4;
        norms.post = name == "post" || name == "deepnorm" || name == "keel" || post_layer;
        norms.out = name == "sandwich" || name == "peri" || name == "outnorm";
        norms.in = !(name == "post" || name == "deepnorm" || name == "outnorm" || post_layer);
        if (name == "deepnorm") norms.skip = static_cast<float>(std::pow(2.0 * layers, 0.25));
        if (name == "keel") norms.skip = 2.0f * static_cast<float>(layers);
        if (name == "lns")
            (gain_init ? norms.in_init : norms.in_scale) = static_cast<float>(1.0 / std::sqrt(static_cast<double>(l)));
        scheme.sublayers.push_back(norms);
        scheme.sublayers.push_back(norms);
    }
    return scheme;
}
