#!/usr/bin/env python3
"""nanoGPT's demonstration on the CPU, in PyTorch and in the engine: the same settings, updates and validation tokens.

    python3 dev/bench/nanogpt_cpu.py --text input.txt

4 layers, 4 heads, 128 channels, context 64, batch 12, 2000 updates, characters of a small text split 9:1, no dropout, no
biases, tied head; AdamW 0.9/0.99, decay 0.1, clip 1, 1e-3 with 100 updates of warm-up and a cosine to 1e-4. PyTorch draws
windows at random offsets as nanoGPT does, the engine shuffles windows as it always does. Both read the whole validation
split in windows of 64. Time per update: the median, and the best median over 100 updates in a row, which a
busy machine disturbs less.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

import engine

ENV = {"OMP_WAIT_POLICY": "passive"}
LAYERS, HEADS, CHANNELS, CONTEXT, BATCH = 4, 4, 128, 64, 12
LR, FINAL, WARMUP, BETAS, DECAY, CLIP = 1e-3, 0.1, 100, (0.9, 0.99), 0.1, 1.0


def prepare(text_path, folder):
    """Writes the two shards; returns the number of distinct characters."""
    with open(text_path, encoding="utf-8") as file:
        text = file.read()
    characters = sorted(set(text))
    index = {c: i for i, c in enumerate(characters)}
    ids = np.array([index[c] for c in text])
    cut = int(0.9 * len(ids))
    engine.write_shard(os.path.join(folder, "train.bin"), ids[:cut])
    engine.write_shard(os.path.join(folder, "val.bin"), ids[cut:])
    print(f"{text_path}: {len(ids):,} characters, {len(characters)} distinct, {cut:,} to train on", flush=True)
    return len(characters)


def torch_side(folder, vocab, options):
    """Runs in a process of its own; prints one JSON line."""
    import torch

    from files import read_shard
    from torch_gpt2 import Gpt2, make_optimizer, update

    torch.manual_seed(options.seed)
    train, val = (torch.from_numpy(read_shard(os.path.join(folder, f"{part}.bin"))) for part in ("train", "val"))
    model = Gpt2(LAYERS, HEADS, CHANNELS, CONTEXT, vocab, bias=False)
    forward = torch.compile(model) if options.compile else model
    optimizer = make_optimizer(model, LR, BETAS, DECAY)
    parameters = list(model.parameters())

    def rate(t):
        if t < WARMUP:
            return LR * (t + 1) / WARMUP
        x = (t - WARMUP) / (options.steps - WARMUP)
        return LR * (FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * x)))

    def validate():
        total, count, span = 0.0, 0, BATCH * CONTEXT
        with torch.no_grad():
            for start in range(0, len(val) - span, span):
                window = val[start : start + span + 1]
                total += model(window[:-1].view(BATCH, CONTEXT), window[1:].view(BATCH, CONTEXT)).item()
                count += 1
        return total / count

    times = []
    for t in range(options.steps):
        begin = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate(t)
        offsets = torch.randint(len(train) - CONTEXT, (BATCH,)).tolist()
        inputs = torch.stack([train[i : i + CONTEXT] for i in offsets])
        targets = torch.stack([train[i + 1 : i + 1 + CONTEXT] for i in offsets])
        loss, _ = update(forward, parameters, optimizer, (inputs, targets), CLIP)
        loss.item()
        times.append(1e3 * (time.perf_counter() - begin))
    print(json.dumps({"val": validate(), "ms": times}))


def torch_run(folder, vocab, options):
    command = [sys.executable, os.path.abspath(__file__), "--torch-side", folder, "--vocab", str(vocab), "--steps",
               str(options.steps), "--seed", str(options.seed)] + ["--compile"] * options.compile  # fmt: skip
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **ENV})
    if run.returncode:
        raise SystemExit("the PyTorch side failed")
    return json.loads(run.stdout.splitlines()[-1])


def engine_run(folder, vocab, options):
    args = ["--model", "gpt2-nano", "--layers", LAYERS, "--heads", HEADS, "--channels", CHANNELS, "--context", CONTEXT,
            "--vocab", vocab, "--ffn", 4 * CHANNELS, "--no-bias", "--init", "gpt2_scaled", "--batch", BATCH,
            "--seq", CONTEXT, "--steps", options.steps, "--seed", options.seed, "--lr", LR, "--schedule", "cosine",
            "--warmup", WARMUP, "--final-lr-ratio", FINAL, "--beta1", BETAS[0], "--beta2", BETAS[1],
            "--weight-decay", DECAY, "--grad-clip", CLIP, "--train", os.path.join(folder, "train.bin"),
            "--val", os.path.join(folder, "val.bin"), "--val-every", 0, "--val-batches", 0]  # fmt: skip
    events = engine.train(options.program, os.path.join(folder, "run"), args, ENV)
    return {"val": [event for event in events if event["event"] == "val"][-1]["loss"],
            "ms": [event["ms"] for event in engine.steps_of(events)]}  # fmt: skip


def best_block(ms, length=100):
    ms = ms[min(10, len(ms) // 2) :]  # the first updates warm things up
    starts = range(0, max(1, len(ms) - length + 1), length)
    return min(statistics.median(ms[i : i + length]) for i in starts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", help="a small corpus in UTF-8, such as tiny Shakespeare")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--compile", action="store_true", help="torch.compile the PyTorch side")
    parser.add_argument("--program", default=engine.program(), help="train_gpt2, an fp32 CPU build")
    parser.add_argument("--only", choices=["torch", "engine"], help="run one side alone")
    parser.add_argument("--torch-side", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--vocab", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.torch_side:
        torch_side(options.torch_side, options.vocab, options)
        return
    if not options.text:
        parser.error("--text is missing")
    sides = {"PyTorch": torch_run, "engine": engine_run}
    if options.only:
        sides = {name: run for name, run in sides.items() if name.lower().endswith(options.only)}
    folder = tempfile.mkdtemp(prefix="nanogpt_cpu_")
    results = {}
    try:
        vocab = prepare(options.text, folder)
        for name, run in sides.items():
            begin = time.perf_counter()
            results[name] = r = run(folder, vocab, options)
            print(f"{name:8} validation loss {r['val']:.4f}   {statistics.median(r['ms']):6.1f} ms an update (median), "
                  f"{best_block(r['ms']):6.1f} ms (best 100)   {time.perf_counter() - begin:.0f} s in all", flush=True)  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if len(results) == 2:
        ours, theirs = results["engine"], results["PyTorch"]
        print(f"engine / PyTorch: {statistics.median(ours['ms']) / statistics.median(theirs['ms']):.3f} of the time (median), "
              f"{best_block(ours['ms']) / best_block(theirs['ms']):.3f} (best 100); "
              f"loss {ours['val'] - theirs['val']:+.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
