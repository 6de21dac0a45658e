// Safetensors: what is written reads back; every fault is one line that names the file; no bytes whatever crash it.
#include <cstring>

#include "checkpoint/files.h"
#include "checkpoint/safetensors.h"
#include "temp_folder.h"
#include "test.h"

namespace {

std::string with_header(const std::string& header, size_t data_bytes) {
    uint64_t length = header.size();
    std::string bytes(8, '\0');
    memcpy(bytes.data(), &length, 8);
    return bytes + header + std::string(data_bytes, '\1');
}

std::vector<float> floats(const SafetensorsFile& file, const std::string& name) {
    const TensorView& view = file.tensors.at(name);
    std::vector<float> out(static_cast<size_t>(view.count()));
    tensor_to_float(out.data(), view, name);
    return out;
}

}  // namespace

TEST_CASE("safetensors: every dtype, shape and metadata reads back", "[safetensors]") {
    TempFolder folder;
    std::string path = folder / "model.safetensors";
    std::vector<float> f32 = {1.5f, -2.25f, 3e-30f, 0.0f, INFINITY, 7};
    std::vector<double> f64 = {0.1, -1e300};
    std::vector<uint16_t> bf16 = {0x3F80, 0xC000, 0x7F80}, f16 = {0x3C00, 0xC000, 0x0001};
    std::vector<int64_t> i64 = {-5};
    std::vector<int32_t> i32 = {1, 2};
    std::vector<uint8_t> u8 = {9, 8, 7};
    safetensors_write(path,
                      {{"mask", Dtype::u8, {3}, u8.data()},
                       {"w", Dtype::f32, {2, 3}, f32.data()},
                       {"half", Dtype::f16, {3, 1}, f16.data()},
                       {"scalar", Dtype::i64, {}, i64.data()},
                       {"empty", Dtype::f32, {0, 4}, nullptr},
                       {"b", Dtype::bf16, {3}, bf16.data()},
                       {"i", Dtype::i32, {2}, i32.data()},
                       {"\xC3\xA9 \"quoted\"\n", Dtype::f64, {1, 2, 1}, f64.data()}},
                      {{"format", "pt"}, {"layout", "{\"a\": [1, 2]}"}});
    REQUIRE(list_folder(folder.path).size() == 1);

    SafetensorsFile file = safetensors_read(path);
    REQUIRE(file.metadata == std::map<std::string, std::string>{{"format", "pt"}, {"layout", "{\"a\": [1, 2]}"}});
    REQUIRE(file.tensors.size() == 8);
    REQUIRE(file.tensors.at("w").shape == std::vector<int64_t>{2, 3});
    REQUIRE(file.tensors.at("scalar").shape.empty());
    REQUIRE(file.tensors.at("scalar").count() == 1);
    REQUIRE(file.tensors.at("empty").count() == 0);
    REQUIRE(floats(file, "w") == f32);
    REQUIRE(floats(file, "half") == std::vector<float>{1, -2, 0x1p-24f});
    REQUIRE(floats(file, "b") == std::vector<float>{1, -2, INFINITY});
    REQUIRE(floats(file, "\xC3\xA9 \"quoted\"\n") == std::vector<float>{0.1f, -INFINITY});
    REQUIRE(floats(file, "empty").empty());
    REQUIRE(memcmp(file.tensors.at("mask").data, u8.data(), 3) == 0);
    REQUIRE(memcmp(file.tensors.at("scalar").data, i64.data(), 8) == 0);
    for (const auto& [name, view] : file.tensors) {
        CAPTURE(name);
        REQUIRE(reinterpret_cast<uintptr_t>(view.data) % dtype_bytes(view.dtype) == 0);
    }
    REQUIRE(user_error_of([&] { floats(file, "i"); }).find("'i' holds integers") != std::string::npos);

    // The views outlive the file's name and the struct.
    TensorView view = file.tensors.at("w");
    std::shared_ptr<void> mapping = file.mapping;
    file = SafetensorsFile();
    remove(path.c_str());
    REQUIRE(memcmp(view.data, f32.data(), 24) == 0);
}

TEST_CASE("safetensors: the data begins aligned and the header is the format's", "[safetensors]") {
    TempFolder folder;
    float x = 1;
    std::string name;
    for (int i = 0; i < 14; i++) {
        name += "nnnnn";
        safetensors_write(folder / "a", {{name, Dtype::f32, {1}, &x}});
        std::string bytes = read_text(folder / "a");
        uint64_t length;
        memcpy(&length, bytes.data(), 8);
        REQUIRE((8 + length) % 64 == 0);
        REQUIRE(bytes.size() == 8 + length + 4);
        std::string want = "{\"" + name + "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
        REQUIRE(bytes.substr(8, want.size()) == want);
        REQUIRE(bytes.substr(8 + want.size(), length - want.size()).find_first_not_of(' ') == std::string::npos);
    }
    safetensors_write(folder / "none", {});
    REQUIRE(safetensors_read(folder / "none").tensors.empty());
}

TEST_CASE("safetensors: all half-precision numbers convert exactly", "[safetensors]") {
    std::vector<uint16_t> bits(65536);
    for (size_t i = 0; i < bits.size(); i++) bits[i] = static_cast<uint16_t>(i);
    std::vector<float> half(bits.size()), brain(bits.size());
    tensor_to_float(half.data(), {Dtype::f16, {256, 256}, bits.data()}, "half");
    tensor_to_float(brain.data(), {Dtype::bf16, {65536}, bits.data()}, "brain");
    auto value = [](int sign, int exponent, int mantissa, int exponent_bits, int mantissa_bits) {
        int special = (1 << exponent_bits) - 1, bias = special / 2;
        double size = exponent == special ? (mantissa ? NAN : INFINITY)
                      : exponent == 0     ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                                      : std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
        return sign ? -size : size;
    };
    int wrong = 0;
    for (int i = 0; i < 65536; i++) {
        double want_half = value(i >> 15, i >> 10 & 31, i & 1023, 5, 10);
        double want_brain = value(i >> 15, i >> 7 & 255, i & 127, 8, 7);
        auto same = [](double got, double want) {
            return std::isnan(want) ? std::isnan(got) : got == want && std::signbit(got) == std::signbit(want);
        };
        wrong += !same(half[static_cast<size_t>(i)], want_half) + !same(brain[static_cast<size_t>(i)], want_brain);
    }
    REQUIRE(wrong == 0);
}

TEST_CASE("safetensors: tensors that are not aligned in a foreign file convert", "[safetensors]") {
    TempFolder folder;
    std::string bytes = with_header(
        R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}, )"
        R"("m":{"dtype":"BOOL","shape":[1],"data_offsets":[5,6]}})",
        6);
    float x = 2.5f;
    memcpy(bytes.data() + bytes.size() - 5, &x, 4);
    put_bytes(folder / "a", bytes);
    SafetensorsFile file = safetensors_read(folder / "a");
    REQUIRE(floats(file, "b") == std::vector<float>{2.5f});
    REQUIRE(file.tensors.at("m").dtype == Dtype::u8);
}

TEST_CASE("safetensors: faults are refused by name", "[safetensors]") {
    TempFolder folder;
    std::string path = folder / "bad.safetensors";
    struct Case {
        std::string bytes, words;
    };
    auto one = [](const std::string& description, size_t data) {
        return with_header("{\"w\":" + description + "}", data);
    };
    std::string huge = with_header("{}", 0);
    memset(huge.data(), 0xFF, 8);
    std::string long_header = with_header("{}", 0);
    long_header[1] = 1;                              // 258 bytes
    std::string overflowing = with_header("{}", 0);  // 8 + length wraps around to 0
    uint64_t wrap = ~uint64_t(7);
    memcpy(overflowing.data(), &wrap, 8);
    std::vector<Case> cases = {
        {"", "too few"},
        {"1234567", "too few"},
        {huge, "claims a header"},
        {long_header, "claims a header"},
        {overflowing, "claims a header"},
        {with_header("", 0), "not valid JSON"},
        {with_header("{\"w\":", 0), "not valid JSON"},
        {with_header("{\"\xff\":1}", 0), "not valid JSON"},
        {with_header(std::string(200000, '['), 0), "not valid JSON"},
        {with_header("[]", 0), "not a JSON object"},
        {with_header("{\"__metadata__\":{\"a\":1}}", 0), "'a' is not text"},
        {with_header("{\"__metadata__\":[]}", 0), "__metadata__"},
        {one("1", 0), "'w' has no description"},
        {one("{}", 0), "no dtype"},
        {one(R"({"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]})", 1), "unknown dtype 'F8_E4M3'"},
        {one(R"({"dtype":"F32","data_offsets":[0,4]})", 4), "no shape"},
        {one(R"({"dtype":"F32","shape":[1]})", 4), "no data_offsets"},
        {one(R"({"dtype":"F32","shape":[1],"data_offsets":[0]})", 4), "no data_offsets"},
        {one(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})", 4), "list of sizes"},
        {one(R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})", 4), "list of sizes"},
        {one(R"({"dtype":"F32","shape":["1"],"data_offsets":[0,4]})", 4), "list of sizes"},
        {one(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})", 0), "too large"},
        {one(R"({"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]})", 4), "too large"},
        {one(R"({"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]})", 0), "too large"},
        {one(R"({"dtype":"F32","shape":[1],"data_offsets":[-4,0]})", 4), "not byte positions"},
        {one(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})", 4), "lies at bytes 4 to 0"},
        {one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})", 4), "lies at bytes 0 to 8 of 4"},
        {one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})", 4), "has 4 bytes where its shape and dtype need 8"},
        {one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})", 8), "end at byte 4 of 8"},
        {one(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})", 8), "hole before tensor 'w'"},
        {with_header(R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"v":{"dtype":"F32","shape":[1],)"
                     R"("data_offsets":[2,6]}})",
                     6),
         "overlaps the one before it"},
        {with_header(R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],)"
                     R"("data_offsets":[1,2]}})",
                     2),
         "names 'w' twice"},
        {one(R"({"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]})", 1), "names 'dtype' twice"},
    };
    for (const Case& c : cases) {
        put_bytes(path, c.bytes);
        std::string message = user_error_of([&] { safetensors_read(path); });
        INFO(message);
        CAPTURE(c.words);
        REQUIRE(message.rfind(path + ": ", 0) == 0);
        REQUIRE(message.find(c.words) != std::string::npos);
        REQUIRE(message.find("; ") != std::string::npos);
    }
    REQUIRE(user_error_of([&] { safetensors_read(folder / "missing"); }).find("no such file") != std::string::npos);
    REQUIRE(user_error_of([&] { safetensors_read(folder.path); }).find("is a folder") != std::string::npos);
    float x = 0;
    std::string nowhere = folder / "no/such/model.safetensors";
    REQUIRE(user_error_of([&] { safetensors_write(nowhere, {{"w", Dtype::f32, {1}, &x}}); }).find(nowhere) == 0);
}

TEST_CASE("safetensors: random damage never crashes", "[safetensors]") {
    TempFolder folder;
    std::string good = folder / "good", path = folder / "bad";
    std::vector<float> data(40, 0.5f);
    safetensors_write(good,
                      {{"h.0.ln_1.weight", Dtype::f32, {8}, data.data()},
                       {"h.0.attn.c_attn.weight", Dtype::f32, {2, 12}, data.data()},
                       {"wte.weight", Dtype::bf16, {5, 3}, data.data()},
                       {"h.0.attn.bias", Dtype::u8, {1, 1, 3, 3}, data.data()}},
                      {{"format", "pt"}});
    std::string bytes = read_text(good);
    Random random(1234);
    int refused = 0, read = 0;
    for (int round = 0; round < 3000; round++) {
        std::string damaged = bytes;
        int kind = random.below(4);
        if (kind == 0) damaged.resize(static_cast<size_t>(random.below(static_cast<int>(bytes.size()))));
        // Flips of bits and of whole bytes, nearly all of them in the header.
        for (int flips = kind == 0 ? 0 : 1 + random.below(3); flips > 0; flips--) {
            size_t at = static_cast<size_t>(random.below(static_cast<int>(bytes.size() * 3 / 4)));
            damaged[at] = static_cast<char>(kind == 1 ? damaged[at] ^ 1 << random.below(8) : random.below(256));
        }
        if (kind == 3) {  // digits for digits: plausible offsets and shapes
            for (char& c : damaged.replace(0, 8, bytes, 0, 8)) {
                if (c >= '0' && c <= '9' && random.below(8) == 0) c = static_cast<char>('0' + random.below(10));
            }
        }
        put_bytes(path, damaged);
        std::string message = user_error_of([&] {
            SafetensorsFile file = safetensors_read(path);
            for (const auto& [name, view] : file.tensors) {
                if (view.dtype != Dtype::u8 && view.dtype != Dtype::i32 && view.dtype != Dtype::i64) floats(file, name);
            }
            read++;
        });
        if (message.empty()) continue;
        refused++;
        INFO(message);
        REQUIRE(message.rfind(path + ": ", 0) == 0);
    }
    REQUIRE(refused > 1500);
    REQUIRE(read > 50);  // damage in names, spaces and data is not to be seen
}

TEST_CASE("safetensors: a model in several files", "[safetensors]") {
    TempFolder folder;
    std::vector<float> x = {1, 2, 3, 4};
    std::string index = folder / "model.safetensors.index.json";
    auto error = [&] { return user_error_of([&] { safetensors_read_model(folder.path); }); };
    auto says = [&](const std::string& words) {
        std::string message = error();
        INFO(message);
        REQUIRE(message.rfind(folder.path, 0) == 0);
        REQUIRE(message.find(words) != std::string::npos);
    };
    says("holds neither");
    REQUIRE(user_error_of([&] { safetensors_read_model(folder / "nowhere"); }).find("no such folder") !=
            std::string::npos);
    safetensors_write(folder / "model-00001-of-00002.safetensors", {{"a", Dtype::f32, {4}, x.data()}});
    safetensors_write(folder / "model-00002-of-00002.safetensors", {{"b", Dtype::f32, {2}, x.data()}});
    put_bytes(index, R"({"metadata":{"total_size":24},"weight_map":{"a":"model-00001-of-00002.safetensors",)"
                     R"("b":"model-00002-of-00002.safetensors"}})");
    std::vector<SafetensorsFile> files = safetensors_read_model(folder.path);
    REQUIRE(files.size() == 2);
    REQUIRE(floats(files[0], "a") == x);
    REQUIRE(floats(files[1], "b") == std::vector<float>{1, 2});

    put_bytes(index, R"({"weight_map":{"a":"model-00003-of-00002.safetensors"}})");
    says("is missing");
    put_bytes(index, R"({"weight_map":{"b":"model-00001-of-00002.safetensors"}})");
    says("lacks tensor 'b'");
    put_bytes(index, R"({"weight_map":{"a":"../elsewhere.safetensors"}})");
    says("not in this folder");
    put_bytes(index, R"({"weight_map":{"a":1}})");
    says("which file holds 'a'");
    put_bytes(index, R"({"weight_map":{}})");
    says("no weight_map");
    put_bytes(index, "{");
    says("not valid JSON");
    safetensors_write(folder / "model-00002-of-00002.safetensors",
                      {{"b", Dtype::f32, {2}, x.data()}, {"a", Dtype::f32, {2}, x.data()}});
    put_bytes(index,
              R"({"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}})");
    says("holds tensor 'a', as does");
    // The single file goes before the index.
    safetensors_write(folder / "model.safetensors", {{"c", Dtype::f32, {1}, x.data()}});
    REQUIRE(safetensors_read_model(folder.path).at(0).tensors.count("c") == 1);
}
