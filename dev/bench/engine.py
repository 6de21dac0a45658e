"""Running train_gpt2 from a benchmark: synthetic shards, one run in a scratch folder, its log."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
sys.path.append(os.path.join(ROOT, "dev", "oracle"))
from files import write_shard  # noqa: E402  (the path to it is set just above)


def program(backend="cpu", precision="fp32", name="train_gpt2"):
    return os.path.join(ROOT, "build", f"{backend}-{precision}", name)


def synthetic_shard(path, tokens, vocab, seed=1):
    """Random tokens: never zeros, which some machines multiply faster."""
    write_shard(path, np.random.default_rng(seed).integers(0, vocab, tokens), wide=vocab > 65536)


def train(binary, out, args, env=None, quiet=True):
    """Runs train_gpt2 into a fresh folder `out` and returns the events of its log."""
    shutil.rmtree(out, ignore_errors=True)
    command = [binary, *map(str, args), "--out", out]
    run = subprocess.run(command, stdout=subprocess.PIPE if quiet else None, stderr=subprocess.PIPE, text=True,
                         env=dict(os.environ, **(env or {})))  # fmt: skip
    if run.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with exit code {run.returncode}: {run.stderr.strip()}")
    return read_log(os.path.join(out, "log.jsonl"))


def read_log(path):
    with open(path) as file:
        return [json.loads(line) for line in file if line.strip()]


def steps_of(events):
    return [event for event in events if event["event"] == "step"]
