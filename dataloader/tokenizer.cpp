#include "dataloader/tokenizer.h"

#include <nlohmann/json.hpp>

#include "checkpoint/files.h"
#include "kernels/error.h"

using nlohmann::json;

namespace {

constexpr const char* file_ending = "_tokenizer.json";

struct ByteTokenizer final : Tokenizer {
    std::string kind() const override { return "bytes"; }
    int vocab_size() const override { return 256; }
    int eot() const override { return 0; }
    void encode(std::string_view text, std::vector<int>& tokens) const override {
        size_t before = tokens.size();
        tokens.resize(before + text.size());
        for (size_t i = 0; i < text.size(); i++) tokens[before + i] = static_cast<unsigned char>(text[i]);
    }
    void decode(int token, std::string& text) const override {
        if (token >= 0 && token < 256) text += static_cast<char>(token);
    }
};

// The JSON object in a file, null when it is something else. Ours has "kind", Hugging Face's tokenizer.json has not.
json object_in(const std::string& path) {
    json parsed = json::parse(read_text(path), nullptr, false);
    return parsed.is_object() && parsed.contains("kind") && parsed["kind"].is_string() ? parsed : json();
}

}  // namespace

std::vector<int> Tokenizer::encode(std::string_view text) const {
    std::vector<int> tokens;
    encode(text, tokens);
    return tokens;
}

std::string Tokenizer::decode(const std::vector<int>& tokens) const {
    std::string text;
    for (int token : tokens) decode(token, text);
    return text;
}

TokenizerPtr tokenizer_create(const std::string& name) {
    if (name == "bytes") return std::make_unique<ByteTokenizer>();
    if (name == "gpt2" || name.rfind("gpt2:", 0) == 0) {
        throw user_error("tokenizer '%s': this build has no BPE tokenizer; use 'bytes', the only one it knows",
                         printable(name).c_str());
    }
    throw user_error("tokenizer '%s' is not known; use 'bytes', the only one this build knows",
                     printable(name).c_str());
}

TokenizerPtr tokenizer_load(const std::string& path) {
    json parsed = object_in(path);
    if (parsed.is_null()) {
        throw user_error("%s: is not a tokenizer file of ours (a JSON object with 'kind'); make it again with tokenize",
                         path.c_str());
    }
    std::string kind = parsed["kind"].get<std::string>();
    if (kind != "bytes") {
        throw user_error("%s: is of kind '%s', this build knows 'bytes' alone; use a build that knows it", path.c_str(),
                         printable(kind).c_str());
    }
    TokenizerPtr tokenizer = tokenizer_create(kind);
    auto differs = [&](const char* key, int ours) { return parsed.contains(key) && parsed[key] != ours; };
    if (differs("vocab_size", tokenizer->vocab_size()) || differs("eot_token", tokenizer->eot())) {
        throw user_error(
            "%s: does not describe the tokenizer '%s' (%d tokens, end of text %d); make it again with tokenize",
            path.c_str(), kind.c_str(), tokenizer->vocab_size(), tokenizer->eot());
    }
    if (parsed.contains("separator") && parsed["separator"].is_string()) {
        tokenizer->separator = parsed["separator"].get<std::string>();
    }
    return tokenizer;
}

void tokenizer_save(const Tokenizer& tokenizer, const std::string& path) {
    nlohmann::ordered_json out = {{"kind", tokenizer.kind()},
                                  {"vocab_size", tokenizer.vocab_size()},
                                  {"eot_token", tokenizer.eot()},
                                  {"separator", tokenizer.separator}};
    // A separator that is not UTF-8 cannot stand in JSON; it is only a remark there.
    write_text_atomic(path, out.dump(4, ' ', false, json::error_handler_t::replace) + "\n");
}

std::string tokenizer_beside(const std::string& shard_path) {
    std::string name = base_name(shard_path);
    for (const char* split : {"_train_", "_val_"}) {
        size_t at = name.rfind(split);
        if (at == std::string::npos) continue;
        std::string path = parent_folder(shard_path) + "/" + name.substr(0, at) + file_ending;
        if (file_exists(path)) return path;
    }
    return "";
}

std::string tokenizer_in(const std::string& folder) {
    for (const std::string& name : list_folder(folder)) {
        if (name.size() < 14 || name.compare(name.size() - 14, 14, "tokenizer.json") != 0) continue;
        std::string path = join_path(folder, name);
        if (file_exists(path) && !object_in(path).is_null()) return path;
    }
    return "";
}
