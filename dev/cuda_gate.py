#!/usr/bin/env python3
"""Reads what ptxas said about every kernel of a CUDA build and fails on register spills and on wgmma that the compiler
serialised or setmaxnreg that it ignored.    dev/cuda_gate.py build/cuda-bf16/obj"""
import pathlib
import re
import subprocess
import sys

BAD = re.compile(r"\(C75\d\d\)")  # wgmma serialised or waited for by the compiler, setmaxnreg ignored


def main():
    folder = pathlib.Path(sys.argv[1])
    logs = sorted(folder.rglob("*.ptxas"))
    if not logs:
        sys.exit(f"{folder}: no .ptxas files; build with BACKEND=cuda first")
    rows, faults = [], []
    for log in logs:
        kernel = arch = None
        for line in log.read_text().splitlines():
            if BAD.search(line):
                faults.append(f"{log.name}: {line.strip()}")
            if m := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
                kernel, arch = m.groups()
            if m := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
                if int(m.group(2)) or int(m.group(3)):
                    faults.append(f"{arch} {kernel}: {m.group(2)} bytes spilled, {m.group(3)} reloaded")
            if kernel and (m := re.search(r"Used (\d+) registers", line)):
                smem = re.search(r"(\d+) bytes smem", line)
                rows.append((arch, kernel, int(m.group(1)), int(smem.group(1)) if smem else 0))
                kernel = None
    names = subprocess.run(["c++filt", "-p"], input="\n".join(r[1] for r in rows), capture_output=True, text=True)
    readable = names.stdout.splitlines() if names.returncode == 0 else [r[1] for r in rows]
    for (arch, _, registers, shared), name in sorted(zip(rows, readable), key=lambda p: (p[1], p[0][0])):
        print(f"{arch:8} {registers:4} registers {shared:6} B static shared  {name[:110]}")
    for fault in faults:
        print("gate:", fault)
    print(f"{len(rows)} kernels, {len(faults)} faults")
    sys.exit(1 if faults else 0)


main()
