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

enum class ParamClass { embed, head, matrix, auxmat, norm, bias, gate };
const char* class_name(ParamClass cls);

// A tensor as a file holds it: rows [row, row + rows) of the true matrix under its own name, transposed if asked
// (GPT-2 files store linear maps [in,out], we store [out,in]). Vectors have cols == 1 and 1-d shape in files.
struct FilePart {
    std::string name;
    int64_t row, rows;
    bool transposed;
};

struct Tensor {
    std::string name;               // as in our checkpoints
    int64_t rows, cols;             // true shape; a vector is (n,1)
    int64_t stored_rows, stored_cols;
    int layer;                      // 0-based; -1: none
    ParamClass cls;
    float init_mean, init_std;      // normal; std 0: the constant init_mean
    std::vector<FilePart> parts;    // in file order; usually one
    int64_t offset, count;          // elements in the arena; count = stored_rows*stored_cols rounded up to 64

    bool vector() const { return cols == 1; }
    int64_t true_count() const { return rows * cols; }
};

struct Registry {
    std::vector<Tensor> tensors;
    int64_t arena = 0;        // elements of every parameter-sized array
    int64_t num_params = 0;   // true parameters
    const Tensor& find(const std::string& name) const;
};
Registry build_registry(const ModelConfig& config);

// Which tensors decay under --decay 2d|matrix|all|none.
bool decays(const Tensor& tensor, const std::string& decay);

// Scatters a file part (host, fp32, true shape as in the file) into the host image of its tensor (stored layout), and
// gathers it back.
void part_to_stored(float* stored, const Tensor& tensor, const FilePart& part, const float* file);
void stored_to_part(float* file, const Tensor& tensor, const FilePart& part, const float* stored);
std::vector<int64_t> part_shape(const Tensor& tensor, const FilePart& part);
