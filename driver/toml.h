// --config FILE.toml for CLI11: KEY = VALUE lines with the long names of the options.
#pragma once
#include <CLI/CLI.hpp>
#include <istream>
#include <string>
#include <vector>

// Strings ("basic" with escapes, 'literal'), numbers, booleans, and arrays of these over one or several lines; #
// comments. [table] headings only group. CLI11's own reader cuts strings at # and takes what is no TOML at all, so this
// one is stricter: a mistake is a CLI::ConfigError that names the line.
class TomlConfig : public CLI::Config {
  public:
    std::vector<CLI::ConfigItem> from_config(std::istream& input) const override;
    std::string to_config(const CLI::App*, bool, bool, std::string) const override { return ""; }
};
