// Weights in files, by the names of the registry's file parts: Hugging Face's own for GPT-2, plus ours for what
// Hugging Face has no name for.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"
#include "model/registry.h"

// Reads every parameter of `registry` from the folder (model.safetensors or its sharded form) into arena layout; the
// padding in `arena` (registry.arena floats) is left as it is. Accepted: a `transformer.` prefix, bf16 and fp16
// tensors, mask buffers (ignored), `lm_head.weight` beside a tied embedding when both are equal. Any other tensor that
// is missing, unknown or of another shape is a UserError that names it.
void weights_read(const std::string& folder, const Registry& registry, float* arena);

// The same into a model whose norm scheme or residual rule differs from the folder's (`have`): parameters that only
// `want` has keep what `arena` holds, those that only `have` has are left out; a note lists either.
void weights_read_into(const std::string& folder, const Registry& have, const Registry& want, float* arena,
                       std::vector<std::string>& notes);

// FILE.safetensors with every file part under its name, true shapes.
void weights_write(const std::string& path, const Registry& registry, const float* arena, Dtype dtype);

// The file parts of an arena, gathered for safetensors_write: names get `suffix`; `storage` owns the bytes.
void gather_parts(std::vector<TensorOut>& tensors, std::vector<std::vector<char>>& storage, const Registry& registry,
                  const float* arena, const std::string& suffix, Dtype dtype);
// And scattered back. UserError names `path` and the tensor that is missing or misshapen.
void scatter_parts(const SafetensorsFile& file, const std::string& path, const Registry& registry, float* arena,
                   const std::string& suffix);
