// What the command lines of all programs share.
#pragma once
#include <CLI/CLI.hpp>

// The last of several counts, defaults stand in --help, --version.
void cli_defaults(CLI::App& app, const char* name);
// For unsigned numbers, of which CLI11 lets -1 and what does not fit wrap around.
CLI::Validator whole_number();
// False: --help or --version was asked for and has been printed. UserError (one line) for every mistake.
bool cli_parse(CLI::App& app, int argc, char** argv);
