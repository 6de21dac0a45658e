#!/usr/bin/env python3
"""Documents of a Hugging Face data set as JSON lines on standard output. Needs the internet, and: pip install datasets

    dev/data/hub.py fineweb | build/tokenize - --jsonl --tokenizer gpt2:FOLDER --out data/fineweb

Names: fineweb (10 billion tokens), climbmix (400 billion), c4 (English, 160 billion), or any OWNER/NAME[:SUBSET]. The
data set is streamed: nothing but the shards is kept. dev/data/README.md has whole recipes.
"""
import argparse
import itertools
import json
import os
import sys

NAMES = {
    "fineweb": "HuggingFaceFW/fineweb:sample-10BT",
    "climbmix": "karpathy/climbmix-400b-shuffle",
    "c4": "allenai/c4:en",
}


def write_documents(rows, field, most, out):
    """Writes {"text": ...} a row; returns how many. A row without the field is an error that names it."""
    count = 0
    for count, row in enumerate(itertools.islice(rows, most), start=1):
        if not isinstance(row.get(field), str):
            raise ValueError(f"row {count} has no text in '{field}', its fields are {', '.join(row)}: see --field")
        out.write(json.dumps({"text": row[field]}, ensure_ascii=False) + "\n")
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help=f"{', '.join(NAMES)}, or OWNER/NAME[:SUBSET]")
    parser.add_argument("--split", default="train", help="default: %(default)s")
    parser.add_argument("--field", default="text", help="of a row, holds the document (default: %(default)s)")
    parser.add_argument("--documents", type=int, help="stop after that many (default: all)")
    options = parser.parse_args()
    try:
        import datasets
    except ImportError:
        sys.exit("hub.py: datasets is missing; pip install datasets")
    name, _, subset = NAMES.get(options.dataset, options.dataset).partition(":")
    sys.stdout.reconfigure(encoding="utf-8", errors="replace", newline="\n")
    try:
        rows = datasets.load_dataset(name, name=subset or None, split=options.split, streaming=True)
        count = write_documents(rows, options.field, options.documents, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has said why
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # the library has no common class for "no network"
        sys.exit(f"hub.py: {name}: {str(error).splitlines()[0]}")
    print(f"hub.py: {count:,} documents", file=sys.stderr)


if __name__ == "__main__":
    main()
