#!/usr/bin/env python3
"""What PyTorch says about the 8-bit floats: vectors of tests/golden/fp8/conversions.json.

    python3 dev/oracle/fp8_vectors.py [--check]      --check compares with the file instead of writing it

For each format: the values of its 256 codes; the codes of every point halfway between two neighbours, of the fp32
numbers on both sides of it, and of numbers at the ends of the range, with and without saturation, all positive (the
script makes sure that a sign is only a bit); and checksums of the codes of all 65536 bf16 patterns and of 2^20 random
fp32 patterns. NaN's code is made 0x7f, as CUDA has it: PyTorch keeps NaN's sign.
"""

import argparse
import json
import os
import sys

import numpy as np
import torch

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
FILE = os.path.join(ROOT, "tests", "golden", "fp8", "conversions.json")
FORMATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
MIX = 0x9E3779B97F4A7C15


def floats(bits):
    return np.asarray(bits, dtype=np.uint32).view(np.float32)


def codes(x, kind, saturate):
    x = torch.from_numpy(np.array(x))
    if saturate:
        x = x.clamp(-torch.finfo(kind).max, torch.finfo(kind).max)
    narrow = x.to(kind)
    result = narrow.view(torch.uint8).numpy().copy()
    result[torch.isnan(x).numpy()] = 0x7F
    return result


def checksum(values):
    """The sum of (code + 1) (2 i + 1) MIX modulo 2^64, i its place."""
    place = (2 * np.arange(values.size, dtype=np.uint64) + np.uint64(1)) * np.uint64(MIX)
    return int(np.sum((values.astype(np.uint64) + np.uint64(1)) * place, dtype=np.uint64))


def random_bits(count, seed):
    """The upper halves of splitmix64, as tests/test.h has it."""
    z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(MIX)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(32)).astype(np.uint32)


def points(kind):
    """Halfway points of neighbouring codes, their neighbours in fp32, and the ends of the range."""
    values = torch.arange(128, dtype=torch.uint8).view(kind).double().numpy()
    values = np.sort(values[np.isfinite(values)])
    largest = values[-1]
    middle = np.append((values[1:] + values[:-1]) / 2, largest + (largest - values[-2]) / 2)
    assert np.array_equal(middle, middle.astype(np.float32))
    middle = middle.astype(np.float32)
    ends = floats([0, 1, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F800000])
    twice = np.float32(largest + 2 * (largest - values[-2]))
    return np.concatenate([ends, [twice], middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.inf)])


def vectors():
    result = {}
    bf16 = floats(np.arange(65536, dtype=np.uint32) << 16)
    random = floats(random_bits(1 << 20, 8))
    for name, kind in FORMATS.items():
        x = np.sort(points(kind).astype(np.float32))
        entry = {"values": torch.arange(256).to(torch.uint8).view(kind).float().view(torch.int32).tolist()}
        entry["values"] = [v & 0xFFFFFFFF for v in entry["values"]]
        for code in range(256):
            if np.isnan(floats([entry["values"][code]])[0]):
                entry["values"][code] = 0x7FFFFFFF
        entry["bits"] = x.view(np.uint32).tolist()
        for saturate in (False, True):
            mode = "saturated" if saturate else "plain"
            positive, negative = codes(x, kind, saturate), codes(-x, kind, saturate)
            assert np.array_equal(positive | 0x80, negative)
            entry[mode] = positive.tolist()
            entry[mode + "_bf16"] = checksum(codes(bf16, kind, saturate))
            entry[mode + "_random"] = checksum(codes(random, kind, saturate))
        result[name] = entry
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    made = vectors()
    if not arguments.check:
        with open(FILE, "w", encoding="utf-8") as file:
            lines = (json.dumps(name) + ": " + json.dumps(entry, separators=(",", ":")) for name, entry in made.items())
            file.write("{\n" + ",\n".join(lines) + "\n}\n")
        return
    with open(FILE, encoding="utf-8") as file:
        if json.load(file) != made:
            sys.exit(f"{FILE} differs from what this script makes")


if __name__ == "__main__":
    main()
