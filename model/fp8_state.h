// The state of the scales of a model that multiplies in 8 bits, as checkpoints keep it. n = 12 per layer, in the order of
// model/linear.h. Empty: there is none yet, as when weights have just been written; the first micro-batch makes it.
#pragma once
#include <vector>

struct Fp8State {
    std::vector<float> scale;    // (n)
    std::vector<float> history;  // (n,FP8_HISTORY) largest numbers of earlier updates, the newest first
};
