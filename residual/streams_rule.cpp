#include "residual/streams_rule.h"

StreamsRule::StreamsRule(const RuleShape& shape, int n) : Rule(shape), n_(n) {
    const int limit = (n <= 4 ? 512 : 256) * PackX::size;
    if (shape.C > limit)
        throw user_error("--channels %d with %d residual streams: in this build up to %d channels are possible",
                         shape.C, n, limit);
}

void StreamsRule::plan(Planner& planner) {
    Rule::plan(planner);
    const int64_t N = shape_.N, C = shape_.C;
    planner.want("streams", N * C, x0_);
    if (shape_.post(0)) planner.want("streams", N * C, entry_);
    read_.assign(static_cast<size_t>(shape_.last()) + 1, nullptr);
    want_seams(planner, "sublayer inputs", N * C, read_, keeps_inputs(), 1, [&](int s) { return !shape_.in(s); });
    if (!shape_.training) return;
    planner.want("backward", N * n_ * C, D_);
    planner.want("backward", N * C, du_);
}

void StreamsRule::entry_forward(const Pass& pass) {
    if (shape_.post(0)) norm_rows_forward(entry_, x0_, post_norms[0], seam_shape(pass, 0), pass.stream);
}

void StreamsRule::entry_backward(const Pass& pass) {
    if (shape_.post(0)) norm_rows_backward(du_, entry_, post_norms[0], seam_shape(pass, 0), pass.scratch, pass.stream);
}
