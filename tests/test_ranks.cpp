// Data parallelism: one, two and three ranks train the same model.
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "dataloader/shards.h"
#include "run_program.h"
#include "test.h"

using nlohmann::json;

namespace {

std::vector<double> column(const std::string& log, const char* event, const char* field) {
    std::vector<double> out;
    std::ifstream file(log);
    for (std::string line; std::getline(file, line);) {
        const json j = json::parse(line);
        if (j["event"] == event) out.push_back(j[field]);
    }
    return out;
}

}  // namespace

TEST_CASE("collectives under 1, 2 and 3 ranks", "[ranks]") {
    if (!have_program("ranks")) SKIP_TEST("collectives: RESIDUAL_BUILD names no build");
    for (int ranks : {1, 2, 3}) {
        const ProgramResult result = ranks == 1 ? run_program("ranks", {}) : run_ranks(ranks, "ranks", {});
        INFO(result.out << result.err);
        CHECK(result.status == 0);
        CHECK(result.out.find("ok") != std::string::npos);
    }
}

TEST_CASE("1, 2 and 3 ranks give the same losses", "[ranks]") {
    if (!have_program("train_gpt2")) SKIP_TEST("ranks: RESIDUAL_BUILD names no build");
    TempFolder temp;
    Random random(5);
    std::vector<uint32_t> tokens(20000);
    for (auto& token : tokens) token = static_cast<uint32_t>(random.below(random.below(2) ? 64 : 7));  // something to learn
    shard_write(temp.path + "/t_train_000000.bin", tokens, 64);
    tokens.resize(3000);
    shard_write(temp.path + "/t_val_000000.bin", tokens, 64);

    // The same six sequences an update, split differently. fp32: sums in another order, 1e-5 as promised. bf16: a row's
    // rounding does not depend on its batch, but the product's blocking may, so a loss can move by a few rounding units.
    // 8 bits: the abs-max is one of all ranks, but a sum that is off by its last bit may send a number to its other
    // neighbour, 6 % away, and the first update's scales are a rank's own.
    for (const char* order : {"--no-shuffle", "--shuffle", "--fp8"}) {
        const double tolerance = sizeof(floatX) == 2 || order == std::string("--fp8") ? 5e-3 : 1e-5;
        std::vector<std::vector<double>> losses, norms, validation;
        for (int ranks : {1, 2, 3}) {
            const std::string out = temp.path + "/run" + std::to_string(ranks) + order;
            std::vector<std::string> args = {"--model", "gpt2-nano", "--layers", "2", "--channels", "64", "--vocab", "64",
                                             "--train", temp.path + "/t_train_*.bin", "--val", temp.path + "/t_val_*.bin",
                                             "--val-batches", ranks == 1 ? "15" : ranks == 2 ? "10" : "30", "--seq", "32", "--total-batch", "192", "--steps", "8",
                                             "--lr", "3e-3", "--out", out, order, "--batch", ranks == 1 ? "2" : ranks == 2 ? "3" : "1"};
            const ProgramResult result = ranks == 1 ? run_program("train_gpt2", args) : run_ranks(ranks, "train_gpt2", args);
            INFO(ranks << " ranks: " << result.out << result.err);
            REQUIRE(result.status == 0);
            losses.push_back(column(out + "/log.jsonl", "step", "loss"));
            norms.push_back(column(out + "/log.jsonl", "step", "grad_norm"));
            validation.push_back(column(out + "/log.jsonl", "val", "loss"));
            REQUIRE(losses.back().size() == 8);
            REQUIRE(validation.back().size() == 1);
        }
        for (int i : {1, 2}) {
            INFO(order << ", " << i + 1 << " ranks against one");
            CHECK(worst_error(losses[i], losses[0], tolerance, 0) <= 1);
            CHECK(worst_error(norms[i], norms[0], tolerance, 20 * tolerance) <= 1);
            CHECK(worst_error(validation[i], validation[0], 2 * tolerance, 0) <= 1);
        }
        CHECK(losses[0].back() < losses[0].front() - 0.2);  // it learns, so the comparison is not one of noise
    }
}
