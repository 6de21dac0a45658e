#!/usr/bin/env python3
"""Writes compile_commands.json from what `make BACKEND=cpu PRECISION=fp32` would run, for clangd and clang-tidy."""
import json
import os
import shlex
import subprocess

plan = subprocess.run(["make", "-nB", "BACKEND=cpu", "PRECISION=fp32", "programs", "tests"], capture_output=True, text=True)
entries = []
for line in plan.stdout.splitlines():
    words = shlex.split(line) if line.startswith("g++ ") and " -c " in line else []
    if words:
        entries.append({"directory": os.getcwd(), "file": words[words.index("-c") + 1], "arguments": words})
with open("compile_commands.json", "w") as out:
    json.dump(entries, out, indent=1)
print(f"compile_commands.json: {len(entries)} files")
