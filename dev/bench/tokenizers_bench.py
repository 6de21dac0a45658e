#!/usr/bin/env python3
"""GPT-2's tokenizer on one core: build/tokenize beside Hugging Face's tokenizers and tiktoken, on the same text.

    dev/bench/tokenizers_bench.py TEXT --tokenizer FOLDER [--tokenize build/tokenize] [--rounds 3] [--json FILE]

Needs: pip install tokenizers tiktoken. TEXT: documents between lines <|endoftext|>. Each side encodes document by
document, in turn, and the best round counts. Time is that of the processor, so that other work on the machine matters
little; for build/tokenize it is that of the whole program (starting, reading text and vocabulary, writing shards) less
that of a run on a text of one word, for the libraries that of the encode calls alone.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
SEPARATOR = "\n<|endoftext|>\n"


def program_seconds(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = subprocess.run(command, capture_output=True, text=True)
    if out.returncode != 0:
        sys.exit(out.stderr.strip())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def tokens_in(prefix):
    total = 0
    for name in os.listdir(os.path.dirname(prefix)):
        if name.startswith(os.path.basename(prefix)) and name.endswith(".bin"):
            with open(os.path.join(os.path.dirname(prefix), name), "rb") as f:
                total += int.from_bytes(f.read(12)[8:], "little")
    return total


def call_seconds(encode, documents):
    start = time.process_time()
    tokens = sum(len(encode(document)) for document in documents)
    return time.process_time() - start, tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--tokenizer", required=True, help="folder of a GPT-2 tokenizer")
    parser.add_argument("--tokenize", default="build/tokenize", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--json", help="file to write the numbers to")
    options = parser.parse_args()
    import tiktoken
    import tokenizers
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str

    def file_of(*names):
        return next(path for name in names if os.path.exists(path := os.path.join(options.tokenizer, name)))

    vocab, merges = file_of("encoder.json", "vocab.json"), file_of("vocab.bpe", "merges.txt")
    theirs = tokenizers.ByteLevelBPETokenizer(vocab, merges)
    ranks = data_gym_to_mergeable_bpe_ranks(merges, vocab)
    openai = tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks,
                               special_tokens={"<|endoftext|>": len(ranks)})
    with open(options.text, encoding="utf-8", newline="") as f:
        documents = f.read().removesuffix("\n").removesuffix("\n<|endoftext|>").split(SEPARATOR)
    size = sum(len(document.encode()) for document in documents)

    best, counts = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        word = os.path.join(folder, "word.txt")
        with open(word, "w", encoding="utf-8") as f:
            f.write("word")
        # The same documents, without an end of text after the last.
        text = os.path.join(folder, "text.txt")
        with open(text, "w", encoding="utf-8", newline="") as f:
            f.write(SEPARATOR.join(documents))

        def tokenize(path):
            out = os.path.join(folder, "out")
            seconds = program_seconds([options.tokenize, path, "--out", out, "--tokenizer", f"gpt2:{options.tokenizer}",
                                       "--val-fraction", "0", "--threads", "1"])
            return seconds, tokens_in(out)

        sides = {
            "residual.cu": lambda: tokenize(text),
            "tokenizers": lambda: call_seconds(lambda document: theirs.encode(document).ids, documents),
            "tiktoken": lambda: call_seconds(openai.encode_ordinary, documents),
        }
        start_up = min(tokenize(word)[0] for _ in range(options.rounds))
        for _ in range(options.rounds):
            for name, run in sides.items():
                seconds, counts[name] = run()
                best[name] = min(best.get(name, seconds), seconds)
    best["residual.cu"] -= start_up
    counts["residual.cu"] -= len(documents) - 1
    if len(set(counts.values())) != 1:
        sys.exit(f"the numbers of tokens differ: {counts}")

    print(f"{size:,} bytes, {len(documents):,} documents, {counts['tokenizers']:,} tokens")
    print(f"one core, best of {options.rounds}; residual.cu's start-up, not counted: {start_up:.3f} s")
    print(f"tokenizers {tokenizers.__version__}, tiktoken {tiktoken.__version__}")
    rates = {name: size / seconds / 1e6 for name, seconds in best.items()}
    for name, rate in rates.items():
        ratio = rates["residual.cu"] / rate
        print(f"{name:<12} {best[name]:8.3f} s {rate:8.2f} MB/s    residual.cu is {ratio:5.2f} times as fast")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as f:
            json.dump({"bytes": size, "seconds": best, "mb_per_s": rates}, f, indent=4)


if __name__ == "__main__":
    main()
