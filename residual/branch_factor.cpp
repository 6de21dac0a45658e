#include "residual/branch_factor.h"

void BranchFactorRule::plan(Planner& planner) {
    StreamRule::plan(planner);
    planner.want("branch factors", shape_.last() + 1, factors_);
}

void BranchFactorRule::ready(cudaStream_t stream) {
    StreamRule::ready(stream);
    std::vector<const float*> table(static_cast<size_t>(shape_.last()) + 1, nullptr);
    for (int s = 1; s <= shape_.last(); s++) table[static_cast<size_t>(s)] = value(factor(s));
    CUDA_CHECK(
        cudaMemcpyAsync(factors_, table.data(), table.size() * sizeof(table[0]), cudaMemcpyHostToDevice, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
}

void BranchFactorRule::begin(const Pass& pass) {
    StreamRule::begin(pass);
    branch_factors(beta_, alpha_, factors_, shape_.last() + 1, pass.stream);
}

void BranchFactorRule::finish_gradients(const Pass& pass) {
    StreamRule::finish_gradients(pass);
    for (int s = 1; s <= shape_.last(); s++)
        last_map_dot(grad(factor(s)), alpha_ + s, beta_ + s, last_maps[static_cast<size_t>(s)],
                     out_norms[static_cast<size_t>(s)], shape_.C, pass);
}

void last_map_dot(float* total, const float* weight, const float* scale, const LastMap& map, const SeamNorm& out, int C,
                  const Pass& pass) {
    if (out.gain) {
        branch_dot(total, weight, out.gain, out.dgain, scale, C, pass.scratch, pass.stream);
        if (out.bias) branch_dot(total, weight, out.bias, out.dbias, scale, C, pass.scratch, pass.stream);
        return;
    }
    branch_dot(total, weight, map.weight, map.dweight, scale, map.weight_count, pass.scratch, pass.stream);
    if (map.bias) branch_dot(total, weight, map.bias, map.dbias, scale, map.bias_count, pass.scratch, pass.stream);
}
