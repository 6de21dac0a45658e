#include "residual/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "kernels/error.h"

const std::string* RuleOptions::read(const std::string& key) {
    if (std::find(read_.begin(), read_.end(), key) == read_.end()) read_.push_back(key);
    auto at = given_.find(key);
    return at == given_.end() ? nullptr : &at->second;
}

double RuleOptions::number(const std::string& key, double fallback, double low, double high) {
    const std::string* text = read(key);
    if (!text) return fallback;
    double value = 0;
    auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
    if (error != std::errc() || end != text->data() + text->size() || !std::isfinite(value))
        throw user_error("--residual-opt %s=%s: it must be a number", key.c_str(), text->c_str());
    if (value < low || value > high)
        throw user_error("--residual-opt %s=%s: it must lie between %g and %g", key.c_str(), text->c_str(), low, high);
    return value;
}

int RuleOptions::integer(const std::string& key, int fallback, int low, int high) {
    const double value = number(key, fallback, low, high);
    if (value != std::floor(value))
        throw user_error("--residual-opt %s=%s: it must be a whole number", key.c_str(), given_[key].c_str());
    return static_cast<int>(value);
}

bool RuleOptions::flag(const std::string& key, bool fallback) {
    return choice(key, {"0", "1"}, fallback ? "1" : "0") == "1";
}

std::string RuleOptions::choice(const std::string& key, const std::vector<std::string>& values,
                                const std::string& fallback) {
    const std::string* text = read(key);
    if (!text) return fallback;
    if (std::find(values.begin(), values.end(), *text) != values.end()) return *text;
    std::string known;
    for (const std::string& value : values) known += (known.empty() ? "" : ", ") + value;
    throw user_error("--residual-opt %s=%s: there are %s", key.c_str(), text->c_str(), known.c_str());
}

void RuleOptions::refuse_unread(const std::string& rule, const std::string& scheme) const {
    for (const auto& [key, value] : given_) {
        if (std::find(read_.begin(), read_.end(), key) != read_.end()) continue;
        std::string known;
        for (const std::string& k : read_) known += (known.empty() ? "" : ", ") + k;
        throw user_error("--residual-opt %s=%s: rule %s with scheme %s does not read %s; it reads %s", key.c_str(),
                         value.c_str(), rule.c_str(), scheme.c_str(), key.c_str(), known.c_str());
    }
}
