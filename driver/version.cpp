#include "driver/version.h"

// Given to this file alone, so that a commit rebuilds nothing else.
#ifndef RESIDUAL_VERSION
#define RESIDUAL_VERSION "unknown"
#endif

const char* version() {
    return RESIDUAL_VERSION;
}
