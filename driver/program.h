// What every program's main() does around its work: turns a UserError into one line on stderr and exit code 1.
#pragma once
#include <functional>
#include <string>

#include "parallel/comm.h"

// Exit codes, the same for all programs.
constexpr int EXIT_DONE = 0, EXIT_USER = 1, EXIT_DIVERGED = 2, EXIT_SIGNAL = 3;

// Runs the body and returns its exit code; user errors are printed, by rank 0 alone while all ranks still agree. What
// could not be written to stdout is an error, too.
int program_main(const char* name, const std::function<int()>& body);

// Runs the body, which must not communicate, on every rank; if any of them fails, all of them do: the lowest rank that
// failed prints its error and every rank leaves with exit code 1.
void together(Comm* comm, const std::function<void()>& body);

// The rank that the launcher gave this process, known before the ranks have met; 0 without a launcher.
int launcher_rank();

// One line on stderr, whatever the message holds.
void print_error(const char* program, const std::string& message);
