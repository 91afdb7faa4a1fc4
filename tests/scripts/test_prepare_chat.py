"""prepare.py --chat against transformers' own apply_chat_template and its mask of the assistant's tokens; what is left
out, counted and named; and templates that were made to do harm.

Seen to catch: the header learnt where there is no generation prompt; the line break after the end of turn learnt; the
end of turn not learnt; offsets without the post-processor; white space that a template strips; special tokens of a
message taken for text; a document that ends with every answer (Mistral); a template without its bounds.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from chat_kinds import KINDS, MAKE_TOKENIZER, plain, random_chats  # noqa: E402
from prepare_case import PrepareTest, needs, python_with, read_shard  # noqa: E402

NUM_CHATS = 100

# Writes a folder for each kind: the tokenizer with its template, and what transformers makes of the chats.
REFERENCE = MAKE_TOKENIZER + r'''
import sys
given = json.load(sys.stdin)
if given["reference"]:
    from transformers import PreTrainedTokenizerFast
for name, kind in given["kinds"].items():
    folder = os.path.join(given["folder"], name)
    texts = [message["content"] for chat in kind["chats"] for message in chat]
    make(kind["special"], kind["split"], folder, kind["plain"], texts)
    if given["reference"]:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        found = [tokenizer.apply_chat_template(chat, chat_template=kind["template"], return_dict=True,
                                               return_assistant_tokens_mask=True) for chat in kind["chats"]]
        plain = [tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"] for chat in kind["chats"]]
        assert plain == [chat["input_ids"] for chat in found], name
        json.dump([[chat["input_ids"], chat["assistant_masks"]] for chat in found],
                  open(os.path.join(folder, "expected.json"), "w"))
'''


def lines(chats: list, **more: object) -> bytes:
    return b"".join(json.dumps({"messages": chat, **more}).encode() + b"\n" for chat in chats)


class Chat(PrepareTest):
    def setUp(self) -> None:
        super().setUp()
        self.python = python_with("jinja2", "tokenizers")

    def make(self, kinds: dict, reference: bool = False) -> None:
        """kinds: name -> (special tokens, split, template, chats)."""
        described = {name: {"special": special, "split": split, "plain": plain(template), "template": template,
                            "chats": chats} for name, (special, split, template, chats) in kinds.items()}
        python = python_with("transformers", "jinja2", "tokenizers") if reference else self.python
        made = subprocess.run([python, "-c", REFERENCE], text=True, capture_output=True, input=json.dumps(
            {"folder": str(self.root), "kinds": described, "reference": reference}),
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
        self.assertEqual(made.returncode, 0, made.stderr)

    def chat(self, tokenizer: Path, *arguments: object, **options) -> subprocess.CompletedProcess:
        return self.succeed("--chat", "--tokenizer", tokenizer, "--val-fraction", 0, "--overwrite", *arguments,
                            python=self.python, **options)

    def tokens(self) -> tuple[list[int], list[int]]:
        _, ids = read_shard(self.out / "train-00000.bin")
        masks = list((self.out / "train-00000.mask").read_bytes())
        self.assertEqual(len(ids), len(masks))
        return ids, masks

    def expected_documents(self, expected: list) -> tuple[list[int], list[int]]:
        """transformers' tokens as documents: each with the end-of-text token at its side."""
        meta = self.meta()
        eot, ids, masks = meta["eot_token"], [], []
        for chat, mask in expected:
            if meta["eot"] == "start":
                self.assertEqual(chat[0], eot)
            elif chat[-1] != eot:
                chat, mask = [*chat, eot], [*mask, 0]
            ids += chat
            masks += mask
        return ids, masks

    @needs("transformers", "jinja2", "tokenizers")
    def test_equal_to_transformers(self) -> None:
        chats = {kind: random_chats(NUM_CHATS, kind) for kind in KINDS}
        self.make({kind: (*KINDS[kind], chats[kind]) for kind in KINDS}, reference=True)
        for kind in KINDS:
            self.write("chats.jsonl", lines(chats[kind]))
            folder = self.root / kind
            expected = json.loads((folder / "expected.json").read_text())
            tagged = self.root / "tagged.jinja"
            tagged.write_text(KINDS[kind][2])
            for arguments in ((), ("--chat-template", tagged)):
                with self.subTest(kind=kind, arguments=arguments):
                    said = self.chat(folder / "tokenizer.json", *arguments).stdout
                    self.assertIn(f"train:   {NUM_CHATS} documents", said)
                    ids, masks = self.expected_documents(expected)
                    found, found_masks = self.tokens()
                    self.assertTrue(found == ids, "other ids")
                    wrong = [place for place, pair in enumerate(zip(found_masks, masks)) if pair[0] != pair[1]]
                    around = [(ids[i], masks[i], found_masks[i]) for i in range(wrong[0] - 8, wrong[0] + 8)] if wrong else []
                    self.assertEqual(len(wrong), 0, around)
                    self.assertGreater(sum(masks), NUM_CHATS)
        self.assertEqual(self.meta()["mask"], True)


if __name__ == "__main__":
    unittest.main()
