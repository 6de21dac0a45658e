#!/usr/bin/env python3
"""Writes tests/golden/tokenizer: a small byte-level BPE vocabulary and test vectors.

Needs: pip install tokenizers tiktoken

    dev/oracle/tokenizer_vectors.py [--check]      --check compares with the files instead of writing them

vocab.json, merges.txt   some 600 tokens, trained with Hugging Face's tokenizers on the text below
vectors.jsonl            {"text": ..., "ids": [...]}, on which tokenizers and tiktoken agree; or {"hex": ..., "ids": [...]},
                         bytes that are not UTF-8, from tiktoken's encode of bytes (tokenizers takes none)
classes.json             how many letters, numbers and spaces there are for tiktoken, and the sums of their code points
"""
import json
import os
import random
import sys
import tempfile

import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str
from tokenizers import ByteLevelBPETokenizer

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tests/golden/tokenizer")
EOT = "<|endoftext|>"

TRAINING = """The river was high that spring, and the road to the mill stood under water for nine days. We carried the
flour
across in a boat; nobody had thought that we'd need one. "It's the weather," said the miller, "and it'll be the weather
again next year. They've told me so since 1987!" She didn't believe him. I'm not sure that he believed it himself: he'd
laughed while he said it, and then he looked at the water, and then at the sky, and he wasn't laughing any more.

The temperature of a gas is a measure of the mean energy of its particles. At 300 K a molecule of nitrogen moves at
about
500 metres per second; at 1200 K it moves twice as fast. The pressure is proportional to the temperature, if the volume
stays the same. In the experiment of 2019 the pressure was measured 4096 times, with an error of 0.25 percent.

Der Zug nach München hat heute leider Verspätung; die Fahrgäste warten auf dem Bahnsteig und trinken ihren Kaffee.
Später
am Nachmittag fährt noch ein Zug über Nürnberg. Le train de Paris n'est pas encore arrivé, c'est dommage: les élèves
attendent à la gare depuis une heure. El niño pequeño comió una manzana mañana por la mañana. Året är långt på våren.

Поезд из Москвы приходит утром, а поезд из Казани приходит вечером. Дорога была долгая, и дорога была красивая.
Το τρένο φεύγει από την Αθήνα το πρωί και φτάνει στη Θεσσαλονίκη το μεσημέρι. Ο δρόμος είναι μακρύς.
火车从北京开往上海,火车很快。我们在火车上看书,看山,看河。 電車は東京から大阪まで行きます。電車の中で本を読みます。
기차는 서울에서 부산까지 갑니다. 기차 안에서 책을 읽습니다. القطار يصل في الصباح والقطار يغادر في المساء.
הרכבת מגיעה בבוקר והרכבת יוצאת בערב. रेलगाड़ी सुबह आती है और रेलगाड़ी शाम को जाती है। รถไฟมาถึงตอนเช้า รถไฟออกตอนเย็น

    def running_mean(values, width):
        total = 0.0
        for i, value in enumerate(values):
            total += value
            if i >= width:
                total -= values[i - width]
            yield total / min(i + 1, width)

    int main(int argc, char** argv) {
        for (int i = 0; i < argc; i++) {
            if (argv[i] != nullptr) printf("%d: %s\\n", i, argv[i]);
        }
        return 0;
    }
🙂🙂 👍🏽 👩‍👩‍👧 🇫🇷 … — – “quoted” ‘single’ ½ ² ₂ Ⅷ ٣٤ ①②
"""

TEXTS = [
    "", "a", " ", "\n", "The river", " The river", "  The  river  ", "the mill\n\n\nthe water\n", "trailing \n",
    "\r\n\r\nline\r\n",
    "we'd they've it'll I'm don't he's you're", "WE'D THEY'VE DON'T", "'s 's'S 'll 'l ll' ''''re '", "d'accord l'été",
    "1987 300K 3.14159 1,000,000 0x7fff 1e-5 ٣٤٥ ½²Ⅷ①", "a1b2 1a 2b _1 1_ a_b", "!!! ... ?! --- *** ### </p> $x$ %d",
    "for (int i = 0; i < n; i++) {\n    total += values[i];\n\treturn total;\n}\n",
    "def f(x):\n        return x  # twice\n\n\n",
    EOT, f"one{EOT}two", f"one\n{EOT}\ntwo", "<|endoftext", "München, Später, fährt über", "Mu\u0308nchen Spa\u0308ter",
    "Поезд из Москвы", "Το τρένο φεύγει", "火车从北京开往上海。", "電車は東京から大阪まで行きます。", "기차는 서울에서", "각\u1100\u1161\u11a8",
    "القطار يصل في الصباح ١٢٣", "הרכבת מגיעה בבוקר", "रेलगाड़ी सुबह आती है", "รถไฟมาถึงตอนเช้า",
    "မြန်မာ ქართული հայերեն አማርኛ ᏣᎳᎩ",
    "🙂", " 🙂 🙂🙂", "👍🏽👍", "👩‍👩‍👧‍👦", "🇫🇷🇯🇵", "❤️ ☃︎", "Z̶̢̛a̸͜l̷̡g̵o̴", "e\u0301 \u0301 a\u0301\u0302",
    "ﬁ ǅ ʰ ª º ª1 𝐀𝟙 𐐀 𒀀 𓀀",
    "\x00\x01\x07\x1b\x7f", "a\x00b \x00 c", "\u0080\u009f\u00ad\u200b\u200d\u2060\ufeff\ufffd\ufffe\uffff",
    "\ue000\U000f0000\U0010ffff",
    "a\u180eb \u180e", "\u0378\u0380 unassigned", "\u1c89\ua7cb\U00010d40\U000116d0 of Unicode 16",
    "1st 2nd 3rd", "https://example.org/a?b=c&d=e#f", "name@example.org", "ALLCAPS camelCase snake_case kebab-case",
    "“It’s” ‘he’ll’ — …", "a" * 300, " " * 300, "=" * 100 + "\n" + "-" * 100, "ab" * 200 + " " + "é" * 100,
    "\n" * 50 + "x", "x" + "\t" * 9 + "y",
]
SPACES = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
BROKEN = [
    b"\xff", b"\x80", b"\xc3", b"caf\xe9 au lait", b"The river\xff", b"The river \xff was high", b"a  \xff",
    b"a \n\n\t\xffb", b" \xff", b"\xff\xfe\x00T\x00h",
    "火车".encode()[:4], "👍🏽".encode()[:6], " 🙂".encode()[:3], b"\xc0\xaf", b"\xe0\x80\x80", b"\xed\xa0\x80",
    b"\xf0\x80\x80\x80",
    b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xe2\x80 the  the\n\n the", b"don't\xff don't 's",
    b"ok \xc3\xa9 \xc3 the water", bytes(range(256)),
]


def texts():
    rng = random.Random(5)
    found = list(TEXTS)
    for space in SPACES:
        found += [space, f"a{space}b", f" {space} a", f"a{space}{space}b1", f"!{space}\n"]
    letters = "etaoinshrdlu"
    found.append("".join(rng.choice(letters) for _ in range(3000)))
    alphabet = "abtheTHE 's\n\t.1é火🙂\u0301\u00a0"
    found += ["".join(rng.choice(alphabet) for _ in range(rng.randrange(2, 40))) for _ in range(150)]
    return found


def broken():
    rng = random.Random(6)
    pieces = [b"the", b" ", b"\n", b"'s", b"1", b".", "é".encode(), "🙂".encode(), b"\xff", b"\xe2\x80", b"\xc3",
              b"\x99"]
    found = BROKEN + [b"".join(rng.choice(pieces) for _ in range(rng.randrange(2, 12))) for _ in range(200)]
    return [data for data in found if not is_utf8(data)]


def is_utf8(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def byte_of_character():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def classes():
    """Of every character, by what tiktoken's regular expressions match."""
    everything = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF)
    found = {}
    for name, pattern in (("letters", r"\p{L}"), ("numbers", r"\p{N}"), ("spaces", r"\s")):
        one = tiktoken.Encoding(name, pat_str=pattern, special_tokens={},
                                mergeable_ranks={bytes([b]): b for b in range(256)})
        matched = bytes(one.encode_ordinary(everything)).decode()
        found[name] = {"count": len(matched), "sum": sum(map(ord, matched))}
    return found


def main():
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(TRAINING.split("\n\n"), vocab_size=800, min_frequency=2, special_tokens=[EOT],
                                show_progress=False)
    with tempfile.TemporaryDirectory() as folder:
        trained.save_model(folder)
        files = {}
        for name in ("vocab.json", "merges.txt"):
            with open(os.path.join(folder, name), encoding="utf-8") as f:
                files[name] = f.read()
        # As read from the files; EOT within a text is text.
        ours = ByteLevelBPETokenizer(os.path.join(folder, "vocab.json"), os.path.join(folder, "merges.txt"))
    vocab = json.loads(files["vocab.json"])
    to_byte = byte_of_character()
    ranks = {bytes(to_byte[c] for c in token): id for token, id in vocab.items() if token != EOT}
    other = tiktoken.Encoding("small", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={EOT: vocab[EOT]})
    lines = []
    for text in texts():
        ids = ours.encode(text).ids
        if ids != other.encode_ordinary(text):
            sys.exit(f"tokenizers and tiktoken differ on {text!r}")
        lines.append({"text": text, "ids": ids})
    lines += [{"hex": data.hex(), "ids": other._encode_bytes(data)} for data in broken()]
    files["vectors.jsonl"] = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    files["classes.json"] = json.dumps(classes(), indent=4) + "\n"

    for name, content in files.items():
        path = os.path.join(FOLDER, name)
        if "--check" in sys.argv:
            with open(path, encoding="utf-8") as f:
                print(f"{name}: {'as it was' if f.read() == content else 'DIFFERS'}")
        else:
            os.makedirs(FOLDER, exist_ok=True)
            with open(path, "w", encoding="utf-8") as f:
                f.write(content)
    print(f"{len(vocab)} tokens, {len(lines)} vectors")


if __name__ == "__main__":
    main()
