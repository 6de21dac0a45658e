#include "checkpoint/gemm_record.h"

#include <cctype>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>

#include "checkpoint/files.h"
#include "kernels/error.h"

using nlohmann::ordered_json;

ordered_json gemm_to_json(const GemmRecord& record) {
    ordered_json list = ordered_json::array();
    for (const MatmulChoice& c : record.choices)
        list.push_back({{"product", c.product},
                        {"algorithm", c.algorithm},
                        {"fused", c.fused},
                        {"us", c.us},
                        {"first_us", c.first_us},
                        {"two_steps_us", c.two_steps_us}});
    return {{"card", record.card}, {"cublaslt", record.cublaslt}, {"precision", record.precision}, {"choices", list}};
}

GemmRecord gemm_from_json(const ordered_json& json) {
    GemmRecord record{json.at("card").get<std::string>(), json.at("cublaslt").get<std::string>(),
                      json.at("precision").get<std::string>(), {}};
    for (const ordered_json& c : json.at("choices"))
        record.choices.push_back({c.at("product").get<std::string>(), c.at("algorithm").get<std::string>(),
                                  c.at("fused").get<bool>(), c.at("us").get<double>(), c.at("first_us").get<double>(),
                                  c.at("two_steps_us").get<double>()});
    return record;
}

std::string gemm_cache_file(const GemmRecord& machine) {
    const auto variable = [](const char* name) -> std::string {
        const char* value = getenv(name);
        return value ? value : "";
    };
    std::string folder = variable("RESIDUAL_CACHE");
    if (folder.empty() && !variable("XDG_CACHE_HOME").empty()) folder = variable("XDG_CACHE_HOME") + "/residual.cu";
    if (folder.empty() && !variable("HOME").empty()) folder = variable("HOME") + "/.cache/residual.cu";
    if (folder.empty()) return "";
    std::string name = "gemm-" + machine.card + "-cublaslt" + machine.cublaslt + "-" + machine.precision + ".json";
    for (char& c : name)
        if (!std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '-') c = '_';
    return folder + "/" + name;
}

std::vector<MatmulChoice> gemm_cache_read(const GemmRecord& machine, std::vector<std::string>& notes) {
    const std::string path = gemm_cache_file(machine);
    if (path.empty() || !file_exists(path)) return {};
    try {
        const GemmRecord kept = gemm_from_json(ordered_json::parse(read_text(path)));
        if (kept.same_machine(machine)) return kept.choices;
        notes.push_back(path + ": of another card or library; products are measured anew");
    } catch (const ordered_json::exception&) {
        notes.push_back(path + ": damaged; products are measured anew");
    } catch (const UserError& error) {
        notes.push_back(std::string(error.what()) + "; products are measured anew");
    }
    return {};
}

void gemm_cache_add(const GemmRecord& record, std::vector<std::string>& notes) {
    const std::string path = gemm_cache_file(record);
    if (path.empty()) return;
    std::map<std::string, MatmulChoice> choices;
    std::vector<std::string> known_already;  // what is wrong with the old file was said when it was read
    for (const MatmulChoice& c : gemm_cache_read(record, known_already)) choices[c.product] = c;
    for (const MatmulChoice& c : record.choices) choices[c.product] = c;
    GemmRecord all{record.card, record.cublaslt, record.precision, {}};
    for (const auto& [product, c] : choices) all.choices.push_back(c);
    try {
        make_folders(parent_folder(path));
        write_text_atomic(path, gemm_to_json(all).dump(1) + "\n");
    } catch (const UserError& error) {
        notes.push_back(std::string(error.what()) + "; measured GEMM algorithms are not kept for the next run");
    }
}
