"""./train on shards whose tokenizer.json it cannot read, or that was changed: training needs ids and EOT alone.

Seen to catch: a tokenizer.json of the shards that is always needed; a note without the reason; samples that are left
out without a word; ways out of a message that lead to another refusal.
"""

import hashlib
import json
import re
import unittest

from . import TRAIN, run, set_options
from .inputs import byte_letters, shard, temporary_folder

VOCAB_SIZE, EOT = 300, 1
PIECES = ["<unk>", "</s>", "\u2581the", "\u2581a"]
MODELS = {
    "Unigram": {"type": "Unigram", "unk_id": 0, "vocab": [[piece, -1.0] for piece in PIECES], "byte_fallback": False},
    "byte_fallback": {"type": "BPE", "byte_fallback": True, "merges": [],
                      "vocab": {piece: index for index, piece in enumerate(PIECES)}},
    "WordPiece": {"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": {piece: index for index, piece in enumerate(PIECES)}},
    "no token for byte": {"type": "BPE", "merges": [], "vocab": {piece: index for index, piece in enumerate(PIECES)}},
}
CONFIG = {
    "name": "test",
    "model": {"n_layers": 1, "d_model": 32, "n_heads": 2, "context_length": 32},
    "data": {"train": ["data/train-*.bin"], "val": ["data/val-*.bin"]},
    "training": {"steps": 3, "batch_tokens": 64, "micro_batch_size": 2, "device": "cpu"},
    "eval": {"every": 2, "tokens": 64},
}


class UnreadableTokenizer(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        (self.folder / "data").mkdir()
        (self.folder / "config.json").write_text(json.dumps(CONFIG))
        ids = [(7 * i) % 290 + 2 if i % 40 else EOT for i in range(1, 801)]
        for split in ("train", "val"):
            (self.folder / "data" / f"{split}-00000.bin").write_bytes(shard(ids))
        self.write(MODELS["Unigram"])

    def write(self, model, **others):
        """A tokenizer.json and the meta.json that belongs to it."""
        pre_tokenizer = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        text = json.dumps({"version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
                           "normalizer": None, "pre_tokenizer": pre_tokenizer, "post_processor": None,
                           "decoder": None, "model": model, **others}).encode()
        (self.folder / "data" / "tokenizer.json").write_bytes(text)
        (self.folder / "data" / "meta.json").write_text(json.dumps({
            "format": "llmc", "dtype": "uint16", "tokenizer": "tokenizer.json", "vocab_size": VOCAB_SIZE,
            "tokenizer_sha256": hashlib.sha256(text).hexdigest(), "eot_token": EOT, "eot": "end"}))

    def run_train(self, *arguments, **options):
        return run(TRAIN, *arguments, cwd=self.folder, text=True, **options)

    def train(self, *sets, code=0):
        return self.run_train("--config", "config.json", *set_options(sets), code=code)

    def refused(self, *sets):
        lines = self.train(*sets, code=2).stderr.splitlines()
        self.assertEqual(len(lines), 1, lines)
        self.assertTrue(lines[0].startswith("error: "), lines)
        return lines[0]

    def test_training_goes_on_without_text(self):
        for index, (says, model) in enumerate(MODELS.items()):
            with self.subTest(says):
                self.write(model)
                stderr = self.train(f"name=run{index}").stderr
                notes = [line for line in stderr.splitlines() if line.startswith("note: ")]
                self.assertEqual(len(notes), 1, stderr)
                for word in ("data/tokenizer.json", says, "without text"):
                    self.assertIn(word, notes[0])
                manifest = json.loads((self.folder / f"runs/run{index}/checkpoints/step-00000003/manifest.json")
                                      .read_text())
                config = manifest["config"]
                self.assertEqual((config["model"]["vocab_size"], config["data"]["eot_token"]), (VOCAB_SIZE, EOT))

    def test_what_the_config_names_is_the_same_file(self):
        for value in ('"data/tokenizer.json"', "null"):
            self.assertIn("without text", self.train("name=named" + str(len(value)), f"data.tokenizer={value}").stderr)

    def test_a_run_goes_on_and_is_evaluated(self):
        self.train()
        result = self.run_train("--config", "config.json", "--set", "training.steps=4", "--resume", "auto")
        self.assertNotIn("changed", result.stderr)
        self.assertNotIn("bits/byte", self.run_train("eval", "--checkpoint", "runs/test", "--data",
                                                     "data/val-*.bin").stdout)
        self.run_train("data", "--config", "config.json")
        self.assertIn("has no tokenizer", self.run_train("generate", "--checkpoint", "runs/test", "--prompt", "a",
                                                         code=2).stderr)

    def test_samples_are_refused_with_the_way_out(self):
        error = self.refused("sample.every=2", 'sample.prompts=["a"]')
        for word in ("data/tokenizer.json", "Unigram", "set sample.every to 0"):
            self.assertIn(word, error)
        self.train("sample.every=0", 'sample.prompts=["a"]')

    def test_an_unreadable_file_that_the_shards_do_not_know_is_refused(self):
        (self.folder / "data" / "other.json").write_text((self.folder / "data" / "tokenizer.json").read_text() + " ")
        self.assertIn("data.tokenizer is data/other.json", self.refused('data.tokenizer="data/other.json"'))
        (self.folder / "data" / "meta.json").unlink()
        error = self.refused('data.tokenizer="data/other.json"', "model.vocab_size=300", "data.eot_token=1")
        self.assertIn("Unigram", error)

    def test_the_way_out_of_a_changed_or_missing_file_leads_out(self):
        path = self.folder / "data" / "tokenizer.json"
        for change, says in ((lambda: path.write_text("{}"), "is not the file that the shards"),
                             (path.unlink, "is not there")):
            with self.subTest(says):
                change()
                error = self.refused()
                self.assertIn(says, error)
                self.assertIn("move data/meta.json away", error)
                sets = [f"{key}={value}" for key, value in
                        re.findall(r"((?:model|data)\.\w+) (\d+|\"\w+\")[ ,]", error)]
                self.assertEqual(len(sets), 3, error)
                meta = (self.folder / "data" / "meta.json").read_text()
                (self.folder / "data" / "meta.json").unlink()
                self.train(f"name={says.split()[2]}", *sets)
                (self.folder / "data" / "meta.json").write_text(meta)

    def test_truncation_and_padding_are_no_obstacle(self):
        """They are for batches of a finished model: a text is encoded as a whole here."""
        model = {"type": "BPE", "merges": [],
                 "vocab": {token: index for index, token in enumerate(["<unk>", "</s>", *byte_letters()])}}
        self.write(model, truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
                   padding={"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                            "pad_type_id": 0, "pad_token": "<unk>"})
        self.assertNotIn("note: ", self.train("sample.every=2", 'sample.prompts=["a long prompt"]',
                                              "sample.tokens=4").stderr)
        tokens = self.run_train("tokenize", "--tokenizer", "data/tokenizer.json", "--count", input="four")
        self.assertEqual(tokens.stdout, "4\n")
