#!/usr/bin/env python3
"""What a kernel's machine code asks of a multiprocessor, against the bytes it moves: which kernels cannot be memory-bound.

    dev/gpu/issue_slots.py build/cuda-bf16/obj/kernels/fp8.cu.o ... [--arch sm_90a] [--filter quantize] [--opcodes]

One line a loop that touches device memory, or for a kernel without such a loop one line for all of it: bytes and instructions of
one thread's pass, and the time each unit needs as a share of the time the memory needs. A share near or above 1 means that the
unit sets the pace and not the memory; above 0.6 is worth a look, since nothing overlaps wholly. Assumed is an H200: 132
multiprocessors at 1.7 GHz against 4.3 TB/s of copy bandwidth, so 19.2 bytes a clock each; 128 lanes issued a clock, 64 of integers
and conversions, 16 of MUFU, 32 of shared memory. What the code cannot tell: how often a loop runs, and which way a branch goes;
both ways are counted. Shared memory is counted by words, bank conflicts unseen. IMAD goes to either half: no integer here.
"""
import argparse
import collections
from pathlib import Path

import sass

BYTES_PER_CLOCK = 4.3e12 / (132 * 1.7e9)
LANES = {"issue": 128, "int": 64, "mufu": 16, "shared": 32}
INTEGER = ("IADD", "IMNMX", "ISETP", "LOP3", "SHF", "PRMT", "LEA", "SEL", "FSEL", "VIADD", "VIMNMX", "I2F", "F2I", "F2F", "FSETP",
           "FMNMX", "PLOP3", "VABSDIFF", "BREV", "POPC", "HMNMX", "HSETP")


def measure(body):
    count = collections.Counter(issue=len(body))
    for _, opcode, _ in body:
        if opcode.startswith(("LDG", "STG", "RED", "ATOMG")):
            count["bytes"] += sass.width(opcode)
            count["accesses"] += 1
            count["wide"] += sass.width(opcode) == 16
        elif opcode.startswith(("LDS", "STS", "ATOMS", "SHFL")):
            count["shared"] += max(1, sass.width(opcode) // 4)
        elif opcode.startswith("MUFU"):
            count["mufu"] += 1
        elif opcode.startswith(INTEGER):
            count["int"] += 1
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objects", nargs="+", type=Path)
    parser.add_argument("--arch", default="sm_90a")
    parser.add_argument("--filter", default="", help="kernels whose name contains this")
    parser.add_argument("--opcodes", action="store_true", help="how often each instruction occurs, too")
    arguments = parser.parse_args()
    print("        16-byte         | share of the memory's time |\n bytes accesses  instr. | issue   int  mufu shared   | kernel, part")
    for path in arguments.objects:
        for name, code in sass.functions(path, arguments.arch):
            if arguments.filter not in name:
                continue
            parts = [(part, body, measure(body)) for part, body in sass.regions(code)]
            in_loops = any(count["bytes"] for part, _, count in parts[:-1])
            for part, body, count in parts[:-1] if in_loops else parts:
                if not count["bytes"]:
                    continue
                clocks = count["bytes"] / BYTES_PER_CLOCK
                share = [count[unit] / lanes / clocks for unit, lanes in LANES.items()]
                accesses = f"{count['wide']}/{count['accesses']}"
                print(f"{count['bytes']:6} {accesses:>8} {count['issue']:7} |" + "".join(f" {s:5.2f}" for s in share) + f"    | {name}, {part}")
                if arguments.opcodes:
                    often = collections.Counter(".".join(opcode.split(".")[:3]) for _, opcode, _ in body)
                    print("       " + "  ".join(f"{opcode} {n}" for opcode, n in often.most_common(24)))


main()
