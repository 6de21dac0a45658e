#!/usr/bin/env python3
"""Training speed of whole models on synthetic tokens: the engine and, in the same run, PyTorch.

PyTorch's side is dev/bench/torch_gpt2.py: compiled, flash attention, fused AdamW, bf16 autocast, with the vocabulary
padded to 50304 as its users do for speed. Results are written after each side, so an interrupted run keeps what it has.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
BENCH = os.path.join(HERE, "..", "bench")
sys.path.append(BENCH)
import engine  # noqa: E402  (the path to it is set just above)

# name -> batch, length, timed updates, seconds a side may take
SIZES = {"cuda": {"gpt2": (32, 1024, 40, 130), "gpt2-medium": (32, 1024, 25, 150)}, "cpu": {"gpt2-nano": (4, 64, 8, 120)}}
WARMUP = 5  # updates that are not timed


class PeakMemory:
    """The most device memory in use, sampled from outside the program; None where there is no GPU to ask."""

    def __init__(self, wanted):
        self.base = self.ask() if wanted else None
        self.peak = self.base
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    @staticmethod
    def ask():
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
        try:
            return float(subprocess.run(command, capture_output=True, text=True, timeout=10).stdout) / 1024
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return None

    def watch(self):
        while not self.stop.wait(0.25):
            now = self.ask()
            self.peak = max(self.peak, now) if now is not None else self.peak

    def __enter__(self):
        if self.base is not None:
            self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        if self.base is not None:
            self.thread.join()

    def gib(self):
        return None if self.base is None else self.peak - self.base


def run_engine(options, name, batch, seq, steps, scratch, seconds):
    shard = os.path.join(scratch, "train.bin")
    out = os.path.join(scratch, "run")
    vocab = 256 if name == "gpt2-nano" else 50257
    engine.synthetic_shard(shard, 8 * batch * seq + 1, vocab)
    command = [engine.program(options.backend, options.precision), "--model", name, "--train", shard, "--batch", str(batch),
               "--seq", str(seq), "--steps", str(WARMUP + steps), "--schedule", "constant", "--warmup", "0",
               "--out", out]  # fmt: skip
    with PeakMemory(options.backend == "cuda") as memory:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=seconds)
    updates = engine.steps_of(engine.read_log(os.path.join(out, "log.jsonl")))[WARMUP:]
    shutil.rmtree(scratch, ignore_errors=True)
    result = {"tokens_per_s": batch * seq * 1e3 / statistics.median(event["ms"] for event in updates)}
    mfu = [event["mfu"] for event in updates if isinstance(event.get("mfu"), (int, float))]
    if mfu:
        result["mfu"] = statistics.median(mfu)
    if memory.gib() is not None:
        result["peak_gib"] = memory.gib()
    return result


def run_torch(options, name, batch, seq, steps, seconds):
    command = [sys.executable, os.path.join(BENCH, "torch_gpt2.py"), "--model", name, "--batch", str(batch), "--seq",
               str(seq), "--steps", str(steps), "--warmup", str(WARMUP), "--device", options.backend, "--dtype",
               options.precision]  # fmt: skip
    if options.backend == "cuda":
        command += ["--compile", "--vocab", "50304"]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=seconds)
    result = json.loads(run.stdout.splitlines()[-1])
    out = {"pytorch_tokens_per_s": result["tokens_per_s"]}
    if "peak_gib" in result:
        out["pytorch_peak_gib"] = result["peak_gib"]
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--model", action="append", help="only this model; repeatable")
    parser.add_argument("--json", help="write the numbers here")
    options = parser.parse_args()
    results, failed = {}, False
    for name, (batch, seq, steps, seconds) in SIZES[options.backend].items():
        if options.model and name not in options.model:
            continue
        results[name] = {"batch": batch, "seq": seq, "dtype": options.precision}
        scratch = tempfile.mkdtemp(prefix="models_")
        sides = {"engine": lambda: run_engine(options, name, batch, seq, steps, scratch, seconds),
                 "PyTorch": lambda: run_torch(options, name, batch, seq, steps, seconds)}  # fmt: skip
        for side, run in sides.items():
            try:
                numbers = run()
            except (subprocess.SubprocessError, OSError, SystemExit, ValueError) as error:
                print(f"{name}: {side} gave no number: {error}", flush=True)
                failed = True
                continue
            results[name].update(numbers)
            print(f"{name} B={batch} T={seq} {options.precision}, {side}: "
                  + ", ".join(f"{key} {value:.4g}" for key, value in numbers.items()), flush=True)  # fmt: skip
            if options.json:
                with open(options.json, "w") as file:
                    json.dump(results, file, indent=1)
        shutil.rmtree(scratch, ignore_errors=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
