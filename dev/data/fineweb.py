#!/usr/bin/env python3
"""FineWeb's 10-billion-token sample as GPT-2 token shards. Needs the internet, and: pip install datasets tiktoken

    dev/data/fineweb.py [--out data/fineweb] [--tokens 10000000000] [--shard-tokens 100000000]

Streams HuggingFaceFW/fineweb, sample-10BT, so that nothing but the shards (20 GB for all of it) is kept. As in llm.c,
every document begins with the end-of-text token 50256, and the first shard is for validation.
"""
import argparse
import itertools
import multiprocessing
import os
import sys

from shards import ShardSeries

DATASET, SUBSET = "HuggingFaceFW/fineweb", "sample-10BT"
EOT, VOCAB = 50256, 50257

encoding = None  # of each worker process


def start_worker():
    global encoding
    import tiktoken

    encoding = tiktoken.get_encoding("gpt2")


def encode(text):
    return [EOT] + encoding.encode_ordinary(text)


def write_documents(documents, series, most_tokens):
    """Adds token lists until `most_tokens` are there; returns how many documents and tokens that took."""
    count = tokens = 0
    for document in documents:
        document = document[: most_tokens - tokens]
        series.add(document)
        count += 1
        tokens += len(document)
        if tokens >= most_tokens:
            break
    series.finish()
    return count, tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="data/fineweb", help="PREFIX of the shards (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=10**10, help="stop there (default: %(default)s)")
    parser.add_argument("--shard-tokens", type=int, default=10**8, help="tokens in a shard (default: %(default)s)")
    options = parser.parse_args()
    if options.tokens < 1 or options.shard_tokens < 1:
        sys.exit("fineweb.py: --tokens and --shard-tokens are at least 1")
    try:
        import datasets
        import tiktoken  # noqa: F401  (for the workers; missing, it should be said now)
    except ImportError as error:
        sys.exit(f"fineweb.py: {error.name} is missing; pip install datasets tiktoken")
    os.makedirs(os.path.dirname(options.out) or ".", exist_ok=True)
    try:
        rows = datasets.load_dataset(DATASET, name=SUBSET, split="train", streaming=True)
        texts = (row["text"] for row in rows)
        first = next(texts)
    except Exception as error:  # the library has no common class for "no network"
        sys.exit(f"fineweb.py: {DATASET} cannot be read ({str(error).splitlines()[0]}); it needs huggingface.co")
    series = ShardSeries(options.out, VOCAB, options.shard_tokens)
    with multiprocessing.Pool(initializer=start_worker) as pool:
        documents = pool.imap(encode, itertools.chain([first], texts), chunksize=64)
        count, tokens = write_documents(documents, series, options.tokens)
    print(f"{count:,} documents, {tokens:,} tokens, {len(series.paths)} shards")
    print(f"next: build/train_gpt2 --model gpt2 --train '{options.out}_train_*.bin' --val '{options.out}_val_*.bin' "
          "--steps 1000 --out runs/fineweb")


if __name__ == "__main__":
    main()
