#!/usr/bin/env python3
"""Writes the text behind byte-token shards to standard output, so that eval_gpt2 can score it.

    dev/data/val_text.py FOLDER [PATTERN]      PATTERN defaults to *_val_*.bin
"""
import argparse
import pathlib
import struct
import sys

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", metavar="FOLDER", type=pathlib.Path)
parser.add_argument("pattern", metavar="PATTERN", nargs="?", default="*_val_*.bin")
options = parser.parse_args()
folder = options.folder
shards = sorted(folder.glob(options.pattern))
if not shards:
    sys.exit(f"{folder}: no validation shards: run build/tokenize with --val-fraction first")
for shard in shards:
    data = shard.read_bytes()
    if len(data) < 1024:
        sys.exit(f"{shard}: has {len(data)} bytes, too few for a token shard")
    magic, version, count = struct.unpack("<3i", data[:12])
    if (magic, version) != (20240520, 1):
        sys.exit(f"{shard}: not a shard of 16-bit tokens")
    if len(data) != 1024 + 2 * count:
        sys.exit(f"{shard}: its length is not that of {count} tokens: it was cut short or damaged")
    tokens = struct.unpack(f"<{count}H", data[1024 : 1024 + 2 * count])
    if max(tokens, default=0) > 255:
        sys.exit(f"{shard}: tokens above 255: these are not bytes")
    sys.stdout.buffer.write(bytes(tokens))
