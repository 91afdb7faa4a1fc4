"""Tokenizers of the published kinds, trained with HF tokenizers on a given text: each with the normalizer and the
pre-tokenizer of its model, read off the tokenizer.json that was published with it. What the tests of our encoder, and
the script that makes their fixture, share. Needs the package tokenizers.
"""

from __future__ import annotations

from typing import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def pattern_then_bytes(pattern: str, behavior: str = "isolated", invert: bool = False) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior, invert),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def special(content: str) -> AddedToken:
    return AddedToken(content, special=True, normalized=False)


# Normalizer, pre-tokenizer, ignore_merges, tokens that are added after training.
KINDS = {
    "gpt2": (None, pre_tokenizers.ByteLevel(add_prefix_space=False), False, []),
    "gpt2-prefix": (None, pre_tokenizers.ByteLevel(add_prefix_space=True), False, []),
    "llama3": (None, pattern_then_bytes(LLAMA3), True, [special(f"<|reserved_special_token_{i}|>") for i in range(12)]),
    "qwen": (normalizers.NFC(), pattern_then_bytes(QWEN), False,
             [special("<|im_start|>"), special("<|im_end|>"),
              AddedToken("<tool_call>", special=False, normalized=False), AddedToken("<think>", normalized=False)]),
    "o200k": (None, pattern_then_bytes(O200K, "removed", True), True, []),
    "smollm": (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                              pre_tokenizers.ByteLevel(add_prefix_space=False)]), False, []),
    # Every property of an added token; no published model has all of them.
    "added": (normalizers.NFC(), pattern_then_bytes(LLAMA3), False,
              [AddedToken("<left>", lstrip=True, normalized=False), AddedToken("<right>", rstrip=True, normalized=False),
               AddedToken("<both>", lstrip=True, rstrip=True, normalized=True), AddedToken("word", single_word=True),
               AddedToken("words", single_word=True, normalized=False), AddedToken("<le", normalized=False),
               AddedToken("cafe\u0301", normalized=True), AddedToken("re\u0301sume\u0301", normalized=False),
               AddedToken("    ", normalized=False), AddedToken("\u00fcber", normalized=True)]),
}


def train(kind: str, text: Iterable[str], vocab_size: int) -> Tokenizer:
    normalizer, pre_tokenizer, ignore_merges, added = KINDS[kind]
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    # It is not applied: both sides are asked for the tokens of the text alone.
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<|endoftext|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.add_tokens(added)
    return tokenizer
