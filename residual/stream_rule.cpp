#include "residual/stream_rule.h"

void StreamRule::plan(Planner& planner) {
    Rule::plan(planner);
    const int64_t N = shape_.N, C = shape_.C;
    const bool training = shape_.training;
    x_.assign(static_cast<size_t>(shape_.last()) + 1, nullptr);
    p_ = x_;
    // x_0 has its own buffer also in inference: rules may come back to it.
    planner.want("stream", N * C, x_[0]);
    want_state(planner, "stream", N * C, x_, ring(), [](int s) { return s > 0; });
    want_inside(planner, "stream", N * C, p_, [&](int s) { return s > 0 && shape_.post(s); });
    if (has_entry()) planner.want("stream", N * C, entry_);
    if (!training) return;
    planner.want("backward", N * C, dx_);
    bool separate = false;
    for (int s = 1; s <= shape_.last(); s++) separate |= separate_du(s);
    if (separate) planner.want("backward", N * C, du_);
}

floatX* StreamRule::output(int s) {
    if (!adds_in_product(s)) return Rule::output(s);
    return (shape_.post(s) ? p_ : x_)[static_cast<size_t>(s)];
}

SeamForward StreamRule::forward_seam(const Pass& pass, int s) {
    const size_t i = static_cast<size_t>(s);
    SeamForward seam = {};
    seam.x = s > 0 ? x_[i - 1] : embedding();
    seam.u = s > 0 ? u_[i] : nullptr;
    seam.x_new = x_[i];
    seam.z = z_[i];
    seam.z8 = input8(pass, s);
    seam.p = p_[i];
    seam.out = out_norms[i];
    seam.post = post_norms[i];
    seam.in = in_norms[i];
    seam.scale = s > 0 ? seam_scale(s) : nullptr;
    if (s > 0 && adds_in_product(s)) {
        seam.x = output(s);
        seam.u = nullptr;
        seam.p = nullptr;
    }
    return seam;
}

SeamBackward StreamRule::backward_seam(int s) {
    const size_t i = static_cast<size_t>(s);
    SeamBackward seam = {};
    seam.dx_new = s == shape_.last() ? nullptr : dx_;
    seam.dz = dz_;
    seam.x_new = x_[i];
    seam.p = s > 0 ? p_[i] : entry_;
    seam.u = s > 0 ? u_[i] : nullptr;
    seam.dx = dx_;
    seam.du = s > 0 ? const_cast<floatX*>(d_output(s)) : nullptr;
    seam.out = out_norms[i];
    seam.post = post_norms[i];
    seam.in = in_norms[i];
    seam.scale = s > 0 ? seam_scale(s) : nullptr;
    seam.out_scale = s > 0 ? seam_out_scale(s) : nullptr;
    seam.first = s == 0;
    return seam;
}

void StreamRule::forward(const Pass& pass, int s) {
    if (s == 0) return vanilla_forward(forward_seam(pass, 0), seam_shape(pass, 0), pass.stream);
    seam_forward(forward_seam(pass, s), seam_shape(pass, s), pass, s);
}

void StreamRule::backward(const Pass& pass, int s) {
    SeamBackward seam = backward_seam(s);
    if (s == 0) return vanilla_backward(seam, seam_shape(pass, 0), pass.scratch, pass.stream);
    seam_backward(seam, seam_shape(pass, s), pass, s);
}

void StreamRule::seam_forward(const SeamForward& seam, const SeamShape& shape, const Pass& pass, int) {
    vanilla_forward(seam, shape, pass.stream);
}

void StreamRule::seam_backward(SeamBackward& seam, const SeamShape& shape, const Pass& pass, int) {
    vanilla_backward(seam, shape, pass.scratch, pass.stream);
}
