#!/usr/bin/env python3
"""Turns published multiple-choice sets into the JSONL form of `eval_gpt2 --task choice=FILE`, on standard output.

    dev/data/choice.py openbookqa test.jsonl > openbookqa.jsonl
    dev/data/choice.py boolq val.jsonl > boolq.jsonl
    dev/data/choice.py mmlu abstract_algebra_test.csv > abstract_algebra.jsonl
    dev/data/choice.py arc ARC-Challenge-Test.jsonl > arc_challenge.jsonl

Prompts are those of lm-evaluation-harness 0.4 without examples (zero-shot). Needs nothing but Python.
"""

import argparse
import csv
import json
import os


def question(row):
    """Stem, choices and gold of AI2's form, or of Hugging Face's flat one."""
    if isinstance(row.get("question"), dict):
        stem, choices = row["question"]["stem"], row["question"]["choices"]
        texts, labels = [c["text"] for c in choices], [c["label"] for c in choices]
    else:
        stem, choices = row.get("question_stem", row.get("question")), row["choices"]
        texts, labels = choices["text"], choices["label"]
    return stem, texts, labels.index(row["answerKey"].strip())


def openbookqa(row):
    stem, texts, gold = question(row)
    return {"context": stem, "choices": texts, "gold": gold}


def arc(row):
    stem, texts, gold = question(row)
    return {"context": f"Question: {stem}\nAnswer:", "choices": texts, "gold": gold}


def boolq(row):
    label = row["label"] if "label" in row else row["answer"]
    context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    return {"context": context, "choices": ["no", "yes"], "gold": int(label)}


def mmlu(row, subject):
    text, *choices, answer = row
    about = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", choices, strict=True))
    return {"context": f"{about}{text.strip()}\n{listed}Answer:", "choices": list("ABCD"), "gold": "ABCD".index(answer)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=["openbookqa", "boolq", "mmlu", "arc"])
    parser.add_argument("file")
    args = parser.parse_args()
    with open(args.file, encoding="utf-8", newline="") as file:
        if args.set == "mmlu":
            name = os.path.basename(args.file).removesuffix(".csv")
            for split in ("_test", "_val", "_dev"):
                name = name.removesuffix(split)
            examples = [mmlu(row, name.replace("_", " ")) for row in csv.reader(file)]
        else:
            make = {"openbookqa": openbookqa, "boolq": boolq, "arc": arc}[args.set]
            examples = [make(json.loads(line)) for line in file if line.strip()]
    for example in examples:
        print(json.dumps(example, ensure_ascii=False))


if __name__ == "__main__":
    main()
