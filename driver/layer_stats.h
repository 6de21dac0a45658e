// --layer-stats-every: how each layer does at an update. One `layers` event of log.jsonl:
//
//     {"event": "layers", "step": N, "layers": [{"layer": 0, "activation_variance", "grad_norm", "weight_norm",
//      "update_norm", "branch_factor", "gates": {"gpas_gate": 0.01, "attn.ls_gamma": {"mean", "rms"}, ...}}, ...]}
//
// activation_variance is that of the stream behind the layer in the update's last micro-batch of rank 0; the norms are
// over all of a layer's parameters, the gradient's before clipping; gates are the parameters of the residual rule after
// the update: a number for a scalar, a list for a few, mean and root mean square for a vector. branch_factor: ProRes's,
// if used.
#pragma once
#include <vector>

#include "driver/log.h"
#include "model/model.h"

class LayerStats {
  public:
    // Gradients, weights and branch factors of the update to come.
    void before_update(Model& model);
    void log(Model& model, Log& log, int64_t step);

  private:
    std::vector<float> grads_, before_;
    std::vector<double> factors_;  // (L)
};
