#include "residual/rule.h"

#include "kernels/upload.cuh"

void Rule::plan(Planner& planner) {
    const size_t seams = static_cast<size_t>(shape_.last()) + 1;
    const int64_t N = shape_.N, C = shape_.C;
    const bool training = shape_.training;
    u_.assign(seams, nullptr);
    z_.assign(seams, nullptr);
    for (std::vector<SeamNorm>* norms : {&out_norms, &post_norms, &in_norms}) norms->resize(seams);
    inputs8.resize(seams);

    want_seams(planner, "sublayer inputs", N * C, z_, keeps_inputs(), 1, [&](int s) { return shape_.in(s); });
    // Outputs that no backward pass needs share one buffer.
    auto kept = [&](int s) { return s > 0 && has_u(s) && (!training || keeps_u(s)); };
    if (u_is_state())
        want_seams(planner, "sublayer outputs", N * C, u_, true, 1, kept);
    else
        want_inside(planner, "sublayer outputs", N * C, u_, kept);
    auto shares_u = [this](int s) { return has_u(s) && !keeps_u(s); };
    bool any_shares = false;
    for (int s = 1; s <= shape_.last(); s++) any_shares |= shares_u(s);
    if (training && any_shares)
        planner.request("sublayer outputs", static_cast<size_t>(N * C) * sizeof(floatX), [this, shares_u](void* p) {
            for (int s = 1; s <= shape_.last(); s++)
                if (shares_u(s)) u_[static_cast<size_t>(s)] = static_cast<floatX*>(p);
        });
    if (training) planner.want("backward", N * C, dz_);
    auto statistics = [&](std::vector<SeamNorm>& norms, auto present) {
        for (int s = 0; s <= shape_.last(); s++) {
            if (!present(s)) continue;
            SeamNorm& norm = norms[static_cast<size_t>(s)];
            if (shape_.kind == NormKind::layer) planner.want("norm statistics", N, norm.mean);
            planner.want("norm statistics", N, norm.rstd);
        }
    };
    statistics(out_norms, [&](int s) { return shape_.out(s); });
    statistics(post_norms, [&](int s) { return shape_.post(s); });
    statistics(in_norms, [&](int s) { return shape_.in(s); });
    for (int s = 0; s < shape_.last(); s++) in_norms[static_cast<size_t>(s)].scale = shape_.norms(s + 1).in_scale;
    if (has_beta()) {
        planner.want("branch factors", shape_.last() + 1, alpha_);
        planner.want("branch factors", shape_.last() + 1, beta_);
    }
}

void Rule::set_alpha(const std::vector<float>& alpha, cudaStream_t stream) {
    CHECK(has_beta() && alpha.size() == static_cast<size_t>(shape_.last()) + 1);
    for (float* factors : {alpha_, beta_})  // a rule with learned factors writes beta anew in begin()
        upload_values(factors, alpha.data(), alpha.size() * sizeof(float), stream);
}
