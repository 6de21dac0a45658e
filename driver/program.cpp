#include "driver/program.h"

#include <cstdio>
#include <cstdlib>
#include <new>

#include "kernels/error.h"

namespace {
struct FailedElsewhere {};  // another rank reports the error that ends this one

// The rank that the launcher gave this process, known before the ranks have met.
int launcher_rank() {
    for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID", "RANK"}) {
        if (const char* value = std::getenv(name)) return std::atoi(value);
    }
    return 0;
}

bool agreed = false;  // the error comes out of together(): exactly one rank holds it
}  // namespace

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
        return body();
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
