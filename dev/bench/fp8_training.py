#!/usr/bin/env python3
"""Does --fp8 train as well as the build's own precision, and how much faster? The engine's loss curves on a text.

    python3 dev/bench/fp8_training.py --text input.txt [--build build/cpu-bf16] [--steps 300] [--seeds 3]
    python3 dev/bench/fp8_training.py --text input.txt --build build/cuda-bf16 --model gpt2-medium --batch 32 --seq 1024

A text becomes bytes, one tenth held out; --train and --val name shards instead. A seed draws the same weights and
batches with and without --fp8, so that the two runs differ in rounding alone. What this script does not know goes to
train_gpt2 as it is. Losses: the mean of the last 50 updates, and the whole validation split, which both sides read in
the build's precision. Noise is what another seed changes: the standard deviation over the seeds; the mean difference
comes with its standard error; of one seed both are nan. fp8_curve.py emulates the same recipe in PyTorch.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import tempfile

import engine

ENV = {"OMP_WAIT_POLICY": "passive"}
LAST = 50


def prepare(options, folder):
    """The shards of the text, as options of train_gpt2."""
    if not options.text:
        return ["--train", options.train, "--val", options.val]
    command = [os.path.join(options.build, "tokenize"), options.text, "--out", os.path.join(folder, "text")]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)}: {run.stdout.strip()}")
    return ["--train", os.path.join(folder, "text_train_*.bin"), "--val", os.path.join(folder, "text_val_*.bin")]


def train(options, model, seed, data, folder, fp8):
    args = ["--model", model, "--batch", options.batch, "--seq", options.seq, "--steps", options.steps, "--seed", seed,
            "--lr", options.lr, *data, *options.more, *["--fp8"] * fp8]  # fmt: skip
    out = os.path.join(folder, "run")
    events = engine.train(os.path.join(options.build, "train_gpt2"), out, args, ENV)
    shutil.rmtree(out, ignore_errors=True)
    steps = engine.steps_of(events)
    return {
        "precision": "fp8" if fp8 else events[0]["precision"],
        "losses": [event["loss"] for event in steps],
        "last_50": statistics.fmean(event["loss"] for event in steps[-LAST:]),
        "validation": [event for event in events if event["event"] == "val"][-1]["loss"],
        "tokens_per_s": options.batch * options.seq * 1e3 / statistics.median(event["ms"] for event in steps),
    }


def show(name, seed, side):
    print(f"{name}, seed {seed}, {side['precision']}: last {LAST} updates {side['last_50']:.4f}, validation "
          f"{side['validation']:.4f}, {side['tokens_per_s']:.0f} tokens/s", flush=True)  # fmt: skip


def spread(values):
    return statistics.stdev(values) if len(values) > 1 else math.nan


def compare(name, pairs):
    """Prints the differences and returns what a table keeps."""
    base, precision = [wide for wide, _ in pairs], pairs[0][0]["precision"]
    result = {"speedup": statistics.median(narrow["tokens_per_s"] / wide["tokens_per_s"] for wide, narrow in pairs)}
    for key, words in (("last_50", f"last {LAST} updates"), ("validation", "validation")):
        differences = [narrow[key] - wide[key] for wide, narrow in pairs]
        result[f"{key}_difference"] = statistics.fmean(differences)
        print(f"{name}, fp8 - {precision}, {words}: {result[key + '_difference']:+.4f} +- "
              f"{spread(differences) / math.sqrt(len(pairs)):.4f} (seed by seed "
              f"{' '.join(f'{x:+.4f}' for x in differences)}); spread of {precision} over the seeds "
              f"{spread([side[key] for side in base]):.4f}")  # fmt: skip
    print(f"{name}, fp8 / {precision}: {result['speedup']:.3f} times the tokens/s", flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False,
                                     epilog="Every other option goes to train_gpt2 as it is.")  # fmt: skip
    parser.add_argument("--text", help="train on its bytes")
    parser.add_argument("--train", help="shards to train on, in place of a text")
    parser.add_argument("--val", help="shards to validate on")
    parser.add_argument("--build", default=os.path.join(engine.ROOT, "build", "cpu-bf16"), help="the programs' folder")
    parser.add_argument("--model", action="append", help="a preset; repeatable [gpt2-nano]")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seq", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", help="write numbers and curves here, after every run")
    options, options.more = parser.parse_known_args()
    if bool(options.text) == bool(options.train and options.val):
        parser.error("either --text, or --train and --val")
    folder, results = tempfile.mkdtemp(prefix="fp8_training_"), {}
    try:
        data = prepare(options, folder)
        for name in options.model or ["gpt2-nano"]:
            pairs = []
            result = results[name] = {key: getattr(options, key) for key in ("batch", "seq", "steps")}
            result["seeds"] = pairs
            for seed in range(1, options.seeds + 1):
                pairs.append([])
                for fp8 in (False, True):
                    pairs[-1].append(train(options, name, seed, data, folder, fp8))
                    show(name, seed, pairs[-1][-1])
                    if fp8 and seed == options.seeds:
                        result.update(compare(name, pairs))
                    if options.json:
                        with open(options.json, "w", encoding="utf-8") as file:
                            json.dump(results, file)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
