// Errors, in two kinds.
//
// A *user* error is one that the person at the keyboard can cause and mend: a missing file, a wrong option, a batch
// that does not fit. It is thrown as UserError, and main() prints it as one line on stderr and exits with 1.
// A *programming* error is ours: it aborts at once, with file and line.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

struct UserError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// printf into a string.
[[gnu::format(printf, 1, 2)]] inline std::string format(const char* fmt, ...) {
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int length = vsnprintf(nullptr, 0, fmt, args);
    va_end(args);
    std::string text(length > 0 ? static_cast<size_t>(length) : 0, '\0');
    vsnprintf(text.data(), text.size() + 1, fmt, again);
    va_end(again);
    return text;
}

// throw user_error("%s: what is wrong; what to do", path)
template <class... Args>
[[nodiscard]] UserError user_error(const char* fmt, Args... args) {
    if constexpr (sizeof...(args) == 0) {
        return UserError(fmt);
    } else {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-security"
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        return UserError(format(fmt, args...));
#pragma GCC diagnostic pop
    }
}

[[noreturn]] inline void programming_error(const char* what, const char* detail, const char* file, int line) {
    fprintf(stderr, "%s:%d: %s%s%s\n", file, line, what, *detail ? ": " : "", detail);
    fflush(stderr);
    abort();
}

// CHECK(condition): an invariant of ours; stays on in release builds.
#define CHECK(condition) \
    do { \
        if (!(condition)) programming_error("CHECK failed: " #condition, "", __FILE__, __LINE__); \
    } while (0)
