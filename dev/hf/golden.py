#!/usr/bin/env python3
"""Regenerates tests/golden/hf: folders as transformers itself writes them, with what its models compute from them.

    python3 dev/hf/golden.py             write them all
    python3 dev/hf/golden.py --check     compute the results again and compare with what is there

Weights and tokens follow dev/oracle/recipe.py. Each folder has, beside transformers' files,

    train.bin        a token shard
    expected.json    logits behind a few prefixes of `tokens`, and the loss and gradient norm of every update that
                     torch's AdamW makes of the model (`args`: the same for train_gpt2)

all in float64, as far as transformers lets it: LLaMA's norms and rotary angles are float32 there.
"""

import argparse
import json
import os
import shutil
import sys

import numpy as np
import torch
import transformers

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.path.append(os.path.join(ROOT, "dev", "oracle"))
import recipe
from files import read_shard, write_json, write_shard
from model import Network
from training import parse_args

GPT2 = {"vocab_size": 61, "n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 60,
        "eos_token_id": 60}  # fmt: skip
LLAMA = {"vocab_size": 61, "max_position_embeddings": 12, "hidden_size": 32, "intermediate_size": 44,
         "num_hidden_layers": 2, "num_attention_heads": 4}  # fmt: skip
# kind, what differs in the configuration, dtype of the file, size of a shard of it
CASES = {
    "gpt2_tied": ("GPT2", GPT2, "float32", None),
    "gpt2_untied_fp16": ("GPT2", {**GPT2, "tie_word_embeddings": False, "activation_function": "gelu", "n_inner": 40,
                                  "layer_norm_epsilon": 1e-3}, "float16", None),
    "llama_grouped_sharded": ("Llama", {**LLAMA, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_parameters":
                                        {"rope_type": "default", "rope_theta": 5e5}}, "float32", "20KB"),
    "llama_tied_bf16": ("Llama", {**LLAMA, "tie_word_embeddings": True}, "bfloat16", None),
}  # fmt: skip
CLASSES = {"GPT2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
           "Llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM)}  # fmt: skip
PREFIXES = [1, 2, 7, 12]
ARGS = ["--batch", "2", "--seq", "12", "--steps", "5", "--lr", "0.005", "--schedule", "constant", "--warmup", "0",
        "--beta1", "0.9", "--beta2", "0.95", "--eps", "0.0001", "--weight-decay", "0.1", "--grad-clip", "1.0",
        "--no-shuffle"]  # fmt: skip
TRAIN_TOKENS = 130


def read_config(folder):
    """config.json with the fields by which the oracle reads it."""
    with open(os.path.join(folder, "config.json")) as file:
        config = json.load(file)
    return config | config.get("rope_parameters", {})


def write_folder(folder, kind, settings, dtype, shard_size):
    config_class, model_class = CLASSES[kind]
    model = model_class(config_class(**settings))
    os.makedirs(folder)
    model.config.save_pretrained(folder)
    weights = recipe.weights(Network(read_config(folder)).parameters())
    prefix = "transformer." if kind == "GPT2" else ""
    state = {name if name.startswith("lm_head") else prefix + name: torch.from_numpy(values)
             for name, values in weights.items()}  # fmt: skip
    missing = model.load_state_dict(state, strict=False)
    if missing.unexpected_keys or set(missing.missing_keys) - {"lm_head.weight"}:
        raise SystemExit(f"{folder}: {missing}")
    sharding = {"max_shard_size": shard_size} if shard_size else {}
    model.to(getattr(torch, dtype)).save_pretrained(folder, **sharding)
    write_shard(os.path.join(folder, "train.bin"), recipe.tokens(TRAIN_TOKENS, settings["vocab_size"]))


def loaded(folder):
    """The folder's model in float64, without dropout."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def train(model, shard):
    """Losses and gradient norms of what torch makes of the options in ARGS."""
    s = parse_args(ARGS)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": s.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=s.lr, betas=(s.beta1, s.beta2), eps=s.eps)
    losses, norms = [], []
    for step in range(s.steps):
        at = step * s.batch * s.seq
        window = torch.from_numpy(shard[at : at + s.batch * s.seq + 1])
        logits = model(window[:-1].view(s.batch, s.seq)).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), window[1:])
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), s.grad_clip).item())
        optimizer.step()
        losses.append(loss.item())
    return {"loss": losses, "grad_norm": norms}


def results(folder):
    model, shard = loaded(folder), read_shard(os.path.join(folder, "train.bin"))
    tokens = shard[: max(PREFIXES)]
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)[None]).logits[0]
        names = {name.removeprefix("transformer."): p for name, p in model.named_parameters()}
        ours = Network(read_config(folder)).logits(names, torch.from_numpy(tokens)[None])[0]
    if not (ours - logits).abs().max() < 1e-5:  # the angles' float32
        raise SystemExit(f"{folder}: the oracle's logits differ by {(ours - logits).abs().max():.1e}")
    return {"tokens": tokens.tolist(), "prefixes": PREFIXES, "logits": [logits[n - 1].tolist() for n in PREFIXES],
            "args": ARGS, **train(model, shard)}  # fmt: skip


def difference(got, want):
    return max(float(np.abs(np.asarray(got[key]) - np.asarray(want[key])).max())
               for key in ("logits", "loss", "grad_norm"))  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="only compare with the files that are there")
    parser.add_argument("--root", default=os.path.join(ROOT, "tests", "golden", "hf"), help="folder of the cases")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    ok = True
    for name, case in CASES.items():
        folder = os.path.join(options.root, name)
        expected = os.path.join(folder, "expected.json")
        if options.check:
            with open(expected) as file:
                worst = difference(results(folder), json.load(file))
            print(f"{name}: worst difference {worst:.1e}")
            ok = ok and worst < 1e-6
        else:
            shutil.rmtree(folder, ignore_errors=True)
            write_folder(folder, *case)
            out = results(folder)
            write_json(expected, out)
            print(f"{name}: loss {out['loss'][0]:.4f} -> {out['loss'][-1]:.4f}, logits up to "
                  f"{np.abs(out['logits']).max():.1f}")  # fmt: skip
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
