#!/usr/bin/env python3
"""What lm-evaluation-harness says, example by example: vectors of tests/golden/eval, comparisons with eval_gpt2.

    python3 dev/oracle/eval_vectors.py                 write tests/golden/eval/harness.json
    python3 dev/oracle/eval_vectors.py --check         compute it again and compare
    python3 dev/oracle/eval_vectors.py --weights       train and write the small model of that folder, then as above
    python3 dev/oracle/eval_vectors.py --compare MODEL SAMPLES [--limit N] TASK=FILE[,LABELS] ...
                                                       a folder and the file of eval_gpt2 --samples on the same tasks

The tasks are the harness's own YAML files and functions; only the data come from local files, and the forms that the
harness does not read are turned into those it does. Needs lm_eval, torch and transformers.
"""

import argparse
import csv
import json
import logging
import os
import sys

import datasets
import lm_eval
import numpy as np
import tokenizers
import torch
import transformers
from lm_eval import evaluator
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml

from files import read_safetensors, write_json, write_safetensors

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "golden", "eval")
TASKS = os.path.join(os.path.dirname(lm_eval.__file__), "tasks")
CONFIG = {"model_type": "gpt2", "vocab_size": 256, "n_positions": 96, "n_embd": 32, "n_layer": 2, "n_head": 2,
          "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}  # fmt: skip

# case: (our task, file, labels, the harness's YAML, the file whose rows the harness gets)
CASES = {
    "lambada": ("lambada", "lambada.jsonl", None, "lambada/lambada_openai", "lambada.jsonl"),
    "lambada_text": ("lambada", "lambada.txt", None, "lambada/lambada_standard", "lambada.txt"),
    "hellaswag": ("hellaswag", "hellaswag.jsonl", None, "hellaswag/hellaswag", "hellaswag.jsonl"),
    "hellaswag_text": ("hellaswag", "hellaswag.txt", None, "hellaswag/hellaswag", "hellaswag.txt"),
    "piqa": ("piqa", "piqa.jsonl", "piqa-labels.lst", "piqa/piqa", "piqa_labelled.jsonl"),
    "piqa_labelled": ("piqa", "piqa_labelled.jsonl", None, "piqa/piqa", "piqa_labelled.jsonl"),
    "arc": ("arc", "arc.jsonl", None, "arc/arc_easy", "arc.jsonl"),
    "arc_flat": ("arc", "arc_flat.jsonl", None, "arc/arc_easy", "arc_flat.jsonl"),
    "winogrande": ("winogrande", "winogrande.jsonl", None, "winogrande/default", "winogrande.jsonl"),
    "winogrande_labels": ("winogrande", "winogrande_unlabelled.jsonl", "winogrande-labels.lst", "winogrande/default",
                          "winogrande.jsonl"),
    "winogrande_partial": ("winogrande", "winogrande_partial.jsonl", None, "winogrande/default",
                           "winogrande_partial.jsonl"),
    # Made by dev/data/choice.py from the file the harness gets.
    "openbookqa": ("choice", "choice_openbookqa.jsonl", None, "openbookqa/openbookqa", "openbookqa.jsonl"),
    "boolq": ("choice", "choice_boolq.jsonl", None, "super_glue/boolq/default", "boolq.jsonl"),
    "mmlu": ("choice", "choice_mmlu.jsonl", None, "mmlu/default/_default_template_yaml", "mill_keeping_test.csv"),
    "arc_challenge": ("choice", "choice_arc.jsonl", None, "arc/arc_challenge", "arc.jsonl"),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Files, as rows of the data set that the harness would load


def rows_of(name, path, labels):
    with open(path, encoding="utf-8", newline="") as file:
        if path.endswith(".csv"):
            return [{"question": q, "choices": c, "answer": "ABCD".index(a)} for q, *c, a in csv.reader(file)]
        lines = [line.rstrip("\n") for line in file]
    if not lines[0].startswith("{"):
        if name == "lambada":
            return [{"text": line} for line in lines]
        tasks = [lines[i : i + 6] for i in range(0, len(lines), 6)]
        return [{"query": t[0], "label": int(t[1]), "choices": t[2:]} for t in tasks]
    rows = [json.loads(line) for line in lines]
    if labels:
        key = "label" if name == "piqa" else "answer"
        with open(labels) as file:
            for row, label in zip(rows, file.read().split(), strict=True):
                row[key] = int(label) if name == "piqa" else label
    for row in rows:
        if isinstance(row.get("question"), dict):  # AI2's form
            choices = row["question"]["choices"]
            row["choices"] = {key: [c[key] for c in choices] for key in ("text", "label")}
            row["question"] = row["question_stem"] = row["question"]["stem"]
        if "ctx_a" in row:
            row["label"] = str(row["label"])
        if "passage" in row:
            row["label"] = int(row["label"])
    return rows


def harness_task(case, yaml, rows):
    config = load_yaml(os.path.join(TASKS, yaml if yaml.endswith("_yaml") else yaml + ".yaml"), resolve_func=True)
    for key in ("dataset_path", "dataset_name", "tag", "training_split", "validation_split", "test_split"):
        config.pop(key, None)
    data = {"test": datasets.Dataset.from_list(rows)}
    config |= {"task": case, "custom_dataset": lambda **_: data, "test_split": "test", "fewshot_split": None}
    config |= {"fewshot_config": None, "should_decontaminate": False}
    if "query" in rows[0]:  # HellaSwag as text: what process_docs would do is done
        config["process_docs"] = None
        config["doc_to_target"] = "label"
    if "context_options" in rows[0]:  # WinoGrande without its sentences
        config["doc_to_text"] = lambda doc: doc["gold"]
        config["doc_to_choice"] = lambda doc: doc["context_options"]
        config["doc_to_target"] = lambda doc: doc["continuation"]
    if case == "mmlu":
        config["description"] = "The following are multiple choice questions (with answers) about mill keeping.\n\n"
    return ConfigurableTask(config=config)


# ---------------------------------------------------------------------------------------------------------------------
# Models


def byte_tokenizer():
    """Token i is byte i; 0 ends a text."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet(), key=lambda c: byte_of(c))
    model = tokenizers.models.BPE({c: i for i, c in enumerate(letters)}, [])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def byte_of(letter):
    """The byte behind a letter of GPT-2's byte-to-unicode table."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    return ord(letter) if ord(letter) in plain else others[ord(letter) - 256]


def harness_model(folder):
    """In float64, so that what differs is the engine's rounding."""
    with open(os.path.join(folder, "config.json")) as file:
        config = transformers.GPT2Config(**{k: v for k, v in json.load(file).items() if k != "model_type"})
    config._attn_implementation = "eager"
    model = transformers.GPT2LMHeadModel(config).double().eval()
    tensors = read_safetensors(os.path.join(folder, "model.safetensors"))
    state = {name: torch.from_numpy(values.copy()) for name, values in tensors.items()}
    missing, unknown = model.transformer.load_state_dict(state, strict=False)
    if unknown or [name for name in missing if not name.endswith((".attn.bias", ".attn.masked_bias"))]:
        raise SystemExit(f"{folder}: tensors missing {missing}, unknown {unknown}")
    text = os.path.exists(os.path.join(folder, "vocab.json"))
    tokenizer = transformers.GPT2TokenizerFast.from_pretrained(folder) if text else byte_tokenizer()
    prefix = 50256 if text else 0
    return HFLM(pretrained=model, tokenizer=tokenizer, prefix_token_id=prefix, batch_size=4, device="cpu",
                max_length=config.n_positions)  # fmt: skip


def write_weights():
    """Trains a little, so that some words are guessed and choices differ."""
    torch.manual_seed(1)
    config = {k: v for k, v in CONFIG.items() if k != "model_type"}
    config |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config))
    with open(os.path.join(ROOT, "lambada.jsonl"), encoding="utf-8") as file:
        text = b"\0".join(json.loads(line)["text"].encode() for line in file)
    with open(os.path.join(ROOT, "hellaswag.txt"), "rb") as file:
        text += file.read()
    data = torch.tensor(list(text))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(700):
        starts = torch.randint(0, len(data) - 96, (8,))
        batch = torch.stack([data[s : s + 96] for s in starts])
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss {loss.item():.3f}")
    state = model.transformer.state_dict()
    tensors = {k: v.numpy() for k, v in state.items() if not k.endswith((".attn.bias", ".attn.masked_bias"))}
    write_safetensors(os.path.join(ROOT, "model.safetensors"), tensors)
    write_json(os.path.join(ROOT, "config.json"), CONFIG)


# ---------------------------------------------------------------------------------------------------------------------


def too_long(task, doc, lm):
    """The harness stops at a continuation that has more tokens than the context; eval_gpt2 leaves the example out."""
    requests = task.construct_requests(doc, task.fewshot_context(doc, 0))
    requests = requests if isinstance(requests, list) else [requests]
    return any(len(lm._encode_pair(r.args[0] or " ", r.args[1])[1]) > lm.max_length for r in requests)


def run_case(lm, case, yaml, rows):
    task = harness_task(case, yaml, rows)
    skipped = [i for i, doc in enumerate(task.eval_docs) if too_long(task, doc, lm)]
    kept = [i for i in range(len(rows)) if i not in skipped]
    task = harness_task(case, yaml, [rows[i] for i in kept])
    task.set_config("num_fewshot", 0)
    result = evaluator.evaluate(lm, {case: task}, bootstrap_iters=2, log_samples=True)
    scores = {k.removesuffix(",none"): v for k, v in result["results"][case].items() if isinstance(v, float)}
    samples = []
    for sample in sorted(result["samples"][case], key=lambda s: s["doc_id"]):
        answers = [r[0] for r in sample["resps"]]
        samples.append({"index": kept[sample["doc_id"]], "loglikelihoods": [float(a[0]) for a in answers],
                        "greedy": [str(a[1]) == "True" for a in answers], "correct": bool(sample["acc"])})  # fmt: skip
        if "acc_norm" in sample:
            samples[-1]["correct_norm"] = bool(sample["acc_norm"])
    scores.pop("perplexity_stderr", None)
    return {"n": len(kept), "skipped": len(skipped), "scores": scores, "samples": samples}


def golden():
    lm = harness_model(ROOT)
    expected = {}
    for case, (name, file, labels, yaml, source) in CASES.items():
        rows = rows_of(name, os.path.join(ROOT, source), None)
        expected[case] = {"task": name, "file": file, "labels": labels or ""} | run_case(lm, case, yaml, rows)
        print(case, expected[case]["scores"])
    return expected


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return np.isclose(a, b, rtol=1e-9) if isinstance(a, float) else a == b


YAMLS = {"lambada": "lambada/lambada_openai", "hellaswag": "hellaswag/hellaswag", "piqa": "piqa/piqa",
         "arc": "arc/arc_easy", "winogrande": "winogrande/default"}  # fmt: skip


def compare(folder, samples_path, tasks, limit):
    lm = harness_model(folder)
    with open(samples_path) as file:
        ours = [json.loads(line) for line in file]
    failed = False
    for task in tasks:
        name, _, files = task.partition("=")
        path, _, labels = files.partition(",")
        rows = rows_of(name, path, labels)[: limit or None]
        theirs = run_case(lm, name, YAMLS[name], rows)
        mine = {s["index"]: s for s in ours if s["task"] == name and s["file"] == path}
        worst, flips = 0.0, []
        for sample in theirs["samples"]:
            own = mine[sample["index"]]
            worst = max(worst, np.abs(np.subtract(own["loglikelihoods"], sample["loglikelihoods"])).max())
            if any(own[key] != sample[key] for key in sample if key != "loglikelihoods"):
                flips.append(sample["index"])
        print(
            f"{name}: {theirs['n']} examples, {theirs['skipped']} skipped, {len(flips)} decided otherwise {flips[:10]}, "
            f"log-likelihoods within {worst:.2e}; harness {theirs['scores']}"
        )
        failed = failed or bool(flips)
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--weights", action="store_true")
    parser.add_argument("--compare", nargs=2, metavar=("MODEL", "SAMPLES"))
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("tasks", nargs="*")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    if args.compare:
        return compare(*args.compare, args.tasks, args.limit)
    if args.weights:
        write_weights()
    path = os.path.join(ROOT, "harness.json")
    expected = golden()
    if args.check:
        with open(path) as file:
            return not same(json.load(file), expected)
    write_json(path, expected)
    return False


if __name__ == "__main__":
    sys.exit(main())
