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
import sys


class InputError(Exception):
    """What is wrong and what to do, on one line."""


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
    if len(row) != 6:
        raise ValueError(f"has {len(row)} columns where a question, four choices and the answer are 6")
    text, *choices, answer = row
    if answer not in tuple("ABCD"):
        raise ValueError(f"its answer {answer!r} is none of A, B, C, D")
    about = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", choices, strict=True))
    return {"context": f"{about}{text.strip()}\n{listed}Answer:", "choices": list("ABCD"), "gold": "ABCD".index(answer)}


def examples(set_name, path):
    """InputError names the line that is none of that set."""
    name = os.path.basename(path).removesuffix(".csv")
    for split in ("_test", "_val", "_dev"):
        name = name.removesuffix(split)
    make = {
        "openbookqa": lambda line: openbookqa(json.loads(line)),
        "boolq": lambda line: boolq(json.loads(line)),
        "arc": lambda line: arc(json.loads(line)),
        "mmlu": lambda row: mmlu(row, name.replace("_", " ")),
    }[set_name]
    found, number = [], 0
    with open(path, encoding="utf-8-sig", newline="") as file:  # a byte order mark is no text
        rows = csv.reader(file, strict=True) if set_name == "mmlu" else file
        try:
            for number, row in enumerate(rows, start=1):
                if row if set_name == "mmlu" else row.strip():
                    found.append(make(row))
        except UnicodeDecodeError:
            raise InputError(f"{path}: is not UTF-8; convert it first") from None
        except csv.Error as error:
            raise InputError(f"{path}:{rows.line_num}: is no CSV ({error}); fetch the file again") from None
        except KeyError as error:
            raise InputError(f"{path}:{number}: has no field {error}; is this a file of {set_name}?") from None
        except (ValueError, TypeError, AttributeError) as error:
            line = rows.line_num if set_name == "mmlu" else number
            raise InputError(f"{path}:{line}: {error}; is this a file of {set_name}?") from None
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=["openbookqa", "boolq", "mmlu", "arc"])
    parser.add_argument("file")
    args = parser.parse_args()
    for example in examples(args.set, args.file):
        print(json.dumps(example, ensure_ascii=False))


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        sys.exit(f"choice.py: {error}")
