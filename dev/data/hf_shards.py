#!/usr/bin/env python3
"""Text to token shards with any Hugging Face tokenizer (T5's, LLaMA's, ...). Needs: pip install tokenizers

    dev/data/hf_shards.py INPUT... --tokenizer FOLDER --out data/c4 [--eot '</s>'] [--val-fraction 0.1]

INPUT: text files, JSON lines (*.jsonl), or - for standard input. Documents and held-out tokens follow the rules of
build/tokenize (dataloader/prepare.h), which does GPT-2's own tokenizer, and faster. FOLDER holds a tokenizer.json; the
file itself may be named too. Writes PREFIX_train_*.bin, PREFIX_val_*.bin and PREFIX_tokenizer.json, a table of the
bytes of every token: programs that have only the table turn tokens into text, not text into tokens.
"""
import argparse
import json
import os
import sys

from shards import ShardSeries

BATCH_CHARACTERS = 1 << 22  # encoded together, on all cores


class InputError(Exception):
    """What is wrong and what to do, on one line."""


# --- documents: their bytes, and what ends there: "document" or "input" -----------------------------------------------


def text_documents(file, separator):
    """Of a binary file: a line that is the separator ends a document and takes the newline before it along."""
    lines, newline, separator = [], b"", separator.encode()
    for line in file:
        ended = line.endswith(b"\n")
        body = line[:-1] if ended else line
        if body == separator:
            yield b"".join(lines), "document"
            lines, newline = [], b""
            continue
        lines += [newline, body]
        newline = b"\n" if ended else b""
    yield b"".join(lines) + newline, "input"


def json_documents(file, name, field, skipped):
    """Of JSON lines; `skipped`: a list for the lines that are none, or None to refuse them."""
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        fault = None
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                fault = "is no JSON object"
            elif field not in row:
                fault = f"has no field '{field}'"
            elif not isinstance(row[field], str):
                fault = f"has a field '{field}' that is no string"
        except ValueError:
            fault = "is no JSON"
        if fault is None:
            yield row[field].encode("utf-8", "replace"), "document"
        elif skipped is None:
            raise InputError(f"{name}:{number}: {fault}; mend it, or leave such lines out with --skip-bad")
        else:
            skipped.append(f"{name}:{number}: {fault}")


def documents(options, skipped):
    for path in options.inputs:
        name = "standard input" if path == "-" else path
        file = sys.stdin.buffer if path == "-" else open(path, "rb")
        with file:
            if file.peek(3).startswith(b"\xef\xbb\xbf"):  # a byte order mark is no text
                file.read(3)
            if options.jsonl or path.lower().endswith(".jsonl"):
                for text, ends in json_documents(file, name, options.field, skipped):
                    yield text, ends, True
            else:
                for text, ends in text_documents(file, options.separator):
                    yield text, ends, text != b""


# --- shards -----------------------------------------------------------------------------------------------------------


class Splitter:
    """Sends documents to one split or the other, as build/tokenize does."""

    def __init__(self, train, val, eot, fraction):
        self.train, self.val, self.eot, self.fraction = train, val, eot, fraction
        self.target = val if fraction >= 1 else train
        self.open = self.input_ended = False
        self.documents = self.held_out = 0

    def add(self, tokens, ends, is_text):
        if is_text:
            if self.input_ended:
                self.end_document()
            if not self.open:
                self.begin_document()
            self.target.add(tokens)
        if ends == "document":
            self.end_document()
        else:
            self.input_ended = self.open

    def begin_document(self):
        total = self.train.tokens + self.val.tokens
        hold_out = self.fraction >= 1
        if self.fraction > 0 and self.documents > 0:
            half = 0.5 * total / self.documents
            hold_out = hold_out or self.fraction * total - self.val.tokens >= half * (1 - 1e-9)
        self.target = self.val if hold_out else self.train
        self.documents += 1
        self.held_out += hold_out
        self.open = True

    def end_document(self):
        self.target.add([self.eot])
        self.open = self.input_ended = False

    def finish(self):
        tail = int(self.fraction * (self.train.tokens + self.val.tokens) + 0.5)
        if self.val.tokens == 0 and tail > 0:
            self.val.add(self.train.take_tail(tail))
        self.train.finish()
        self.val.finish()


# --- the tokenizer -------------------------------------------------------------------------------------------------


def byte_of_character():
    """GPT-2's stand-ins for bytes in byte-level vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def decoder_kinds(decoder):
    """The types of the decoders in a tokenizer.json, nested ones too."""
    if not decoder:
        return set()
    return {decoder["type"]}.union(*(decoder_kinds(inner) for inner in decoder.get("decoders", [])))


def token_table(tokenizer):
    """The bytes of every token, by id. tokenizer: the content of a tokenizer.json."""
    model = tokenizer["model"]
    vocab = model["vocab"]
    ids = vocab.items() if isinstance(vocab, dict) else ((entry[0], i) for i, entry in enumerate(vocab))
    kinds = decoder_kinds(tokenizer.get("decoder"))
    to_byte = byte_of_character() if "ByteLevel" in kinds else {}
    table = {}
    for token, i in ids:
        if to_byte and all(c in to_byte for c in token):
            table[i] = bytes(to_byte[c] for c in token)
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            table[i] = bytes([int(token[3:5], 16)])
        elif "WordPiece" in kinds:
            prefix = tokenizer["decoder"].get("prefix", "##")
            table[i] = (token[len(prefix):] if token.startswith(prefix) else " " + token).encode()
        elif kinds & {"Metaspace", "Replace"}:
            table[i] = token.replace("\u2581", " ").encode()
        else:
            table[i] = token.encode()
    for added in tokenizer.get("added_tokens", []):
        table[added["id"]] = added["content"].encode()
    return [table.get(i, b"") for i in range(max(table) + 1)]


def write_table(path, name, table, eot, separator):
    content = {"kind": "table", "name": name, "vocab_size": len(table), "eot_token": eot, "separator": separator,
               "tokens": [token.decode("latin-1") for token in table]}
    with open(path + ".tmp", "w", encoding="utf-8") as f:
        json.dump(content, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")
    os.replace(path + ".tmp", path)


def end_token(folder, given, table):
    """The id of the token that ends a text: --eot, or the eos_token of the tokenizer_config.json beside it."""
    token = given
    config = os.path.join(folder, "tokenizer_config.json")
    if token is None and os.path.exists(config):
        with open(config, encoding="utf-8") as f:
            token = json.load(f).get("eos_token")
        token = token["content"] if isinstance(token, dict) else token
    if token is None:
        raise InputError(f"{folder}: does not say which token ends a text; name it, as in --eot '</s>'")
    if token.encode() not in table:
        raise InputError(f"--eot {token}: is not in the vocabulary; name the token that ends a text")
    return len(table) - 1 - table[::-1].index(token.encode())  # added tokens come last


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="text files, *.jsonl, or - for standard input")
    parser.add_argument("--tokenizer", required=True, help="folder with a tokenizer.json, or the file")
    parser.add_argument("--out", required=True, help="PREFIX of the files written")
    parser.add_argument("--eot", help="token that ends a text (default: eos_token of tokenizer_config.json)")
    parser.add_argument("--val-fraction", type=float, default=0.1, help="part held out (default: %(default)s)")
    parser.add_argument("--shard-tokens", type=int, default=10**8, help="most tokens in a file (default: %(default)s)")
    parser.add_argument("--separator", default="<|endoftext|>", help="line between documents (default: %(default)s)")
    parser.add_argument("--jsonl", action="store_true", help="every input is JSON lines")
    parser.add_argument("--field", default="text", help="of JSON lines, holds the document (default: %(default)s)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out and count lines that are none")
    options = parser.parse_args()
    if not 0 <= options.val_fraction <= 1 or options.shard_tokens < 1:
        raise InputError("--val-fraction is between 0 and 1, and --shard-tokens at least 1")
    try:
        import tokenizers
    except ImportError:
        raise InputError("tokenizers is missing; pip install tokenizers") from None
    path = options.tokenizer
    path = os.path.join(path, "tokenizer.json") if os.path.isdir(path) else path
    try:
        with open(path, encoding="utf-8") as f:
            table = token_table(json.load(f))
        tokenizer = tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # tokenizers raises Exception itself
        raise InputError(f"{path}: is no tokenizer.json ({str(error).splitlines()[0]})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    folder = os.path.dirname(os.path.abspath(path))
    eot = end_token(folder, options.eot, table)
    os.makedirs(os.path.dirname(options.out) or ".", exist_ok=True)

    skipped = [] if options.skip_bad else None
    series = [ShardSeries(f"{options.out}_{split}", len(table), options.shard_tokens) for split in ("train", "val")]
    splitter = Splitter(*series, eot, options.val_fraction)
    batch, size, damaged = [], 0, 0

    def encode_batch():
        encoded = tokenizer.encode_batch([text for text, _, _ in batch], add_special_tokens=False)
        for (_, ends, is_text), tokens in zip(batch, encoded):
            splitter.add(tokens.ids, ends, is_text)
        batch.clear()

    for raw, ends, is_text in documents(options, skipped):
        text = raw.decode("utf-8", "replace")
        damaged += text.encode() != raw
        batch.append((text, ends, is_text))
        size += len(text)
        if size >= BATCH_CHARACTERS:
            encode_batch()
            size = 0
    encode_batch()
    if splitter.documents == 0:
        raise InputError("the input holds no text; name files with text")
    splitter.finish()
    write_table(options.out + "_tokenizer.json", os.path.basename(folder), table, eot, options.separator)
    print(f"{splitter.documents:,} documents ({splitter.held_out:,} held out), {series[0].tokens:,} tokens for "
          f"training, {series[1].tokens:,} for validation, vocabulary {len(table):,}, end of text {eot}")
    if damaged:
        print(f"{damaged:,} documents held bytes that are not UTF-8, which were replaced by U+FFFD")
    if skipped:
        print(f"{len(skipped):,} lines were skipped: {'; '.join(skipped[:5])}{' ...' if len(skipped) > 5 else ''}")


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        sys.exit(f"hf_shards.py: {error}")
