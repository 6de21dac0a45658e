// The options of rules and schemes, --residual-opt KEY=VALUE. Whoever reads a key gives its range and default; a key
// that nobody read is refused, and the refusal names what is read.
#pragma once
#include <map>
#include <string>
#include <vector>

class RuleOptions {
  public:
    explicit RuleOptions(const std::map<std::string, std::string>& given) : given_(given) {}
    // UserError when the value is not of its kind or outside [low, high].
    double number(const std::string& key, double fallback, double low, double high);
    int integer(const std::string& key, int fallback, int low, int high);
    bool flag(const std::string& key, bool fallback);  // 0 or 1
    std::string choice(const std::string& key, const std::vector<std::string>& values, const std::string& fallback);
    bool given(const std::string& key) const { return given_.count(key) > 0; }
    // UserError naming the first key that was never asked for.
    void refuse_unread(const std::string& rule, const std::string& scheme) const;

  private:
    const std::string* read(const std::string& key);
    std::map<std::string, std::string> given_;
    std::vector<std::string> read_;
};
