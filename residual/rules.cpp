#include "residual/rules.h"

#include <sstream>

#include "kernels/error.h"

// A rule is one file and one line here.
#define RULES(RULE)    \
    RULE(vanilla)      \
    RULE(rezero)       \
    RULE(skipinit)     \
    RULE(layerscale)   \
    RULE(lscale_block) \
    RULE(lscale_input) \
    RULE(lscale_sub)   \
    RULE(prores_mls)   \
    RULE(gpas)         \
    RULE(hc)           \
    RULE(mhc)          \
    RULE(attnres)      \
    RULE(attnres_block) \
    RULE(attnres_mls)  \
    RULE(review)       \
    RULE(highway)      \
    RULE(dwa)

#define DECLARE(name) extern const RuleEntry name##_rule;
#define POINTER(name) &name##_rule,
RULES(DECLARE)
static const RuleEntry* const rules[] = {RULES(POINTER)};

static const RuleEntry* find_rule(const std::string& name) {
    for (const RuleEntry* rule : rules)
        if (name == rule->name) return rule;
    return nullptr;
}

ResidualName parse_residual(const std::string& text) {
    ResidualName out;
    std::istringstream parts(text);
    std::string part;
    while (std::getline(parts, part, '+')) {
        if (part == "prores" && !out.prores) {
            out.prores = true;
        } else if (part == "value" && !out.value) {
            out.value = true;
        } else if (find_rule(part) && out.rule.empty()) {
            out.rule = part;
        } else if (find_rule(part) || part == "prores" || part == "value") {
            throw user_error("--residual %s: rules do not combine with each other, only with prores and value", text.c_str());
        } else {
            std::string known;
            for (const RuleEntry* rule : rules) known += std::string(rule->name) + ", ";
            throw user_error("--residual %s: there is no rule %s; there are %sprores, and +prores, +value with any of them",
                             text.c_str(), part.c_str(), known.c_str());
        }
    }
    if (out.rule.empty()) {
        if (!out.prores && !out.value) throw user_error("--residual: the name of a rule is missing");
        out.rule = "vanilla";
    }
    return out;
}

static bool contains_word(const std::string& words, const std::string& word) {
    return (" " + words + " ").find(" " + word + " ") != std::string::npos;
}

Residual make_residual(const std::string& residual, const std::string& norm, const std::map<std::string, std::string>& given,
                       RuleShape shape) {
    Residual out;
    out.name = parse_residual(residual);
    const RuleEntry& entry = *find_rule(out.name.rule);
    if (is_scheme(norm) && !contains_word(entry.schemes, norm))
        throw user_error("--residual %s with --norm %s: this pair is not defined; %s works with %s", residual.c_str(),
                         norm.c_str(), entry.name, entry.schemes);
    const int most = entry.vanilla_kernels ? max_seam_channels() : max_rule_channels();
    if (shape.C > most)
        throw user_error("--channels %d with --residual %s: this build takes up to %d", shape.C, residual.c_str(), most);
    RuleOptions options(given);
    shape.scheme = make_scheme(norm, shape.L, options);
    shape.prores = out.name.prores;
    out.rule = entry.make(shape, options);
    if (out.name.prores) out.prores.emplace(options);
    options.refuse_unread(residual, norm);
    return out;
}

RuleParameter value_parameter(int l) { return {"vr_lambda", Place::layer, l, {2}, {0.5f}}; }

std::vector<RuleSummary> rule_summaries() {
    std::vector<RuleSummary> out;
    for (const RuleEntry* rule : rules) out.push_back({rule->name, rule->summary, rule->schemes});
    return out;
}
