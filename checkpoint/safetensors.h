// Safetensors files: an 8-byte little-endian header length, a JSON header, then the tensors' bytes.
// Reading maps the file; writing goes to NAME.tmp, is synced, and renamed. Every fault in a file is a UserError that
// names the file and says what is wrong (too short, header not JSON, offsets outside the file, unknown dtype, ...).
// As the reference library does, a file is refused whose tensors overlap, leave holes, or end before the file does.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

enum class Dtype { f32, bf16, f16, f64, i64, i32, u8 };  // u8 also stands for BOOL (attention masks)
size_t dtype_bytes(Dtype dtype);

struct TensorView {
    Dtype dtype;
    std::vector<int64_t> shape;
    const void* data;  // inside the mapped file; foreign files need not align it
    int64_t count() const;
};

struct SafetensorsFile {
    std::map<std::string, TensorView> tensors;
    std::map<std::string, std::string> metadata;
    std::shared_ptr<void> mapping;  // keeps the views alive
};
SafetensorsFile safetensors_read(const std::string& path);
// A folder's model: model.safetensors, or the shards named by model.safetensors.index.json. No tensor is in two files,
// and every one that the index lists is where it says.
std::vector<SafetensorsFile> safetensors_read_model(const std::string& folder);
// Elements [0, count) as fp32 (from f32, bf16, f16, f64); UserError for integers. `name` is for that message.
void tensor_to_float(float* out, const TensorView& view, const std::string& name);

struct TensorOut {
    std::string name;
    Dtype dtype;
    std::vector<int64_t> shape;
    const void* data;  // host memory, contiguous
};
// Tensors of wide types come first, so that each is aligned to its type, and the data starts at a multiple of 64 bytes.
void safetensors_write(const std::string& path, const std::vector<TensorOut>& tensors,
                       const std::map<std::string, std::string>& metadata = {});
