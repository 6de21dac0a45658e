// Orders of lanes that the CPU machine can be made to try.
#pragma once
#include <cstdlib>
#include <string>
#include <thread>

// Calls body() on an OS thread of its own with SIMT_SEED set to `seed`, or unset if that is null: an engine reads it
// when its thread launches its first kernel. A GPU does not care. In body CHECK, not REQUIRE.
template <class Body>
void with_seed(const char* seed, Body&& body) {
    const std::string before = std::getenv("SIMT_SEED") ? std::getenv("SIMT_SEED") : "";
    if (seed)
        setenv("SIMT_SEED", seed, 1);
    else
        unsetenv("SIMT_SEED");
    std::thread([&] { body(); }).join();
    if (before.empty())
        unsetenv("SIMT_SEED");
    else
        setenv("SIMT_SEED", before.c_str(), 1);
}
