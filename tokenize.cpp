// tokenize: text files to token shards for train_gpt2. What it writes and how it splits: dataloader/prepare.h.
#include <chrono>
#include <cstdio>

#include "checkpoint/files.h"
#include "dataloader/prepare.h"
#include "driver/cli.h"
#include "driver/program.h"
#include "kernels/error.h"

static void run(const PrepareOptions& options) {
    auto start = std::chrono::steady_clock::now();
    PrepareSummary summary = prepare(options);
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

    int64_t tokens = summary.train_tokens + summary.val_tokens;
    std::printf("documents  %lld", static_cast<long long>(summary.documents));
    if (summary.tail_held_out) {
        std::printf(" (held out: the tail of the text)");
    } else if (summary.val_documents > 0) {
        std::printf(" (%lld held out)", static_cast<long long>(summary.val_documents));
    }
    std::printf("\ntokens     %lld train, %lld val (%.2f%%)\n", static_cast<long long>(summary.train_tokens),
                static_cast<long long>(summary.val_tokens),
                100.0 * static_cast<double>(summary.val_tokens) / static_cast<double>(tokens));
    if (summary.files.size() <= 5) {
        for (const std::string& path : summary.files) std::printf("wrote      %s\n", path.c_str());
    } else {
        std::printf("wrote      %s ... %s (%zu files)\n", summary.files.front().c_str(), summary.files.back().c_str(),
                    summary.files.size());
    }
    if (summary.skipped_lines > 0) {
        std::printf("skipped    %lld lines\n", static_cast<long long>(summary.skipped_lines));
        for (const std::string& line : summary.first_skipped) std::printf("           %s\n", line.c_str());
        if (summary.skipped_lines > static_cast<int64_t>(summary.first_skipped.size())) std::printf("           ...\n");
    }
    if (summary.documents_not_utf8 > 0) {
        std::printf("note       %lld documents hold bytes that are not UTF-8; they were kept as they are\n",
                    static_cast<long long>(summary.documents_not_utf8));
    }
    if (summary.eot_in_text > 0) {
        std::printf("note       the text holds %lld NUL bytes, which read as ends of documents\n",
                    static_cast<long long>(summary.eot_in_text));
    }
    if (summary.separators_with_cr > 0) {
        std::printf(
            "note       %lld lines are the separator but for a CR at their end, and were kept as text; make the "
            "line ends LF\n",
            static_cast<long long>(summary.separators_with_cr));
    }
    for (const std::string& input : summary.like_json_lines) {
        std::printf("note       %s looks like JSON lines, but was read as text; use --jsonl\n",
                    printable(input).c_str());
    }
    if (options.val_fraction > 0 && summary.val_tokens == 0) {
        std::printf("note       --val-fraction %g is less than half a token of this text, so nothing is held out\n",
                    options.val_fraction);
    }
    if (!summary.stale.empty()) {
        std::printf("note       %s of an earlier run was left as it is; it may hold the same text\n",
                    summary.stale[0].c_str());
    }
    std::printf("seconds    %.2f (%.1f million tokens a second)\n", seconds,
                static_cast<double>(tokens) / seconds / 1e6);
}

static int tokenize_main(int argc, char** argv) {
    PrepareOptions options;
    CLI::App app(
        "Turns text into token shards for train_gpt2.\n"
        "A line that is exactly the separator ends a document: with the newline before it and its own, it becomes\n"
        "the end-of-text token. So does the end of an input that more text follows.");
    app.add_option("INPUT", options.inputs,
                   "text files, or JSON lines (*.jsonl, in any case), read in this order; - is standard input")
        ->type_name("")
        ->required();
    cli_defaults(app, "tokenize");  // not before: of inputs, all count
    app.add_option("--out", options.out,
                   "start of the names written: PREFIX_train_000000.bin ..., PREFIX_val_000000.bin ..., "
                   "PREFIX_tokenizer.json; shards of an earlier run are replaced")
        ->type_name("PREFIX")
        ->required();
    app.add_option(
           "--tokenizer", options.tokenizer,
           "bytes: a token is a byte, vocabulary 256, end of text is token 0, and so is a NUL byte in the text; "
           "gpt2:FOLDER: GPT-2's, FOLDER holds encoder.json or vocab.json, and vocab.bpe or merges.txt")
        ->type_name("NAME");
    app.add_option("--val-fraction", options.val_fraction,
                   "part of the tokens held out, 0 to 1: whole documents, evenly spread; the tail of the text, rounded "
                   "to whole tokens, when that would hold out none")
        ->type_name("F");
    app.add_option("--shard-tokens", options.shard_tokens, "most tokens in one file")->type_name("N");
    app.add_option("--separator", options.separator, "line between documents; '' takes every blank line as one")
        ->type_name("TEXT");
    app.add_flag("--jsonl", options.jsonl, "every input is JSON lines, whatever its name");
    const CLI::Option* field =
        app.add_option(
               "--field", options.field,
               "of JSON lines: the field that holds the document, text by default; standard input is JSON lines then")
            ->type_name("NAME");
    app.add_flag("--skip-bad", options.skip_bad,
                 "leave out lines that are no JSON object with that field, and count them");
    app.add_option("--threads", options.threads, "cores to use; 0: all; the shards do not depend on it")
        ->type_name("N");
    if (!cli_parse(app, argc, argv)) return EXIT_DONE;
    if (field->count() > 0 && options.field.empty())
        throw user_error("--field: is empty; name the field that holds the document, as in --field text");
    run(options);
    return EXIT_DONE;
}

int main(int argc, char** argv) {
    return program_main("tokenize", [&] { return tokenize_main(argc, argv); });
}
