// The list of residual rules, and what combines with what.
#pragma once
#include <map>
#include <memory>
#include <optional>

#include "residual/prores.h"
#include "residual/rule.h"

// --residual RULE[+prores][+value], taken apart; prores and value alone mean vanilla+...
struct ResidualName {
    std::string rule;
    bool prores = false, value = false;
};
ResidualName parse_residual(const std::string& text);  // UserError lists the known rules

struct Residual {
    ResidualName name;
    std::unique_ptr<Rule> rule;
    std::optional<ProRes> prores;
};

// shape: L, C, kind, eps, N, training of the model; scheme and prores are filled in here.
// UserError for an unknown name, an undefined pair (by the names of rule and scheme), or an option nobody reads.
Residual make_residual(const std::string& residual, const std::string& norm, const std::map<std::string, std::string>& options,
                       RuleShape shape);

// vr_lambda of layer l >= 2, the parameter of +value (residual/value_residual.cuh).
RuleParameter value_parameter(int l);

struct RuleSummary {
    std::string name, summary, schemes;
};
std::vector<RuleSummary> rule_summaries();
