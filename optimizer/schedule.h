// Learning-rate schedules: s(t) in [0,1], a pure function of the 0-based update t. The rate of an update is lr * s(t).
//
//   warm-up    t < W:  (t+1) / W, so the first update already moves
//   constant   1
//   cosine     f + (1-f) (1 + cos(pi x)) / 2                 x = (t-W) / (T-W)
//   linear     1 - (1-f) x
//   wsd        1 until D = T - decay_steps, then f + (1-f) g(y),   y = (t-D) / (T-D)
//              g: sqrt 1 - sqrt(y) | linear 1 - y | cosine (1 + cos(pi y)) / 2 | exp 0.05^y
//   invsqrt    sqrt(W / (t+1))
#pragma once
#include <cstdint>
#include <string>
#include <vector>

enum class ScheduleKind { cosine, wsd, linear, constant, invsqrt };
enum class WsdShape { sqrt, linear, cosine, exp };

struct Schedule {
    ScheduleKind kind = ScheduleKind::cosine;
    int64_t steps = 0;         // T, updates of the whole run
    int64_t warmup = 0;        // W
    double final_ratio = 0.1;  // f; of no meaning to constant and invsqrt
    int64_t decay_steps = 0;   // wsd: length of the final decay
    WsdShape shape = WsdShape::sqrt;
};

const std::vector<std::string>& schedule_names();   // in the order of ScheduleKind
const std::vector<std::string>& wsd_shape_names();  // in the order of WsdShape

int64_t default_warmup(int64_t steps);          // min(max(1% of T, 100), T/10)
double default_final_ratio(ScheduleKind kind);  // cosine 0.1, linear 0, wsd 0
int64_t default_decay_steps(int64_t steps);     // a fifth of the run

double schedule_at(const Schedule& schedule, int64_t t);
