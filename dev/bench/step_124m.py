#!/usr/bin/env python3
"""One training update of GPT-2 124M on the CPU: PyTorch and the engine in turn, on the same cores.

    python3 dev/bench/step_124m.py [--rounds 3] [--steps 4] [--compile]

B = 4, T = 64, fp32, AdamW, clipping at 1, all weights at std 0.02. Each round runs PyTorch and then the engine, each as
a program of its own; a round's time is the minimum (and median) over its updates, the first left out.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

import engine

HERE = os.path.dirname(os.path.abspath(__file__))
ENV = {"OMP_WAIT_POLICY": "passive"}  # idle threads of one library must not spin against the other's


def torch_round(options, compiled):
    command = [sys.executable, os.path.join(HERE, "torch_gpt2.py"), "--device", "cpu", "--model", options.model,
               "--batch", str(options.batch), "--seq", str(options.seq), "--dtype", "fp32", "--init", "normal02",
               "--adamw", options.adamw, "--warmup", "1", "--steps", str(options.steps)]  # fmt: skip
    run = subprocess.run(command + ["--compile"] * compiled, capture_output=True, text=True, env={**os.environ, **ENV})
    if run.returncode:
        raise SystemExit(f"PyTorch: {run.stderr.strip().splitlines()[-1]}")
    return json.loads(run.stdout.splitlines()[-1])["ms_all"]


def engine_round(options, scratch, shard):
    args = ["--model", options.model, "--init", "normal02", "--batch", options.batch, "--seq", options.seq,
            "--steps", options.steps + 1, "--schedule", "constant", "--warmup", 0, "--train", shard]  # fmt: skip
    events = engine.steps_of(engine.train(options.program, os.path.join(scratch, "run"), args, ENV))
    return [event["ms"] for event in events[1:]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="timed updates a round")
    parser.add_argument("--adamw", choices=["fused", "foreach"], default="fused", help="PyTorch's (fused is the faster)")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument("--program", default=engine.program(), help="train_gpt2, an fp32 CPU build")
    parser.add_argument("--only", choices=["torch", "engine"], help="run one side alone")
    parser.add_argument("--scratch", help="folder for the runs (checkpoints of 1.5 GB are written and deleted)")
    options = parser.parse_args()

    sides = {}
    if options.only != "engine":
        sides["PyTorch, eager"] = lambda: torch_round(options, False)
        if options.compile:
            sides["PyTorch, compiled"] = lambda: torch_round(options, True)
    scratch = tempfile.mkdtemp(prefix="step_124m_", dir=options.scratch)
    try:
        if options.only != "torch":
            shard = os.path.join(scratch, "train.bin")
            engine.synthetic_shard(shard, (options.steps + 2) * options.batch * options.seq + 1, 256)
            sides["this engine"] = lambda: engine_round(options, scratch, shard)
        times = {name: [] for name in sides}
        for number in range(1, options.rounds + 1):
            for name, run in sides.items():
                ms = run()
                times[name].append(ms)
                print(f"round {number}  {name:18} min {min(ms):7.0f} ms   median {statistics.median(ms):7.0f} ms", flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)

    print(f"\n{options.model}, B={options.batch} T={options.seq} fp32, one update, {os.cpu_count()} cores:")
    best = {}
    for name, rounds in times.items():
        flat = [ms for part in rounds for ms in part]
        best[name] = (min(flat), statistics.median(flat))
        print(f"  {name:18} min {best[name][0]:7.0f} ms   median {best[name][1]:7.0f} ms")
    ours = best.get("this engine")
    for name, (low, middle) in best.items():
        if ours and name != "this engine":
            print(f"  engine / {name}: {ours[0] / low:.3f} (min)  {ours[1] / middle:.3f} (median)")


if __name__ == "__main__":
    main()
