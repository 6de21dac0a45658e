#include "residual/branch_factor.h"

void BranchFactorRule::plan(Planner& planner) {
    StreamRule::plan(planner);
    planner.want("branch factors", shape_.last() + 1, factors_);
    if (shape_.training) dots_.plan(planner, shape_);
}

void BranchFactorRule::ready(cudaStream_t stream) {
    StreamRule::ready(stream);
    std::vector<const float*> table(static_cast<size_t>(shape_.last()) + 1, nullptr);
    for (int s = 1; s <= shape_.last(); s++) table[static_cast<size_t>(s)] = value(factor(s));
    CUDA_CHECK(
        cudaMemcpyAsync(factors_, table.data(), table.size() * sizeof(table[0]), cudaMemcpyHostToDevice, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
    if (!shape_.training) return;
    for (int s = 1; s <= shape_.last(); s++)
        dots_.add(grad(factor(s)), alpha_ + s, beta_ + s, last_maps[static_cast<size_t>(s)],
                  out_norms[static_cast<size_t>(s)], shape_.C);
    dots_.ready(stream);
}

void BranchFactorRule::begin(const Pass& pass) {
    StreamRule::begin(pass);
    branch_factors(beta_, alpha_, factors_, shape_.last() + 1, pass.stream);
}

void BranchFactorRule::finish_gradients(const Pass& pass) {
    StreamRule::finish_gradients(pass);
    dots_.run(pass);
}

void LastMapDots::plan(Planner& planner, const RuleShape& shape) {
    planner.want("branch factors", limit(shape), table_);
}

void LastMapDots::add(float* total, const float* weight, const float* scale, const LastMap& map, const SeamNorm& out,
                      int C) {
    if (out.gain) {
        add({total, weight, scale, nullptr, out.gain, out.dgain, C});
        if (out.bias) add({total, weight, scale, nullptr, out.bias, out.dbias, C});
        return;
    }
    add({total, weight, scale, map.weight, nullptr, map.dweight, map.weight_count});
    if (map.bias) add({total, weight, scale, map.bias, nullptr, map.dbias, map.bias_count});
}

void LastMapDots::add(const BranchDot& dot) {
    dots_.push_back(dot);
}

void LastMapDots::ready(cudaStream_t stream) {
    CUDA_CHECK(cudaMemcpyAsync(table_, dots_.data(), dots_.size() * sizeof(BranchDot), cudaMemcpyHostToDevice, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
}

void LastMapDots::run(const Pass& pass) const {
    branch_dots(table_, dots_, pass.scratch, pass.stream);
}
