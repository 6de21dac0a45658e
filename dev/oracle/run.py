#!/usr/bin/env python3
"""Trains a case folder in float64 and writes, or checks, what must come out.

    python3 dev/oracle/run.py CASE --check           compare with the case's own expected values
    python3 dev/oracle/run.py CASE --out DIR         write expected.json, grads.safetensors, final.safetensors
    python3 dev/oracle/run.py CASE --as-run DIR --dtype float32
                                                     write what train_gpt2 would: log.jsonl, grads, last checkpoint
"""

import argparse
import json
import os
import sys

import numpy as np
import torch

from files import read_case, read_safetensors, write_json, write_safetensors
from training import train


def write_expected(folder, case, out):
    """expected.json, grads.safetensors and final.safetensors; `case` holds the fields that are not results."""
    s = out["settings"]
    expected = dict(case, steps=s.steps, lr=s.lr, eps=s.eps, loss=out["loss"], grad_norm=out["grad_norm"])
    write_json(os.path.join(folder, "expected.json"), expected)
    write_safetensors(os.path.join(folder, "grads.safetensors"), out["grads"])
    write_safetensors(os.path.join(folder, "final.safetensors"), out["final"])


def write_as_run(folder, out):
    steps = out["settings"].steps
    checkpoint = os.path.join(folder, f"step_{steps:08d}")
    os.makedirs(checkpoint, exist_ok=True)
    with open(os.path.join(folder, "log.jsonl"), "w") as file:
        for i in range(steps):
            event = {"event": "step", "step": i + 1, "loss": out["loss"][i], "grad_norm": out["grad_norm"][i]}
            file.write(json.dumps(event) + "\n")
    write_safetensors(os.path.join(folder, "grads.safetensors"), out["grads"])
    write_safetensors(os.path.join(checkpoint, "model.safetensors"), out["final"])


def check(folder, expected, out):
    """Prints the worst relative differences; files hold float32, so tensors are compared after rounding to it."""
    worst = {}
    for key in ("loss", "grad_norm"):
        worst[key] = max(abs(a - b) / abs(b) for a, b in zip(out[key], expected[key], strict=True))
    for key in ("grads", "final"):
        want = read_safetensors(os.path.join(folder, key + ".safetensors"))
        if set(want) != set(out[key]):
            raise SystemExit(f"{folder}: {key}.safetensors names other tensors")
        # The floor keeps tensors that are zero up to rounding (the key bias's gradient) from counting as differences.
        floor = 1e-9 * expected["grad_norm"][0]
        worst[key] = max(
            np.linalg.norm(out[key][name].astype("f4").astype("f8") - b) / (np.linalg.norm(b.astype("f8")) + floor)
            for name, b in want.items()
        )
    ok = worst["loss"] < 1e-11 and worst["grad_norm"] < 1e-11 and worst["grads"] < 1e-7 and worst["final"] < 1e-7
    print(f"{os.path.basename(os.path.normpath(folder))}: worst relative difference:",
          ", ".join(f"{key} {value:.1e}" for key, value in worst.items()), "- ok" if ok else "- DIFFERS")  # fmt: skip
    return ok


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("case", nargs="+", help="case folder")
    parser.add_argument("--out", help="folder for expected.json, grads.safetensors, final.safetensors")
    parser.add_argument("--as-run", help="folder for what a run of train_gpt2 would leave")
    parser.add_argument("--check", action="store_true", help="compare with the case's expected values")
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64")
    options = parser.parse_args()
    if len(options.case) > 1 and (options.out or options.as_run):
        parser.error("--out and --as-run take one case")
    ok = True
    for case in options.case:
        config, expected, start, shards = read_case(case)
        out = train(config, expected["args"], start, shards, getattr(torch, options.dtype))
        if options.out:
            os.makedirs(options.out, exist_ok=True)
            write_expected(options.out, {key: expected[key] for key in ("case", "what", "args")}, out)
        if options.as_run:
            write_as_run(options.as_run, out)
        if options.check or not (options.out or options.as_run):
            ok = check(case, expected, out) and ok
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
