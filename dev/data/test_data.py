#!/usr/bin/env python3
"""Tests of the data scripts; plain asserts, no network: python3 dev/data/test_data.py"""
import contextlib
import gzip
import io
import os
import py_compile
import struct
import subprocess
import sys
import tempfile
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import austen
import fineweb
import shards


def test_scripts_compile():
    with tempfile.TemporaryDirectory() as folder:
        for name in sorted(os.listdir(HERE)):
            if name.endswith(".py"):
                py_compile.compile(os.path.join(HERE, name), cfile=os.path.join(folder, name + "c"), doraise=True)


# --- R's serialisation, written here independently of the reader -----------------------------------------------------


def r_chars(text):
    if text is None:
        return struct.pack(">ii", 9, -1)
    try:
        raw, flag = text.encode("ascii"), 64
    except UnicodeEncodeError:
        raw, flag = text.encode("utf-8"), 8
    return struct.pack(">ii", 9 | flag << 12, len(raw)) + raw


def r_strings(texts):
    return struct.pack(">ii", 16, len(texts)) + b"".join(map(r_chars, texts))


def r_ints(values):
    return struct.pack(f">ii{len(values)}i", 13, len(values), *values)


def r_symbol(name):
    return struct.pack(">i", 1) + r_chars(name)


def r_names(names):
    return struct.pack(">i", 2 | 1024) + r_symbol("names") + r_strings(names) + struct.pack(">i", 254)


def r_list(items):
    return struct.pack(">ii", 19 | 512, len(items)) + b"".join(items.values()) + r_names(list(items))


def r_data(body, version=3):
    native = struct.pack(">i", 5) + b"UTF-8" if version == 3 else b""
    return b"X\n" + struct.pack(">iii", version, 0x40201, 0x30500) + native + body


def test_reader():
    read = lambda body, version=3: austen.Reader(r_data(body, version)).read()
    assert read(r_strings(["a", "", None, "\u00a320"])) == ["a", "", None, "\u00a320"]
    assert read(r_strings(["a"]), 2) == ["a"]
    assert read(struct.pack(">iii", 16, 1, 9 | 4 << 12) + struct.pack(">i", 1) + b"\xa3") == ["\u00a3"]  # Latin-1
    assert read(r_ints([1, -2, -(2**31)])) == [1, -2, None]
    assert read(struct.pack(">iid", 14, 1, 0.5)) == [0.5]
    assert read(struct.pack(">i", 254)) is None
    assert read(r_list({"a": r_ints([7]), "b": r_strings(["x"])})) == {"a": [7], "b": ["x"]}
    # A symbol seen before is referred to by its number.
    inner = r_list({"b": r_ints([2])})
    again = struct.pack(">ii", 2 | 1024, 255 | 1 << 8) + r_strings(["x", "y"]) + struct.pack(">i", 254)
    outer = struct.pack(">ii", 19 | 512, 2) + r_ints([1]) + inner + again
    assert read(outer) == {"x": [1], "y": {"b": [2]}}
    # Compact vectors: 3:6, and the strings of a vector of numbers.
    pairs = lambda *items: b"".join(struct.pack(">i", 2) + item for item in items) + struct.pack(">i", 254)
    info = lambda name: pairs(r_symbol(name), r_symbol("base"), r_ints([13]))
    reals = struct.pack(">iiddd", 14, 3, 4, 3, 1)
    assert read(struct.pack(">i", 238) + info("compact_intseq") + reals + struct.pack(">i", 254)) == [3, 4, 5, 6]
    deferred = pairs(r_ints([5, 6]), r_ints([0]))
    assert read(struct.pack(">i", 238) + info("deferred_string") + deferred + struct.pack(">i", 254)) == ["5", "6"]


def refused(action, words):
    try:
        action()
    except austen.DataError as error:
        assert words in str(error), error
        assert "\n" not in str(error)
        return
    raise AssertionError(f"not refused: {words}")


def test_reader_refuses():
    body = r_data(r_strings(["abc", "d"]))
    for size in range(len(body)):
        refused(lambda: austen.Reader(body[:size]).read(), "")
    refused(lambda: austen.Reader(b"A\n" + body[2:]).read(), "not in XDR form")
    refused(lambda: austen.Reader(r_data(struct.pack(">i", 3))).read(), "type 3")
    refused(lambda: austen.Reader(r_data(struct.pack(">i", 255 | 9 << 8))).read(), "not there")


def write_package(folder, variables):
    database, index = b"", {}
    for name, lines in variables.items():
        data = r_data(r_strings(lines))
        record = struct.pack(">I", len(data)) + zlib.compress(data)
        index[name] = r_ints([len(database), len(record)])
        database += record
    rdx = r_data(r_list({"variables": r_list(index), "references": struct.pack(">ii", 19, 0),
                         "compressed": struct.pack(">iii", 10, 1, 1)}))
    os.makedirs(folder)
    with open(os.path.join(folder, "Rdata.rdb"), "wb") as f:
        f.write(database)
    with open(os.path.join(folder, "Rdata.rdx"), "wb") as f:
        f.write(gzip.compress(rdx))


def test_austen():
    lines = {name: [title.upper(), "", "Words: \u00a320,000", "", ""] for name, title in austen.NOVELS.items()}
    with tempfile.TemporaryDirectory() as folder:
        write_package(os.path.join(folder, "usr/lib/data"), lines)
        out = os.path.join(folder, "new/austen.txt")
        script = [sys.executable, os.path.join(HERE, "austen.py"), "--out", out, "--package-dir"]
        ran = subprocess.run(script + [folder], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert "6 novels" in ran.stdout and "next: build/tokenize" in ran.stdout
        with open(out, "rb") as f:
            text = f.read().decode()
        parts = text.split("\n<|endoftext|>\n")
        assert len(parts) == 6 and text.endswith("\n\nWords: \u00a320,000\n")
        assert parts[0] == "EMMA\n\nWords: \u00a320,000"
        assert [part.split("\n")[0] for part in parts] == sorted(t.upper() for t in austen.NOVELS.values())

        ran = subprocess.run(script + [os.path.join(folder, "new")], capture_output=True, text=True)
        assert ran.returncode == 1 and ran.stderr.count("\n") == 1 and "holds no Rdata.rdb" in ran.stderr
        lines["emma"][0] = "A NOVEL"
        write_package(os.path.join(folder, "wrong"), lines)
        refused(lambda: austen.novels(os.path.join(folder, "wrong")), "does not begin with the title 'Emma'")
        lines["emma"][0] = "EMMA"
        lines["persuasion"].append("<|endoftext|>")
        write_package(os.path.join(folder, "separator"), lines)
        refused(lambda: austen.novels(os.path.join(folder, "separator")), "holds the separator")
        del lines["persuasion"]
        write_package(os.path.join(folder, "five"), lines)
        refused(lambda: austen.novels(os.path.join(folder, "five")), "lacks persuasion")


def test_shards():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.bin")
        shards.write_shard(path, [0, 50256, 7], 50257)
        with open(path, "rb") as f:
            content = f.read()
        assert content == struct.pack("<256i", 20240520, 1, 3, *[0] * 253) + struct.pack("<3H", 0, 50256, 7)
        assert list(shards.read_shard(path)) == [0, 50256, 7]
        shards.write_shard(path, [128255], 128256)
        with open(path, "rb") as f:
            content = f.read()
        assert content == struct.pack("<256i", 20240801, 7, 1, *[0] * 253) + struct.pack("<I", 128255)
        assert list(shards.read_shard(path)) == [128255]
        shards.write_shard(path, [], 256)
        assert list(shards.read_shard(path)) == []
        try:
            shards.write_shard(path, [256], 256)
            raise AssertionError("a token outside of the vocabulary was written")
        except ValueError:
            pass
        assert os.listdir(folder) == ["a.bin"]


def test_fineweb_series():
    with tempfile.TemporaryDirectory() as folder:
        documents = [[fineweb.EOT] + list(range(n)) for n in (3, 0, 11, 5, 30)]
        whole = [token for document in documents for token in document]
        for most in (1, 10, 20, 34, len(whole), 1000):
            prefix = os.path.join(folder, f"fw{most}")
            series = shards.ShardSeries(prefix, fineweb.VOCAB, 10)
            with contextlib.redirect_stdout(io.StringIO()):
                count, tokens = fineweb.write_documents(iter(documents), series, most)
            assert tokens == min(most, len(whole))
            assert count == (5 if most >= 24 else {1: 1, 10: 3, 20: 4}[most])
            names = [os.path.basename(path) for path in series.paths]
            train = [f"fw{most}_train_{i:06d}.bin" for i in range(len(names) - 1)]
            assert names == [f"fw{most}_val_000000.bin"] + train
            read = [shards.read_shard(path) for path in series.paths]
            assert all(len(tokens) == 10 for tokens in read[:-1])
            assert [token for tokens in read for token in tokens] == whole[:most]


if __name__ == "__main__":
    tests = [(name, test) for name, test in sorted(globals().items()) if name.startswith("test_")]
    for name, test in tests:
        test()
        print(f"{name}: passed")
    print(f"{len(tests)} passed, 0 failed, 0 skipped")
