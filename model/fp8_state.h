// The state of the scales of a model that multiplies in 8 bits, as checkpoints keep it. n = 12 per layer, in the order of
// model/linear.h. Empty: of a model that does not.
#pragma once
#include <vector>

struct Fp8State {
    std::vector<float> scale;    // (n), 0: the tensor has not been seen yet
    std::vector<float> history;  // (n,FP8_HISTORY) largest numbers of earlier updates, the newest first
};
