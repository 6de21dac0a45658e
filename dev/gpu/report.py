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


# What --fp8 must gain on gpt2-medium at B=32, T=1024 over bf16; and what a table keeps of a model (not its curves).
FP8_TARGET = 1.12
FP8_FIELDS = ("batch", "seq", "steps", "speedup", "last_50_difference", "validation_difference")
FP8_SIDE_FIELDS = ("precision", "last_50", "validation", "tokens_per_s")


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


def fp8_numbers(models):
    """Of every model its numbers; one that was cut short has those of the runs that it finished."""
    out = {}
    for name, numbers in models.items():
        out[name] = {key: numbers[key] for key in FP8_FIELDS if key in numbers}
        out[name]["seeds"] = [[{key: side[key] for key in FP8_SIDE_FIELDS} for side in pair] for pair in numbers["seeds"]]
    return out


def print_fp8(models, backend):
    for name, numbers in models.items():
        if "speedup" not in numbers:
            continue
        line = (f"fp8 {name} B={numbers['batch']} T={numbers['seq']}: {numbers['speedup']:.3f} times the tokens/s; loss after "
                f"{numbers['steps']} updates {numbers['last_50_difference']:+.4f}, validation "
                f"{numbers['validation_difference']:+.4f}")  # fmt: skip
        if backend == "cuda" and (name, numbers["batch"], numbers["seq"]) == ("gpt2-medium", 32, 1024):
            line += f", target {FP8_TARGET}: " + ("met" if numbers["speedup"] >= FP8_TARGET else "MISSED")
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
    if fp8 := read(options.state, "fp8"):
        result["fp8"] = fp8_numbers(fp8)
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
    print_fp8(result.get("fp8", {}), options.backend)
    print_rules(result.get("rules", {}), options.backend)


if __name__ == "__main__":
    main()
