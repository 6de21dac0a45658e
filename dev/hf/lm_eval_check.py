#!/usr/bin/env python3
"""Runs lm-evaluation-harness on an exported checkpoint and compares it with eval_gpt2, example by example.

    python3 dev/hf/lm_eval_check.py RUN_OR_CHECKPOINT --data ../shared/data/eval [--limit 200] [--build build/cpu-fp32]

The tasks are the harness's own (lambada_openai, hellaswag, piqa, arc_easy, winogrande: prompts, choices, metrics); only
where their data come from is changed, to the files under --data, so that no network is needed. eval_gpt2 reads the same
files in the form in which their publishers have them, and the checkpoint itself.
"""

import argparse
import json
import lzma
import os
import subprocess
import sys
import tempfile

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # read when transformers is imported

from transformers import dynamic_module_utils

from export import checkpoint_folder, export

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
# Per example and choice: fp32 sums of a hundred tokens' log-likelihoods, some hundred in size, in two orders.
TOLERANCE = 2e-6  # relative, of 1 + |log-likelihood|


def read_lines(path):
    with open(path) as file:
        return file.read().removesuffix("\n").split("\n")  # and not at U+2028 and the like


def read_jsonl(path):
    return [json.loads(line) for line in read_lines(path)]


def hellaswag_rows(path):
    """The harness joins label, ctx_a and ctx_b; in the text form ctx_a and ctx_b are one already, and marks in brackets
    gone. 13 of the 10,042 hold brackets still, which the harness takes out: with --limit 0 those may differ."""
    lines = read_lines(path)
    for i in range(0, len(lines), 6):
        label, _, context = lines[i].partition(": ")
        yield {"activity_label": label, "ctx_a": context, "ctx_b": "", "label": lines[i + 1],
               "endings": lines[i + 2 : i + 6]}  # fmt: skip


def piqa_rows(path, labels):
    for row, label in zip(read_jsonl(path), read_lines(labels), strict=True):
        yield {**row, "label": int(label)}


def arc_rows(path):
    for row in read_jsonl(path):
        choices = row["question"]["choices"]
        yield {"id": row["id"], "question": row["question"]["stem"], "answerKey": row["answerKey"],
               "choices": {key: [choice[key] for choice in choices] for key in ("text", "label")}}  # fmt: skip


def winogrande_rows(path):
    """The blank goes where the two options begin to differ: before it the harness takes the sentence as it is."""
    for row in read_jsonl(path):
        first, second = row["context_options"]
        shared = len(os.path.commonprefix([first, second]))
        yield {"sentence": f"{first[:shared]}_ {row['continuation']}", "option1": first[shared:],
               "option2": second[shared:], "answer": str(row["gold"] + 1)}  # fmt: skip


def prepare(data, temp):
    """{harness's task: (rows, eval_gpt2's --task, split)}"""
    path = lambda name: os.path.join(data, name)
    hellaswag = os.path.join(temp, "hellaswag_val_full.txt")
    with lzma.open(path("hellaswag_val_full.txt.xz")) as packed, open(hellaswag, "wb") as file:
        file.write(packed.read())
    lambada, piqa, labels = path("lambada_test.jsonl"), path("piqa_valid.jsonl"), path("piqa_valid-labels.lst")
    arc, winogrande = path("arc_easy_test.jsonl"), path("winogrande_dev_partial.jsonl")
    return {
        "lambada_openai": (read_jsonl(lambada), f"lambada={lambada}", "test"),
        "hellaswag": (hellaswag_rows(hellaswag), f"hellaswag={hellaswag}", "validation"),
        "piqa": (piqa_rows(piqa, labels), f"piqa={piqa},{labels}", "validation"),
        "arc_easy": (arc_rows(arc), f"arc={arc}", "test"),
        "winogrande": (winogrande_rows(winogrande), f"winogrande={winogrande}", "validation"),
    }


def local_task(name, definition, rows, split, temp, limit):
    """The harness's own task with other data: a YAML file (JSON is YAML) that includes the harness's."""
    data = os.path.join(temp, name + ".jsonl")
    with open(data, "w") as file:
        for i, row in enumerate(rows):
            if limit and i == limit:
                break
            file.write(json.dumps(row) + "\n")
    splits = {f"{kind}_split": kind if kind == split else None for kind in ("training", "validation", "test")}
    path = os.path.join(temp, name + ".yaml")
    with open(path, "w") as file:
        json.dump({"include": str(definition), "dataset_path": "json", "dataset_name": None,
                   "dataset_kwargs": {"data_files": {split: data}}, **splits}, file)  # fmt: skip
    return path


def harness_examples(folder, found, temp, options):
    """{task: {index: (log-likelihoods, acc, acc_norm or None)}}, and the harness's scores."""
    import lm_eval  # now that the environment is set
    from lm_eval.tasks import TaskManager

    index = TaskManager().task_index
    tasks = [local_task(name, index[name].yaml_path, rows, split, temp, options.limit)
             for name, (rows, _, split) in found.items()]  # fmt: skip
    out = lm_eval.simple_evaluate(
        model="hf", model_args={"pretrained": folder, "dtype": "float32", "trust_remote_code": True}, tasks=tasks,
        batch_size=options.batch, device="cpu", bootstrap_iters=0)  # fmt: skip
    examples = {name: {sample["doc_id"]: ([float(resp[0]) for resp in sample["filtered_resps"]], float(sample["acc"]),
                                          float(sample["acc_norm"]) if "acc_norm" in sample else None)
                       for sample in samples}
                for name, samples in out["samples"].items()}  # fmt: skip
    return examples, out["results"]


def engine_examples(build, folder, spec, temp, limit):
    """{index: the same}"""
    samples = os.path.join(temp, "samples.jsonl")
    command = [os.path.join(build, "eval_gpt2"), "--model", folder, "--task", spec, "--samples", samples]
    subprocess.run(command + (["--limit", str(limit)] if limit else []), check=True, stdout=subprocess.PIPE)
    return {row["index"]: (row["loglikelihoods"], float(row["correct"]),
                           float(row["correct_norm"]) if "correct_norm" in row else None)
            for row in read_jsonl(samples)}  # fmt: skip


def compare(ours, theirs):
    """Worst relative difference of a log-likelihood, and the examples with another acc or acc_norm."""
    if set(ours) != set(theirs):
        raise SystemExit(f"other examples: {sorted(set(ours) ^ set(theirs))[:8]}")
    worst, different = 0.0, []
    for index, (logs, acc, norm) in ours.items():
        other_logs, other_acc, other_norm = theirs[index]
        for a, b in zip(logs, other_logs, strict=True):
            worst = max(worst, abs(a - b) / (1 + abs(b)))
        if acc != other_acc or other_norm is not None and norm != other_norm:
            different.append(index)
    return worst, different


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="checkpoint folder, or a run: its newest checkpoint")
    parser.add_argument("--data", default=os.path.join(ROOT, "..", "shared", "data", "eval"), help="evaluation files")
    parser.add_argument("--tasks", nargs="+", help="only these of the harness's tasks")
    parser.add_argument("--limit", type=int, default=200, help="first examples of each task; 0: all [200]")
    parser.add_argument("--batch", type=int, default=8, help="of the harness [8]")
    parser.add_argument("--build", default=os.path.join(ROOT, "build", "cpu-fp32"), help="folder of an fp32 build")
    options = parser.parse_args()
    ok = True
    with tempfile.TemporaryDirectory() as temp:
        os.environ["HF_DATASETS_CACHE"] = os.path.join(temp, "datasets")  # read when the harness imports datasets
        dynamic_module_utils.HF_MODULES_CACHE = os.path.join(temp, "modules")
        found = prepare(options.data, temp)
        found = {name: task for name, task in found.items() if not options.tasks or name in options.tasks}
        exported = os.path.join(temp, "exported")
        export(options.checkpoint, exported)
        theirs, scores = harness_examples(exported, found, temp, options)
        for name, (_, spec, _) in found.items():
            ours = engine_examples(options.build, checkpoint_folder(options.checkpoint), spec, temp, options.limit)
            worst, different = compare(ours, theirs[name])
            ok = ok and not different and worst <= TOLERANCE
            acc = sum(example[1] for example in ours.values()) / len(ours)
            print(f"{name:16} {len(ours):5} examples: acc {acc:.4f}, the harness {scores[name]['acc,none']:.4f}; "
                  f"{len(different)} differ{f' ({different[:8]})' if different else ''}; "
                  f"log-likelihoods within {worst:.1e}")  # fmt: skip
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
