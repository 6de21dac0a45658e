// Learning-rate schedules against values worked out by hand, and what must hold for every one of them.
#include "optimizer/schedule.h"
#include "test.h"

namespace {
Schedule make(ScheduleKind kind, double final_ratio, WsdShape shape = WsdShape::sqrt) {
    Schedule s;
    s.kind = kind;
    s.steps = 100;
    s.warmup = 10;
    s.final_ratio = final_ratio;
    s.decay_steps = 20;
    s.shape = shape;
    return s;
}
}  // namespace

// T = 100, W = 10, peak 1e-3; the values have ten digits, so they are met to 5e-10 relative.
TEST_CASE("schedules have the values of the table", "[schedule]") {
    const Schedule schedules[] = {make(ScheduleKind::cosine, 0.1), make(ScheduleKind::linear, 0.1),
                                  make(ScheduleKind::wsd, 0.0), make(ScheduleKind::wsd, 0.0, WsdShape::linear)};
    const struct {
        int64_t t;
        double rate[4];
    } table[] = {
        {0, {1e-4, 1e-4, 1e-4, 1e-4}},
        {9, {1e-3, 1e-3, 1e-3, 1e-3}},
        {55, {5.5e-4, 5.5e-4, 1e-3, 1e-3}},
        {80, {2.052800006e-4, 3.0e-4, 1e-3, 1e-3}},
        {85, {1.602885683e-4, 2.5e-4, 5e-4, 7.5e-4}},
        {90, {1.271383206e-4, 2.0e-4, 2.928932188e-4, 5.0e-4}},
        {99, {1.002741278e-4, 1.1e-4, 2.532056552e-5, 5.0e-5}},
    };
    for (const auto& row : table) {
        for (int i = 0; i < 4; i++) {
            INFO("t " << row.t << ", schedule " << i);
            CHECK(1e-3 * schedule_at(schedules[i], row.t) == Approx(row.rate[i]).epsilon(1e-9));
        }
    }
    const Schedule invsqrt = make(ScheduleKind::invsqrt, 0.0);
    CHECK(1e-3 * schedule_at(invsqrt, 39) == Approx(5.0e-4).epsilon(1e-9));
    CHECK(1e-3 * schedule_at(invsqrt, 99) == Approx(3.16227766e-4).epsilon(1e-8));
    CHECK(schedule_at(make(ScheduleKind::constant, 0.0), 50) == 1.0);
    CHECK(schedule_at(make(ScheduleKind::wsd, 0.0, WsdShape::cosine), 90) == Approx(0.5));
    CHECK(schedule_at(make(ScheduleKind::wsd, 0.0, WsdShape::exp), 90) == Approx(std::sqrt(0.05)));
    CHECK(schedule_at(make(ScheduleKind::wsd, 0.1, WsdShape::linear), 90) == Approx(0.55));
}

TEST_CASE("schedules stay within [0,1] at every length of warm-up and run", "[schedule]") {
    for (int kind = 0; kind < 5; kind++) {
        for (int64_t steps : {1, 2, 3, 10, 57}) {
            for (int64_t warmup = 0; warmup <= steps; warmup++) {
                for (int64_t decay = 0; decay <= steps; decay += 3) {
                    Schedule s = make(static_cast<ScheduleKind>(kind), 0.1);
                    s.steps = steps;
                    s.warmup = warmup;
                    s.decay_steps = decay;
                    for (int64_t t = 0; t < steps; t++) {
                        const double rate = schedule_at(s, t);
                        INFO(schedule_names()[static_cast<size_t>(kind)] << " T " << steps << " W " << warmup << " t "
                                                                         << t);
                        REQUIRE(rate > 0);
                        REQUIRE(rate <= 1);
                    }
                }
            }
        }
    }
}

TEST_CASE("schedule defaults", "[schedule]") {
    CHECK(default_warmup(5) == 0);
    CHECK(default_warmup(100) == 10);
    CHECK(default_warmup(2000) == 100);
    CHECK(default_warmup(100000) == 1000);
    CHECK(default_final_ratio(ScheduleKind::cosine) == 0.1);
    CHECK(default_final_ratio(ScheduleKind::linear) == 0.0);
    CHECK(default_final_ratio(ScheduleKind::wsd) == 0.0);
    CHECK(default_decay_steps(100) == 20);
}
