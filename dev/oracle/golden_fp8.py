#!/usr/bin/env python3
"""Regenerates tests/golden/fp8/cases.json and its tensors: what training with --fp8 does to two small models.

    python3 dev/oracle/golden_fp8.py               write the files
    python3 dev/oracle/golden_fp8.py --check       compute them again and compare
    python3 dev/oracle/golden_fp8.py --noise       how far float32 arithmetic alone is from them
    python3 dev/oracle/golden_fp8.py --search N    which of N first tokens keep values away from rounding boundaries

Where a value lies on a boundary, float32 may round it to the other side, and the change of one part in sixteen moves
every later value of its token. So each case begins at a token from which no value comes near one: 'margin' is the
smallest distance of any quantized value from a boundary, in 2^-24 of the root mean square of its row.

All but --search also hold the oracle against PyTorch's casts, and, with nothing rounded, against the plain network.
"""

import argparse
import json
import os
import sys

import numpy as np
import torch

import recipe
from files import read_safetensors, write_safetensors
from fp8 import E4M3, E5M2, Fp8Network, to_grid
from fp8_vectors import floats, points, random_bits
from model import Clock, Network
from rule_cases import gpt2, llama
from training import train

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "golden", "fp8")

SETTINGS = {"batch": 2, "seq": 8, "total_batch": 32, "steps": 4, "optimizer": "adamw", "lr": 0.05,
            "schedule": "constant", "warmup": 0, "beta1": 0.9, "beta2": 0.95, "eps": 0.0001, "weight_decay": 0.1,
            "grad_clip": 1.0, "decay": "2d"}  # fmt: skip

CASES = [
    {"name": "gpt2", "first_token": 1989, "what": "GPT-2: LayerNorm, biases, gelu_new, tied head",
     "config": gpt2(vocab_size=80, n_positions=8, n_ctx=8, n_embd=32, n_layer=2, n_inner=64, norm_scheme="pre",
                    residual="vanilla", residual_options={})},
    {"name": "llama", "first_token": 3997,
     "what": "LLaMA: RMSNorm, RoPE, two heads to a key and value, SwiGLU of 80 (stored: 128); "
             "a learned and a scheduled scalar on each branch",
     "config": llama(vocab_size=80, max_position_embeddings=8, hidden_size=32, intermediate_size=80,
                     num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, norm_scheme="pre",
                     residual="rezero+prores", residual_options={"T": 10}, residual_step=6)},
]  # fmt: skip


def run(case, network, dtype=torch.float64, first_token=None):
    config, s = case["config"], SETTINGS
    first = case["first_token"] if first_token is None else first_token
    args = [part for key, value in s.items() for part in ("--" + key.replace("_", "-"), str(value))]
    stream = recipe.tokens(s["steps"] * s["total_batch"] + 1, config["vocab_size"], first)
    start = recipe.weights(network.parameters())
    return train(config, [*args, "--no-shuffle"], start, [stream], dtype, network)


def evaluation(case, plain, final):
    """The loss of the first micro-batch after the last update, which is computed without 8 bits."""
    B, T, s = SETTINGS["batch"], SETTINGS["seq"], SETTINGS
    tokens = torch.from_numpy(recipe.tokens(B * T + 1, case["config"]["vocab_size"], case["first_token"]))
    parameters = {name: torch.from_numpy(values) for name, values in final.items()}
    clock = Clock(case["config"].get("residual_step", 0) + s["steps"], s["steps"] * s["total_batch"] // (B * T), True)
    return plain.loss(parameters, tokens[:-1].view(B, T), tokens[1:].view(B, T), clock).item()


def results(case, dtype=torch.float64):
    """({name: array}, the network) of one case."""
    network, plain = Fp8Network(case["config"]), Network(case["config"])
    out, without = run(case, network, dtype), run(case, plain, dtype)
    tensors = {"loss": np.array(out["loss"]), "grad_norm": np.array(out["grad_norm"]),
               "plain_loss": np.array(without["loss"]), "evaluation": np.array([evaluation(case, plain, out["final"])]),
               "scale": np.array([[scale for scale, _ in state] for state in network.states]),
               "history": np.array([[history for _, history in state] for state in network.states])}  # fmt: skip
    tensors |= {f"grad/{key}": g for key, g in out["grads"].items()}
    tensors |= {f"final/{key}": p for key, p in out["final"].items()}
    return tensors, network


def amax_is_clear(network):
    """No maximum so near a power of two's end that float32 could choose another scale."""
    for slot in network.slots:
        for amax in slot.history:
            if amax > 0:
                octaves = float(np.log2(slot.form.largest / amax))
                if abs(octaves - round(octaves)) < 1e-5:
                    return False
    return True


def listing(networks):
    """cases.json: settings, then one case a line."""
    lines = []
    for case, network in zip(CASES, networks, strict=True):
        L = network.arch.layers
        parts = {"input": network.slots[: 4 * L], "weight": network.slots[4 * L : 8 * L],
                 "gradient": network.slots[8 * L :]}  # fmt: skip
        found = {"margin": round(min(slot.margin for slot in network.slots), 1),
                 "values": {what: sum(slot.values for slot in slots) for what, slots in parts.items()},
                 "saturated": {what: sum(slot.saturated for slot in slots) for what, slots in parts.items()}}
        lines.append(json.dumps({**case, **found}))
    return '{"settings": ' + json.dumps(SETTINGS) + ',\n"cases": [\n' + ",\n".join(lines) + "\n]}\n"


def check_grid():
    """The grid against PyTorch's casts: numbers halfway between two neighbours, those beside them, and random ones."""
    with np.errstate(invalid="ignore"):
        anything = floats(random_bits(1 << 20, 8))
    for form, kind in ((E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)):
        x = torch.from_numpy(np.concatenate([points(kind), anything]))
        x = torch.cat([x[torch.isfinite(x)], -x[torch.isfinite(x)]])
        want = x.clamp(-form.largest, form.largest).to(kind).double()
        if not torch.equal(to_grid(x.double(), form), want):
            raise SystemExit(f"{form.name}: the oracle's grid is not PyTorch's")


def check_untouched(case):
    """With 8 bits that hold everything the network must be the plain one."""
    got, want = (run(case, network) for network in (Fp8Network(case["config"], False), Network(case["config"])))
    for key in ("grads", "final"):
        for name, b in want[key].items():
            if not np.allclose(got[key][name], b, rtol=1e-9, atol=1e-13):
                raise SystemExit(f"{case['name']}: {key} of {name} differ without rounding")


def differences(got, want):
    """{what: (largest relative difference, where)}"""
    if set(got) != set(want):
        raise SystemExit("the file names other tensors")
    found = {}
    for name, b in want.items():
        b = b.astype("f8")
        scale = float(np.linalg.norm(b)) + (1e-7 * float(want["grad_norm"][0]) if name.startswith("grad/") else 1e-30)
        kind = name.split("/")[0]
        found[kind] = max(found.get(kind, (0.0, "")), (float(np.linalg.norm(got[name] - b)) / scale, name))
    return found


def search(case, count):
    """The first tokens with the largest margins."""
    best = []
    for first in range(count):
        network = Fp8Network(case["config"])
        run(case, network, first_token=first)
        if amax_is_clear(network):
            best.append((min(slot.margin for slot in network.slots), first))
    for margin, first in sorted(best, reverse=True)[:5]:
        print(f"{case['name']}: first_token {first} has margin {margin:.1f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="only compare with the files that are there")
    parser.add_argument("--noise", action="store_true", help="compare float32 arithmetic with the files")
    parser.add_argument("--search", type=int, metavar="N", help="try first tokens 0 .. N-1")
    parser.add_argument("--root", default=ROOT, help="folder of the files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.search:
        for case in CASES:
            search(case, options.search)
        return
    check_grid()
    networks, same = [], True
    for case in CASES:
        check_untouched(case)
        tensors, network = results(case, torch.float32 if options.noise else torch.float64)
        if not amax_is_clear(network):
            raise SystemExit(f"{case['name']}: a largest number is at the end of a power of two")
        networks.append(network)
        path = os.path.join(options.root, case["name"] + ".safetensors")
        if not (options.check or options.noise):
            write_safetensors(path, tensors)
            continue
        for what, (value, where) in differences(tensors, read_safetensors(path)).items():
            if options.noise or value > 1e-6:
                print(f"{case['name']}: {what:10} relative difference {value:.1e} at {where}")
            same = same and (options.noise or value <= 1e-6)
    path, text = os.path.join(options.root, "cases.json"), listing(networks)
    if not (options.check or options.noise):
        with open(path, "w") as file:
            file.write(text)
    elif options.check:
        with open(path) as file:
            if file.read() != text:
                print("cases.json lists other cases")
                same = False
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
