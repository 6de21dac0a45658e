// GPT-2's tokenizer: golden vectors of tokenizers and tiktoken, the classes of all characters, a plain reference of
// merging, round trips, safe cuts, threads, and its files. The vocabulary is small (tests/golden/tokenizer); tests with
// the real one need ../shared.
#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "checkpoint/files.h"
#include "dataloader/bpe.h"
#include "dataloader/prepare.h"
#include "dataloader/pretokenize.h"
#include "dataloader/shards.h"
#include "dataloader/text_jobs.h"
#include "dataloader/tokenizer.h"
#include "dataloader/utf8.h"
#include "temp_folder.h"
#include "test.h"

using nlohmann::json;

namespace {

using Tokens = std::vector<int>;

constexpr const char* small = "tests/golden/tokenizer";
const std::string shared = "../shared/data/";

const Tokenizer& small_tokenizer() {
    static const TokenizerPtr tokenizer = tokenizer_create(std::string("gpt2:") + small);
    return *tokenizer;
}

std::string character(unsigned code_point) {
    std::string text;
    utf8_append(code_point, text);
    return text;
}

std::string from_hex(const std::string& hex) {
    std::string bytes;
    for (size_t i = 0; i < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    return bytes;
}

// {"text" or "hex", "ids"} a line. Returns how many there were.
int check_vectors(const std::string& path, const Tokenizer& tokenizer) {
    std::ifstream file(path);
    int count = 0;
    for (std::string line; std::getline(file, line); count++) {
        const json vector = json::parse(line);
        const std::string text = vector.contains("hex") ? from_hex(vector["hex"]) : vector["text"].get<std::string>();
        CAPTURE(count, text);
        const Tokens got = tokenizer.encode(text);
        REQUIRE(got == vector["ids"].get<Tokens>());
        REQUIRE(tokenizer.decode(got) == text);
    }
    return count;
}

// Text that has much of what makes a difference: kinds of characters side by side, white space, contractions, bytes
// that are not UTF-8.
std::string random_text(Random& random, size_t size, bool valid) {
    static const char* pieces[] = {" ",      "  ",     "\n",     " \n\n",        "\t",   "a",      "the",
                                   " the",   "'s",     "'",      "'l",           "l",    "1",      "42",
                                   ".",      "--",     "é",      "火",           "🙂", "\u00a0", "\u2003",
                                   "\u3000", "\u0301", "\u0085", "<|endoftext|>"};
    static const char* broken[] = {"\xff", "\xc3", "\xe2\x80", "\x80", "\xf0\x9f"};
    std::string text;
    while (text.size() < size) {
        if (!valid && random.below(8) == 0) {
            text += broken[random.below(std::size(broken))];
        } else {
            text += pieces[random.below(std::size(pieces))];
        }
    }
    return text;
}

// The definition said plainly: the first merge in the list, its leftmost place, until there is none. Quadratic.
Tokens plain_merge(const std::string& word) {
    static const BpeVocabulary vocabulary = bpe_read(std::string(small));
    std::vector<std::string> parts;
    for (char c : word) parts.emplace_back(1, c);
    while (true) {
        size_t best = vocabulary.merges.size(), place = 0;
        for (size_t i = 0; i + 1 < parts.size(); i++) {
            const auto found =
                std::find(vocabulary.merges.begin(), vocabulary.merges.end(), std::pair(parts[i], parts[i + 1]));
            const size_t rank = static_cast<size_t>(found - vocabulary.merges.begin());
            if (rank < best) best = rank, place = i;
        }
        if (best == vocabulary.merges.size()) break;
        parts[place] += parts[place + 1];
        parts.erase(parts.begin() + static_cast<ptrdiff_t>(place) + 1);
    }
    Tokens tokens;
    for (const std::string& part : parts)
        tokens.push_back(static_cast<int>(std::find(vocabulary.tokens.begin(), vocabulary.tokens.end(), part) -
                                          vocabulary.tokens.begin()));
    return tokens;
}

// The tokens of a text that reaches JobBuilder in pieces of that size.
Tokens streamed(const std::string& text, size_t piece, const Tokenizer& tokenizer, int* parts = nullptr) {
    Tokens tokens;
    JobBuilder builder(tokenizer, [&](TextJob job) {
        job.encode(tokenizer, "");
        if (parts != nullptr) *parts += static_cast<int>(job.units.size());
        tokens.insert(tokens.end(), job.tokens.begin(), job.tokens.end());
    });
    builder.begin_input("test");
    for (size_t at = 0; at < text.size(); at += piece) builder.text(std::string_view(text).substr(at, piece));
    builder.end_input();
    return tokens;
}

std::string shard_bytes(const std::string& prefix) {
    std::string bytes;
    for (const std::string& path : glob_files(prefix + "*.bin")) bytes += base_name(path) + read_text(path);
    return bytes;
}

}  // namespace

TEST_CASE("gpt2: golden vectors of tokenizers and tiktoken", "[bpe]") {
    REQUIRE(small_tokenizer().vocab_size() == 621);
    REQUIRE(small_tokenizer().eot() == 0);
    REQUIRE(check_vectors(std::string(small) + "/vectors.jsonl", small_tokenizer()) == 538);
    REQUIRE(small_tokenizer().decode({-1, 621, 1 << 30}).empty());
    REQUIRE(small_tokenizer().decode({0}) == "<|endoftext|>");
}

TEST_CASE("gpt2: every character is of the class it has for tiktoken", "[bpe]") {
    const json expected = json::parse(read_text(std::string(small) + "/classes.json"));
    Pretokenizer pretokenizer;
    Pretokenizer::Matcher matcher(pretokenizer);
    // A character joins its like: what is left is white space.
    auto joins = [&](const char* before, const std::string& c) {
        return matcher.piece_end(before + c, 0) == 1 + c.size();
    };
    struct {
        int64_t count = 0, sum = 0;
    } letters, numbers, spaces;
    for (unsigned c = 0; c < 0x110000; c++) {
        if (c >= 0xD800 && c <= 0xDFFF) continue;
        const std::string text = character(c);
        const bool letter = joins("a", text), number = joins("1", text), other = joins("!", text);
        if (letter + number + other > 1) FAIL("two classes: " << c);
        if (ends_in_space(text) != (letter + number + other == 0)) FAIL("white space or not? " << c);
        auto& kind = letter ? letters : number ? numbers : spaces;
        if (other) continue;
        kind.count++;
        kind.sum += c;
    }
    const std::pair<const char*, std::pair<int64_t, int64_t>> found[] = {{"letters", {letters.count, letters.sum}},
                                                                         {"numbers", {numbers.count, numbers.sum}},
                                                                         {"spaces", {spaces.count, spaces.sum}}};
    for (const auto& [name, numbers_of] : found) {
        CAPTURE(name);
        CHECK(numbers_of.first == expected[name]["count"]);
        CHECK(numbers_of.second == expected[name]["sum"]);
    }
    for (const char* broken :
         {"\xA0", "\x85", "\x80\x80", "\xE2\x80", "a\x8A", "\xE1\x9A\x81", "\xC3\xA0", "\xE2\x80\x8B"})
        CHECK_FALSE(ends_in_space(broken));
}

TEST_CASE("gpt2: merging agrees with the plain definition", "[bpe]") {
    Random random(21);
    for (int round = 0; round < 300; round++) {
        std::string word;
        for (int n = 1 + random.below(round < 290 ? 25 : 600); n > 0; n--) word += "aehinorstT"[random.below(10)];
        CAPTURE(word);
        REQUIRE(small_tokenizer().encode(word) == plain_merge(word));
    }
}

TEST_CASE("gpt2: decoding gives the bytes back", "[bpe]") {
    Random random(22);
    for (int round = 0; round < 2000; round++) {
        std::string bytes(static_cast<size_t>(random.below(60)), '\0');
        for (char& c : bytes) c = static_cast<char>(random.below(256));
        if (round % 2 == 0) bytes = random_text(random, bytes.size(), round % 4 == 0);
        REQUIRE(small_tokenizer().decode(small_tokenizer().encode(bytes)) == bytes);
        Tokens part;
        small_tokenizer().encode_part(bytes, part);
        REQUIRE(small_tokenizer().decode(part) == bytes);
    }
}

TEST_CASE("gpt2: a cut changes no token, whatever follows it", "[bpe]") {
    Random random(23);
    int cuts = 0, without_space = 0;
    for (int round = 0; round < 20000; round++) {
        std::string text = random_text(random, static_cast<size_t>(20 + random.below(60)), round % 3 != 0);
        if (round % 2 == 0) std::erase_if(text, [](char c) { return c == ' ' || c == '\n' || c == '\t'; });
        const std::string seen = text.substr(0, static_cast<size_t>(random.below(static_cast<int>(text.size()) + 1)));
        const size_t cut = small_tokenizer().cut(seen);
        CAPTURE(text, seen, cut);
        REQUIRE(cut <= seen.size());
        if (cut == 0) continue;
        cuts++;
        without_space += round % 2 == 0;
        Tokens whole, parts;
        small_tokenizer().encode_part(text, whole);
        small_tokenizer().encode_part(text.substr(0, cut), parts);
        small_tokenizer().encode_part(text.substr(cut), parts);
        REQUIRE(parts == whole);
    }
    REQUIRE(cuts > 12000);
    REQUIRE(without_space > 5000);
}

TEST_CASE("gpt2: very long words", "[bpe]") {
    Random random(24);
    const size_t megabyte = 1 << 20;
    std::string letters(megabyte, '\0');
    for (char& c : letters) c = "etaoinshrdlu"[random.below(12)];
    for (const std::string& word : {std::string(megabyte, 'a'), letters, std::string(megabyte, ' ') + "x",
                                    std::string(megabyte, '\n'), std::string(megabyte, '\xff')}) {
        const Tokens tokens = small_tokenizer().encode(word);
        REQUIRE((small_tokenizer().decode(tokens) == word));
    }
    // No place to cut for longer than a word may be: merged in runs, streamed or not.
    const std::string monster = "x " + std::string(17 * megabyte, 'e') + " y";
    const Tokens whole = small_tokenizer().encode(monster);
    REQUIRE((small_tokenizer().decode(whole) == monster));
    REQUIRE((streamed(monster, megabyte, small_tokenizer()) == whole));
}

TEST_CASE("gpt2: a document in pieces of any size gives the tokens of the whole", "[bpe]") {
    Random random(25);
    for (const bool valid : {true, false}) {
        for (const size_t size : {size_t(5000), whole_text, whole_text + 1, 2 * whole_text}) {
            std::string text = random_text(random, size, valid);
            text.resize(size);
            const Tokens whole = small_tokenizer().encode(text);
            for (const size_t piece : {size_t(1), size_t(7), size_t(4096), whole_text}) {
                if (piece == 1 && size > whole_text + 1) continue;
                int parts = 0;
                CAPTURE(valid, size, piece);
                REQUIRE((streamed(text, piece, small_tokenizer(), &parts) == whole));  // too long to print
                REQUIRE((parts > 1) == (size > whole_text));
            }
        }
    }
    // Nowhere white space.
    std::string text = random_text(random, 2 * whole_text, true);
    std::erase_if(text, [](char c) { return c == ' ' || c == '\n' || c == '\t'; });
    int parts = 0;
    REQUIRE((streamed(text, 4096, small_tokenizer(), &parts) == small_tokenizer().encode(text)));
    REQUIRE(parts > 1);
}

TEST_CASE("gpt2: several threads encode at once", "[bpe]") {
    std::vector<std::string> texts;
    std::vector<Tokens> expected;
    Random random(26);
    for (int i = 0; i < 8; i++) {
        texts.push_back(random_text(random, 50000, i % 2 == 0));
        expected.push_back(small_tokenizer().encode(texts.back()));
    }
    std::vector<int> right(texts.size(), 0);
    std::vector<std::thread> threads;
    for (size_t i = 0; i < texts.size(); i++) {
        threads.emplace_back([&, i] {
            for (int round = 0; round < 5; round++) right[i] += small_tokenizer().encode(texts[i]) == expected[i];
        });
    }
    for (std::thread& thread : threads) thread.join();
    REQUIRE(right == std::vector<int>(texts.size(), 5));
}

TEST_CASE("gpt2: shards do not depend on the number of threads", "[bpe]") {
    TempFolder folder;
    Random random(27);
    std::string text, lines;
    for (int d = 0; d < 400; d++) {
        const std::string document =
            random_text(random, static_cast<size_t>(d == 200 ? 3 << 20 : random.below(12000)), d % 50 != 0);
        text += document + "\n=====\n";
        if (d % 50 != 0 && d != 200) lines += json({{"text", document}}).dump() + "\n";
    }
    put_bytes(folder / "a.txt", text);
    put_bytes(folder / "b.jsonl", lines + "{broken\n" + lines);
    std::string first;
    for (const int threads : {1, 2, 5}) {
        PrepareOptions options;
        options.inputs = {folder / "a.txt", folder / "b.jsonl"};
        options.out = folder / format("out%d", threads);
        options.tokenizer = std::string("gpt2:") + small;
        options.separator = "=====";
        options.skip_bad = true;
        options.threads = threads;
        const PrepareSummary summary = prepare(options);
        REQUIRE(summary.skipped_lines == 1);
        REQUIRE(summary.documents_not_utf8 == 8);
        std::string bytes = shard_bytes(options.out);
        for (size_t at; (at = bytes.find(base_name(options.out))) != std::string::npos;)
            bytes.erase(at, base_name(options.out).size());
        if (threads == 1) first = bytes;
        CAPTURE(threads);
        REQUIRE(bytes.size() > 1000000);
        REQUIRE((bytes == first));
    }
}

TEST_CASE("gpt2: the tokenizer's file and those of Hugging Face", "[bpe]") {
    TempFolder folder;
    TokenizerPtr tokenizer = tokenizer_create(std::string("gpt2:") + small);
    tokenizer->separator = "---";
    const std::string path = folder / "x_tokenizer.json";
    tokenizer_save(*tokenizer, path);
    const TokenizerPtr again = tokenizer_load(path);
    REQUIRE(again->kind() == "gpt2");
    REQUIRE(again->separator == "---");
    check_vectors(std::string(small) + "/vectors.jsonl", *again);

    make_folders(folder / "hf");
    for (const NamedText& file : tokenizer_files(*tokenizer, path)) put_bytes(folder / ("hf/" + file.name), file.text);
    REQUIRE(list_folder(folder / "hf") ==
            std::vector<std::string>{"merges.txt", "tokenizer_config.json", "vocab.json", "x_tokenizer.json"});
    REQUIRE(tokenizer_in(folder / "hf")->separator == "---");
    remove((folder / "hf/x_tokenizer.json").c_str());
    put_bytes(folder / "hf/tokenizer.json", "{\"model\": {}}");  // Hugging Face's, passed over
    REQUIRE(tokenizer_in(folder / "hf")->encode("the river") == tokenizer->encode("the river"));
    remove((folder / "hf/merges.txt").c_str());
    REQUIRE(tokenizer_in(folder / "hf") == nullptr);
}

TEST_CASE("gpt2: files that are none of a GPT-2 tokenizer are refused by name", "[bpe]") {
    const std::string vocab = read_text(std::string(small) + "/vocab.json"),
                      merges = read_text(std::string(small) + "/merges.txt");
    auto says = [&](const std::string& vocab_now, const std::string& merges_now, const std::string& words) {
        TempFolder folder;
        put_bytes(folder / "encoder.json", vocab_now);
        put_bytes(folder / "vocab.bpe", merges_now);
        const std::string message = user_error_of([&] { tokenizer_create("gpt2:" + folder.path); });
        CAPTURE(words, message);
        REQUIRE(message.rfind(folder.path, 0) == 0);
        REQUIRE(message.find(words) != std::string::npos);
    };
    auto without = [&](const std::string& key) {
        json object = json::parse(vocab);
        object.erase(key);
        return object.dump();
    };
    auto with = [&](const std::string& key, const json& value) {
        json object = json::parse(vocab);
        object[key] = value;
        return object.dump();
    };
    says("", merges, "encoder.json: is not a vocabulary");
    says("[1]", merges, "encoder.json: is not a vocabulary");
    says(vocab.substr(0, vocab.size() / 2), merges, "encoder.json: is not a vocabulary");
    says(with("x y", "seven"), merges, "encoder.json: the token 'x y' has no number");
    says(with("x y", -1), merges, "has no number");
    says(with("x y", 7), merges, "belongs to two tokens");
    says(without("<|endoftext|>"), merges, "encoder.json: its vocabulary has no <|endoftext|>");
    says(without("z"), merges, "encoder.json: its vocabulary has no token for the byte 0x7A");
    says(vocab, merges + "one two three\n", "vocab.bpe:366: is not a merge");
    says(vocab, merges + "oneword\n", "vocab.bpe:366: is not a merge");
    says(vocab, merges + "z z\n", "vocab.bpe: merge 365, 'z z', is of tokens");
    // Cut at the end of a line, the list is a list all the same.
    const std::string header = merges.substr(0, merges.find('\n') + 1);
    says(vocab, "", "vocab.bpe: has 0 merges where the vocabulary needs 364 (");
    says(vocab, header, "vocab.bpe: has 0 merges where the vocabulary needs 364 (");
    says(vocab, merges.substr(0, merges.rfind('\n', merges.size() - 2) + 1),
         "vocab.bpe: has 363 merges where the vocabulary needs 364 (");
    says(with("x y", 621), merges, "has 364 merges where the vocabulary needs 365 (none makes 'x y')");
    TempFolder folder;
    REQUIRE(user_error_of([&] {
                tokenizer_create("gpt2:" + folder.path);
            }).find("holds no encoder.json or vocab.json") != std::string::npos);
    put_bytes(folder / "vocab.json", vocab);
    REQUIRE(user_error_of([&] { tokenizer_create("gpt2:" + folder.path); }).find("holds no vocab.bpe or merges.txt") !=
            std::string::npos);
    REQUIRE(user_error_of([&] { tokenizer_create("gpt2:" + folder.path + "/x"); }).find("no such folder") !=
            std::string::npos);
    put_bytes(folder / "x_tokenizer.json", "{\"kind\": \"gpt2\", \"vocab_size\": 3}");
    REQUIRE(user_error_of([&] {
                tokenizer_load(folder / "x_tokenizer.json");
            }).find("lacks its vocabulary or merges") != std::string::npos);
    tokenizer_save(small_tokenizer(), folder / "x_tokenizer.json");
    nlohmann::ordered_json ours = nlohmann::ordered_json::parse(read_text(folder / "x_tokenizer.json"));
    ours["merges"].erase(ours["merges"].size() - 1);
    put_bytes(folder / "x_tokenizer.json", ours.dump());
    REQUIRE(user_error_of([&] {
                tokenizer_load(folder / "x_tokenizer.json");
            }).find("x_tokenizer.json: has 363 merges where the vocabulary needs 364") != std::string::npos);
    // A token for no text needs no merge. Windows line ends and both names of the files are fine.
    std::string crlf;
    for (char c : merges) crlf += c == '\n' ? "\r\n" : std::string(1, c);
    put_bytes(folder / "merges.txt", crlf);
    put_bytes(folder / "vocab.json", with("<pad>", 621));
    check_vectors(std::string(small) + "/vectors.jsonl", *tokenizer_create("gpt2:" + folder.path));
}

TEST_CASE("gpt2: the real vocabulary", "[bpe]") {
    if (!folder_exists(shared + "gpt2_bpe")) SKIP_TEST("../shared/data/gpt2_bpe is not here");
    const TokenizerPtr tokenizer = tokenizer_create("gpt2:" + shared + "gpt2_bpe");
    REQUIRE(tokenizer->vocab_size() == 50257);
    REQUIRE(tokenizer->eot() == 50256);
    REQUIRE(tokenizer->encode("Hello world") == Tokens{15496, 995});
    REQUIRE(check_vectors(shared + "gpt2_bpe/gpt2_bpe_vectors.jsonl", *tokenizer) == 204);
    // Every token, as a text or as bytes that are none, is itself.
    for (int token = 0; token < 50256; token++) {
        std::string bytes;
        tokenizer->decode(token, bytes);
        REQUIRE(tokenizer->encode(bytes) == Tokens{token});
    }
    REQUIRE(tokenizer->encode(read_text(shared + "tinyshakespeare/input.txt")).size() == 338025);
    const std::string wiki = read_text(shared + "wikitext2_raw/wiki.test.raw");
    REQUIRE(tokenizer->encode(wiki).size() == 286221);
    REQUIRE((streamed(wiki, 5000, *tokenizer) == tokenizer->encode(wiki)));
}

TEST_CASE("gpt2: the held-out corpus has its number of tokens", "[bpe]") {
    const std::string packed = shared + "corpus_en/corpus_en_val.txt.xz";
    TempFolder folder;
    if (!file_exists(packed) || system(("xz -dc " + packed + " > " + folder / "val.txt").c_str()) != 0)
        SKIP_TEST("../shared/data/corpus_en or xz is not here");
    PrepareOptions options;
    options.inputs = {folder / "val.txt"};
    options.out = folder / "val";
    options.tokenizer = "gpt2:" + shared + "gpt2_bpe";
    options.val_fraction = 1;
    options.threads = 2;
    const PrepareSummary summary = prepare(options);
    REQUIRE(summary.documents == 184);
    REQUIRE(summary.val_tokens == 253335);
    REQUIRE(summary.train_tokens == 0);
}
