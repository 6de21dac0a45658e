// How much device memory is touched: what the checking mode sees, for the test of declared traffic (kernels/traffic.h).
#pragma once

#include <cstdint>

namespace simt {

struct Touched {
    int64_t read, written;  // unique bytes; one that was written first and then read counts as written
};

// Whether this build can measure it.
#ifdef SIMT_CHECK
constexpr bool measures_touched = true;
#else
constexpr bool measures_touched = false;
#endif

// Everything since the last call, by kernels, products and fills (not by copies). The first call starts the counting
// and gives nothing. Zeros in a build that cannot measure.
Touched take_touched();

}  // namespace simt
