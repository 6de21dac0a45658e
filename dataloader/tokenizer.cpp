#include "dataloader/tokenizer.h"

#include <nlohmann/json.hpp>

#include "checkpoint/files.h"
#include "dataloader/bpe.h"
#include "dataloader/utf8.h"
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

struct TableTokenizer final : Tokenizer {
    std::string name;
    std::vector<std::string> tokens;  // the bytes of each
    int end = 0;

    std::string kind() const override { return "table"; }
    int vocab_size() const override { return static_cast<int>(tokens.size()); }
    int eot() const override { return end; }
    void encode(std::string_view, std::vector<int>&) const override {
        throw user_error(
            "the tokenizer '%s' only turns tokens into text here; give a prompt as --prompt-tokens, and evaluate text "
            "from its Hugging Face folder",
            printable(name).c_str());
    }
    void decode(int token, std::string& text) const override {
        if (token >= 0 && token < vocab_size()) text += tokens[static_cast<size_t>(token)];
    }
    void write(nlohmann::ordered_json& file) const override {
        file["name"] = name;
        file["tokens"] = json::array();
        for (const std::string& token : tokens) {
            std::string characters;
            for (unsigned char byte : token) utf8_append(byte, characters);
            file["tokens"].push_back(characters);
        }
    }
};

// UserError unless every token is a string of characters up to U+00FF.
TokenizerPtr table_tokenizer(const json& file, const std::string& path) {
    auto table = std::make_unique<TableTokenizer>();
    const bool fields = file.contains("tokens") && file["tokens"].is_array() && file.contains("eot_token") &&
                        file["eot_token"].is_number_integer() && file.contains("name") && file["name"].is_string();
    if (!fields)
        throw user_error("%s: lacks its name, tokens or eot_token; make it again with hf_shards.py", path.c_str());
    table->name = file["name"].get<std::string>();
    table->end = file["eot_token"].get<int>();
    for (const json& token : file["tokens"]) {
        const std::string characters = token.is_string() ? token.get<std::string>() : "\xFF";
        std::string bytes;
        for (std::string_view rest = characters; !rest.empty();) {
            const size_t length = utf8_length(rest);
            const unsigned code_point = length == 0 ? 0x100 : utf8_decode(rest);
            if (code_point > 0xFF)
                throw user_error(
                    "%s: its token %zu is no string of bytes (U+0000 to U+00FF); make it again with hf_shards.py",
                    path.c_str(), table->tokens.size());
            bytes += static_cast<char>(code_point);
            rest.remove_prefix(length);
        }
        table->tokens.push_back(bytes);
    }
    return table;
}

TokenizerPtr gpt2_here(const std::string& source, const BpeVocabulary& vocabulary) {
    if (&gpt2_tokenizer == nullptr)
        throw user_error("%s: is a GPT-2 tokenizer, which this build lacks; install libpcre2-dev and build again",
                         source.c_str());
    return gpt2_tokenizer(vocabulary);
}

// The JSON in a file, discarded when it is none.
json json_in(const std::string& path) {
    return json::parse(read_text(path), nullptr, false);
}

// Ours has "kind", Hugging Face's tokenizer.json has not.
bool is_ours(const json& file) {
    return file.is_object() && file.contains("kind") && file["kind"].is_string();
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
    const std::string gpt2 = "gpt2:";
    if (name.rfind(gpt2, 0) == 0 && name != gpt2) {
        const std::string folder = name.substr(gpt2.size());
        return gpt2_here(folder, bpe_read(folder));
    }
    if (name == "gpt2" || name == gpt2)
        throw user_error("tokenizer '%s': lacks its folder; use gpt2:FOLDER, with encoder.json and vocab.bpe in it",
                         name.c_str());
    throw user_error("tokenizer '%s' is not known; use 'bytes' or gpt2:FOLDER", printable(name).c_str());
}

TokenizerPtr tokenizer_load(const std::string& path) {
    const json parsed = json_in(path);
    if (!is_ours(parsed)) {
        throw user_error(
            "%s: is not a tokenizer file of ours (a JSON object with 'kind'), or was cut short; copy it again, or make "
            "it again with tokenize",
            path.c_str());
    }
    const std::string kind = parsed["kind"].get<std::string>();
    TokenizerPtr tokenizer;
    if (kind == "bytes") {
        tokenizer = tokenizer_create(kind);
    } else if (kind == "gpt2") {
        tokenizer = gpt2_here(path, bpe_read(parsed, path));
    } else if (kind == "table") {
        tokenizer = table_tokenizer(parsed, path);
    } else {
        throw user_error("%s: is of kind '%s', this build knows 'bytes', 'gpt2' and 'table'; use a build that knows it",
                         path.c_str(), printable(kind).c_str());
    }
    auto differs = [&](const char* key, int ours) { return parsed.contains(key) && parsed[key] != ours; };
    const bool eot_in = tokenizer->eot() >= 0 && tokenizer->eot() < tokenizer->vocab_size();
    if (differs("vocab_size", tokenizer->vocab_size()) || differs("eot_token", tokenizer->eot()) || !eot_in) {
        throw user_error(
            "%s: does not describe the tokenizer '%s' (%d tokens, end of text %d); make it again with tokenize",
            path.c_str(), kind.c_str(), tokenizer->vocab_size(), tokenizer->eot());
    }
    if (parsed.contains("separator") && parsed["separator"].is_string()) {
        tokenizer->separator = parsed["separator"].get<std::string>();
    }
    return tokenizer;
}

static std::string file_text(const Tokenizer& tokenizer) {
    nlohmann::ordered_json out = {{"kind", tokenizer.kind()},
                                  {"vocab_size", tokenizer.vocab_size()},
                                  {"eot_token", tokenizer.eot()},
                                  {"separator", tokenizer.separator}};
    const size_t common = out.size();
    tokenizer.write(out);
    const int indent = out.size() == common ? 4 : -1;  // a vocabulary is not for people to read
    // A separator that is not UTF-8 cannot stand in JSON; it is only a remark there.
    return out.dump(indent, ' ', false, json::error_handler_t::replace) + "\n";
}

void tokenizer_save(const Tokenizer& tokenizer, const std::string& path) {
    write_text_atomic(path, file_text(tokenizer));
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

void check_shard_tokenizer(const std::string& shard_path, const Tokenizer& tokenizer) {
    const std::string file = tokenizer_beside(shard_path);
    if (file.empty()) return;
    const TokenizerPtr other = tokenizer_load(file);
    bool same = other->kind() == tokenizer.kind() && other->vocab_size() == tokenizer.vocab_size();
    for (int token = 0; same && token < tokenizer.vocab_size(); token++) {
        std::string a, b;
        tokenizer.decode(token, a);
        other->decode(token, b);
        same = a == b;
    }
    if (!same)
        throw user_error("%s: is of the tokenizer '%s' (%d tokens), where '%s' (%d) is expected; see %s",
                         shard_path.c_str(), other->kind().c_str(), other->vocab_size(), tokenizer.kind().c_str(),
                         tokenizer.vocab_size(), file.c_str());
}

TokenizerPtr tokenizer_in(const std::string& folder) {
    for (const std::string& name : list_folder(folder)) {
        if (!name.ends_with("tokenizer.json")) continue;
        const std::string path = join_path(folder, name);
        if (!file_exists(path)) continue;
        const json parsed = json_in(path);
        // One of our names is no other program's to write: what does not parse was cut short, and is named.
        if (is_ours(parsed) || (parsed.is_discarded() && name.ends_with(file_ending))) return tokenizer_load(path);
    }
    return bpe_folder(folder) ? gpt2_here(folder, bpe_read(folder)) : nullptr;
}

std::vector<NamedText> tokenizer_files(const Tokenizer& tokenizer, const std::string& path) {
    std::vector<NamedText> files = tokenizer.huggingface_files();
    if (path.empty())
        files.insert(files.begin(), {std::string("model") + file_ending, file_text(tokenizer)});
    else
        files.insert(files.begin(), {base_name(path), read_text(path)});
    return files;
}
