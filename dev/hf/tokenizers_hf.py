"""The tokenizer of a checkpoint as a tokenizer.json of the `tokenizers` library.

`bytes`: a vocabulary of the 256 bytes whose ids are the bytes; `gpt2`: byte-level BPE with the file's own vocabulary
and merges. Neither adds a token before or behind a text.
"""

import glob
import json
import os
import shutil

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def byte_characters():
    """GPT-2's character for every byte: printable bytes stand for themselves, the others follow 255."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    rest = iter(range(256, 512))
    return {byte: chr(byte if byte in plain else next(rest)) for byte in range(256)}


def find_tokenizer(folder):
    """Our PREFIX_tokenizer.json, parsed, and its path; None without one."""
    for path in sorted(glob.glob(os.path.join(folder, "*tokenizer.json"))):
        with open(path) as file:
            ours = json.load(file)
        if "kind" in ours:
            return ours, path
    return None


def fast_tokenizer(ours, folder):
    """A tokenizers.Tokenizer and the text of its end-of-text token."""
    if ours["kind"] == "bytes":
        end = ours.get("separator", "<|endoftext|>")
        vocab = {end if byte == ours["eot_token"] else character: byte
                 for byte, character in byte_characters().items()}  # fmt: skip
        # The end-of-text byte itself has no entry of its own then, and becomes what is unknown: its token again.
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=end))
        # Whole texts in one piece: there is nothing to merge.
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    elif ours["kind"] == "gpt2":
        vocab, merges = ours.get("vocab"), ours.get("merges")
        if vocab is None:
            with open(os.path.join(folder, "vocab.json")) as file:
                vocab = json.load(file)
            with open(os.path.join(folder, "merges.txt")) as file:
                merges = [line for line in file.read().split("\n") if line and not line.startswith("#version")]
        pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        end = next(text for text, number in vocab.items() if number == ours["eot_token"])
    else:
        raise SystemExit(f"a tokenizer of kind '{ours['kind']}' is not known here")
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(end, special=True, normalized=False)])
    return tokenizer, end


def write_tokenizer(folder, out, context):
    """Writes tokenizer.json, its configuration and our own file to `out`; the end-of-text token, None without one."""
    found = find_tokenizer(folder)
    if found is None:
        print(f"note: {folder} has no tokenizer, so {out} has none")
        return None
    ours, path = found
    tokenizer, end = fast_tokenizer(ours, folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=None,
                                   model_max_length=context, clean_up_tokenization_spaces=False)  # fmt: skip
    fast.save_pretrained(out)
    shutil.copy(path, out)
    return ours["eot_token"]
