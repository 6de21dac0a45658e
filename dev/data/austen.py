#!/usr/bin/env python3
"""Jane Austen's six novels as one text file, from Debian's package r-cran-janeaustenr (no web site needed).

    dev/data/austen.py [--out data/austen.txt] [--package-dir DIR]

The package is downloaded with apt-get and unpacked aside, not installed: installing it would bring all of R. Where that
fails, an installed copy serves. --package-dir names a folder that holds the package unpacked (or Rdata.rdb itself).

The output has the novels in the order of their titles, separated by a line that is exactly <|endoftext|>, which
tokenize turns into the end-of-text token. The text is in the public domain (Project Gutenberg, by way of janeaustenr).

The package keeps R objects: Rdata.rdx is an index, Rdata.rdb the objects one after the other. Both are R's XDR
serialisation, compressed; class Reader below reads as much of it as they use.
"""
import argparse
import gzip
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib

PACKAGE = "r-cran-janeaustenr"
INSTALLED = "/usr/lib/R/site-library/janeaustenr/data"
SEPARATOR = "<|endoftext|>"
NOVELS = {  # variable in the package: title; in the order of the titles
    "emma": "Emma",
    "mansfieldpark": "Mansfield Park",
    "northangerabbey": "Northanger Abbey",
    "persuasion": "Persuasion",
    "prideprejudice": "Pride and Prejudice",
    "sensesensibility": "Sense and Sensibility",
}


BYTES = 4_025_099  # of the output, from version 1.0.0 of the package


class DataError(Exception):
    """What is wrong and what to do, on one line."""


class Reader:
    """R's serialisation in XDR form, versions 2 and 3 (R Internals, section 1.8): big-endian, every object one int of
    flags (type in the low byte, then: is object, has attributes, has tag) and what that type needs."""

    NIL, PERSISTENT, GLOBAL_ENV, REFERENCE, EMPTY_ENV, BASE_ENV = 254, 247, 253, 255, 242, 241
    ALTREP, SYMBOL, PAIRLIST, CHARS, LOGICALS, INTS, REALS, STRINGS, LIST = 238, 1, 2, 9, 10, 13, 14, 16, 19

    def __init__(self, data):
        self.data, self.at = data, 0
        self.references = []

    def take(self, size):
        if size < 0 or self.at + size > len(self.data):
            raise DataError("the R data ends early")
        self.at += size
        return self.data[self.at - size : self.at]

    def int(self):
        return struct.unpack(">i", self.take(4))[0]

    def length(self):
        n = self.int()
        return n if n != -1 else (self.int() << 32) + self.int()

    def read(self):
        """The object that the whole data is."""
        if self.take(2) != b"X\n":
            raise DataError("the R data is not in XDR form")
        version = self.int()
        self.take(8)  # versions of R: that wrote it, that can read it
        if version == 3:
            self.take(self.int())  # native encoding
        elif version != 2:
            raise DataError(f"the R data has format version {version}, known are 2 and 3")
        return self.object()

    def object(self):
        """Lists with names come as dict, vectors as list, strings as str, NA and NULL as None."""
        flags = self.int()
        kind, has_attributes, has_tag = flags & 255, flags & 512, flags & 1024
        if kind in (self.NIL, self.GLOBAL_ENV, self.EMPTY_ENV, self.BASE_ENV):
            return None
        if kind == self.REFERENCE:
            index = flags >> 8 or self.int()
            if not 0 < index <= len(self.references):
                raise DataError("the R data refers to an object that is not there")
            return self.references[index - 1]
        if kind == self.SYMBOL:
            self.references.append(self.object())
            return self.references[-1]
        if kind == self.PAIRLIST:
            return self.pairlist(has_attributes, has_tag)
        if kind == self.CHARS:
            size = self.int()
            # Gutenberg's accents: UTF-8 where the flags say so, Latin-1 else (equal for ASCII).
            return None if size == -1 else self.take(size).decode("latin-1" if flags >> 12 & 4 else "utf-8")
        if kind == self.ALTREP:
            return self.altrep()
        if kind == self.LOGICALS or kind == self.INTS:
            n = self.length()
            value = [None if x == -(2**31) else x for x in struct.unpack(f">{n}i", self.take(4 * n))]
        elif kind == self.REALS:
            n = self.length()
            value = list(struct.unpack(f">{n}d", self.take(8 * n)))
        elif kind == self.STRINGS or kind == self.LIST:
            value = [self.object() for _ in range(self.length())]
        else:
            raise DataError(f"the R data holds an object of type {kind}, which this reader does not know")
        names = (self.object() or {}).get("names") if has_attributes else None
        return dict(zip(names, value)) if names and kind == self.LIST else value

    def pairlist(self, has_attributes, has_tag):
        pairs = {}
        while True:
            if has_attributes:
                self.object()
            tag = self.object() if has_tag else None
            pairs[tag if tag is not None else len(pairs)] = self.object()
            flags = self.int()  # the rest of the list: another pair, or nil
            if flags & 255 != self.PAIRLIST:
                if flags & 255 != self.NIL:
                    raise DataError("the R data holds a list that does not end")
                return pairs
            has_attributes, has_tag = flags & 512, flags & 1024

    def altrep(self):
        """A vector in compact form: class, state, attributes."""
        info, state, _ = self.object(), self.object(), self.object()
        name = next(iter(info.values())) if isinstance(info, dict) else None
        if name == "compact_intseq":
            n, first, step = (int(x) for x in state)
            return [first + i * step for i in range(n)]
        if name == "deferred_string":
            source = state[0] if isinstance(state, dict) and 0 in state else next(iter(state.values()))
            return [None if x is None else str(x) for x in source]
        if name is not None and name.startswith("wrap_"):
            return state[0] if isinstance(state, list) else next(iter(state.values()))
        raise DataError(f"the R data holds a compact vector '{name}', which this reader does not know")


def read_variables(folder):
    """The variables of an R lazy-load database (Rdata.rdx, Rdata.rdb) as {name: value}."""
    with open(os.path.join(folder, "Rdata.rdx"), "rb") as f:
        packed = f.read()
    index = Reader(gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else zlib.decompress(packed)).read()
    with open(os.path.join(folder, "Rdata.rdb"), "rb") as f:
        database = f.read()
    variables = {}
    for name, (offset, size) in index["variables"].items():
        record = database[offset : offset + size]
        if len(record) != size or size < 4:
            raise DataError("Rdata.rdb is shorter than its index says")
        data = zlib.decompress(record[4:])
        if len(data) != struct.unpack(">I", record[:4])[0]:
            raise DataError(f"the variable {name} has not the length that is written beside it")
        variables[name] = Reader(data).read()
    return variables


def find_data(folder):
    """The folder with Rdata.rdb in or below `folder`; None when there is none."""
    for where, _, names in os.walk(folder):
        if "Rdata.rdb" in names and "Rdata.rdx" in names:
            return where
    return None


def fetch_package(folder):
    """Downloads and unpacks the package into `folder`. Returns its data folder, or a reason why there is none."""
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            return None, f"{tool} is not here"
    # As root, apt hands the download to the user _apt, who must be able to write here.
    os.chmod(folder, 0o755)
    got = subprocess.run(["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", PACKAGE], cwd=folder,
                         capture_output=True, text=True)
    packages = [n for n in os.listdir(folder) if n.endswith(".deb")]
    if not packages:
        lines = (got.stderr or got.stdout).strip().splitlines()
        return None, "apt-get download failed" + (f" ({lines[-1].strip()})" if lines else "")
    unpacked = os.path.join(folder, "unpacked")
    if subprocess.run(["dpkg-deb", "-x", os.path.join(folder, packages[0]), unpacked], capture_output=True).returncode:
        return None, "dpkg-deb could not unpack the package"
    return find_data(unpacked), "the package holds no Rdata.rdb"


def novels(folder):
    """[(title, text)] in the order of the titles, each text ending with a newline."""
    variables = read_variables(folder)
    missing = [name for name in NOVELS if name not in variables]
    if missing:
        raise DataError(f"{folder}: lacks {', '.join(missing)}")
    found = []
    for name, title in NOVELS.items():
        lines = ["" if line is None else line.rstrip("\r\n") for line in variables[name]]
        if not any(title.lower() in line.lower() for line in lines[:20]):
            raise DataError(f"{folder}: the variable {name} does not begin with the title '{title}'")
        if SEPARATOR in lines:
            raise DataError(f"{folder}: '{title}' holds the separator itself")
        while lines and not lines[-1]:
            lines.pop()
        found.append((title, "\n".join(lines) + "\n"))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="data/austen.txt", help="text file to write (default: %(default)s)")
    parser.add_argument("--package-dir", help="folder with the unpacked package; nothing is downloaded then")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        if options.package_dir:
            folder = find_data(options.package_dir)
            if not folder:
                raise DataError(f"{options.package_dir}: holds no Rdata.rdb; name the unpacked {PACKAGE}")
        else:
            folder, reason = fetch_package(scratch)
            folder = folder or find_data(INSTALLED)
            if not folder:
                raise DataError(f"{PACKAGE}: {reason}; run apt-get update, or give --package-dir")
        texts = novels(folder)

    separator = f"{SEPARATOR}\n"
    whole = separator.join(text for _, text in texts).encode()
    os.makedirs(os.path.dirname(options.out) or ".", exist_ok=True)
    with open(options.out + ".tmp", "wb") as f:
        f.write(whole)
    os.replace(options.out + ".tmp", options.out)
    for title, text in texts:
        print(f"{title:<22} {len(text.encode()):>9,} bytes  {text.count(chr(10)):>7,} lines")
    remark = "as expected" if len(whole) == BYTES else f"expected {BYTES:,}: another version of the package"
    print(f"{options.out}: {len(texts)} novels, {len(whole):,} bytes ({remark})")
    print(f"next: build/tokenize {options.out} --out {os.path.splitext(options.out)[0]}")


if __name__ == "__main__":
    try:
        main()
    except (DataError, OSError, zlib.error, EOFError) as error:
        sys.exit(f"austen.py: {error}")
