#!/usr/bin/env python3
"""Proves that exported checkpoints are the same models: trains, exports, loads in transformers, compares.

    python3 dev/hf/check.py [--build build/cpu-fp32] [--only TEXT] [--limit N]

A case is a small model with one residual rule, norm scheme and set of options, of GPT-2 or LLaMA: those of
dev/oracle/rule_cases.py, that is every pair and every value of every option. Each is trained for a few updates by
train_gpt2, exported by export.py, and loaded by AutoModelForCausalLM; a plain model also straight from the checkpoint
folder. Compared are the mean losses of texts (eval_gpt2) and the greedy continuation of a prompt (sample_gpt2).
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile

import torch
import transformers
from transformers import dynamic_module_utils

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.path.append(os.path.join(ROOT, "dev", "oracle"))
import recipe
from export import export, is_native
from files import write_json, write_safetensors, write_shard
from model import Network
from rule_cases import rule_cases

CONTEXT, STEPS = 24, 3
TEXTS = {"long": "The cat sat on the mat. It was ä very old cat; the mat, too.\nNobody minded at all.\n",
         "window": "exactly twenty-four byte", "short": "It was"}  # fmt: skip
PROMPT, CONTINUED = "The cat", 16
# fp32 arithmetic in two orders: a logit is off by some 1e-6 of its size, a mean loss by less.
TOLERANCE = 5e-6


def start_folder(folder, case):
    """A checkpoint folder with the case's model, over bytes, every parameter away from its initial value."""
    config = dict(case["config"], vocab_size=256)
    config["n_positions" if config["model_type"] == "gpt2" else "max_position_embeddings"] = CONTEXT
    os.makedirs(folder)
    write_json(os.path.join(folder, "config.json"), config)
    weights = recipe.weights(Network(config).parameters())
    write_safetensors(os.path.join(folder, "model.safetensors"), weights)


def write_data(folder):
    text = "".join(TEXTS.values()).encode() * 30
    write_shard(os.path.join(folder, "text_train_000000.bin"), list(text))
    write_json(os.path.join(folder, "text_tokenizer.json"),
               {"kind": "bytes", "vocab_size": 256, "eot_token": 0, "separator": "<|endoftext|>"})  # fmt: skip
    for name, text in TEXTS.items():
        with open(os.path.join(folder, name + ".txt"), "w") as file:
            file.write(text)


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True)
    if done.returncode:
        words = " ".join(str(word) for word in command)
        raise SystemExit(f"{words}\nended with exit code {done.returncode}\n{done.stderr.decode()}")
    return done.stdout


def engine_results(build, data, checkpoint):
    """Mean losses of the texts, and the continuation's bytes."""
    scores = os.path.join(data, "scores.json")
    tasks = [word for name in TEXTS for word in ("--task", f"ppl={os.path.join(data, name)}.txt")]
    run(os.path.join(build, "eval_gpt2"), "--model", checkpoint, *tasks, "--json", scores)
    with open(scores) as file:
        losses = [math.log(score["ppl"]) for score in json.load(file)]
    text = run(os.path.join(build, "sample_gpt2"), "--model", checkpoint, "--prompt", PROMPT, "--tokens", CONTINUED,
               "--temperature", 0)  # fmt: skip
    return losses, text[text.index(PROMPT.encode()) : -1]


def mean_loss(model, tokens):
    """As eval_gpt2 does it: windows of the context that do not overlap, the first token predicted from end-of-text."""
    inputs, total = [0, *tokens[:-1]], 0.0
    for start in range(0, len(tokens), CONTEXT):
        window, targets = inputs[start : start + CONTEXT], tokens[start : start + CONTEXT]
        logits = model(torch.tensor([window])).logits[0].double()
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction="sum").item()
    return total / len(tokens)


def transformers_results(model):
    tokens = torch.tensor([list(PROMPT.encode())])
    # No end: the engine does not stop at end-of-text unless asked.
    text = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=CONTINUED, do_sample=False,
                          eos_token_id=None, pad_token_id=0)  # fmt: skip
    return [mean_loss(model, list(text.encode())) for text in TEXTS.values()], bytes(text[0].tolist())


def load(kind, folder):
    """The model, having checked that every tensor of the file is a parameter and the other way round."""
    model, info = kind.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    if any(info.values()):
        raise SystemExit(f"{folder}: {info}")
    return model.eval()


def check_case(build, data, case, index):
    """[(how it was loaded, worst difference of a loss, whether the continuation is the same)]"""
    folder = os.path.join(data, f"case{index}")
    start_folder(folder + "_start", case)
    run(os.path.join(build, "train_gpt2"), "--init-from", folder + "_start", "--train",
        os.path.join(data, "text_train_*.bin"), "--batch", 4, "--steps", STEPS, "--lr", 5e-3, "--warmup", 0, "--out",
        folder)  # fmt: skip
    checkpoint = os.path.join(folder, f"step_{STEPS:08d}")
    losses, text = engine_results(build, data, checkpoint)
    native = export(checkpoint, folder + "_export")
    models = {"exported": load(transformers.AutoModelForCausalLM, folder + "_export")}
    with open(os.path.join(checkpoint, "config.json")) as file:
        config = json.load(file)
    if native != is_native(case["config"]):
        raise SystemExit(f"{case['name']}: exported as {'' if native else 'no '}model of transformers' own")
    if native and config.get("bias", True):
        models["as it is"] = load(getattr(transformers, config["architectures"][0]), checkpoint)
    found = []
    for how, model in models.items():
        theirs, continued = transformers_results(model)
        found.append((f"{type(model).__name__}, {how}", max(abs(a - b) for a, b in zip(losses, theirs, strict=True)),
                      continued == text))  # fmt: skip
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", default=os.path.join(ROOT, "build", "cpu-fp32"), help="folder of an fp32 build")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--limit", type=int, help="only every so-manieth case, to have about this many")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    cases = [case for case in rule_cases() if options.only in case["name"]]
    if options.limit:
        cases = cases[:: max(1, len(cases) // options.limit)]
    worst, failed, compared, texts_differ = {}, [], 0, []
    with tempfile.TemporaryDirectory() as data:
        dynamic_module_utils.HF_MODULES_CACHE = os.path.join(data, "modules")  # and not the user's
        write_data(data)
        for index, case in enumerate(cases):
            for how, difference, same_text in check_case(options.build, data, case, index):
                compared += 1
                key = (case["config"]["residual"], how)
                worst[key] = max(worst.get(key, (0, "")), (difference, case["name"]))
                if not difference <= TOLERANCE:
                    failed.append(f"{case['name']} ({how}): loss differs by {difference:.1e}")
                if not same_text:
                    texts_differ.append(f"{case['name']} ({how}): the greedy continuation differs")
    for (residual, how), (difference, name) in sorted(worst.items()):
        print(f"{residual:24} {how:32} loss differs by at most {difference:.1e} ({name})")
    print(f"{len(cases)} cases, {compared} loaded models: worst {max(worst.values())[0]:.1e}, "
          f"{len(texts_differ)} continuations differ")  # fmt: skip
    for line in failed + texts_differ:
        print("FAILED", line)
    sys.exit(1 if failed or texts_differ else 0)


if __name__ == "__main__":
    main()
