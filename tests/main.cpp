// Catch2's main, built once and unoptimised, with a listener that counts what passed, failed and was skipped.
// The last line printed is `N passed, N failed, N skipped`.
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>

#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

static bool skipped_now = false;
static int passed = 0, failed = 0, skipped = 0;

void note_skip(const std::string& why) {
    skipped_now = true;
    std::printf("skipped: %s\n", why.c_str());
}

struct Counter : Catch::TestEventListenerBase {
    using TestEventListenerBase::TestEventListenerBase;
    void testCaseStarting(const Catch::TestCaseInfo&) override { skipped_now = false; }
    void testCaseEnded(const Catch::TestCaseStats& stats) override {
        if (!stats.totals.assertions.allOk() || stats.totals.testCases.failed > 0) {
            failed++;
        } else if (skipped_now) {
            skipped++;
        } else {
            passed++;
        }
    }
};
CATCH_REGISTER_LISTENER(Counter)

double relative_error(const std::vector<double>& got, const std::vector<double>& want) {
    if (got.size() != want.size()) return std::numeric_limits<double>::infinity();
    double difference = 0, norm = 0;
    for (size_t i = 0; i < got.size(); i++) {
        if (!std::isfinite(got[i])) return std::numeric_limits<double>::infinity();
        difference += (got[i] - want[i]) * (got[i] - want[i]);
        norm += want[i] * want[i];
    }
    if (norm == 0) return difference == 0 ? 0 : std::numeric_limits<double>::infinity();
    return std::sqrt(difference / norm);
}

double worst_error(const std::vector<double>& got, const std::vector<double>& want, double atol, double rtol) {
    if (got.size() != want.size()) return std::numeric_limits<double>::infinity();
    double worst = 0;
    for (size_t i = 0; i < got.size(); i++) {
        if (!std::isfinite(got[i])) return std::numeric_limits<double>::infinity();
        double error = std::fabs(got[i] - want[i]);
        if (error > 0) worst = std::max(worst, error / (atol + rtol * std::fabs(want[i])));
    }
    return worst;
}

int main(int argc, char** argv) {
    Catch::Session session;
    int status = session.run(argc, argv);
    if (passed + failed + skipped > 0) std::printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return status == 0 && failed == 0 ? 0 : 1;
}
