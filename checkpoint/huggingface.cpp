#include "checkpoint/huggingface.h"

#include <cstring>
#include <set>

#include "kernels/error.h"

namespace {

uint16_t round_to_bf16(float x) {  // to nearest, ties to even; NaN stays NaN
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
    return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text;
    for (int64_t n : shape) text += format(text.empty() ? "%lld" : ",%lld", static_cast<long long>(n));
    return format("[%s]", text.c_str());
}

bool ends_with(const std::string& text, const std::string& tail) {
    return text.size() >= tail.size() && text.compare(text.size() - tail.size(), tail.size(), tail) == 0;
}

// Causal masks and rotary tables that older files carry along: functions of the sizes, not parameters.
bool is_buffer(const std::string& name) {
    return ends_with(name, ".attn.bias") || ends_with(name, ".attn.masked_bias") ||
           ends_with(name, "rotary_emb.inv_freq");
}

// Checks the shape, then reads into the tensor's place in the arena.
void read_part(const TensorView& view, const std::string& where, const Tensor& tensor, const FilePart& part,
               float* arena) {
    const std::vector<int64_t> want = part_shape(tensor, part);
    if (view.shape != want)
        throw user_error("%s: tensor %s has shape %s, the model needs %s", where.c_str(), part.name.c_str(),
                         shape_text(view.shape).c_str(), shape_text(want).c_str());
    std::vector<float> values(static_cast<size_t>(view.count()));
    tensor_to_float(values.data(), view, part.name);
    part_to_stored(arena + tensor.offset, tensor, part, values.data());
}

// All tensors of a folder under the names without `transformer.`.
struct FolderTensors {
    std::vector<SafetensorsFile> files;
    std::map<std::string, TensorView> tensors;
};

FolderTensors open_folder(const std::string& folder) {
    FolderTensors all;
    all.files = safetensors_read_model(folder);
    const std::string prefix = "transformer.";
    for (const SafetensorsFile& file : all.files) {
        for (const auto& [name, view] : file.tensors) {
            const std::string plain = name.rfind(prefix, 0) == 0 ? name.substr(prefix.size()) : name;
            if (!all.tensors.emplace(plain, view).second)
                throw user_error("%s: tensor %s is there twice", folder.c_str(), plain.c_str());
        }
    }
    return all;
}

const Tensor* find_tensor(const Registry& registry, const std::string& name) {
    for (const Tensor& tensor : registry.tensors) {
        if (tensor.name == name) return &tensor;
    }
    return nullptr;
}

// A head that files repeat although it is tied says the same as the embedding, or the folder contradicts itself.
void check_tied_head(const FolderTensors& all, const std::string& folder, const TensorView& head) {
    for (const char* name : {"wte.weight", "model.embed_tokens.weight"}) {
        auto embedding = all.tensors.find(name);
        if (embedding == all.tensors.end()) continue;
        std::vector<float> a(static_cast<size_t>(head.count())), b(static_cast<size_t>(embedding->second.count()));
        tensor_to_float(a.data(), head, "lm_head.weight");
        tensor_to_float(b.data(), embedding->second, name);
        if (a != b)
            throw user_error("%s: lm_head.weight differs from %s, but config.json ties them (tie_word_embeddings)",
                             folder.c_str(), name);
    }
}

// Every parameter the folder's own model has, and nothing else, is there.
void check_names(const FolderTensors& all, const std::string& folder, const Registry& registry) {
    std::set<std::string> known;
    for (const Tensor& tensor : registry.tensors) {
        for (const FilePart& part : tensor.parts) {
            known.insert(part.name);
            if (all.tensors.count(part.name) == 0)
                throw user_error("%s: tensor %s is missing", folder.c_str(), part.name.c_str());
        }
    }
    for (const auto& [name, view] : all.tensors) {
        if (known.count(name) > 0 || is_buffer(name)) continue;
        if (name != "lm_head.weight") {
            throw user_error("%s: tensor %s is unknown to the model that config.json describes", folder.c_str(),
                             name.c_str());
        }
        check_tied_head(all, folder, view);
    }
}

}  // namespace

void weights_read(const std::string& folder, const Registry& registry, float* arena) {
    std::vector<std::string> notes;
    weights_read_into(folder, registry, registry, arena, notes);
}

void weights_read_into(const std::string& folder, const Registry& have, const Registry& want, float* arena,
                       std::vector<std::string>& notes) {
    const FolderTensors all = open_folder(folder);
    check_names(all, folder, have);
    std::string fresh, left_out;
    for (const Tensor& tensor : want.tensors) {
        if (find_tensor(have, tensor.name) == nullptr) {
            fresh += " " + tensor.name;
            continue;
        }
        for (const FilePart& part : tensor.parts) read_part(all.tensors.at(part.name), folder, tensor, part, arena);
    }
    for (const Tensor& tensor : have.tensors) {
        if (find_tensor(want, tensor.name) == nullptr) left_out += " " + tensor.name;
    }
    if (!fresh.empty())
        notes.push_back(folder + " does not hold these parameters, which start at their initial values:" + fresh);
    if (!left_out.empty()) notes.push_back("left out of " + folder + ":" + left_out);
}

void gather_parts(std::vector<TensorOut>& tensors, std::vector<std::vector<char>>& storage, const Registry& registry,
                  const float* arena, const std::string& suffix, Dtype dtype) {
    CHECK(dtype == Dtype::f32 || dtype == Dtype::bf16);
    for (const Tensor& tensor : registry.tensors) {
        for (const FilePart& part : tensor.parts) {
            const size_t count = static_cast<size_t>(part.rows * tensor.cols);
            std::vector<float> values(count);
            stored_to_part(values.data(), tensor, part, arena + tensor.offset);
            std::vector<char>& bytes = storage.emplace_back(count * dtype_bytes(dtype));
            if (dtype == Dtype::f32) {
                memcpy(bytes.data(), values.data(), bytes.size());
            } else {
                for (size_t i = 0; i < count; i++) {
                    const uint16_t rounded = round_to_bf16(values[i]);
                    memcpy(bytes.data() + 2 * i, &rounded, 2);
                }
            }
            // The bytes stay where they are when `storage` grows: moving a vector moves no elements.
            tensors.push_back({part.name + suffix, dtype, part_shape(tensor, part), bytes.data()});
        }
    }
}

void scatter_parts(const SafetensorsFile& file, const std::string& path, const Registry& registry, float* arena,
                   const std::string& suffix) {
    for (const Tensor& tensor : registry.tensors) {
        for (const FilePart& part : tensor.parts) {
            auto found = file.tensors.find(part.name + suffix);
            if (found == file.tensors.end())
                throw user_error("%s: tensor %s%s is missing", path.c_str(), part.name.c_str(), suffix.c_str());
            read_part(found->second, path, tensor, part, arena);
        }
    }
}

void weights_write(const std::string& path, const Registry& registry, const float* arena, Dtype dtype) {
    std::vector<TensorOut> tensors;
    std::vector<std::vector<char>> storage;
    gather_parts(tensors, storage, registry, arena, "", dtype);
    safetensors_write(path, tensors, {{"format", "pt"}});  // "pt": what Hugging Face's loader asks for
}
