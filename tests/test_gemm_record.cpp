// Choices of GEMM algorithms on disk and in checkpoints, and runs that repeat each other's bits with them.
#include <cublasLt.h>

#include <cstring>
#include <filesystem>

#include "checkpoint/gemm_record.h"
#include "environment.h"
#include "temp_folder.h"
#include "tiny_run.h"

namespace fs = std::filesystem;
using nlohmann::json;
using nlohmann::ordered_json;

namespace {

GemmRecord some_record(const std::string& library = "130000") {
    return {"NVIDIA \"H200\"/x", library, "bf16", {{"m=1", std::string(128, 'a'), true, 1.5, 2.25, 0},
                                                   {"m=2", std::string(128, '0'), false, 0.1, 0.1, 0.05}}};
}

struct Runs {
    TempFolder temp;
    std::string prefix = temp / "tiny";
    Environment cache{"RESIDUAL_CACHE", temp / "cache"};
    Runs() { write_tiny_data(prefix); }
    std::vector<std::string> arguments(const std::string& out, const std::vector<std::string>& more) const {
        std::vector<std::string> all = {"--save-every", "5"};
        all.insert(all.end(), more.begin(), more.end());
        return tiny_args(prefix, temp / out, all);
    }
    ProgramResult train(const std::string& out, const std::vector<std::string>& more = {}) const {
        const ProgramResult result = run_program("train_gpt2", arguments(out, more));
        INFO(result.out << result.err);
        CHECK(result.err.empty());
        REQUIRE(result.status == 0);
        return result;
    }
    // OUT goes on from step 5 of FROM, whose state `edit` changes first.
    template <class Edit>
    ProgramResult resume(const std::string& out, const std::string& from, Edit edit) const {
        fs::create_directories(temp / out);
        fs::copy(temp / from + "/step_00000005", temp / out + "/step_00000005", fs::copy_options::recursive);
        const std::string path = temp / out + "/step_00000005/state.json";
        json state = json::parse(read_text(path));
        edit(state);
        write_text_atomic(path, state.dump());
        return train(out, {"--resume"});
    }
    std::string weights(const std::string& out) const {
        return read_text(temp / out + "/step_00000010/model.safetensors");
    }
    json gemm(const std::string& out) const {
        return json::parse(read_text(temp / out + "/step_00000010/state.json"))["gemm"];
    }
};

// Every algorithm in two parts of k, where the library lets it be.
void split_all(json& state) {
    for (json& choice : state["gemm"]["choices"]) {
        cublasLtMatmulAlgo_t algo = {};
        unsigned char bytes[sizeof algo];
        const std::string hex = choice["algorithm"];
        for (size_t i = 0; i < sizeof bytes; i++)
            bytes[i] = static_cast<unsigned char>(std::stoi(hex.substr(2 * i, 2), nullptr, 16));
        memcpy(&algo, bytes, sizeof bytes);
        const int32_t parts = 2;
        cublasLtMatmulAlgoConfigSetAttribute(&algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &parts, sizeof parts);
        memcpy(bytes, &algo, sizeof bytes);
        std::string text;
        for (unsigned char byte : bytes) text += format("%02x", byte);
        choice["algorithm"] = text;
    }
}
void leave(json&) {}

}  // namespace

TEST_CASE("GEMM choices: JSON and back", "[gemm_record]") {
    const GemmRecord record = some_record(), back = gemm_from_json(ordered_json::parse(gemm_to_json(record).dump()));
    CHECK(back.same_machine(record));
    CHECK(back.choices == record.choices);
    CHECK_THROWS_AS(gemm_from_json(ordered_json::parse(R"({"card": "x"})")), ordered_json::exception);
}

TEST_CASE("GEMM choices: the cache keeps them by card, library and precision", "[gemm_record]") {
    TempFolder temp;
    const Environment cache("RESIDUAL_CACHE", temp / "a/b");
    std::vector<std::string> notes;
    const GemmRecord record = some_record();
    CHECK(gemm_cache_read(record, notes).empty());
    gemm_cache_add(record, notes);
    CHECK(gemm_cache_read(record, notes) == record.choices);
    // What is added joins what is there; the same product is replaced.
    GemmRecord more = record;
    more.choices = {{"m=0", std::string(128, 'b'), true, 3, 3, 0}, record.choices[1]};
    more.choices[1].fused = true;
    gemm_cache_add(more, notes);
    CHECK(gemm_cache_read(record, notes) ==
          std::vector<MatmulChoice>{more.choices[0], record.choices[0], more.choices[1]});
    for (const GemmRecord& other : {GemmRecord{"A100", "130000", "bf16", {}}, some_record("130100"),
                                    GemmRecord{record.card, record.cublaslt, "fp32", {}}}) {
        CHECK(gemm_cache_file(other) != gemm_cache_file(record));
        CHECK(gemm_cache_read(other, notes).empty());
    }
    CHECK(notes.empty());
    CHECK(fs::path(gemm_cache_file(record)).parent_path() == temp / "a/b");
}

TEST_CASE("GEMM choices: a cache that cannot be used is a note", "[gemm_record]") {
    TempFolder temp;
    const Environment cache("RESIDUAL_CACHE", temp.path);
    const GemmRecord record = some_record();
    const std::string path = gemm_cache_file(record);
    const std::string other = gemm_to_json(some_record("120000")).dump();
    for (const std::string& text : {std::string("{\"card\""), std::string("[]"), std::string(), other}) {
        INFO(text);
        put_bytes(path, text);
        std::vector<std::string> notes;
        CHECK(gemm_cache_read(record, notes).empty());
        REQUIRE(notes.size() == 1);
        CHECK(notes[0].find(path) == 0);
        gemm_cache_add(record, notes);  // in its place
        CHECK(notes.size() == 1);
        CHECK(gemm_cache_read(record, notes) == record.choices);
    }
    put_bytes(temp / "file", "");
    const Environment no_folder("RESIDUAL_CACHE", temp / "file");
    std::vector<std::string> notes;
    gemm_cache_add(record, notes);
    CHECK(notes.size() == 1);
}

TEST_CASE("GEMM choices: where the cache is", "[gemm_record]") {
    const Environment none("RESIDUAL_CACHE", ""), home("HOME", "/h");
    {
        const Environment xdg("XDG_CACHE_HOME", "/x");
        CHECK(parent_folder(gemm_cache_file(some_record())) == "/x/residual.cu");
    }
    const Environment no_xdg("XDG_CACHE_HOME", "");
    CHECK(parent_folder(gemm_cache_file(some_record())) == "/h/.cache/residual.cu");
    const Environment no_home("HOME", "");
    CHECK(gemm_cache_file(some_record()).empty());
    std::vector<std::string> notes;
    gemm_cache_add(some_record(), notes);
    CHECK(gemm_cache_read(some_record(), notes).empty());
    CHECK(notes.empty());
}

TEST_CASE("GEMM choices: a resumed run uses its checkpoint's", "[gemm_record]") {
    if (!have_program("train_gpt2")) SKIP_TEST("GEMM choices: RESIDUAL_BUILD names no build");
    Runs runs;
    std::string plain;
    {
        // Without a choice there is nothing to record, measure or keep.
        const Environment one("SIMT_GEMM_ALGOS", "1");
        runs.train("plain");
        plain = runs.weights("plain");
    }
    const Environment more("SIMT_GEMM_ALGOS", "2");
    const ProgramResult measured = runs.train("measured");
    CHECK(measured.out.find("GEMM algorithms: ") != std::string::npos);
    const json record = runs.gemm("measured");
    CHECK(record["choices"].size() >= 10);
    // Measured once: what was kept decides the same bits again.
    const ProgramResult again = runs.train("again");
    CHECK(again.out.find(", 0 of them measured now") != std::string::npos);
    CHECK(runs.gemm("again") == record);
    CHECK((runs.weights("again") == runs.weights("measured")));
    // Stopping and going on changes nothing, cache or no cache.
    fs::remove_all(runs.temp / "cache");
    runs.resume("gone_on", "measured", leave);
    CHECK(runs.gemm("gone_on") == record);
    CHECK((runs.weights("gone_on") == runs.weights("measured")));
    // Choices that nobody here would make: the checkpoint's count, the second time as the first.
    runs.resume("split", "measured", split_all);
    runs.resume("split_again", "measured", split_all);
    CHECK((runs.weights("split") == runs.weights("split_again")));
    const bool can_split = runs.weights("split") != runs.weights("measured");
    if (!can_split) SKIP_TEST("GEMM choices: this library's algorithms cannot be split");
    CHECK((runs.weights("split") != plain));
    // Of another card or library they don't count; they are measured anew, which the run says.
    const ProgramResult other = runs.resume("other", "measured", [](json& state) {
        split_all(state);
        state["gemm"]["cublaslt"] = "1";
    });
    CHECK(other.out.find("do not count here") != std::string::npos);
    CHECK(runs.gemm("other")["cublaslt"] == record["cublaslt"]);
    // A checkpoint from before choices were recorded resumes.
    runs.resume("old", "measured", [](json& state) { state.erase("gemm"); });
}

TEST_CASE("GEMM choices: measuring leaves no trace in a run", "[gemm_record]") {
    if (!have_program("train_gpt2")) SKIP_TEST("GEMM choices: RESIDUAL_BUILD names no build");
    Runs runs;
    const Environment more("SIMT_GEMM_ALGOS", "2");
    // The first run measures, the second finds all of it in its own cache: any state left behind would show.
    for (const char* rule : {"vanilla+prores+value", "gpas", "mhc", "attnres", "review"}) {
        INFO(rule);
        const std::string out = rule;
        runs.train(out, {"--residual", rule});
        const ProgramResult plain = runs.train(out + "_plain", {"--residual", rule, "--no-tune-gemms"});
        CHECK(plain.out.find("GEMM algorithms: ") == std::string::npos);
        CHECK(runs.gemm(out + "_plain")["choices"].empty());
        // From the choices of the first, given to a run that measures nothing.
        runs.train(out + "_given", {"--residual", rule, "--init-only"});
        const std::string path = runs.temp / out + "_given/step_00000000/state.json";
        json state = json::parse(read_text(path));
        state["gemm"] = runs.gemm(out);
        write_text_atomic(path, state.dump());
        runs.train(out + "_given", {"--residual", rule, "--no-tune-gemms", "--resume"});
        CHECK((runs.weights(out + "_given") == runs.weights(out)));
    }
}
