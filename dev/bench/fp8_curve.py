#!/usr/bin/env python3
"""Loss curves of a small GPT-2 with products in fp32, bf16 and fp8, on a CPU: does the recipe of kernels/fp8.cuh train?

    python3 dev/bench/fp8_curve.py --text input.txt [--steps 300] [--seeds 3] [--json FILE]

The model of torch_gpt2.py at gpt2-nano's size on the bytes of a text, one tenth kept for validation. What the layers'
linear maps read is rounded, forward (input, weight) and backward (gradient of the output), and what they give is
rounded to bf16; the head and everything else stay in fp32. fp8 is e4m3 forward, e5m2 backward, with a power-of-two
scale per tensor from the largest number of the last 16 updates, and current scaling in the first. A seed draws the same
weights and batches for every kind of product.
"""

import argparse
import json
import math
import statistics

import numpy as np
import torch

from torch_gpt2 import PRESETS, Gpt2, make_optimizer, update

HISTORY = 16
BATCH, LR, FINAL, WARMUP = 16, 1e-3, 0.1, 30


class Fp8:
    """One tensor's delayed scaling; calling it quantizes and widens again."""

    def __init__(self, kind):
        self.kind, self.largest, self.history, self.scale = kind, torch.finfo(kind).max, [], None

    def __call__(self, x):
        amax = float(x.detach().abs().max())
        if self.scale is None:
            self.set_scale(amax)
        self.history = [amax, *self.history][:HISTORY]
        q = (x * self.scale).clamp(-self.largest, self.largest).to(self.kind).float() / self.scale
        self.set_scale(max(self.history))
        return q

    def set_scale(self, amax):
        if amax > 0:
            self.scale = 2.0 ** math.floor(math.log2(self.largest / amax))
        elif self.scale is None:
            self.scale = 1.0


def to_bf16(x):
    return x.bfloat16().float()


def rounders(kind):
    """Of input, weight, output gradient, and of what comes out."""
    if kind == "fp32":
        return [lambda x: x] * 4
    if kind == "bf16":
        return [to_bf16] * 4
    forward, backward = torch.float8_e4m3fn, torch.float8_e5m2
    return [Fp8(forward), Fp8(forward), Fp8(backward), to_bf16]


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, rounding):
        inp, weight, _, result = rounding
        x, w = inp(result(x)), weight(result(w))
        ctx.save_for_backward(x, w)
        ctx.rounding = rounding
        return result(x @ w.T)

    @staticmethod
    def backward(ctx, dy):
        (x, w), (_, _, gradient, result) = ctx.saved_tensors, ctx.rounding
        dy = gradient(result(dy))
        return result(dy @ w), dy.flatten(0, 1).T @ x.flatten(0, 1), None


def round_products(model, kind):
    for block in model.blocks:
        for module in (block.c_attn, block.attn_proj, block.c_fc, block.mlp_proj):
            rounding = rounders(kind)
            module.forward = lambda x, m=module, r=rounding: Product.apply(x, m.weight, r) + m.bias


def train(kind, seed, steps, text):
    torch.manual_seed(seed)
    layers, heads, channels, context, vocab = PRESETS["gpt2-nano"]
    model = Gpt2(layers, heads, channels, context, vocab)
    round_products(model, kind)
    optimizer = make_optimizer(model, LR, (0.9, 0.95), 0.1)
    parameters = list(model.parameters())
    cut = len(text) * 9 // 10

    def batch(generator, low, high):
        starts = torch.randint(low, high - context - 1, (BATCH,), generator=generator)
        rows = torch.stack([text[s : s + context + 1] for s in starts])
        return rows[:, :-1], rows[:, 1:]

    draw, losses = torch.Generator().manual_seed(seed), []
    for step in range(steps):
        rate = FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * max(0, step - WARMUP) / max(1, steps - WARMUP)))
        for group in optimizer.param_groups:
            group["lr"] = LR * min(rate, (step + 1) / WARMUP)
        loss, _ = update(model, parameters, optimizer, batch(draw, 0, cut))
        losses.append(loss.item())
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        validation = statistics.fmean(model(*batch(draw, cut, len(text))).item() for _ in range(20))
    return losses, validation


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json")
    options = parser.parse_args()
    text = torch.from_numpy(np.fromfile(options.text, dtype=np.uint8).astype(np.int64))
    results = {}
    for kind in ("fp32", "bf16", "fp8"):
        runs = [train(kind, seed, options.steps, text) for seed in range(options.seeds)]
        tail = [statistics.fmean(losses[-50:]) for losses, _ in runs]
        validation = [v for _, v in runs]
        results[kind] = {"last_50": tail, "validation": validation, "losses": [losses for losses, _ in runs]}
        print(f"{kind}: mean loss of the last 50 updates", *(f"{x:.4f}" for x in tail), "  validation",
              *(f"{x:.4f}" for x in validation), flush=True)  # fmt: skip
    for kind in ("fp32", "fp8"):
        differences = [a - b for a, b in zip(results[kind]["validation"], results["bf16"]["validation"])]
        print(f"{kind} - bf16, validation, seed by seed:", *(f"{x:+.4f}" for x in differences))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file)


if __name__ == "__main__":
    main()
