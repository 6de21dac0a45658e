// GPT-2's tokenizer: byte-level BPE (Radford et al. 2019; Sennrich et al. 2016). A text is cut into pieces
// (dataloader/pretokenize.h); the bytes of a piece are tokens to begin with, and as long as two neighbours are a merge
// of the list, the one that stands first in it is done, the leftmost of equal ones first.
//
// Bytes that are not UTF-8 are kept: tokens are bytes in the end. Nothing says which pieces they are in. In a text of
// at most `whole_text` bytes they are treated as tiktoken's encode of bytes does: the piece before the first of them
// and all that follows it make up one piece. In longer texts, which must be encoded in parts, such a byte is like a
// character that is neither letter nor number nor white space. A piece of more than 16 MiB (a word!) is merged in runs
// of 16 MiB, so that memory stays bounded.
#pragma once
#include "dataloader/bpe_vocabulary.h"
#include "dataloader/tokenizer.h"

// UserError when the vocabulary is not one of byte-level BPE with GPT-2's end of text. A build without PCRE2 leaves the
// function out: its address is null then.
[[gnu::weak]] TokenizerPtr gpt2_tokenizer(BpeVocabulary vocabulary);
