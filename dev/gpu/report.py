#!/usr/bin/env python3
"""Puts together what the stages of check.sh measured: OUT/DATE-GPU-COMMIT.json, only measured numbers."""

import argparse
import datetime
import json
import os
import re
import subprocess

KERNEL_FIELDS = ("name", "shape", "us", "gbps", "tflops", "share_of_ceiling")
RULE_FIELDS = ("shape", "tokens_per_s", "extra_over_vanilla", "ideal_extra", "extra_flops_share", "extra_memory_bytes")
# What a rule may add to an update of this model, in bf16, as a fraction of vanilla's time.
RULE_TARGETS_SHAPE = "gpt2-medium B=32 T=1024"
RULE_TARGETS = {"prores": 0.005, "gpas": 0.005, "rezero": 0.005, "skipinit": 0.005, "lscale_block": 0.02, "lscale_input": 0.02,
                "lscale_sub": 0.02, "attnres_block": 0.07, "attnres": 0.14, "hc": 0.15, "mhc": 0.18}  # fmt: skip


def ask(command):
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def read(folder, name):
    try:
        with open(os.path.join(folder, name + ".json")) as file:
            return json.load(file)
    except (OSError, json.JSONDecodeError):
        return None


def machine(backend):
    if backend == "cpu":
        return {"gpu": "none"}
    gpu, _, driver = ask(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0"]).partition(", ")
    found = {"gpu": gpu, "driver": driver}
    if release := re.search(r"release ([\d.]+)", ask(["nvcc", "--version"])):
        found["cuda"] = release.group(1)
    return {key: value for key, value in found.items() if value}


def print_rules(rules, backend):
    for name, numbers in rules.items():
        if (extra := numbers.get("extra_over_vanilla")) is None:
            continue
        target, why = RULE_TARGETS.get(name), ""
        if name == "review" and "extra_flops_share" in numbers:
            target, why = 1.2 * numbers["extra_flops_share"], ", 1.2 times its operations"
        line = f"rule {name}: {100 * extra:+.2f} %"
        if "ideal_extra" in numbers:
            line += f" (ideal {100 * numbers['ideal_extra']:.2f} %)"
        if target is not None:
            line += f", target {100 * target:.2g} %{why}"
            if backend == "cuda" and numbers["shape"] == RULE_TARGETS_SHAPE:
                line += ": met" if extra <= target else ": MISSED"
            else:
                line += f" at {RULE_TARGETS_SHAPE} in bf16; this was {numbers['shape']}"
        print(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", required=True, help="folder in which the stages left their numbers")
    parser.add_argument("--out", required=True, help="folder of the result files")
    parser.add_argument("--backend", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--commit", default="unknown")
    options = parser.parse_args()
    now = datetime.datetime.now(datetime.timezone.utc)
    result = machine(options.backend)
    result.update(commit=options.commit, date=now.strftime("%Y-%m-%dT%H:%M:%SZ"))
    if tests := read(options.state, "tests"):
        result["tests"] = {key: tests[key] for key in ("passed", "failed")}
    if ceilings := read(options.state, "ceilings"):
        result["ceilings"] = ceilings
    if kernels := read(options.state, "kernels"):
        result["kernels"] = [{key: row[key] for key in KERNEL_FIELDS if key in row} for row in kernels]
    if rules := read(options.state, "rules"):
        result["rules"] = {row["name"]: {key: row[key] for key in RULE_FIELDS if key in row} for row in rules}
    for name in ("models", "attention", "sanitizer"):
        if (part := read(options.state, name)) is not None:
            result[name] = part

    gpu = re.sub(r"[^A-Za-z0-9]+", "-", result.get("gpu", "unknown").replace("NVIDIA ", "")).strip("-")
    os.makedirs(options.out, exist_ok=True)
    path = os.path.join(options.out, f"{now.strftime('%Y-%m-%dT%H%M%S')}-{gpu}-{options.commit}.json")
    with open(path, "w") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    print(path)
    for name in ("tests", "sanitizer", "ceilings", "models"):
        if name in result:
            print(f"{name}: {json.dumps(result[name])}")
    if "kernels" in result:
        print(f"kernels: {len(result['kernels'])}")
    print_rules(result.get("rules", {}), options.backend)


if __name__ == "__main__":
    main()
