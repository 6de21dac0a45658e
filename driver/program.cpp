#include "driver/program.h"

#include <cstdio>
#include <new>

#include "kernels/error.h"
#include "parallel/rendezvous.h"

namespace {
struct FailedElsewhere {};  // another rank reports the error that ends this one

bool agreed = false;  // the error comes out of together(): exactly one rank holds it
}  // namespace

int launcher_rank() {
    try {
        return launch_from_environment().rank;
    } catch (const UserError&) {  // comm_create reports it
        return 0;
    }
}

void print_error(const char* program, const std::string& message) {
    std::string line = message;
    for (char& c : line) {
        if (c == '\n' || c == '\r') c = ' ';
    }
    while (!line.empty() && line.back() == ' ') line.pop_back();
    fflush(stdout);
    fprintf(stderr, "%s: %s\n", program, line.c_str());
}

int program_main(const char* name, const std::function<int()>& body) {
    try {
        const int code = body();
        if (code != EXIT_DONE || (fflush(stdout) == 0 && ferror(stdout) == 0)) return code;
        print_error(name, "standard output cannot be written; check the space left where it goes");
    } catch (const UserError& error) {
        if (agreed || launcher_rank() == 0) print_error(name, error.what());
    } catch (const FailedElsewhere&) {
    } catch (const std::bad_alloc&) {
        print_error(name, "out of host memory; a smaller model or fewer processes on this machine would fit");
    }
    return EXIT_USER;
}

void together(Comm* comm, const std::function<void()>& body) {
    const int rank = comm_rank(comm), size = comm_size(comm);
    std::string message;
    bool failed = false;
    try {
        body();
    } catch (const UserError& error) {
        failed = true;
        message = error.what();
    } catch (const std::bad_alloc&) {
        failed = true;
        message = "out of host memory; a smaller model or fewer processes on this machine would fit";
    }
    const int64_t reporter = size - comm_max(comm, failed ? size - rank : 0);  // size: nobody failed
    if (reporter == size) return;
    agreed = true;
    if (reporter == rank) throw UserError(message);
    throw FailedElsewhere{};
}
