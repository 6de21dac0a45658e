#!/usr/bin/env python3
"""Puts together what the stages of check.sh measured: OUT/DATE-GPU-COMMIT.json, only measured numbers."""

import argparse
import datetime
import json
import os
import re
import subprocess

KERNEL_FIELDS = ("name", "shape", "us", "gbps", "tflops", "share_of_ceiling")


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
    for name in ("models", "rules", "sanitizer"):
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


if __name__ == "__main__":
    main()
