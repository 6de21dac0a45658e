// ProRes's schedules: values worked out by hand, and where each of them ends.
#include "residual/prores.h"

#include "kernels/error.h"
#include "test.h"

namespace {

ProRes read(const std::map<std::string, std::string>& given) {
    RuleOptions options(given);
    ProRes prores(options);
    options.refuse_unread("prores", "pre");
    return prores;
}
ProRes make(const std::string& schedule, int T = 0) {
    std::map<std::string, std::string> given = {{"schedule", schedule}};
    if (T > 0) given["T"] = std::to_string(T);
    return read(given);
}

struct Value {
    int l;
    int64_t t;
    double alpha;
};
// Four layers, T = 10.
void check(const std::string& schedule, const std::vector<Value>& values) {
    const ProRes prores = make(schedule, 10);
    for (const Value& v : values) {
        CAPTURE(schedule, v.l, v.t);
        CHECK(std::fabs(prores.alpha(v.l, 4, v.t) - v.alpha) < 1e-15);
    }
}

}  // namespace

TEST_CASE("prores: growing schedules", "[prores]") {
    check("linear", {{1, 0, 0}, {4, 0, 0}, {1, 3, 0.3}, {2, 3, 0.15}, {3, 15, 0.5}, {4, 10, 0.25}, {1, 10, 1}, {1, 11, 1},
                     {4, 39, 0.975}, {4, 40, 1}, {4, 41, 1}});
    check("linear_sqrt", {{1, 0, 0}, {2, 5, 0.5}, {4, 10, 0.5}, {4, 1, std::sqrt(1.0 / 40)}, {1, 9, std::sqrt(0.9)}, {1, 10, 1},
                          {4, 40, 1}, {4, 400, 1}});
    check("linear_square", {{1, 0, 0}, {2, 10, 0.25}, {4, 20, 0.25}, {4, 10, 0.0625}, {1, 9, 0.81}, {1, 10, 1}, {4, 39, 0.950625},
                            {4, 40, 1}, {1, 25, 1}});
    check("equal", {{1, 0, 0}, {1, 3, 0.3}, {4, 3, 0.3}, {3, 9, 0.9}, {4, 10, 1}, {4, 1000000000000, 1}});
    check("reverse", {{4, 0, 0}, {4, 3, 0.3}, {3, 3, 0.15}, {1, 10, 0.25}, {4, 10, 1}, {1, 39, 0.975}, {1, 40, 1}, {1, 41, 1}});
}

TEST_CASE("prores: stages", "[prores]") {
    check("stagewise_0", {{1, 0, 0}, {1, 4, 0.4}, {1, 10, 1}, {2, 10, 0}, {2, 15, 0.5}, {2, 20, 1}, {4, 30, 0}, {4, 39, 0.9},
                          {4, 40, 1}, {4, 50, 1}});
    check("stagewise_L", {{1, 0, 0.25}, {4, 0, 0.25}, {1, 5, 0.625}, {2, 10, 0.25}, {2, 15, 0.625}, {4, 35, 0.625}, {4, 40, 1}});
    check("stagewise_sqrtL", {{1, 0, 0.5}, {1, 5, 0.75}, {3, 20, 0.5}, {3, 25, 0.75}, {4, 39, 0.95}, {4, 40, 1}});
    check("stagewise_sqrtl", {{1, 0, 1}, {1, 5, 1}, {4, 0, 0.5}, {4, 30, 0.5}, {4, 35, 0.75}, {4, 40, 1}, {2, 10, std::sqrt(0.5)},
                              {2, 15, 0.5 + std::sqrt(0.5) / 2}, {2, 20, 1}});
}

TEST_CASE("prores: fixed factors never end", "[prores]") {
    for (int64_t t : {int64_t{0}, int64_t{17}, int64_t{1} << 40}) {
        for (int l = 1; l <= 4; l++) {
            CAPTURE(t, l);
            CHECK(make("fix_L").alpha(l, 4, t) == 0.25);
            CHECK(make("fix_sqrtL").alpha(l, 4, t) == 0.5);
            CHECK(std::fabs(make("fix_sqrtl").alpha(l, 4, t) - 1 / std::sqrt(static_cast<double>(l))) < 1e-15);
        }
    }
}

// The column "finished at" of the table of schedules: T*L updates, or T for equal; one update earlier some layer is not.
TEST_CASE("prores: schedules end when they should", "[prores]") {
    const int L = 6, T = 7;
    for (const char* schedule : {"linear", "linear_sqrt", "linear_square", "equal", "reverse", "stagewise_0", "stagewise_L",
                                 "stagewise_sqrtL", "stagewise_sqrtl"}) {
        CAPTURE(schedule);
        const ProRes prores = make(schedule, T);
        const int64_t end = std::string(schedule) == "equal" ? T : T * L;
        double lowest = 1;
        for (int l = 1; l <= L; l++) {
            CHECK(prores.alpha(l, L, end) == 1);
            CHECK(prores.alpha(l, L, end + 1) == 1);
            lowest = std::min(lowest, prores.alpha(l, L, end - 1));
            for (int64_t t = 0; t < end; t++) CHECK(prores.alpha(l, L, t) <= prores.alpha(l, L, t + 1));
        }
        CHECK(lowest < 1);
        CHECK(lowest > 0.3);
    }
}

TEST_CASE("prores: options", "[prores]") {
    const ProRes prores = read({});
    CHECK(prores.T == 1000);
    CHECK(prores.schedule == "linear");
    CHECK(!prores.eval_one);
    CHECK(read({{"prores_eval_one", "1"}}).eval_one);
    CHECK_THROWS_AS(make("cosine"), UserError);
    CHECK_THROWS_AS(make("fix_L", 10), UserError);  // has no duration
    CHECK_THROWS_AS(read({{"T", "0"}}), UserError);
    CHECK_THROWS_AS(read({{"T", "2.5"}}), UserError);
}
