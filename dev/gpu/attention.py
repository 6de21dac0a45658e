#!/usr/bin/env python3
"""Causal attention on one card: the engine's kernels beside PyTorch's best scaled_dot_product_attention.

A grid of batch, length and head size at 16k tokens, bf16, random normal inputs. PyTorch's time is the best of its flash and
cuDNN backends, per direction; ours is what `bench --kernel attention` measures. TFLOP/s count the causal half of two
products forward, 4 T^2 HS NH B / 2, and 2.5 times that backward. The gate is a ratio of at least 1 everywhere.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

# batch, length, heads, head size: 16k tokens, 768 or 2048 channels
GRID = [(16, 1024, 12, 64), (8, 2048, 12, 64), (4, 4096, 12, 64), (2, 8192, 12, 64), (16, 1024, 16, 128),
        (8, 2048, 16, 128), (4, 4096, 16, 128), (2, 8192, 16, 128), (1, 1000, 12, 64), (3, 777, 16, 128)]
REHEARSAL = [(1, 64, 2, 64)]


def flops(B, T, NH, HS):
    return 4.0 * T * T * HS * NH * B / 2


def torch_times(shape):
    """Best (forward, backward) in microseconds over the backends that take the shape, and their names."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    B, T, NH, HS = shape
    best = [(float("inf"), ""), (float("inf"), "")]
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
        q, k, v = (torch.randn(B, NH, T, HS, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        dout = torch.randn_like(q)
        try:
            with sdpa_kernel([backend]):
                run = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
                out = run()
                forward = median_us(run)
                backward = median_us(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))
        except RuntimeError as error:  # a backend that this shape or card has not
            print(f"  {name}: {str(error).splitlines()[0]}")
            continue
        for i, time in enumerate((forward, backward)):
            best[i] = min(best[i], (time, name))
    return best


def median_us(run, repeats=30):
    import torch

    for _ in range(5):
        run()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return sorted(times)[repeats // 2]


def engine_times(build, shape):
    """{kernel: microseconds}: attention_forward, attention_backward, and *_portable where the card has kernels of its own."""
    B, T, NH, HS = shape
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "bench.json")
        subprocess.run([os.path.join(build, "bench"), "--kernel", "attention", "--shape", f"{B},{T},{NH * HS},{NH}",
                        "--json", path], check=True, stdout=subprocess.DEVNULL)
        with open(path) as file:
            rows = json.load(file)
    return {row["name"]: row["us"] for row in rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build/cuda-bf16", help="folder of bench")
    parser.add_argument("--backend", default="cuda", choices=["cuda", "cpu"], help="cpu: a rehearsal, one tiny shape, no PyTorch")
    parser.add_argument("--json", help="write the table here")
    args = parser.parse_args()
    table, slower = [], 0
    for shape in GRID if args.backend == "cuda" else REHEARSAL:
        ours = engine_times(args.build, shape)
        theirs = torch_times(shape) if args.backend == "cuda" else [(float("nan"), "none")] * 2
        for i, direction in enumerate(("forward", "backward")):
            us, work = ours[f"attention_{direction}"], flops(*shape) * (1, 2.5)[i]
            portable = ours.get(f"attention_{direction}_portable")
            row = {"shape": "B=%d T=%d NH=%d HS=%d" % shape, "direction": direction, "us": us, "tflops": work / us / 1e6}
            if args.backend == "cuda":
                row |= {"pytorch_us": theirs[i][0], "pytorch_backend": theirs[i][1], "ratio": theirs[i][0] / us}
                slower += row["ratio"] < 1
            if portable:
                row["portable_us"] = portable
            table.append(row)
            print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{value}" for key, value in row.items()))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(table, file, indent=1)
    if slower:
        print(f"{slower} of {len(table)} are slower than PyTorch's best backend")
    return 0


if __name__ == "__main__":
    sys.exit(main())
