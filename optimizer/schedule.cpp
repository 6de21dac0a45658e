#include "optimizer/schedule.h"

#include <algorithm>
#include <cmath>

const std::vector<std::string>& schedule_names() {
    static const std::vector<std::string> names = {"cosine", "wsd", "linear", "constant", "invsqrt"};
    return names;
}

const std::vector<std::string>& wsd_shape_names() {
    static const std::vector<std::string> names = {"sqrt", "linear", "cosine", "exp"};
    return names;
}

int64_t default_warmup(int64_t steps) {
    return std::min<int64_t>(std::max<int64_t>(steps / 100, 100), steps / 10);
}

double default_final_ratio(ScheduleKind kind) {
    return kind == ScheduleKind::cosine ? 0.1 : 0.0;
}

int64_t default_decay_steps(int64_t steps) {
    return std::llround(0.2 * static_cast<double>(steps));
}

static double wsd_decay(WsdShape shape, double y) {
    switch (shape) {
        case WsdShape::sqrt:
            return 1.0 - std::sqrt(y);
        case WsdShape::linear:
            return 1.0 - y;
        case WsdShape::cosine:
            return 0.5 * (1.0 + std::cos(M_PI * y));
        case WsdShape::exp:
            return std::pow(0.05, y);
    }
    return 0.0;
}

double schedule_at(const Schedule& s, int64_t t) {
    const double W = static_cast<double>(s.warmup), T = static_cast<double>(s.steps), f = s.final_ratio;
    if (t < s.warmup) return static_cast<double>(t + 1) / W;
    const double x = T > W ? std::clamp((static_cast<double>(t) - W) / (T - W), 0.0, 1.0) : 1.0;
    switch (s.kind) {
        case ScheduleKind::constant:
            return 1.0;
        case ScheduleKind::cosine:
            return f + (1.0 - f) * 0.5 * (1.0 + std::cos(M_PI * x));
        case ScheduleKind::linear:
            return 1.0 - (1.0 - f) * x;
        case ScheduleKind::wsd: {
            const int64_t start = s.steps - s.decay_steps;
            if (t < start || s.decay_steps == 0) return 1.0;
            const double y = static_cast<double>(t - start) / static_cast<double>(s.decay_steps);
            return f + (1.0 - f) * wsd_decay(s.shape, std::min(y, 1.0));
        }
        // Without a warm-up W counts as 1: the rate falls from the first update on.
        case ScheduleKind::invsqrt:
            return std::sqrt(std::max(W, 1.0) / static_cast<double>(t + 1));
    }
    return 1.0;
}
