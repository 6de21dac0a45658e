#include "dataloader/bpe_vocabulary.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "checkpoint/files.h"
#include "dataloader/utf8.h"
#include "kernels/error.h"

using nlohmann::json;
using nlohmann::ordered_json;

namespace {

constexpr int most_tokens = 1 << 24;

// The byte that a code point stands for; -1 when it stands for none.
struct ByteOfCharacter {
    int byte[0x100 + 68];
    ByteOfCharacter() {
        int other = 0x100;
        std::fill(std::begin(byte), std::end(byte), -1);
        for (int b = 0; b < 256; b++) {
            const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
            byte[printable ? b : other++] = b;
        }
    }
};

// The file of either name; "" when neither is there.
std::string file_of(const std::string& folder, const char* name, const char* other) {
    for (const char* each : {name, other}) {
        std::string path = join_path(folder, each);
        if (file_exists(path)) return path;
    }
    return "";
}
std::string vocab_file(const std::string& folder) {
    return file_of(folder, "encoder.json", "vocab.json");
}
std::string merges_file(const std::string& folder) {
    return file_of(folder, "vocab.bpe", "merges.txt");
}

std::vector<std::string> tokens_of(const json& vocab, const std::string& path) {
    if (!vocab.is_object() || vocab.empty())
        throw user_error("%s: is not a vocabulary (one JSON object, token to number); get the file again",
                         path.c_str());
    std::vector<std::string> tokens;
    for (const auto& [token, id] : vocab.items()) {
        if (!id.is_number_integer() || id < 0 || id >= most_tokens)
            throw user_error("%s: the token '%s' has no number from 0 to %d; get the file again", path.c_str(),
                             printable(token).c_str(), most_tokens - 1);
        const size_t i = id.get<size_t>();
        if (i >= tokens.size()) tokens.resize(i + 1);
        if (!tokens[i].empty() || token.empty())
            throw user_error("%s: the number %zu belongs to two tokens or to none; get the file again", path.c_str(),
                             i);
        tokens[i] = token;
    }
    return tokens;
}

// Cuts "left right"; false when the line is no merge.
bool cut_merge(const std::string& line, std::vector<std::pair<std::string, std::string>>& merges) {
    const size_t space = line.find(' ');
    if (space == 0 || space == std::string::npos || space + 1 == line.size() ||
        line.find(' ', space + 1) != std::string::npos)
        return false;
    merges.emplace_back(line.substr(0, space), line.substr(space + 1));
    return true;
}

}  // namespace

bool bpe_folder(const std::string& folder) {
    return !vocab_file(folder).empty() && !merges_file(folder).empty();
}

BpeVocabulary bpe_read(const std::string& folder) {
    if (!folder_exists(folder))
        throw user_error("%s: there is no such folder; it holds encoder.json and vocab.bpe", folder.c_str());
    const std::string vocab = vocab_file(folder), merges = merges_file(folder);
    if (vocab.empty() || merges.empty())
        throw user_error(
            "%s: holds no %s; a GPT-2 tokenizer's folder holds encoder.json (or vocab.json) and vocab.bpe "
            "(or merges.txt)",
            folder.c_str(), vocab.empty() ? "encoder.json or vocab.json" : "vocab.bpe or merges.txt");
    BpeVocabulary out;
    out.vocab_source = vocab;
    out.merges_source = merges;
    out.tokens = tokens_of(json::parse(read_text(vocab), nullptr, false), vocab);
    const std::string text = read_text(merges);
    int64_t number = 0;
    for (size_t at = 0; at < text.size();) {
        size_t end = std::min(text.find('\n', at), text.size());
        std::string line = text.substr(at, end - at);
        at = end + 1;
        number++;
        if (!line.empty() && line.back() == '\r') line.pop_back();
        if (line.empty() || (number == 1 && line.rfind("#version", 0) == 0)) continue;
        if (!cut_merge(line, out.merges))
            throw user_error("%s:%lld: is not a merge of two tokens; get the file again", merges.c_str(),
                             static_cast<long long>(number));
    }
    return out;
}

BpeVocabulary bpe_read(const json& file, const std::string& path) {
    BpeVocabulary out;
    out.vocab_source = out.merges_source = path;
    const bool both = file.contains("vocab") && file.contains("merges") && file["merges"].is_array();
    if (both) out.tokens = tokens_of(file["vocab"], path);
    bool good = both;
    for (size_t i = 0; good && i < file["merges"].size(); i++) {
        const json& merge = file["merges"][i];
        good = merge.is_string() && cut_merge(merge.get<std::string>(), out.merges);
    }
    if (!good) throw user_error("%s: lacks its vocabulary or merges; make it again with tokenize", path.c_str());
    return out;
}

void bpe_write(const BpeVocabulary& vocabulary, ordered_json& file) {
    ordered_json vocab = ordered_json::object();
    for (size_t i = 0; i < vocabulary.tokens.size(); i++) {
        // Straight to the end: looking for the key first, as [] does, would be quadratic.
        if (!vocabulary.tokens[i].empty())
            vocab.get_ref<ordered_json::object_t&>().push_back({vocabulary.tokens[i], i});
    }
    file["vocab"] = std::move(vocab);
    ordered_json merges = ordered_json::array();
    for (const auto& [left, right] : vocabulary.merges) merges.push_back(left + " " + right);
    file["merges"] = std::move(merges);
}

std::string bpe_vocab_json(const BpeVocabulary& vocabulary) {
    ordered_json file;
    bpe_write(vocabulary, file);
    return file["vocab"].dump() + "\n";
}

std::string bpe_merges_txt(const BpeVocabulary& vocabulary) {
    std::string text = "#version: 0.2\n";
    for (const auto& [left, right] : vocabulary.merges) text += left + " " + right + "\n";
    return text;
}

std::string bpe_bytes(const std::string& token) {
    static const ByteOfCharacter table;
    std::string bytes;
    for (size_t at = 0; at < token.size();) {
        const size_t length = utf8_length(std::string_view(token).substr(at));
        const unsigned code_point = length == 0 ? ~0u : utf8_decode(std::string_view(token).substr(at));
        if (code_point >= std::size(table.byte) || table.byte[code_point] < 0) return token;
        bytes += static_cast<char>(table.byte[code_point]);
        at += length;
    }
    return bytes;
}
