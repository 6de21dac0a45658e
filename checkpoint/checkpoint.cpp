#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "checkpoint/files.h"
#include "checkpoint/huggingface.h"
#include "kernels/error.h"

using nlohmann::ordered_json;

namespace {

constexpr const char* optimizer_file = "optimizer_0000.safetensors";  // one shard: moments are whole on every rank

std::string last_name(const std::string& path) {
    return path.substr(path.find_last_of('/') + 1);
}

// The step in a checkpoint's name, step_%08d; -1 for any other name.
int64_t step_of(const std::string& name) {
    const bool ours = name.size() >= 13 && name.size() < 24 && name.rfind("step_", 0) == 0 &&
                      name.find_first_not_of("0123456789", 5) == std::string::npos;
    return ours ? std::stoll(name.substr(5)) : -1;
}

ordered_json state_to_json(const RunState& s) {
    ordered_json j;
    j["format"] = 1;
    j["step"] = s.step;
    j["tokens"] = s.tokens;
    j["seed"] = s.seed;
    j["generator"] = {{"kind", "counter"}, {"seed", s.seed}, {"step", s.last_change}};
    j["world_size"] = s.world_size;
    j["data"] = {{"tokens", s.train_tokens}, {"shard", s.at.shard}, {"token", s.at.token}};
    j["data"]["corpora"] = ordered_json::array();
    for (const WindowPosition& corpus : s.at.corpora)
        j["data"]["corpora"].push_back({{"epoch", corpus.epoch}, {"window", corpus.window}});
    ordered_json settings = ordered_json::object();
    for (const auto& [name, value] : s.settings) settings[name] = value;
    j["settings"] = settings;
    j["versions"] = s.versions;
    j["gemm"] = gemm_to_json(s.gemm);
    return j;
}

// state.json as an object with everything we read from it; UserError names the file.
ordered_json read_state_json(const std::string& folder) {
    const std::string path = folder + "/state.json";
    ordered_json j = ordered_json::parse(read_text(path), nullptr, false);
    if (j.is_discarded() || !j.is_object() || !j.contains("checksums") || !j["checksums"].is_object())
        throw user_error("%s: cut short or damaged; use another checkpoint", path.c_str());
    return j;
}

}  // namespace

std::string checkpoint_path(const std::string& run, int64_t step) {
    return run + format("/step_%08lld", static_cast<long long>(step));
}

std::vector<int64_t> checkpoint_steps(const std::string& run) {
    std::vector<int64_t> steps;
    if (!folder_exists(run)) return steps;
    for (const std::string& name : list_folder(run)) {
        if (step_of(name) >= 0) steps.push_back(step_of(name));
    }
    std::sort(steps.begin(), steps.end());
    return steps;
}

std::string checkpoint_save(const std::string& run, const RunState& state, const ModelConfig& config,
                            const Registry& registry, const Arrays& arrays, Dtype dtype,
                            const std::vector<NamedText>& files) {
    std::string final_path = checkpoint_path(run, state.step), path = final_path + ".tmp";
    remove_folder(path);
    make_folders(path);
    std::vector<std::string> names = {"config.json", "model.safetensors"};

    ModelConfig config_now = config;
    config_now.residual_step += state.step;
    write_text_atomic(path + "/config.json", config_to_json(config_now, dtype == Dtype::bf16 ? "bfloat16" : "float32"));
    weights_write(path + "/model.safetensors", registry, arrays.master, dtype);
    if (arrays.m != nullptr) {
        std::vector<TensorOut> tensors;
        std::vector<std::vector<char>> storage;
        gather_parts(tensors, storage, registry, arrays.m, ".m", Dtype::f32);
        gather_parts(tensors, storage, registry, arrays.v, ".v", Dtype::f32);
        if (dtype != Dtype::f32) gather_parts(tensors, storage, registry, arrays.master, ".master", Dtype::f32);
        const int64_t scales = static_cast<int64_t>(arrays.fp8.scale.size());
        if (scales > 0) {
            const int64_t history = static_cast<int64_t>(arrays.fp8.history.size()) / scales;
            tensors.push_back({"fp8.scale", Dtype::f32, {scales}, arrays.fp8.scale.data()});
            tensors.push_back({"fp8.history", Dtype::f32, {scales, history}, arrays.fp8.history.data()});
        }
        safetensors_write(path + "/" + optimizer_file, tensors,
                          {{"layout", "whole tensors: NAME.m, NAME.v, shapes as in model.safetensors"},
                           {"shard", "0"},
                           {"shards", "1"}});
        names.push_back(optimizer_file);
    }
    for (const NamedText& file : files) {
        write_text_atomic(path + "/" + file.name, file.text);
        names.push_back(file.name);
    }

    ordered_json j = state_to_json(state);
    for (const std::string& name : names) j["checksums"][name] = file_checksum(path + "/" + name);
    write_text_atomic(path + "/state.json", j.dump(2) + "\n");
    sync_folder(path);
    remove_folder(final_path);  // a damaged one of the same step, passed over by --resume
    if (rename(path.c_str(), final_path.c_str()) != 0)
        throw user_error("%s: cannot be renamed to %s", path.c_str(), last_name(final_path).c_str());
    sync_folder(run);
    return final_path;
}

std::string checkpoint_fault(const std::string& folder, bool weights_only) {
    try {
        const ordered_json state = read_state_json(folder);
        for (const auto& [name, sum] : state["checksums"].items()) {
            if (weights_only && name.rfind("optimizer_", 0) == 0) continue;
            const std::string path = folder + "/" + name;
            if (!file_exists(path)) return path + ": missing";
            if (!sum.is_string() || file_checksum(path) != sum.get<std::string>())
                return path + ": damaged (its checksum is not the one in state.json)";
        }
    } catch (const UserError& error) {
        return error.what();
    }
    return "";
}

int64_t checkpoint_newest(const std::string& run, std::vector<std::string>& notes) {
    const std::vector<int64_t> steps = checkpoint_steps(run);
    for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
        const std::string fault = checkpoint_fault(checkpoint_path(run, *step));
        if (fault.empty()) return *step;
        notes.push_back("passed over: " + fault);
    }
    return -1;
}

RunState checkpoint_read_state(const std::string& folder) {
    const ordered_json j = read_state_json(folder);
    RunState s;
    try {
        s.step = j.at("step").get<int64_t>();
        s.tokens = j.at("tokens").get<int64_t>();
        s.seed = j.at("seed").get<uint64_t>();
        s.last_change = j.at("generator").at("step").get<int64_t>();
        s.world_size = j.at("world_size").get<int>();
        const ordered_json& data = j.at("data");
        s.train_tokens = data.at("tokens").get<int64_t>();
        s.at.shard = data.at("shard").get<int64_t>();
        s.at.token = data.at("token").get<int64_t>();
        for (const ordered_json& corpus : data.at("corpora"))
            s.at.corpora.push_back({corpus.at("epoch").get<int64_t>(), corpus.at("window").get<int64_t>()});
        for (const auto& [name, value] : j.at("settings").items())
            s.settings.emplace_back(name, value.get<std::string>());
        s.versions = j.at("versions").get<std::map<std::string, std::string>>();
        if (j.contains("gemm")) s.gemm = gemm_from_json(j.at("gemm"));
    } catch (const ordered_json::exception& error) {
        throw user_error("%s/state.json: %s; use another checkpoint", folder.c_str(), error.what());
    }
    return s;
}

void checkpoint_read_optimizer(const std::string& folder, const Registry& registry, float* m, float* v, float* master,
                               Fp8State& fp8) {
    const std::string path = folder + "/" + optimizer_file;
    if (!file_exists(path)) return;  // written before the first update: all zero
    const SafetensorsFile file = safetensors_read(path);
    scatter_parts(file, path, registry, m, ".m");
    scatter_parts(file, path, registry, v, ".v");
    if (!registry.tensors.empty() && file.tensors.count(registry.tensors[0].parts[0].name + ".master") > 0)
        scatter_parts(file, path, registry, master, ".master");
    for (const auto& [name, values] : {std::pair{"fp8.scale", &fp8.scale}, {"fp8.history", &fp8.history}}) {
        const auto found = file.tensors.find(name);
        if (found == file.tensors.end()) continue;
        values->resize(static_cast<size_t>(found->second.count()));
        tensor_to_float(values->data(), found->second, name);
    }
}

void checkpoint_prune(const std::string& run, int64_t keep) {
    // Renamed first: what is half deleted must not look like a checkpoint.
    std::vector<int64_t> steps = checkpoint_steps(run);
    while (keep > 0 && static_cast<int64_t>(steps.size()) > keep) {
        const std::string path = checkpoint_path(run, steps.front()), aside = path + ".tmp";
        remove_folder(aside);
        if (rename(path.c_str(), aside.c_str()) != 0) throw user_error("%s: cannot be deleted", path.c_str());
        steps.erase(steps.begin());
    }
    for (const std::string& name : list_folder(run)) {
        const size_t stem = name.size() > 4 && name.substr(name.size() - 4) == ".tmp" ? name.size() - 4 : 0;
        if (step_of(name.substr(0, stem)) >= 0) remove_folder(run + "/" + name);
    }
}

std::string model_folder(const std::string& dir, std::vector<std::string>& notes) {
    std::string folder = dir;
    while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
    if (!folder_exists(folder)) throw user_error("%s: there is no such folder", dir.c_str());
    if (!checkpoint_steps(folder).empty()) {
        const int64_t step = checkpoint_newest(folder, notes);
        if (step < 0) throw user_error("%s: no intact checkpoint; %s", dir.c_str(), notes.back().c_str());
        return checkpoint_path(folder, step);
    }
    if (!file_exists(folder + "/config.json"))
        throw user_error("%s: neither a checkpoint or Hugging Face folder (config.json) nor a run folder (step_*)",
                         dir.c_str());
    if (file_exists(folder + "/state.json")) {
        const std::string fault = checkpoint_fault(folder, true);
        if (!fault.empty()) throw user_error("%s", fault.c_str());
    }
    return folder;
}
