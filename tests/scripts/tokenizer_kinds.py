"""Tokenizers of the published kinds, trained with HF tokenizers on a given text: each with the normalizer and the
pre-tokenizer of its model, read off the tokenizer.json that was published with it. Needs the package tokenizers.

Run as a script it writes the fixture of tests/src/tokenizer/test_tokenizer.cpp: small tokenizers, texts, their tokens.

    python3 -m tests.scripts.tokenizer_kinds > tests/fixtures/tokenizers.json
"""

from __future__ import annotations

import json
import sys
from typing import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from .inputs import LLAMA3, O200K, QWEN


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
              [AddedToken("<left>", lstrip=True, normalized=False), AddedToken("<right>", rstrip=True,
                                                                               normalized=False),
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
    if ignore_merges:
        # Published vocabularies have words that their merges do not reach; what is trained has none unless some are lost.
        description = json.loads(tokenizer.to_str())
        merges = description["model"]["merges"]
        description["model"]["merges"] = [merge for rank, merge in enumerate(merges) if rank % 2 == 0]
        tokenizer = Tokenizer.from_str(json.dumps(description))
    tokenizer.add_tokens(added)
    return tokenizer


# ---- The fixture ----

TRAINED_ON = ["The quick brown fox jumps over the lazy dog. def main(): return 12345 + 6789\n" * 3,
              "Er sagte, daß wir's über die Straße schaffen würden; they're sure we'll make it, I'd say.\n" * 3,
              "Les élèves français naïfs. Быстрая лиса прыгает через собаку. 吾輩は猫である。名前はまだ無い。\n" * 3]
TEXTS = [
    "", " ", "a", "The quick brown fox isn't here; WE'LL see, I'D say, don'\u017f.",
    "  two  spaces\t\ttabs\r\n\r\n  lines\n\n",
    "1 12 123 1234 12345 \u0661\u0662\u0663\u0664 \u2167 \u00bd x\u00b2",
    "def main():\n    return {'a': [1, 2.5e-3]}  # done\n\n\n",
    "\u00e9l\u00e8ves e\u0301le\u0300ves \u212b \u1e9b\u0323 q\u0307\u0323 \uac00\u11a7 \u1100\u1161\u11a8",
    "\u0411\u044b\u0441\u0442\u0440\u0430\u044f \u043b\u0438\u0441\u0430, "
    "\u732b\u3067\u3042\u308b\u3002 \u05e9\u05dc\u05d5\u05dd",
    "a\u00a0b\u3000c\u0085d\u180ee\u200bf\u2028g\ufeffh",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467!\u0301?",
    "one<|endoftext|>two <|endoftext|> <|endoftext", "<|im_start|>user\nhi<|im_end|> <think>hm</think>",
    "x <left> y <right> z <both> w<left><right> \n", "<right>  <left>  <left> <both> <both>",
    "word words sword, word\u0301 a-word",
    "cafe\u0301 caf\u00e9 re\u0301sume\u0301 r\u00e9sum\u00e9",
    "a" * 300, "ab" * 100 + " " * 70 + "\n" * 9, "\x00\x01\x1f\x7f\ufffd\U0010ffff",
]
# Read as Python's decode(errors="replace") reads them.
BROKEN = [b"ab\xff\xfecd", b"\xc3", b"\xc3(\x80\xc0\x80\xed\xa0\x80z\xe2\x82",
          b"\xe2\x82\xe2\x82\xac\xf0\x9f\x98 \xf4\x90\x80\x80",
          b"\xf0\x9f\x98\xf0\x9f\x98\x80\xf8\x88\x80\x80\x80", bytes(range(120, 256))]


def fixture() -> dict:
    result: dict = {"texts": TEXTS, "broken": [text.hex() for text in BROKEN], "kinds": {}}
    for kind in ("gpt2", "llama3", "qwen", "added"):
        tokenizer = train(kind, TRAINED_ON, 400)
        texts = TEXTS + [text.decode(errors="replace") for text in BROKEN]
        result["kinds"][kind] = {"tokenizer": json.loads(tokenizer.to_str()),
                                 "ids": [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]}
    return result


if __name__ == "__main__":
    json.dump(fixture(), sys.stdout, separators=(",", ":"))
    sys.stdout.write("\n")
