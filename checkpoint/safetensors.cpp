#include "checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "checkpoint/files.h"
#include "kernels/error.h"

using nlohmann::json;

namespace {

constexpr const char* damaged = "the file is damaged or was cut short, fetch or save it again";
constexpr uint64_t longest_header = 100'000'000;  // the reference library's limit

struct DtypeName {
    const char* name;
    Dtype dtype;
};
constexpr DtypeName dtype_names[] = {
    {"F32", Dtype::f32}, {"BF16", Dtype::bf16}, {"F16", Dtype::f16}, {"F64", Dtype::f64},
    {"I64", Dtype::i64}, {"I32", Dtype::i32},   {"U8", Dtype::u8},   {"BOOL", Dtype::u8},
};

// What is wrong with this file, as one line.
[[noreturn]] void refuse(const std::string& path, const std::string& what) {
    throw user_error("%s: %s; %s", path.c_str(), what.c_str(), damaged);
}

// Parses an object; refuses a name that comes twice in the same object, which nlohmann would take silently.
json parse_object(const std::string& path, const char* begin, const char* end, const char* what) {
    std::vector<std::set<std::string>> open_objects;
    std::string twice;
    auto watch = [&](int, json::parse_event_t event, json& parsed) {
        if (event == json::parse_event_t::object_start) open_objects.emplace_back();
        if (event == json::parse_event_t::object_end && !open_objects.empty()) open_objects.pop_back();
        if (event == json::parse_event_t::key && !open_objects.empty()) {
            const std::string& key = parsed.get_ref<const std::string&>();
            if (!open_objects.back().insert(key).second) twice = key;
        }
        return true;
    };
    json parsed;
    try {
        parsed = json::parse(begin, end, watch);
    } catch (const json::exception&) {
        refuse(path, std::string(what) + " is not valid JSON");
    }
    if (!parsed.is_object()) refuse(path, std::string(what) + " is not a JSON object");
    if (!twice.empty()) refuse(path, format("%s names '%s' twice", what, printable(twice).c_str()));
    return parsed;
}

struct Entry {
    std::string name;
    TensorView view;
    uint64_t begin, end;
};

Entry read_entry(const std::string& path, const std::string& name, const json& item, const unsigned char* data,
                 uint64_t data_bytes) {
    auto bad = [&](const std::string& what) { refuse(path, "tensor '" + printable(name) + "' " + what); };
    if (!item.is_object()) bad("has no description");
    auto dtype = item.find("dtype"), shape = item.find("shape"), offsets = item.find("data_offsets");
    if (dtype == item.end() || !dtype->is_string()) bad("has no dtype");
    if (shape == item.end() || !shape->is_array()) bad("has no shape");
    if (offsets == item.end() || !offsets->is_array() || offsets->size() != 2) bad("has no data_offsets");

    Entry entry;
    entry.name = name;
    const std::string& dtype_text = dtype->get_ref<const std::string&>();
    auto known = std::find_if(std::begin(dtype_names), std::end(dtype_names),
                              [&](const DtypeName& d) { return dtype_text == d.name; });
    if (known == std::end(dtype_names)) {
        throw user_error("%s: tensor '%s' has the unknown dtype '%s'; convert it to F32, BF16 or F16", path.c_str(),
                         printable(name).c_str(), printable(dtype_text).c_str());
    }
    entry.view.dtype = known->dtype;

    int64_t bytes = static_cast<int64_t>(dtype_bytes(known->dtype));
    for (const json& extent : *shape) {
        if (!extent.is_number_unsigned()) bad("has a shape that is not a list of sizes");
        uint64_t value = extent.get<uint64_t>();
        if (value > INT64_MAX || __builtin_mul_overflow(bytes, static_cast<int64_t>(value), &bytes)) {
            bad("has a shape too large for any file");
        }
        entry.view.shape.push_back(static_cast<int64_t>(value));
    }
    for (const json& offset : *offsets) {
        if (!offset.is_number_unsigned()) bad("has data_offsets that are not byte positions");
    }
    entry.begin = (*offsets)[0].get<uint64_t>();
    entry.end = (*offsets)[1].get<uint64_t>();
    if (entry.begin > entry.end || entry.end > data_bytes) {
        bad(format("lies at bytes %llu to %llu of %llu", static_cast<unsigned long long>(entry.begin),
                   static_cast<unsigned long long>(entry.end), static_cast<unsigned long long>(data_bytes)));
    }
    if (entry.end - entry.begin != static_cast<uint64_t>(bytes)) {
        bad(format("has %llu bytes where its shape and dtype need %lld",
                   static_cast<unsigned long long>(entry.end - entry.begin), static_cast<long long>(bytes)));
    }
    entry.view.data = data + entry.begin;
    return entry;
}

float half_to_float(uint16_t half) {
    uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 1023;
    float value;
    if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
        value = static_cast<float>(mantissa) * 0x1p-24f;
        return sign ? -value : value;
    }
    uint32_t bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13;
    memcpy(&value, &bits, 4);
    return value;
}

template <class Stored, class Convert>
void convert_all(float* out, const TensorView& view, Convert convert) {
    const char* from = static_cast<const char*>(view.data);
    for (int64_t i = 0, n = view.count(); i < n; i++) {
        Stored stored;
        memcpy(&stored, from + i * static_cast<int64_t>(sizeof(Stored)), sizeof(Stored));
        out[i] = convert(stored);
    }
}

}  // namespace

size_t dtype_bytes(Dtype dtype) {
    switch (dtype) {
        case Dtype::f64:
        case Dtype::i64:
            return 8;
        case Dtype::f32:
        case Dtype::i32:
            return 4;
        case Dtype::bf16:
        case Dtype::f16:
            return 2;
        case Dtype::u8:
            return 1;
    }
    programming_error("unknown dtype", "", __FILE__, __LINE__);
}

int64_t TensorView::count() const {
    int64_t n = 1;
    for (int64_t extent : shape) n *= extent;  // cannot overflow: read_entry compared it with the file's length
    return n;
}

SafetensorsFile safetensors_read(const std::string& path) {
    MappedFile mapped = map_file(path);
    uint64_t header_bytes = 0;
    if (mapped.size < 8) refuse(path, format("has %zu bytes, too few for a safetensors file", mapped.size));
    memcpy(&header_bytes, mapped.data, 8);
    uint64_t behind = mapped.size - 8;
    if (header_bytes > longest_header || header_bytes > behind) {
        refuse(path, format("claims a header of %llu bytes and has %llu", static_cast<unsigned long long>(header_bytes),
                            static_cast<unsigned long long>(behind)));
    }
    const char* text = reinterpret_cast<const char*>(mapped.data) + 8;
    json header = parse_object(path, text, text + header_bytes, "the header");

    SafetensorsFile file;
    file.mapping = mapped.owner;
    const unsigned char* data = mapped.data + 8 + header_bytes;
    uint64_t data_bytes = behind - header_bytes;
    std::vector<Entry> entries;
    for (const auto& [name, item] : header.items()) {
        if (name != "__metadata__") {
            entries.push_back(read_entry(path, name, item, data, data_bytes));
            continue;
        }
        if (!item.is_object()) refuse(path, "its __metadata__ is not an object");
        for (const auto& [key, value] : item.items()) {
            if (!value.is_string()) refuse(path, "its __metadata__ '" + printable(key) + "' is not text");
            file.metadata[key] = value.get<std::string>();
        }
    }
    std::sort(entries.begin(), entries.end(),
              [](const Entry& a, const Entry& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
    uint64_t at = 0;
    for (Entry& entry : entries) {
        if (entry.begin < at) refuse(path, "tensor '" + printable(entry.name) + "' overlaps the one before it");
        if (entry.begin > at) refuse(path, "there is a hole before tensor '" + printable(entry.name) + "'");
        at = entry.end;
        file.tensors.emplace(std::move(entry.name), std::move(entry.view));
    }
    if (at != data_bytes) {
        refuse(path, format("its tensors end at byte %llu of %llu", static_cast<unsigned long long>(at),
                            static_cast<unsigned long long>(data_bytes)));
    }
    return file;
}

std::vector<SafetensorsFile> safetensors_read_model(const std::string& folder) {
    std::string single = folder + "/model.safetensors", index_path = single + ".index.json";
    std::vector<SafetensorsFile> files;
    if (file_exists(single)) {
        files.push_back(safetensors_read(single));
        return files;
    }
    if (!folder_exists(folder))
        throw user_error("%s: no such folder; name a folder that holds a model", folder.c_str());
    if (!file_exists(index_path)) {
        throw user_error(
            "%s: holds neither model.safetensors nor model.safetensors.index.json; name a checkpoint or a "
            "Hugging Face folder with its weights in safetensors",
            folder.c_str());
    }
    std::string text = read_text(index_path);
    json index = parse_object(index_path, text.data(), text.data() + text.size(), "the index");
    auto weights = index.find("weight_map");
    if (weights == index.end() || !weights->is_object() || weights->empty()) refuse(index_path, "has no weight_map");
    std::map<std::string, std::vector<std::string>> listed;  // file name: its tensors
    for (const auto& [name, file] : weights->items()) {
        if (!file.is_string()) refuse(index_path, "does not say which file holds '" + printable(name) + "'");
        const std::string& file_name = file.get_ref<const std::string&>();
        // Only names in this very folder: an index from elsewhere must not make us read other files.
        if (file_name.empty() || file_name == ".." || file_name == "." || file_name.find('/') != std::string::npos ||
            file_name.find('\0') != std::string::npos) {
            refuse(index_path, "names the file '" + printable(file_name) + "', which is not in this folder");
        }
        listed[file_name].push_back(name);
    }
    std::map<std::string, std::string> holder;  // tensor: the file it is in
    for (const auto& [file_name, names] : listed) {
        std::string path = join_path(folder, file_name);
        if (!file_exists(path)) {
            throw user_error("%s: is missing, though %s lists it; fetch it again", printable(path).c_str(),
                             base_name(index_path).c_str());
        }
        files.push_back(safetensors_read(path));
        for (const std::string& name : names) {
            if (!files.back().tensors.count(name)) {
                refuse(path, "lacks tensor '" + printable(name) + "', which the index lists there");
            }
        }
        for (const auto& [name, view] : files.back().tensors) {
            auto [other, fresh] = holder.emplace(name, file_name);
            if (!fresh) refuse(path, "holds tensor '" + printable(name) + "', as does " + printable(other->second));
        }
    }
    return files;
}

void tensor_to_float(float* out, const TensorView& view, const std::string& name) {
    switch (view.dtype) {
        case Dtype::f32:
            if (view.count() > 0) memcpy(out, view.data, static_cast<size_t>(view.count()) * 4);
            return;
        case Dtype::bf16:
            convert_all<uint16_t>(out, view, [](uint16_t stored) {
                uint32_t bits = static_cast<uint32_t>(stored) << 16;
                float value;
                memcpy(&value, &bits, 4);
                return value;
            });
            return;
        case Dtype::f16:
            convert_all<uint16_t>(out, view, half_to_float);
            return;
        case Dtype::f64:
            convert_all<double>(out, view, [](double x) { return static_cast<float>(x); });
            return;
        case Dtype::i64:
        case Dtype::i32:
        case Dtype::u8:
            break;
    }
    throw user_error("tensor '%s' holds integers where weights are expected; convert it to F32, BF16 or F16",
                     printable(name).c_str());
}

void safetensors_write(const std::string& path, const std::vector<TensorOut>& tensors,
                       const std::map<std::string, std::string>& metadata) {
    std::vector<const TensorOut*> order;
    order.reserve(tensors.size());
    for (const TensorOut& tensor : tensors) order.push_back(&tensor);
    std::stable_sort(order.begin(), order.end(), [](const TensorOut* a, const TensorOut* b) {
        return dtype_bytes(a->dtype) > dtype_bytes(b->dtype);
    });
    // Ordered: names in the header stand in the order of the data.
    nlohmann::ordered_json header = nlohmann::ordered_json::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    std::vector<size_t> bytes;
    size_t end = 0;
    std::set<std::string> names;
    for (const TensorOut* tensor : order) {
        CHECK(names.insert(tensor->name).second && tensor->name != "__metadata__");
        auto known = std::find_if(std::begin(dtype_names), std::end(dtype_names),
                                  [&](const DtypeName& d) { return d.dtype == tensor->dtype; });
        size_t count = 1;
        for (int64_t extent : tensor->shape) {
            CHECK(extent >= 0);
            count *= static_cast<size_t>(extent);
        }
        bytes.push_back(count * dtype_bytes(tensor->dtype));
        header[tensor->name] = {
            {"dtype", known->name}, {"shape", tensor->shape}, {"data_offsets", {end, end + bytes.back()}}};
        end += bytes.back();
    }
    std::string text = header.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
    text.append((64 - (8 + text.size()) % 64) % 64, ' ');
    uint64_t header_bytes = text.size();
    CHECK(header_bytes <= longest_header);

    FileWriter file(path);
    file.write(&header_bytes, 8);
    file.write(text.data(), text.size());
    for (size_t i = 0; i < order.size(); i++) file.write(order[i]->data, bytes[i]);
    file.commit();
}
