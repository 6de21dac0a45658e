// The tensor registry: one list that allocation, initialisation, the optimizer, statistics and files all loop over.
//
// All parameter-sized arrays (working copy, master, gradient, moments) share one layout, the arena: tensor i occupies
// elements [offset, offset + count) of each. Padding inside a tensor (vocabulary and ffn rounded up) is zero and stays
// zero: its gradients are zero and AdamW maps (0,0) to 0. Files hold true shapes only.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"
#include "residual/rules.h"

enum class ParamClass { embed, head, matrix, auxmat, norm, bias, gate };
const char* class_name(ParamClass cls);

// A tensor as a file holds it: true rows [row, row + rows), which lie at [stored_row, stored_row + rows) of the stored
// matrix, under their own name, transposed if asked (GPT-2 files store linear maps [in,out], we store [out,in]). Fused
// tensors have several parts: q, k, v; gate and up. Vectors have cols == 1 and 1-d shape in files.
struct FilePart {
    std::string name;
    int64_t row, rows;
    bool transposed;
    int64_t stored_row;
};

// Rows [row, row + rows) start as normals of this standard deviation.
struct InitRange {
    int64_t row, rows;
    float std;
};

struct Tensor {
    std::string name;    // as in our checkpoints; of a fused tensor, its own
    int64_t rows, cols;  // true shape; a vector is (n,1)
    int64_t stored_rows, stored_cols;
    int layer;  // 0-based; -1: none
    ParamClass cls;
    float init_mean;  // a constant, where init_ranges has no row
    std::vector<InitRange> init_ranges;
    std::vector<float> initial;   // (rows*cols) instead, if not empty
    std::vector<FilePart> parts;  // in file order; usually one
    bool exact;             // read in fp32 by its kernels, in every build: norms and what belongs to residual rules
    int64_t offset, count;  // elements in the arena; count = stored_rows*stored_cols rounded up to 64

    // What a rule asks of the optimizer for its parameters (residual/rule.h).
    double lr_scale = 1, own_lr = 0, beta1 = 0, beta2 = 0, own_decay = -1;
    bool frozen = false, clipped_gate = false;

    bool vector() const { return cols == 1; }
    int64_t true_count() const { return rows * cols; }
};

struct Registry {
    std::vector<Tensor> tensors;  // the exact ones last
    int64_t arena = 0;            // elements of every parameter-sized array
    int64_t exact_start = 0;      // where the exact tensors begin
    int64_t num_params = 0;       // true parameters
    const Tensor& find(const std::string& name) const;
    const Tensor* find_or_null(const std::string& name) const;
};
Registry build_registry(const ModelConfig& config);

// The config's residual rule and norm scheme, for micro-batches of N tokens. UserError when they are not defined.
Residual config_residual(const ModelConfig& config, int64_t N, bool training, Recompute recompute = Recompute::none,
                         bool fp8 = false);

// Names in checkpoints of what surrounds sublayer k (from one), and of a rule's parameter.
struct SublayerNames {
    std::string in, out, post;           // norms; without .weight
    std::string last_weight, last_bias;  // the last linear map
};
SublayerNames sublayer_names(const ModelConfig& config, int k);
std::string embed_norm_name(const ModelConfig& config);
std::string final_norm_name(const ModelConfig& config);
std::string parameter_name(const ModelConfig& config, const RuleParameter& parameter);

// Which tensors decay under --decay 2d|matrix|all|none.
bool decays(const Tensor& tensor, const std::string& decay);

// Scatters a file part (host, fp32, true shape as in the file) into the host image of its tensor (stored layout), and
// gathers it back.
void part_to_stored(float* stored, const Tensor& tensor, const FilePart& part, const float* file);
void stored_to_part(float* file, const Tensor& tensor, const FilePart& part, const float* stored);
std::vector<int64_t> part_shape(const Tensor& tensor, const FilePart& part);
