#!/usr/bin/env python3
"""Regenerates the golden cases under tests/golden: small whole models with what their updates must do to them.

    python3 dev/oracle/golden.py             write them all
    python3 dev/oracle/golden.py --check     compute them again and compare with what is there

Weights and tokens come from a generator defined here, so that the files are a function of this program alone.
"""

import argparse
import os
import sys

import numpy as np
import torch

from files import read_case, write_json, write_safetensors, write_shard
from run import check, write_expected
from training import train

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "golden")

BASE = {"--optimizer": "adamw", "--lr": 0.005, "--schedule": "constant", "--warmup": 0, "--beta1": 0.9, "--beta2": 0.95,
        "--eps": 0.0001, "--weight-decay": 0.1, "--grad-clip": 1.0}  # fmt: skip

# shards: (tokens, uint32?) each.  args: what differs from BASE.
CASES = {
    "gpt2_tied": {
        "what": "GPT-2 as it is: tied head, gelu_new, biases; vocabulary 61",
        "model": {"vocab_size": 61, "n_positions": 12, "n_embd": 16, "n_layer": 3, "n_head": 2},
        "args": {"--batch": 3, "--seq": 12, "--total-batch": 36, "--steps": 5},
        "shards": [(200, False)],
    },
    "gpt2_untied_nobias": {
        "what": "untied head, exact GELU, no biases in maps and norms; sequences shorter than the context",
        "model": {"vocab_size": 47, "n_positions": 16, "n_embd": 16, "n_layer": 3, "n_head": 2,
                  "activation_function": "gelu", "tie_word_embeddings": False, "bias": False},
        "args": {"--batch": 2, "--seq": 9, "--total-batch": 18, "--steps": 5, "--decay": "all", "--grad-clip": 0},
        "shards": [(100, False)],
    },
    "gpt2_accumulate_cosine": {
        "what": "ffn of 100, two micro-batches per update, warm-up and cosine, clipping in every update",
        "model": {"vocab_size": 53, "n_positions": 10, "n_embd": 16, "n_layer": 2, "n_head": 1, "n_inner": 100},
        "args": {"--batch": 2, "--seq": 10, "--total-batch": 40, "--steps": 6, "--lr": 0.01, "--schedule": "cosine",
                 "--warmup": 2, "--final-lr-ratio": 0.2, "--beta2": 0.99, "--grad-clip": 0.5},
        "shards": [(300, False)],
    },
    "gpt2_head24_shards": {
        "what": "heads of 24, T = 11, two shards (uint16, uint32) whose ends fall inside the run; norm epsilon 1e-3",
        "model": {"vocab_size": 19, "n_positions": 11, "n_embd": 48, "n_layer": 1, "n_head": 2, "n_inner": 20,
                  "layer_norm_epsilon": 1e-3},
        "args": {"--batch": 3, "--seq": 11, "--total-batch": 33, "--steps": 6, "--decay": "matrix",
                 "--weight-decay": 0.5},
        "shards": [(90, False), (67, True)],
    },
}  # fmt: skip


class Random:
    """splitmix64 and Box-Muller: the same numbers with every version of Python and numpy."""

    def __init__(self, seed):
        self.state = seed

    def bits(self, count):
        with np.errstate(over="ignore"):
            z = np.uint64(self.state) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            self.state = int(z[-1])
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    def uniform(self, count):
        return (self.bits(count) >> np.uint64(11)).astype("f8") * 2.0**-53

    def normal(self, shape):
        count = int(np.prod(shape))
        radius = np.sqrt(-2 * np.log(1 - self.uniform(count)))
        return (radius * np.cos(2 * np.pi * self.uniform(count))).reshape(shape)


def gpt2_config(model):
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_inner": None,
              "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "attn_pdrop": 0.0, "embd_pdrop": 0.0,
              "resid_pdrop": 0.0, "tie_word_embeddings": True, "norm_scheme": "pre", "residual": "vanilla",
              "residual_options": {}}  # fmt: skip
    config.update(model)
    config["n_ctx"] = config["n_positions"]
    return config


def gpt2_shapes(config):
    V, P, C, bias = config["vocab_size"], config["n_positions"], config["n_embd"], config.get("bias", True)
    F = config["n_inner"] or 4 * C
    shapes = {"wte.weight": (V, C), "wpe.weight": (P, C)}

    def vectors(name, size, with_gain=False):
        if with_gain:
            shapes[name + ".weight"] = (size,)
        if bias:
            shapes[name + ".bias"] = (size,)

    for i in range(config["n_layer"]):
        for norm, maps in (("ln_1", (("attn.c_attn", C, 3 * C), ("attn.c_proj", C, C))),
                           ("ln_2", (("mlp.c_fc", C, F), ("mlp.c_proj", F, C)))):  # fmt: skip
            vectors(f"h.{i}.{norm}", C, with_gain=True)
            for name, rows, cols in maps:
                shapes[f"h.{i}.{name}.weight"] = (rows, cols)
                vectors(f"h.{i}.{name}", cols)
    vectors("ln_f", C, with_gain=True)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (V, C)
    return shapes


def weights(shapes, random):
    """Every parameter away from its initial value, large enough that attention is far from uniform."""
    out = {}
    for name, shape in shapes.items():
        draw = random.normal(shape)
        if name.startswith(("wte", "wpe", "lm_head")):
            values = 0.5 * draw
        elif len(shape) == 2:
            values = draw * 1.2 / np.sqrt(shape[0])
        elif name.endswith(".bias"):
            values = 0.1 * draw
        else:
            values = 1 + 0.2 * draw
        out[name] = values.astype("f4")
    return out


def write_inputs(folder, name, case, seed):
    """config.json, model.safetensors and the shards; returns the fields of expected.json that are not results."""
    random = Random(seed)
    config = gpt2_config(case["model"])
    write_json(os.path.join(folder, "config.json"), config)
    write_safetensors(os.path.join(folder, "model.safetensors"), weights(gpt2_shapes(config), random))
    for i, (count, wide) in enumerate(case["shards"]):
        # squared uniforms: a skewed distribution, so that there is something to learn
        tokens = np.floor(random.uniform(count) ** 2 * config["vocab_size"]).astype(int)
        shard = "train.bin" if len(case["shards"]) == 1 else f"train_{i:06d}.bin"
        write_shard(os.path.join(folder, shard), tokens, wide)
    settings = {**BASE, **case["args"]}
    args = [str(part) for pair in settings.items() for part in pair] + ["--no-shuffle"]
    return {"case": name, "what": case["what"], "args": args}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="only compare with the files that are there")
    parser.add_argument("--root", default=ROOT, help="folder of the cases")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ok = True
    for seed, (name, case) in enumerate(CASES.items(), start=1):
        folder = os.path.join(options.root, name)
        if not options.check:
            os.makedirs(folder, exist_ok=True)
            fields = write_inputs(folder, name, case, seed)
            write_json(os.path.join(folder, "expected.json"), fields)
        config, expected, start, shards = read_case(folder)
        out = train(config, expected["args"], start, shards)
        if options.check:
            ok = check(folder, expected, out) and ok
        else:
            write_expected(folder, fields, out)
            print(f"{name}: loss {out['loss'][0]:.4f} -> {out['loss'][-1]:.4f}, norms",
                  " ".join(f"{value:.2f}" for value in out["grad_norm"]))  # fmt: skip
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
