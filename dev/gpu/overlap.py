#!/usr/bin/env python3
"""Whether machine code keeps the overlap that the Hopper attention kernels are built on; ends with 1 where it does not, with 2
where there is no disassembler.

    dev/gpu/overlap.py build/cuda-bf16/obj/kernels/attention_sm90_forward.cu.o ...

A consumer starts two products, waits for the first and takes exponentials of its scores while the second runs. The assembler may
move the second wait up, before the exponentials: no result changes, and a third of the speed is gone. So in every loop that has
both, most exponentials must lie between the start of a product and the next wait for all products.
"""
import sys

import sass

ENOUGH = 0.75


def main():
    failed = 0
    for path in sys.argv[1:]:
        for name, code in sass.functions(path, "sm_90a"):
            loops = 0
            for part, body in sass.regions(code):
                running, beside, exponentials = False, 0, 0
                for _, opcode, operands in body:
                    if opcode.startswith("HGMMA"):
                        running = True
                    elif opcode.startswith("WARPGROUP.DEPBAR"):
                        running = running and not operands.strip().endswith("0x0")
                    elif opcode.startswith("MUFU.EX2"):
                        exponentials += 1
                        beside += running
                starts = sum(opcode.startswith("WARPGROUP.ARRIVE") for _, opcode, _ in body)
                if exponentials < 16 or starts < 2:  # the first key tile has no product to run beside
                    continue
                good = beside >= ENOUGH * exponentials
                loops += 1
                failed += not good
                print(f"{'' if good else 'NOT ENOUGH: '}{beside} of {exponentials} exponentials beside a product: {name}, {part}")
            if loops == 0 and any(opcode.startswith("HGMMA") for _, opcode, _ in code):
                failed += 1
                print(f"NOT FOUND: a loop with exponentials and products: {name}")
    sys.exit(failed > 0)


main()
