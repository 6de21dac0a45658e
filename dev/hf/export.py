#!/usr/bin/env python3
"""Makes a folder that transformers loads from a checkpoint of residual.cu.

    python3 dev/hf/export.py CHECKPOINT_OR_RUN --out FOLDER [--dtype bf16]

A plain pre-norm GPT-2 or LLaMA becomes transformers' own GPT2LMHeadModel or LlamaForCausalLM. Any other norm scheme or
residual rule becomes a folder with the model's code in it:

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

The tokenizer goes along, as AutoTokenizer reads it.
"""

import argparse
import glob
import json
import os
import re
import shutil

import torch
from safetensors.torch import load_file, save_file

from tokenizers_hf import write_tokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
ORACLE = os.path.join(HERE, "..", "oracle")
MODULES = ["architectures", "model", "parameters", "rule", "rules", "rules_coefficient", "rules_depth", "rules_gate",
           "rules_streams", "schemes"]  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def checkpoint_folder(path):
    """The folder itself, or the newest checkpoint of a run."""
    if os.path.exists(os.path.join(path, "config.json")):
        return path
    steps = sorted(glob.glob(os.path.join(path, "step_" + "[0-9]" * 8)))
    if not steps:
        raise SystemExit(f"{path}: neither a checkpoint (config.json) nor a run with one (step_00000000)")
    return steps[-1]


def read_weights(folder):
    """{name: tensor} without GPT-2's `transformer.` prefix."""
    index = os.path.join(folder, "model.safetensors.index.json")
    files = ["model.safetensors"]
    if os.path.exists(index):
        with open(index) as file:
            files = sorted(set(json.load(file)["weight_map"].values()))
    weights = {}
    for name in files:
        weights |= load_file(os.path.join(folder, name))
    return {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}


def is_native(config):
    return (config.get("norm_scheme", "pre") == "pre" and config.get("residual", "vanilla") == "vanilla"
            and str(config.get("residual_options", {}).get("final_norm", 1)) == "1")  # fmt: skip


def add_zero_biases(weights):
    """transformers' GPT-2 has biases always."""
    for name in [name for name in weights if name.endswith(".weight")]:
        if re.search(r"(ln_\w+|c_attn|c_proj|c_fc)\.weight$", name):
            weights.setdefault(name.removesuffix("weight") + "bias", torch.zeros(weights[name].shape[-1]))


def copy_code(out):
    """modeling_residual.py and, as modules beside it, the oracle that computes the network."""
    for name in ("configuration_residual.py", "modeling_residual.py"):
        shutil.copy(os.path.join(HERE, name), out)
    for name in MODULES:
        with open(os.path.join(ORACLE, name + ".py")) as file:
            code = file.read()
        code = re.sub(rf"^from ({'|'.join(MODULES)}) import", r"from .oracle_\1 import", code, flags=re.M)
        with open(os.path.join(out, f"oracle_{name}.py"), "w") as file:
            file.write(code)


def export(path, out, dtype="fp32"):
    """Returns whether the folder is one of transformers' own kinds."""
    folder = checkpoint_folder(path)
    with open(os.path.join(folder, "config.json")) as file:
        config = json.load(file)
    weights = read_weights(folder)
    os.makedirs(out, exist_ok=True)
    native = is_native(config)
    eot = write_tokenizer(folder, out, config.get("n_positions") or config.get("max_position_embeddings"))
    if native and config["model_type"] == "gpt2" and not config.get("bias", True):
        add_zero_biases(weights)
        config["bias"] = True
    for field in ("bos_token_id", "eos_token_id"):
        config[field] = eot if eot is not None else config.get(field)
    written = config
    if not native:
        written = {"model_type": "residual", "architectures": ["ResidualForCausalLM"],
                   "auto_map": {"AutoConfig": "configuration_residual.ResidualConfig",
                                "AutoModelForCausalLM": "modeling_residual.ResidualForCausalLM"},
                   "bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"],
                   "checkpoint": config}  # fmt: skip
        copy_code(out)
    written["dtype"] = written["torch_dtype"] = str(DTYPES[dtype]).removeprefix("torch.")
    save_file({name: tensor.to(DTYPES[dtype]).contiguous() for name, tensor in weights.items()},
              os.path.join(out, "model.safetensors"), {"format": "pt"})  # fmt: skip
    with open(os.path.join(out, "config.json"), "w") as file:
        json.dump(written, file, indent=2)
        file.write("\n")
    return native


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="checkpoint folder, or a run: its newest checkpoint")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32", help="of the weights [fp32]")
    options = parser.parse_args()
    if os.path.exists(options.out) and os.listdir(options.out):
        raise SystemExit(f"{options.out}: there is something there already")
    native = export(options.checkpoint, options.out, options.dtype)
    how = "" if native else ", trust_remote_code=True"
    print(f'AutoModelForCausalLM.from_pretrained("{options.out}"{how})')


if __name__ == "__main__":
    main()
