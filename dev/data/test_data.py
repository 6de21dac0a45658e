#!/usr/bin/env python3
"""Tests of the data scripts; plain asserts, no network: python3 dev/data/test_data.py"""
import contextlib
import gzip
import io
import json
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
import hf_shards
import hub
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


def series_of(prefix):
    paths = sorted(path for path in os.listdir(os.path.dirname(prefix)) if path.startswith(os.path.basename(prefix)))
    return [list(shards.read_shard(os.path.join(os.path.dirname(prefix), path))) for path in paths]


def test_shard_series():
    with tempfile.TemporaryDirectory() as folder:
        prefix = os.path.join(folder, "x_train")
        whole = list(range(95))
        for most, tail in ((10, 0), (10, 3), (10, 5), (10, 47), (100, 20), (95, 95)):
            series = shards.ShardSeries(prefix, 256, most)
            for at in range(0, 95, 7):
                series.add(whole[at : at + 7])
            assert list(series.take_tail(tail)) == whole[95 - tail :]
            assert series.tokens == 95 - tail
            series.finish()
            if tail == 95:
                continue  # nothing was written, so nothing of the earlier run is removed
            read = series_of(prefix)
            assert [token for tokens in read for token in tokens] == whole[: 95 - tail]
            assert all(len(tokens) == most for tokens in read[:-1])


def test_hub():
    out = io.StringIO()
    rows = [{"text": "one\n\u00e9", "id": 1}, {"text": ""}, {"text": "three"}]
    assert hub.write_documents(iter(rows), "text", None, out) == 3
    assert [json.loads(line)["text"] for line in out.getvalue().splitlines()] == ["one\n\u00e9", "", "three"]
    assert hub.write_documents(iter(rows), "text", 2, io.StringIO()) == 2
    try:
        hub.write_documents(iter(rows), "body", None, out)
        raise AssertionError("a row without the field was written")
    except ValueError as error:
        assert "row 1" in str(error) and "text, id" in str(error)


def test_hf_documents():
    def text(data, separator="--"):
        return list(hf_shards.text_documents(io.BytesIO(data), separator))

    assert text(b"one\n--\ntwo\n") == [(b"one", "document"), (b"two\n", "input")]
    assert text(b"one\n--") == [(b"one", "document"), (b"", "input")]
    assert text(b"--\n--\n\n") == [(b"", "document"), (b"", "document"), (b"\n", "input")]
    assert text(b"one\n\n--\n\ntwo") == [(b"one\n", "document"), (b"\ntwo", "input")]
    assert text(b"a\n\nb\n", "") == [(b"a", "document"), (b"b\n", "input")]
    assert text(b"a--\n-- \n--\r\n") == [(b"a--\n-- \n--\r\n", "input")]

    lines = b'{"text": "one"}\n\nbad\n[1]\n{"text": 1}\n{"body": ""}\n{"text": "\\u00e9"}'
    skipped = []
    found = list(hf_shards.json_documents(io.BytesIO(lines), "a.jsonl", "text", skipped))
    assert found == [(b"one", "document"), (b"\xc3\xa9", "document")]
    assert [line.split(": ")[0] for line in skipped] == [f"a.jsonl:{n}" for n in (3, 4, 5, 6)]
    try:
        list(hf_shards.json_documents(io.BytesIO(lines), "a.jsonl", "text", None))
        raise AssertionError("a bad line passed")
    except hf_shards.InputError as error:
        assert str(error).startswith("a.jsonl:3: is no JSON; ")


def test_hf_split():
    """The rules of build/tokenize: whole documents near the fraction, or the tail of the text."""
    with tempfile.TemporaryDirectory() as folder:
        cases = ([50] * 40, 0.1), ([30, 90, 60] * 9, 0.5), ([500], 0.2), ([10, 20], 0.0), ([5, 6], 1.0)
        for case, (lengths, fraction) in enumerate(cases):
            prefix = os.path.join(folder, str(case))
            series = [shards.ShardSeries(f"{prefix}_{split}", 256, 64) for split in ("train", "val")]
            splitter = hf_shards.Splitter(*series, 0, fraction)
            for i, length in enumerate(lengths):
                splitter.add([i + 1] * length, "input" if i == len(lengths) - 1 else "document", True)
            splitter.finish()
            train, val = ([t for shard in series_of(one.prefix) for t in shard] for one in series)
            total = sum(lengths) + len(lengths) - 1  # after the last document none is added
            assert len(train) + len(val) == total and splitter.documents == len(lengths)
            assert abs(len(val) - fraction * total) <= (0.5 if len(lengths) == 1 else max(lengths))
            if len(lengths) > 1:
                assert not set(train) & set(val) - {0}


def test_hf_table():
    byte_level = {"model": {"vocab": {"\u0120the": 1, "a": 0, "\u00c3\u00a9": 2}}, "decoder": {"type": "ByteLevel"},
                  "added_tokens": [{"id": 4, "content": "</s>"}]}
    assert hf_shards.token_table(byte_level) == [b"a", b" the", b"\xc3\xa9", b"", b"</s>"]
    pieces = {"model": {"vocab": [["<unk>", 0.0], ["\u2581the", -1.0], ["\u00e9", -2.0], ["<0xC3>", -3.0]]},
              "decoder": {"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}]}}
    table = hf_shards.token_table(pieces)
    assert table == [b"<unk>", b" the", b"\xc3\xa9", b"\xc3"]
    word_pieces = {"model": {"vocab": {"the": 0, "##re": 1}}, "decoder": {"type": "WordPiece", "prefix": "##"}}
    assert hf_shards.token_table(word_pieces) == [b" the", b"re"]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "t_tokenizer.json")
        hf_shards.write_table(path, "t5", table, 0, "--")
        with open(path, encoding="utf-8") as f:
            content = json.load(f)
        assert content["tokens"] == ["<unk>", " the", "\u00c3\u00a9", "\u00c3"] and content["kind"] == "table"
        assert (content["name"], content["vocab_size"], content["eot_token"]) == ("t5", 4, 0)
        assert content["separator"] == "--"
        assert hf_shards.end_token(folder, "<unk>", table) == 0
        with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
            json.dump({"eos_token": {"content": " the"}}, f)
        assert hf_shards.end_token(folder, None, table) == 1


def test_hf_shards():
    try:
        import tokenizers
    except ImportError:
        return "tokenizers is missing"
    with tempfile.TemporaryDirectory() as folder:
        model = tokenizers.models.BPE(vocab={"a": 0, "b": 1, "ab": 2, "</s>": 3}, merges=[("a", "b")])
        tokenizers.Tokenizer(model).save(os.path.join(folder, "tokenizer.json"))
        with open(os.path.join(folder, "in.jsonl"), "w") as f:
            f.write('{"text": "aab"}\nbad\n{"text": "b"}\n')
        out = os.path.join(folder, "new/x")
        script = [sys.executable, os.path.join(HERE, "hf_shards.py"), os.path.join(folder, "in.jsonl"),
                  "--tokenizer", folder, "--out", out, "--eot", "</s>", "--val-fraction", "0"]
        ran = subprocess.run(script, capture_output=True, text=True)
        assert ran.returncode == 1 and ran.stderr.count("\n") == 1 and "in.jsonl:2: is no JSON" in ran.stderr
        ran = subprocess.run(script + ["--skip-bad"], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert "2 documents" in ran.stdout and "1 lines were skipped" in ran.stdout
        assert series_of(out + "_train") == [[0, 2, 3, 1, 3]]
        with open(os.path.join(folder, "b.JSONL"), "wb") as f:
            f.write(b'\xef\xbb\xbf{"text": "aab"}\n')
        script[2] = f.name
        ran = subprocess.run(script, capture_output=True, text=True)
        assert ran.returncode == 0 and series_of(out + "_train") == [[0, 2, 3]], ran.stderr
    return None


def run_script(name, *arguments):
    return subprocess.run([sys.executable, os.path.join(HERE, name), *arguments], capture_output=True, text=True)


def test_choice():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "high_school_physics_test.csv")

        def convert(name, content):
            with open(path, "wb") as f:
                f.write(content)
            return run_script("choice.py", name, path)

        ran = convert("mmlu", b'\xef\xbb\xbfWhat is,"a,\nb",2,3,4,B\n\nOf what?,1,2,3,4,D\n')
        assert ran.returncode == 0, ran.stderr
        rows = [json.loads(line) for line in ran.stdout.splitlines()]
        assert [row["gold"] for row in rows] == [1, 3]
        assert rows[0]["context"].startswith("The following") and "about high school physics." in rows[0]["context"]
        assert "What is\nA. a,\nb\nB. 2\n" in rows[0]["context"]
        arc_row = b'{"question": {"stem": "s", "choices": [{"text": "x", "label": "A"}]}, "answerKey": "A"}\n'
        assert json.loads(convert("arc", b"\xef\xbb\xbf" + arc_row).stdout)["gold"] == 0

        good = b"q,1,2,3,4,A\n"
        bad = [("mmlu", good + b"q,1,2,3,A\n", ":2: has 5 columns"), ("mmlu", good + b'"q,1', ":2: is no CSV"),
               ("mmlu", good + b"q,1,2,3,4,E\n", ":2: its answer 'E'"),
               ("mmlu", good + b"q,1,2,3,4,AB\n", ":2: its answer 'AB'"),
               ("mmlu", b"q\xff,1,2,3,4,A\n", "is not UTF-8"), ("arc", arc_row + b"{\n", ":2: "),
               ("arc", arc_row.replace(b'"answerKey": "A"', b'"answerKey": "Z"'), ":1: "), ("arc", b"[1]\n", ":1: "),
               ("boolq", b'{"question": "q"}\n', ":1: has no field "), ("openbookqa", b"3\n", ":1: ")]
        for name, content, words in bad:
            ran = convert(name, content)
            assert ran.returncode == 1 and ran.stderr.count("\n") == 1 and not ran.stdout, (content, ran.stderr)
            assert ran.stderr.startswith("choice.py: ") and path in ran.stderr and words in ran.stderr, ran.stderr
        ran = run_script("choice.py", "arc", os.path.join(folder, "absent"))
        assert ran.returncode == 1 and ran.stderr.count("\n") == 1 and "absent" in ran.stderr


def test_val_text():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "x_val_000000.bin")
        shards.write_shard(path, list(b"text\n"), 256)
        assert run_script("val_text.py", folder).stdout == "text\n"
        assert "FOLDER [PATTERN]" in run_script("val_text.py", "--help").stdout
        assert "usage:" in run_script("val_text.py").stderr
        assert run_script("val_text.py", folder, "*_no_*.bin").stderr.count("\n") == 1
        for size in (1027, 900):
            os.truncate(path, size)
            ran = run_script("val_text.py", folder)
            assert ran.returncode == 1 and ran.stderr.count("\n") == 1 and path in ran.stderr, ran.stderr


if __name__ == "__main__":
    tests = [(name, test) for name, test in sorted(globals().items()) if name.startswith("test_")]
    skipped = 0
    for name, test in tests:
        why = test()
        skipped += why is not None
        print(f"{name}: {'passed' if why is None else f'skipped: {why}'}")
    print(f"{len(tests) - skipped} passed, 0 failed, {skipped} skipped")
