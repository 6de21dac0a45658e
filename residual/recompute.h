// What of a forward pass is not kept for the backward pass but computed again there. Each level includes the one
// before; gradients stay the same, bit for bit. One rounding differs where the library's product applies GELU itself, as
// in bf16 it may: levels gelu and norm apply it to the rounded input instead, which they can have again.
//
//     gelu    the output of the activation, from its input
//     norm    what sublayers read, from the stream in front of the norm and the norm's statistics
//     block   whatever lies inside a layer: its forward pass runs a second time, from the stream in front of it
#pragma once
#include <string>
#include <vector>

enum class Recompute { none, gelu, norm, block };

inline const std::vector<std::string>& recompute_names() {  // in the order of Recompute
    static const std::vector<std::string> names = {"none", "gelu", "norm", "block"};
    return names;
}
