#!/usr/bin/env python3
"""Compares a run of train_gpt2 with a case: losses, norms, first gradients, final parameters.

    train_gpt2 --init-from CASE --train 'CASE/train*.bin' --out OUT --dump-grads OUT/grads.safetensors \\
        --save-every STEPS ARGS...
    python3 dev/oracle/compare.py CASE OUT

STEPS and ARGS are in CASE/expected.json; --print-args prints them on a line, --run PROGRAM runs the whole command. A ratio is
an error over its tolerance (tests/golden/README.md says which); above 1 the comparison fails, and the exit code is 1.
"""

import argparse
import json
import os
import subprocess
import sys

import numpy as np

from files import read_safetensors

LOSS, NORM = 2e-5, 1e-4  # absolute; relative
TENSOR, CHANGE = 2e-4, 2e-3  # relative to ||expected||; relative to the expected change
GRADIENT_FLOOR = 1e-7  # times the first gradient norm
CHANGE_FLOOR = 1e-4  # times lr * steps * sqrt(elements)


def norm(x):
    return float(np.linalg.norm(np.asarray(x, "f8")))


def ratio(error, tolerance):
    """NaN and a missing value must not pass, so a comparison that is not true counts as infinite."""
    return error / tolerance if np.isfinite(error) else np.inf


def step_events(path):
    with open(path) as file:
        events = [json.loads(line) for line in file if line.strip()]
    return [event for event in events if event["event"] == "step"]


def same_tensors(got, want, what):
    if set(got) != set(want):
        missing, unknown = sorted(set(want) - set(got)), sorted(set(got) - set(want))
        raise SystemExit(f"{what}: missing {missing or 'none'}, unexpected {unknown or 'none'}")
    for name, values in want.items():
        if got[name].shape != values.shape:
            raise SystemExit(f"{what}: {name} has shape {got[name].shape}, expected {values.shape}")


def compare(case, out, grads_path):
    """[(what, worst ratio, where)] of every kind of result."""
    with open(os.path.join(case, "expected.json")) as file:
        expected = json.load(file)
    steps = step_events(os.path.join(out, "log.jsonl"))
    if [event["step"] for event in steps] != list(range(1, expected["steps"] + 1)):
        raise SystemExit(f"{out}/log.jsonl does not hold exactly the updates 1 to {expected['steps']}")
    found = []

    def worst(what, ratios):
        found.append((what, *max(((value, where) for where, value in ratios.items()))))

    worst("loss", {f"update {i + 1}": ratio(abs(event["loss"] - expected["loss"][i]), LOSS)
                   for i, event in enumerate(steps)})  # fmt: skip
    worst("grad_norm", {
        f"update {i + 1}": ratio(abs(event["grad_norm"] - expected["grad_norm"][i]), NORM * expected["grad_norm"][i])
        for i, event in enumerate(steps)
    })  # fmt: skip

    want, got = read_safetensors(os.path.join(case, "grads.safetensors")), read_safetensors(grads_path)
    same_tensors(got, want, grads_path)
    floor = GRADIENT_FLOOR * expected["grad_norm"][0]
    worst("gradients", {name: ratio(norm(got[name] - b), TENSOR * norm(b) + floor) for name, b in want.items()})

    final_path = os.path.join(out, f"step_{expected['steps']:08d}", "model.safetensors")
    start = read_safetensors(os.path.join(case, "model.safetensors"))
    want, got = read_safetensors(os.path.join(case, "final.safetensors")), read_safetensors(final_path)
    same_tensors(got, want, final_path)
    errors = {name: norm(got[name].astype("f8") - b) for name, b in want.items()}
    worst("parameters", {name: ratio(errors[name], TENSOR * norm(b) + 1e-30) for name, b in want.items()})
    noise = CHANGE_FLOOR * expected["lr"] * expected["steps"]
    worst("change", {
        name: ratio(errors[name], CHANGE * norm(b.astype("f8") - start[name]) + noise * np.sqrt(b.size))
        for name, b in want.items()
    })  # fmt: skip
    return found


def command(program, case, out):
    with open(os.path.join(case, "expected.json")) as file:
        expected = json.load(file)
    return [program, "--init-from", case, "--train", os.path.join(case, "train*.bin"), "--out", out,
            "--dump-grads", os.path.join(out, "grads.safetensors"), "--save-every", str(expected["steps"]),
            *expected["args"]]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("case")
    parser.add_argument("out", nargs="?", help="folder of the run")
    parser.add_argument("--grads", help="dumped gradients (default OUT/grads.safetensors, else OUT.grads.safetensors)")
    parser.add_argument("--run", metavar="PROGRAM", help="train_gpt2 (an fp32 build) to run first; OUT must not exist")
    parser.add_argument("--print-args", action="store_true", help="print the case's further options and stop")
    options = parser.parse_args()
    if options.print_args:
        with open(os.path.join(options.case, "expected.json")) as file:
            print(*json.load(file)["args"])
        return
    if not options.out:
        parser.error("OUT is missing")
    if options.run:
        if os.path.exists(options.out):
            parser.error(f"{options.out} exists")
        os.makedirs(options.out)
        run = subprocess.run(command(options.run, options.case, options.out), stdout=subprocess.PIPE, text=True)
        if run.returncode:
            raise SystemExit(f"{options.run} ended with exit code {run.returncode}\n{run.stdout}")
    grads = options.grads or os.path.join(options.out, "grads.safetensors")
    if not options.grads and not os.path.exists(grads):
        grads = options.out.rstrip("/") + ".grads.safetensors"

    found = compare(options.case, options.out, grads)
    name = os.path.basename(os.path.normpath(options.case))
    for what, value, where in found:
        print(f"{name:24} {what:12} worst error / tolerance {value:9.2e}  ({where}){'' if value <= 1 else '  FAILED'}")
    sys.exit(0 if all(value <= 1 for _, value, _ in found) else 1)


if __name__ == "__main__":
    main()
