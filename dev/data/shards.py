"""Writes and reads token shards (llm.c's .bin). Standard library only; see dataloader/shards.h for the format."""
import array
import os
import struct
import sys

HEADER_BYTES = 1024
MAGIC16, VERSION16 = 20240520, 1
MAGIC32, VERSION32 = 20240801, 7


def write_shard(path, tokens, vocab):
    """Writes tokens (any iterable of ints) aside and renames: uint16 when vocab <= 65536, else uint32."""
    narrow = vocab <= 65536
    values = array.array("H" if narrow else "I", tokens)
    if len(values) and max(values) >= vocab:
        raise ValueError(f"{path}: token {max(values)} where the vocabulary has {vocab}")
    if sys.byteorder == "big":
        values.byteswap()
    header = struct.pack("<3i", MAGIC16 if narrow else MAGIC32, VERSION16 if narrow else VERSION32, len(values))
    with open(path + ".tmp", "wb") as f:
        f.write(header.ljust(HEADER_BYTES, b"\0"))
        values.tofile(f)
    os.replace(path + ".tmp", path)


def read_shard(path):
    """The tokens, as an array."""
    with open(path, "rb") as f:
        magic, version, count = struct.unpack("<3i", f.read(HEADER_BYTES)[:12])
        if (magic, version) not in ((MAGIC16, VERSION16), (MAGIC32, VERSION32)):
            raise ValueError(f"{path}: is not a token shard")
        values = array.array("H" if magic == MAGIC16 else "I")
        values.fromfile(f, count)
        if f.read(1):
            raise ValueError(f"{path}: is longer than its header says")
    if sys.byteorder == "big":
        values.byteswap()
    return values


class ShardSeries:
    """Fills PREFIX_000000.bin, PREFIX_000001.bin, ...; a document may go on in the next one.

    Shards of an earlier run are replaced, and removed where this run has fewer.
    """

    def __init__(self, prefix, vocab, shard_tokens):
        self.prefix, self.vocab, self.shard_tokens = prefix, vocab, shard_tokens
        self.pending = array.array("I")
        self.paths = []
        self.tokens = 0

    def add(self, tokens):
        self.tokens += len(tokens)
        self.pending.extend(tokens)
        while len(self.pending) >= self.shard_tokens:
            self._write(self.pending[: self.shard_tokens])
            self.pending = self.pending[self.shard_tokens :]

    def take_tail(self, count):
        """Removes the last `count` tokens and returns them."""
        while len(self.pending) < count:
            path = self.paths.pop()
            self.pending = array.array("I", read_shard(path)) + self.pending
            os.remove(path)
        keep = len(self.pending) - count
        tail = self.pending[keep:]
        self.pending = self.pending[:keep]
        self.tokens -= count
        return tail

    def finish(self):
        if self.pending:
            self._write(self.pending)
            self.pending = array.array("I")
        number = len(self.paths)
        while self.paths and os.path.exists(self._path(number)):
            os.remove(self._path(number))
            number += 1

    def _path(self, number):
        return f"{self.prefix}_{number:06d}.bin"

    def _write(self, tokens):
        path = self._path(len(self.paths))
        write_shard(path, tokens, self.vocab)
        self.paths.append(path)
