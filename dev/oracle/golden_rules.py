#!/usr/bin/env python3
"""Regenerates tests/golden/rules: what three updates do to a tiny model, for every residual rule, scheme and option.

    python3 dev/oracle/golden_rules.py             write cases.json and the tensors
    python3 dev/oracle/golden_rules.py --check     compute them again and compare with what is there
    python3 dev/oracle/golden_rules.py --noise     how far float32 arithmetic alone is from them

and what one update does at awkward widths (sizes.json), where gradients are kept as norms and projections.

rule_cases.py lists the cases, recipe.py makes weights and tokens.
"""

import argparse
import json
import os
import sys

import numpy as np
import torch

import recipe
from files import read_safetensors, write_safetensors
from model import Network
from rule_cases import rule_cases, size_cases
from training import train

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "golden", "rules")

SETTINGS = {"batch": 2, "seq": 5, "total_batch": 20, "steps": 3, "optimizer": "adamw", "lr": 0.005,
            "schedule": "constant", "warmup": 0, "beta1": 0.9, "beta2": 0.95, "eps": 0.0001, "weight_decay": 0.1,
            "grad_clip": 1.0, "decay": "2d"}  # fmt: skip

SIZE_SETTINGS = {**SETTINGS, "batch": 3, "seq": 19, "total_batch": 57, "steps": 1}


def sized(case):
    return case["file"] == "sizes.safetensors"


def run(case, dtype=torch.float64):
    config, settings = case["config"], SIZE_SETTINGS if sized(case) else SETTINGS
    about = Network(config).parameters()
    args = [part for key, value in settings.items() for part in ("--" + key.replace("_", "-"), str(value))]
    stream = recipe.tokens(settings["steps"] * settings["total_batch"] + 1, config["vocab_size"])
    start = recipe.weights(about, recipe.size_weight if sized(case) else recipe.weight)
    return about, train(config, [*args, "--no-shuffle"], start, [stream], dtype)


def at_seam(q):
    """What is stored of every case: residual parameters, norm gains, embeddings, head, biases of branch outputs."""
    if q.cls in ("norm", "bias"):
        return q.name.endswith((".weight", "c_proj.bias"))
    return q.cls != "matrix"


def results(case, dtype=torch.float64):
    """{name: array} of one case. Frozen parameters have no gradient here."""
    about, out = run(case, dtype)
    name, tensors = case["name"], {}
    tensors[f"{name}/loss"] = np.array(out["loss"])
    tensors[f"{name}/grad_norm"] = np.array(out["grad_norm"])
    if sized(case):
        trained = sorted(tensor for tensor, q in about.items() if not q.frozen)
        tensors[f"{name}/grads"] = np.array([[np.linalg.norm(out["grads"][t]), *recipe.projections(t, out["grads"][t])]
                                             for t in trained])  # fmt: skip
        return tensors
    for tensor, q in about.items():
        if not q.frozen and (case["full"] or at_seam(q)):
            tensors[f"{name}/grad/{tensor}"] = out["grads"][tensor]
        if case["final"] and "residual" in tensor:
            tensors[f"{name}/final/{tensor}"] = out["final"][tensor]
    return tensors


def listing(cases, settings):
    """cases.json, sizes.json: settings, then one case a line."""
    lines = [json.dumps({key: case[key] for key in ("name", "file", "what", "config")}) for case in cases]
    return '{"settings": ' + json.dumps(settings) + ',\n"cases": [\n' + ",\n".join(lines) + "\n]}\n"


def listings():
    """{file: its text}"""
    return {"cases.json": listing(rule_cases(), SETTINGS), "sizes.json": listing(size_cases(), SIZE_SETTINGS)}


def worst(got, want, case):
    """Largest difference relative to the tensor (gradients: plus 1e-7 of the first norm), and where."""
    if set(got) != set(want):
        raise SystemExit(f"{case['name']}: the file names other tensors")
    floor = 1e-7 * float(want[f"{case['name']}/grad_norm"][0])
    if sized(case):  # tensor by tensor: the first row that is worst, against the tensor's norm
        name = f"{case['name']}/grads"
        a, b = got[name], want[name].astype("f8")
        error = np.sqrt(((a - b)[:, 1:] ** 2).mean(1)) / (b[:, 0] + floor)
        row = int(error.argmax())
        return float(error[row]), f"{name} row {row}"
    return max((float(np.linalg.norm(got[name].astype("f8") - b))
                / (float(np.linalg.norm(b.astype("f8"))) + (floor if "/grad/" in name else 1e-30)), name)
               for name, b in want.items())  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="only compare with the files that are there")
    parser.add_argument("--noise", action="store_true", help="compare float32 arithmetic with the files")
    parser.add_argument("--root", default=ROOT, help="folder of the files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = rule_cases() + size_cases()
    files = sorted({case["file"] for case in cases})
    if not (options.check or options.noise):
        os.makedirs(options.root, exist_ok=True)
        for path, text in listings().items():
            with open(os.path.join(options.root, path), "w") as file:
                file.write(text)
        for path in files:
            tensors = {}
            for case in (case for case in cases if case["file"] == path):
                tensors |= results(case)
            if not all(np.isfinite(values).all() for values in tensors.values()):
                raise SystemExit(f"{path}: a value is not finite")
            write_safetensors(os.path.join(options.root, path), tensors)
        size = sum(os.path.getsize(os.path.join(options.root, path)) for path in [*files, *listings()])
        print(f"{len(cases)} cases in {len(files)} files, {size} bytes")
        return

    same = True
    for path, text in listings().items():
        with open(os.path.join(options.root, path)) as file:
            if file.read() != text:
                print(f"{path} lists other cases")
                same = False
    found, stored = [], {path: read_safetensors(os.path.join(options.root, path)) for path in files}
    for case in cases:
        got = results(case, torch.float32 if options.noise else torch.float64)
        want = {name: b for name, b in stored[case["file"]].items() if name.startswith(case["name"] + "/")}
        found.append(worst(got, want, case))
    found.sort(reverse=True)
    for value, where in found[: 12 if options.noise else 1]:
        print(f"worst relative difference {value:.1e} at {where}")
    sys.exit(0 if same and (options.noise or found[0][0] < 1e-6) else 1)


if __name__ == "__main__":
    main()
