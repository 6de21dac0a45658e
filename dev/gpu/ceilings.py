#!/usr/bin/env python3
"""What the machine can do at best, measured with PyTorch: a large matrix product and a large copy.

Random data: on zeros a GPU draws less power and runs faster than it ever will in training.
"""

import argparse
import json
import time

import torch


def median_seconds(work, device, repeats):
    """Median over runs, each between two events (GPU) or two clock reads (CPU), after a warm-up."""
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        if device == "cuda":
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop) * 1e-3)
        else:
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--json", help="write the numbers here")
    options = parser.parse_args()
    device = options.backend
    n, dtype, count, repeats = (8192, torch.bfloat16, 2 << 30, 20) if device == "cuda" else (512, torch.float32, 64 << 20, 5)

    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    c = torch.empty(n, n, device=device, dtype=dtype)
    gemm = 2 * n**3 / median_seconds(lambda: torch.matmul(a, b, out=c), device, repeats) * 1e-12
    source = torch.randint(0, 255, (count,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = 2 * count / median_seconds(lambda: target.copy_(source), device, repeats) * 1e-12  # read and written

    result = {"gemm_tflops": round(gemm, 3), "copy_tbps": round(copy, 4)}
    print(f"{n}x{n}x{n} {dtype}: {gemm:.3f} TFLOP/s; copy of {count / 2**30:.2f} GiB: {copy:.4f} TB/s")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
