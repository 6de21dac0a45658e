// Text to shards: separators, splits, shard sizes, JSON lines, and the tokenizer file.
#include <algorithm>

#include "checkpoint/files.h"
#include "dataloader/prepare.h"
#include "dataloader/shards.h"
#include "dataloader/tokenizer.h"
#include "temp_folder.h"
#include "test.h"
#include "token_shards.h"

namespace {

// The contract said plainly: cut the text into lines; a line that is the separator becomes '\0' and takes the newline
// before it along.
std::string plain_reference(const std::string& text, const std::string& separator) {
    std::string out;
    size_t at = 0;
    bool after_text_line = false;
    while (at < text.size()) {
        size_t newline = text.find('\n', at);
        bool last = newline == std::string::npos;
        std::string line = text.substr(at, last ? std::string::npos : newline - at);
        if (line == separator) {
            if (after_text_line) out.pop_back();
            out += '\0';
            after_text_line = false;
        } else {
            out += line;
            if (!last) out += '\n';
            after_text_line = !last;
        }
        if (last) break;
        at = newline + 1;
    }
    return out;
}

// Tokens of the inputs (texts) without a split.
Tokens prepared(const std::vector<std::string>& texts, const std::string& separator = "<|endoftext|>") {
    TempFolder folder;
    PrepareOptions options;
    for (size_t i = 0; i < texts.size(); i++) {
        options.inputs.push_back(folder / format("in%zu", i));
        put_bytes(options.inputs.back(), texts[i]);
    }
    options.out = folder / "out";
    options.val_fraction = 0;
    options.separator = separator;
    prepare(options);
    return read_shards(folder / "out_train_*.bin");
}

}  // namespace

TEST_CASE("tokenize: a separator line becomes one token, with the newlines at both its ends", "[tokenize]") {
    auto text = [](const char* s, size_t n) { return bytes_of(std::string(s, n)); };
    REQUIRE(prepared({"one\n<|endoftext|>\ntwo\n"}) == text("one\0two\n", 8));
    REQUIRE(prepared({"one\n<|endoftext|>"}) == text("one\0", 4));
    REQUIRE(prepared({"one\n<|endoftext|>\n"}) == text("one\0", 4));
    REQUIRE(prepared({"<|endoftext|>\none"}) == text("\0one", 4));
    REQUIRE(prepared({"one\n\n<|endoftext|>\n\ntwo"}) == text("one\n\0\ntwo", 9));
    REQUIRE(prepared({"a\n<|endoftext|>\n<|endoftext|>\nb"}) == text("a\0\0b", 4));
    for (const char* same :
         {"no newline", "a\n", "\n", "\n\n\na", "a<|endoftext|>\nb", "a\n<|endoftext|> \nb", "a\n <|endoftext|>\nb",
          "a\n<|endoftext|>\r\nb", "a\r\nb", "a\n<|endoftext|", "a\n<|endoftext|>b"}) {
        CAPTURE(same);
        REQUIRE(prepared({same}) == bytes_of(same));
    }
    REQUIRE(prepared({"a\n--\nb\n<|endoftext|>\n"}, "--") == text("a\0b\n<|endoftext|>\n", 18));
    REQUIRE(prepared({"a\n\nb\n"}, "") == text("a\0b\n", 4));
}

TEST_CASE("tokenize: between inputs a document ends", "[tokenize]") {
    auto text = [](const char* s, size_t n) { return bytes_of(std::string(s, n)); };
    REQUIRE(prepared({"one\n", "two"}) == text("one\n\0two", 8));
    REQUIRE(prepared({"one\n<|endoftext|>\n", "two"}) == text("one\0two", 7));
    REQUIRE(prepared({"one", "<|endoftext|>\ntwo"}) == text("one\0two", 7));
    REQUIRE(prepared({"one", "", "two"}) == text("one\0two", 7));
    REQUIRE(prepared({"one<|endof", "text|>"}) == text("one<|endof\0text|>", 17));
}

TEST_CASE("tokenize: random texts in pieces of random sizes match the plain reading", "[tokenize]") {
    Random random(11);
    for (int round = 0; round < 3000; round++) {
        std::string separator =
            std::vector<std::string>{"<>", "a", "", "aab", "\r"}[static_cast<size_t>(random.below(5))];
        std::string text;
        for (int n = random.below(40); n > 0; n--) {
            int kind = random.below(5);
            text += kind == 0 ? separator : kind <= 2 ? "\n" : kind == 3 ? "a" : "<";
        }
        std::string got;
        DocumentSplitter splitter(
            separator, [&](std::string_view piece) { got += piece; }, [&] { got += '\0'; });
        for (size_t at = 0; at < text.size();) {
            size_t n = std::min(text.size() - at, static_cast<size_t>(1 + random.below(9)));
            splitter.feed(std::string_view(text).substr(at, n));
            at += n;
        }
        splitter.finish();
        CAPTURE(text, separator);
        REQUIRE(got == plain_reference(text, separator));
    }
}

TEST_CASE("tokenize: every byte passes, whatever the size of the file", "[tokenize]") {
    Random random(12);
    std::string text(3'500'000, '\0');
    for (char& c : text) c = static_cast<char>(random.below(256));
    REQUIRE(prepared({text}) == bytes_of(text));
    std::string line(2'500'000, 'x');  // one line longer than any block
    REQUIRE(prepared({line + "\n<|endoftext|>\n" + line}) == bytes_of(line + std::string(1, '\0') + line));
}

TEST_CASE("tokenize: shards hold as many tokens as asked, the last the rest", "[tokenize]") {
    TempFolder folder;
    std::string text(1005, 'x');
    put_bytes(folder / "in", text);
    PrepareOptions options;
    options.inputs = {folder / "in"};
    options.out = folder / "new/folder/out";
    options.shard_tokens = 100;
    options.val_fraction = 0.25;
    PrepareSummary summary = prepare(options);
    REQUIRE(summary.tail_held_out);
    REQUIRE(summary.train_tokens == 754);
    REQUIRE(summary.val_tokens == 251);
    std::vector<std::string> names;
    for (int i = 0; i < 8; i++) names.push_back(format("out_train_%06d.bin", i));
    for (int i = 0; i < 3; i++) names.push_back(format("out_val_%06d.bin", i));
    names.insert(names.begin(), "out_tokenizer.json");
    REQUIRE(list_folder(folder / "new/folder") == names);
    std::vector<Shard> shards = shards_open(options.out + "_train_*.bin", 256);
    for (size_t i = 0; i < 8; i++) REQUIRE(shards[i].num_tokens == (i < 7 ? 100 : 54));
    REQUIRE(shards[0].token_bytes == 2);
    shards.clear();

    // A second run replaces the first whole; one that writes no validation shards leaves the old ones and says so.
    put_bytes(options.out + "_train_000008.bin.note", "not a shard of ours");
    options.shard_tokens = 1000;
    options.val_fraction = 0;
    summary = prepare(options);
    REQUIRE(read_shards(options.out + "_train_*.bin") == bytes_of(text));
    REQUIRE(glob_files(options.out + "_train_*.bin").size() == 2);
    REQUIRE(summary.stale.size() == 3);
    REQUIRE(file_exists(options.out + "_train_000008.bin.note"));
}

TEST_CASE("tokenize: one text's tail is held out", "[tokenize]") {
    TempFolder folder;
    Random random(3);
    std::string text(997, '\0');
    for (char& c : text) c = static_cast<char>('a' + random.below(26));
    put_bytes(folder / "in", text);
    for (double fraction : {0.0, 0.0001, 0.001, 0.1, 0.5, 0.999, 1.0}) {
        for (int64_t shard_tokens : {60, 5000}) {
            for (const std::string& path : glob_files(folder / "out*")) remove(path.c_str());
            PrepareOptions options;
            options.inputs = {folder / "in"};
            options.out = folder / "out";
            options.val_fraction = fraction;
            options.shard_tokens = shard_tokens;
            prepare(options);
            size_t tail = static_cast<size_t>(std::lround(fraction * 997));
            REQUIRE(read_shards(folder / "out_train_*.bin") == bytes_of(text.substr(0, 997 - tail)));
            REQUIRE(read_shards(folder / "out_val_*.bin") == bytes_of(text.substr(997 - tail)));
            int64_t files = static_cast<int64_t>(glob_files(folder / "out_val_*.bin").size());
            REQUIRE(files == (static_cast<int64_t>(tail) + shard_tokens - 1) / shard_tokens);
        }
    }
}

TEST_CASE("tokenize: of several documents whole ones are held out, evenly, near the fraction", "[tokenize]") {
    Random random(4);
    struct Case {
        int documents;
        double fraction, slack;
    };
    for (Case c : {Case{1000, 0.1, 0.01}, Case{1000, 0.01, 0.005}, Case{10, 0.1, 0.1}, Case{6, 0.1, 0.15},
                   Case{2, 0.5, 0.4}, Case{500, 0.7, 0.01}, Case{50, 1.0, 0}}) {
        TempFolder folder;
        std::vector<std::string> documents;
        std::string text;
        for (int d = 0; d < c.documents; d++) {
            documents.push_back(format("%d:", d) + std::string(static_cast<size_t>(50 + random.below(100)), 'x'));
            text += documents.back() + "\n<|endoftext|>\n";
        }
        put_bytes(folder / "in", text);
        PrepareOptions options;
        options.inputs = {folder / "in"};
        options.out = folder / "out";
        options.val_fraction = c.fraction;
        PrepareSummary summary = prepare(options);
        CAPTURE(c.documents, c.fraction, summary.val_documents);
        REQUIRE(summary.documents == c.documents);
        REQUIRE_FALSE(summary.tail_held_out);
        double got =
            static_cast<double>(summary.val_tokens) / static_cast<double>(summary.train_tokens + summary.val_tokens);
        REQUIRE(std::abs(got - c.fraction) <= c.slack);
        // Every document is whole and in one split, in its order.
        std::string train, val;
        for (int token : read_shards(folder / "out_train_*.bin")) train += static_cast<char>(token);
        for (int token : read_shards(folder / "out_val_*.bin")) val += static_cast<char>(token);
        size_t train_at = 0, val_at = 0;
        int held_out = 0;
        for (const std::string& document : documents) {
            std::string ended = document + '\0';
            bool in_train = train.compare(train_at, ended.size(), ended) == 0;
            bool in_val = val.compare(val_at, ended.size(), ended) == 0;
            REQUIRE(in_train != in_val);
            (in_train ? train_at : val_at) += ended.size();
            held_out += in_val;
        }
        REQUIRE(train_at == train.size());
        REQUIRE(val_at == val.size());
        REQUIRE(held_out == summary.val_documents);
    }
}

TEST_CASE("tokenize: a failing run leaves the files of the one before", "[tokenize]") {
    TempFolder folder;
    put_bytes(folder / "in", "some text\n");
    PrepareOptions options;
    options.inputs = {folder / "in"};
    options.out = folder / "out";
    prepare(options);
    std::vector<std::string> before = list_folder(folder.path);
    Tokens tokens = read_shards(folder / "out_train_*.bin");
    make_folders(folder / "folder");
    options.inputs = {folder / "in", folder / "in", folder / "folder"};
    REQUIRE(user_error_of([&] { prepare(options); }).find("is a folder") != std::string::npos);
    remove_folder(folder / "folder");
    REQUIRE(list_folder(folder.path) == before);
    REQUIRE(read_shards(folder / "out_train_*.bin") == tokens);
}

TEST_CASE("tokenizer: bytes to tokens and back, and its file", "[tokenize]") {
    TokenizerPtr tokenizer = tokenizer_create("bytes");
    REQUIRE(tokenizer->vocab_size() == 256);
    REQUIRE(tokenizer->eot() == 0);
    std::string all;
    for (int i = 0; i < 256; i++) all += static_cast<char>(i);
    REQUIRE(tokenizer->encode(all) == bytes_of(all));
    REQUIRE(tokenizer->decode(tokenizer->encode(all)) == all);
    REQUIRE(tokenizer->decode({72, 105, 256, -1, 300}) == "Hi");

    TempFolder folder;
    tokenizer->separator = "== \"x\" ==";
    tokenizer_save(*tokenizer, folder / "en_tokenizer.json");
    REQUIRE(tokenizer_load(folder / "en_tokenizer.json")->separator == tokenizer->separator);
    REQUIRE(tokenizer_load(folder / "en_tokenizer.json")->kind() == "bytes");
    REQUIRE(tokenizer_beside(folder / "en_train_000003.bin") == folder / "en_tokenizer.json");
    REQUIRE(tokenizer_beside(folder / "en_val_000003.bin") == folder / "en_tokenizer.json");
    REQUIRE(tokenizer_beside(folder / "de_val_000003.bin").empty());
    REQUIRE(tokenizer_beside(folder / "en.bin").empty());
    put_bytes(folder / "a_tokenizer.json", "{\"model\": {\"type\": \"BPE\"}}");  // Hugging Face's
    REQUIRE(tokenizer_in(folder.path)->separator == tokenizer->separator);
    REQUIRE(tokenizer_files(*tokenizer, folder / "en_tokenizer.json").size() == 1);
    put_bytes(folder / "a_tokenizer.json", "{\"kind\": \"by");  // ours, cut short
    REQUIRE(user_error_of([&] { tokenizer_in(folder.path); }).find("/a_tokenizer.json: is not a tokenizer file") !=
            std::string::npos);

    auto says = [&](const std::string& text, const std::string& words) {
        put_bytes(folder / "bad.json", text);
        std::string message = user_error_of([&] { tokenizer_load(folder / "bad.json"); });
        INFO(message);
        REQUIRE(message.rfind(folder / "bad.json", 0) == 0);
        REQUIRE(message.find(words) != std::string::npos);
    };
    says("", "is not a tokenizer file");
    says("[]", "is not a tokenizer file");
    says("{\"kind\": 3}", "is not a tokenizer file");
    says("{\"kind\": \"words\"}", "of kind 'words'");
    says("{\"kind\": \"bytes\", \"vocab_size\": 257}", "does not describe");
    says("{\"kind\": \"bytes\", \"eot_token\": \"a\"}", "does not describe");
    for (const char* name : {"gpt2", "gpt2:"})
        REQUIRE(user_error_of([&] { tokenizer_create(name); }).find("lacks its folder; use gpt2:FOLDER") !=
                std::string::npos);
    REQUIRE(user_error_of([] { tokenizer_create("byte"); }).find("'byte' is not known; use 'bytes' or gpt2:FOLDER") !=
            std::string::npos);
}

TEST_CASE("tokenizer: a table turns tokens into text, and nothing else", "[tokenize]") {
    TempFolder folder;
    const std::string path = folder / "t_tokenizer.json";
    auto table = [&](const std::string& fields) {
        put_bytes(path, "{\"kind\": \"table\", \"name\": \"t5\", \"eot_token\": 1, " + fields + "}");
    };
    table(R"("vocab_size": 4, "tokens": ["\u0000\u00ff", "", " the", "\u00e9\u00a9"])");
    for (int round = 0; round < 2; round++) {
        const TokenizerPtr tokenizer = tokenizer_load(path);
        REQUIRE(tokenizer->kind() == "table");
        REQUIRE(tokenizer->vocab_size() == 4);
        REQUIRE(tokenizer->eot() == 1);
        REQUIRE(tokenizer->decode({2, 0, 3, 1, 4, -1}) == std::string(" the\0\xff\xe9\xa9", 8));
        REQUIRE(user_error_of([&] { tokenizer->encode("text"); }).find("'t5' only turns tokens into text here; ") !=
                std::string::npos);
        tokenizer_save(*tokenizer, path);
    }
    for (const char* bad : {R"("tokens": ["a", 3])", R"("tokens": ["a", "\u0100"])", R"("tokens": ["a"])",
                            R"("tokens": "ab")", R"("vocab_size": 3, "tokens": ["a", "b"])", R"("vocab_size": 2)"}) {
        table(bad);
        const std::string message = user_error_of([&] { tokenizer_load(path); });
        CAPTURE(bad, message);
        REQUIRE(message.rfind(path, 0) == 0);
        REQUIRE(message.find("make it again with") != std::string::npos);
    }
}

TEST_CASE("tokenize: JSON lines", "[tokenize]") {
    TempFolder folder;
    auto text = [](const char* s, size_t n) { return bytes_of(std::string(s, n)); };
    PrepareOptions options;
    options.out = folder / "out";
    options.val_fraction = 0;
    auto tokens = [&](const std::vector<std::string>& inputs) {
        options.inputs = inputs;
        prepare(options);
        return read_shards(folder / "out_train_*.bin");
    };
    const std::string a = folder / "a.jsonl", b = folder / "b.jsonl", plain = folder / "plain.txt";
    // Every line is a document, ended by the token; a separator within is text, and an empty document is one.
    put_bytes(a,
              "{\"text\": \"one\\n<|endoftext|>\\n\", \"id\": 1}\n\n  \r\n{\"text\": \"\"}\r\n{\"id\": 2, \"text\": "
              "\"\\u00e9\"}");
    REQUIRE(tokens({a}) == text("one\n<|endoftext|>\n\0\0\xC3\xA9\0", 23));
    put_bytes(plain, "two\n");
    REQUIRE(tokens({plain, a}) == text("two\n\0one\n<|endoftext|>\n\0\0\xC3\xA9\0", 28));
    REQUIRE(tokens({a, plain}) == text("one\n<|endoftext|>\n\0\0\xC3\xA9\0two\n", 27));
    put_bytes(b, "\n");
    REQUIRE(tokens({b, plain}) == text("two\n", 4));
    put_bytes(b, "{\"content\": \"x\", \"text\": 3}\n");
    options.field = "content";
    REQUIRE(tokens({b}) == text("x\0", 2));
    options.field = "";
    put_bytes(plain, "{\"text\": \"x\"}\n");
    options.jsonl = true;
    REQUIRE(tokens({plain}) == text("x\0", 2));
    options.jsonl = false;

    // A line longer than any block, and a document's bytes as they are in UTF-8.
    const std::string longer(3'000'000, 'y');
    put_bytes(b, "{\"text\": \"" + longer + "\"}\n{\"text\": \"z\"}\n");
    REQUIRE(tokens({b}) == bytes_of(longer + std::string("\0z\0", 3)));

    // What is no document is refused by file and line, or left out and counted.
    for (const auto& [line, words] : std::vector<std::pair<std::string, std::string>>{
             {"{\"text\": \"cut", "is no JSON"},
             {"plain text", "is no JSON"},
             {"{\"text\": \"\xff\"}", "is no JSON"},
             {"{\"text\": \"\\ud800\"}", "is no JSON"},
             {"[\"text\"]", "is no JSON object"},
             {"{\"body\": \"x\"}", "has no field 'text'"},
             {"{\"text\": null}", "has a field 'text' that is no string"}}) {
        put_bytes(b, "{\"text\": \"x\"}\n\n" + line + "\n{\"text\": \"y\"}\n" + line);
        CAPTURE(line);
        options.skip_bad = false;
        REQUIRE(user_error_of([&] {
                    tokens({a, b});
                }) == b + ":3: " + words + "; mend it, or leave such lines out with --skip-bad");
        options.skip_bad = true;
        REQUIRE(tokens({b}) == text("x\0y\0", 4));
        const PrepareSummary summary = prepare(options);
        REQUIRE(summary.documents == 2);
        REQUIRE(summary.skipped_lines == 2);
        REQUIRE(summary.first_skipped == std::vector<std::string>{b + ":3: " + words, b + ":5: " + words});
    }
    std::string many;
    for (int i = 0; i < 9; i++) many += "bad\n";
    put_bytes(b, many);
    REQUIRE(user_error_of([&] { tokens({b}); }).find("holds no text besides bad lines") != std::string::npos);
    put_bytes(b, many + "{\"text\": \"x\"}");
    options.inputs = {b};
    const PrepareSummary summary = prepare(options);
    REQUIRE(summary.skipped_lines == 9);
    REQUIRE(summary.first_skipped.size() == 5);
}

TEST_CASE("tokenize: separator lines that a CR hides are counted", "[tokenize]") {
    auto hidden = [](const std::string& text, const std::string& separator, size_t piece) {
        DocumentSplitter splitter(
            separator, [](std::string_view) {}, [] {});
        for (int input = 0; input < 2; input++) {
            for (size_t at = 0; at < text.size(); at += piece) splitter.feed(std::string_view(text).substr(at, piece));
            splitter.finish();
        }
        return splitter.separators_with_cr();
    };
    for (const size_t piece : {size_t(1), size_t(2), size_t(3), size_t(100)}) {
        CAPTURE(piece);
        CHECK(hidden("a\r\n--\r\nb\r\n--\r\n", "--", piece) == 4);
        CHECK(hidden("--\r\n--\n--\r", "--", piece) == 4);
        CHECK(hidden("-- \r\n--\r\r\n--\rb\n---\r\n\r\n--\n", "--", piece) == 0);
        CHECK(hidden("a\r\n\r\nb\r\n", "", piece) == 2);
    }
}

TEST_CASE("tokenize: a byte order mark at the start of an input is no text", "[tokenize]") {
    const std::string mark = "\xEF\xBB\xBF";
    REQUIRE(prepared({mark + "one\n", mark + mark + "two"}) == bytes_of("one\n" + std::string(1, '\0') + mark + "two"));
    REQUIRE(prepared({mark + "<|endoftext|>\n" + mark + "x"}) == bytes_of(std::string(1, '\0') + mark + "x"));
    TempFolder folder;
    PrepareOptions options;
    options.inputs = {folder / "a.jsonl"};
    options.out = folder / "out";
    options.val_fraction = 0;
    put_bytes(options.inputs[0], mark + "{\"text\": \"x\"}\n");
    prepare(options);
    REQUIRE(read_shards(folder / "out_train_*.bin") == bytes_of(std::string("x\0", 2)));
}

TEST_CASE("tokenize: JSON lines under another name are read as text, with a note", "[tokenize]") {
    TempFolder folder;
    PrepareOptions options;
    options.out = folder / "out";
    auto noted = [&](const std::string& name, const std::string& text) {
        options.inputs = {folder / name};
        put_bytes(options.inputs[0], text);
        return !prepare(options).like_json_lines.empty();
    };
    const std::string lines = "{\"id\": 1, \"text\": \"x\"}\n{\"text\": \"y\"}\n";
    CHECK(noted("a.json", lines));
    CHECK(noted("a.txt", "\xEF\xBB\xBF" + lines));
    CHECK(noted("jsonl", lines.substr(0, lines.find('\n'))));
    CHECK_FALSE(noted("a.txt", "x\n" + lines));
    CHECK_FALSE(noted("a.txt", "{\"body\": \"x\"}\n"));
    CHECK_FALSE(noted("a.txt", "{ text: a set }\n"));
    options.val_fraction = 0;
    CHECK_FALSE(noted("a.JSONL", lines));
    REQUIRE(read_shards(folder / "out_train_*.bin") == bytes_of(std::string("x\0y\0", 4)));
}
