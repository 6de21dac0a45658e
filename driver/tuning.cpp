#include "driver/tuning.h"

#include <map>
#include <nlohmann/json.hpp>

#include "driver/machine.h"
#include "kernels/error.h"

static GemmRecord this_machine() {
    const Machine machine = find_machine();
    return {machine.device, library_versions()["cublaslt"], machine.precision, {}};
}

void tune_gemms(Model& model, bool measure, GemmRecord& record, std::vector<std::string>& notes) {
    GemmRecord here = this_machine();
    if (record.same_machine(here)) {
        here.choices = record.choices;
    } else if (!record.choices.empty()) {
        notes.push_back(format("the checkpoint's GEMM algorithms are for %s, cuBLASLt %s, %s, and do not count here: "
                               "the same updates may differ in their last bits",
                               record.card.c_str(), record.cublaslt.c_str(), record.precision.c_str()));
    }
    model_use_gemms(model, here.choices);
    if (measure && model_has_gemm_choice(model)) {
        const std::vector<MatmulChoice> kept = gemm_cache_read(here, notes);
        model_use_gemms(model, kept);
        model_use_gemms(model, here.choices);  // the checkpoint's count for more
        model_rehearse(model);
        // What was given may not run here: a choice counts as known only if it is still the same.
        std::map<std::string, std::string> known;
        for (const std::vector<MatmulChoice>& list : {kept, here.choices})
            for (const MatmulChoice& choice : list) known[choice.product] = choice.algorithm;
        const std::vector<MatmulChoice> asked = here.choices;
        here.choices = model_gemms(model);
        size_t measured = 0, refused = 0;
        for (const MatmulChoice& choice : here.choices) measured += known[choice.product] != choice.algorithm;
        for (const MatmulChoice& wanted : asked)
            for (const MatmulChoice& choice : here.choices)
                refused += choice.product == wanted.product && choice.algorithm != wanted.algorithm;
        if (refused > 0)
            notes.push_back(format("%zu of the checkpoint's GEMM algorithms do not run here: the same updates may "
                                   "differ in their last bits",
                                   refused));
        if (measured > 0) gemm_cache_add(here, notes);
        notes.push_back(
            format("GEMM algorithms: %zu products, %zu of them measured now", here.choices.size(), measured));
    }
    record = here;
}

void share_gemms(Model& model, Comm* comm, const GemmRecord& record) {
    std::string text = comm_rank(comm) == 0 && !record.choices.empty() ? gemm_to_json(record).dump() : "";
    text.resize(static_cast<size_t>(comm_broadcast(comm, static_cast<int64_t>(text.size()))));
    // In one piece: a character a number, and zeros from all ranks but the first.
    std::vector<double> characters(text.begin(), text.end());
    comm_sum(comm, characters.data(), static_cast<int>(characters.size()));
    for (size_t i = 0; i < text.size(); i++) text[i] = static_cast<char>(characters[i]);
    if (comm_rank(comm) != 0 && !text.empty())
        model_use_gemms(model, gemm_from_json(nlohmann::ordered_json::parse(text)).choices);
}
