#!/usr/bin/env python3
"""Tiny Shakespeare (1.1 MB, Andrej Karpathy's char-rnn) as a text file. Needs the internet.

    dev/data/shakespeare.py [--out data/shakespeare.txt]
"""
import argparse
import hashlib
import os
import sys
import urllib.error
import urllib.request

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="data/shakespeare.txt", help="text file to write (default: %(default)s)")
    options = parser.parse_args()
    try:
        with urllib.request.urlopen(URL, timeout=30) as response:
            text = response.read()
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        sys.exit(f"shakespeare.py: {URL}: cannot be fetched ({reason}); fetch it elsewhere, or use dev/data/austen.py, "
                 "which needs a Debian mirror alone")
    if hashlib.sha256(text).hexdigest() != SHA256:
        sys.exit(f"shakespeare.py: {URL}: is not the file known ({len(text):,} bytes); try again")
    os.makedirs(os.path.dirname(options.out) or ".", exist_ok=True)
    with open(options.out + ".tmp", "wb") as f:
        f.write(text)
    os.replace(options.out + ".tmp", options.out)
    print(f"{options.out}: {len(text):,} bytes")
    print(f"next: build/tokenize {options.out} --out {os.path.splitext(options.out)[0]}")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"shakespeare.py: {error}")
