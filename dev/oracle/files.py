"""The files a run is made of: safetensors, llm.c token shards, case folders. Numpy only.

Written from the outside contract alone and sharing nothing with the engine, so that a mistake in the engine's own
readers and writers shows up as a difference.
"""

import glob
import json
import os
import struct

import numpy as np

_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1"}


def read_safetensors(path):
    """{name: array}; bf16 comes back widened to float32."""
    with open(path, "rb") as file:
        data = file.read()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    body = memoryview(data)[8 + length :]
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = body[begin:end]
        if entry["dtype"] == "BF16":  # a bf16 is the upper half of a float32
            values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
        else:
            values = np.frombuffer(raw, _TYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def write_safetensors(path, tensors):
    """Writes every array as float32, in the order given."""
    header, offset = {}, 0
    for name, values in tensors.items():
        size = 4 * int(np.asarray(values).size)
        header[name] = {"dtype": "F32", "shape": list(np.shape(values)), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the tensors' bytes 8-aligned
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            file.write(np.ascontiguousarray(values, "<f4").tobytes())


# magic number of a shard -> (version, token type)
_SHARDS = {20240520: (1, "<u2"), 20240801: (7, "<u4")}


def read_shard(path):
    with open(path, "rb") as file:
        data = file.read()
    magic, version, count = struct.unpack("<3i", data[:12])
    if magic not in _SHARDS or _SHARDS[magic][0] != version:
        raise SystemExit(f"{path}: not a token shard")
    tokens = np.frombuffer(data[1024:], _SHARDS[magic][1])
    if len(tokens) != count:
        raise SystemExit(f"{path}: the header says {count} tokens, the file holds {len(tokens)}")
    return tokens.astype(np.int64)


def write_shard(path, tokens, wide=False):
    magic = 20240801 if wide else 20240520
    version, dtype = _SHARDS[magic]
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens)
    with open(path, "wb") as file:
        file.write(header.tobytes() + np.asarray(tokens).astype(dtype).tobytes())


def read_case(folder):
    """Config, expected.json, starting parameters and shards of a case folder."""
    with open(os.path.join(folder, "config.json")) as file:
        config = json.load(file)
    with open(os.path.join(folder, "expected.json")) as file:
        expected = json.load(file)
    start = read_safetensors(os.path.join(folder, "model.safetensors"))
    shards = [read_shard(path) for path in sorted(glob.glob(os.path.join(folder, "train*.bin")))]
    if not shards:
        raise SystemExit(f"{folder}: no train*.bin")
    return config, expected, start, shards


def write_json(path, value):
    with open(path, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
