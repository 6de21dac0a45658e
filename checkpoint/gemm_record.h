// Choices of GEMM algorithms, and the machine that they hold for, as JSON: in state.json, and in the cache on disk.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "kernels/matmul_choice.h"

struct GemmRecord {
    std::string card, cublaslt, precision;  // the device's name, cuBLASLt's version, fp32 or bf16
    std::vector<MatmulChoice> choices;     // sorted by product
    bool same_machine(const GemmRecord& other) const {
        return card == other.card && cublaslt == other.cublaslt && precision == other.precision;
    }
};

nlohmann::ordered_json gemm_to_json(const GemmRecord& record);
// nlohmann::ordered_json::exception for what is no record.
GemmRecord gemm_from_json(const nlohmann::ordered_json& json);

// Where choices are kept between runs: $RESIDUAL_CACHE, else $XDG_CACHE_HOME/residual.cu, else ~/.cache/residual.cu;
// empty when the environment names none of them. One file for each card, library and precision.
std::string gemm_cache_file(const GemmRecord& machine);
// The choices kept for `machine`. Nothing when there is no such file, and a note when it cannot be used.
std::vector<MatmulChoice> gemm_cache_read(const GemmRecord& machine, std::vector<std::string>& notes);
// Adds the record's choices to those kept; a note when that fails.
void gemm_cache_add(const GemmRecord& record, std::vector<std::string>& notes);
