#!/usr/bin/env python3
"""Writes the text behind byte-token shards to standard output, so that eval_gpt2 can score it.

    dev/data/val_text.py FOLDER [PATTERN]      PATTERN defaults to *_val_*.bin
"""
import pathlib
import struct
import sys

folder = pathlib.Path(sys.argv[1])
shards = sorted(folder.glob(sys.argv[2] if len(sys.argv) > 2 else "*_val_*.bin"))
if not shards:
    sys.exit(f"{folder}: no validation shards: run build/tokenize with --val-fraction first")
for shard in shards:
    data = shard.read_bytes()
    magic, version, count = struct.unpack("<3i", data[:12])
    if (magic, version) != (20240520, 1):
        sys.exit(f"{shard}: not a shard of 16-bit tokens")
    tokens = struct.unpack(f"<{count}H", data[1024 : 1024 + 2 * count])
    if max(tokens) > 255:
        sys.exit(f"{shard}: tokens above 255: these are not bytes")
    sys.stdout.buffer.write(bytes(tokens))
