"""A run on tokens of byte-level BPE: the config says nothing that meta.json says, checkpoints carry the tokenizer, text
is written from them alone, and what contradicts meta.json is refused.

Seen to catch: vocab_size that is taken over a larger one of the config, a tokenizer that is read from its first place
rather than from the checkpoint, EOT that counts bytes, a tokenizer.json that stands in no manifest, a tokenizer whose
SHA-256 is not compared, with the config's or between two data sets.
"""

import hashlib
import json
import math
import shutil
import unittest

from . import ROOT, TRAIN, run, set_options
from .inputs import shard, temporary_folder

FIXTURE = ROOT / "tests/fixtures/tokenizers.json"
CONFIG = {
    "name": "bpe",
    "model": {"n_layers": 1, "d_model": 32, "n_heads": 2, "context_length": 32},
    "data": {"train": ["data/train-*.bin"], "val": ["data/val-*.bin"]},
    "training": {"steps": 4, "batch_tokens": 128, "micro_batch_size": 2},
    "sample": {"every": 2, "prompts": ["The fox", ""], "tokens": 8},
    "checkpoint": {"every": 2},
}
DOCUMENTS = ["The quick brown fox jumps over the lazy dog, and the dog jumps over 12345 foxes.\n",
             "Er sagte, daß wir's über die Straße schaffen würden.\n", "def main():\n    return 6789\n"] * 8


class BpeRun(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = temporary_folder(cls)
        kinds = json.loads(FIXTURE.read_text())["kinds"]
        cls.tokenizer = json.dumps(kinds["llama3"]["tokenizer"], ensure_ascii=False)
        cls.other = json.dumps(kinds["qwen"]["tokenizer"], ensure_ascii=False)
        cls.vocab_size = 1 + max([*kinds["llama3"]["tokenizer"]["model"]["vocab"].values(),
                                  *(token["id"] for token in kinds["llama3"]["tokenizer"]["added_tokens"])])
        cls.eot = next(token["id"] for token in kinds["llama3"]["tokenizer"]["added_tokens"]
                       if token["content"] == "<|endoftext|>")
        cls.prepare("data", cls.tokenizer)
        (cls.folder / "config.json").write_text(json.dumps(CONFIG))
        cls.first = cls.run_train("--config", "config.json")

    @classmethod
    def prepare(cls, name, tokenizer, **changes):
        """Shards and meta.json as scripts/prepare.py writes them."""
        folder = cls.folder / name
        folder.mkdir()
        (folder / "tokenizer.json").write_text(tokenizer)
        tokens = []
        for document in DOCUMENTS:
            ids = cls.run_train("tokenize", "--tokenizer", str(folder / "tokenizer.json"),
                                stdin=document.encode()).stdout
            tokens.extend([*map(int, ids.split()), cls.eot])
        for split in ("train", "val"):
            (folder / f"{split}-00000.bin").write_bytes(shard(tokens))
        cls.num_tokens = len(tokens)
        cls.write_meta(folder, **{"tokenizer_sha256": hashlib.sha256(tokenizer.encode()).hexdigest(), **changes})

    @classmethod
    def write_meta(cls, folder, **changes):
        meta = {"format": "llmc", "dtype": "uint16", "tokenizer": "tokenizer.json", "vocab_size": cls.vocab_size,
                "eot_token": cls.eot, "eot": "end", "bytes_per_token": 1.5, **changes}
        (folder / "meta.json").write_text(json.dumps({key: value for key, value in meta.items() if value is not None}))

    @classmethod
    def run_train(cls, *arguments, code=0, stdin=b"", cwd=None):
        return run(TRAIN, *arguments, code=code, input=stdin, cwd=cwd or cls.folder)

    def refused(self, *sets, says, arguments=()):
        lines = self.run_train("--config", "config.json", *set_options(["name=refused", *sets]), *arguments,
                               code=2).stderr.decode().splitlines()
        lines = [line for line in lines if "WARNING" not in line]
        self.assertEqual(len(lines), 1, lines)
        for part in says:
            self.assertIn(part, lines[0])
        self.assertLess(len(lines[0]), 500)

    def test_the_resolved_config_spells_everything_out(self):
        config = json.loads((self.folder / "runs/bpe/config.json").read_text())
        self.assertEqual(config["model"]["vocab_size"], self.vocab_size)
        self.assertEqual(config["data"]["eot_token"], self.eot)
        self.assertEqual(config["data"]["eot"], "end")
        self.assertEqual(config["data"]["tokenizer"], "data/tokenizer.json")
        output = self.first.stdout.decode(errors="replace")
        self.assertIn(f"tokenizer: byte-level BPE, {self.vocab_size} tokens", output)
        self.assertEqual(output.count("--- sample at step"), 4)
        self.assertIn("\nThe fox", output)

    def test_a_larger_vocabulary_is_padding(self):
        sets = ["name=larger", "model.vocab_size=512", "training.steps=1", "sample.every=0"]
        self.run_train("--config", "config.json", *set_options(sets))
        config = json.loads((self.folder / "runs/larger/config.json").read_text())
        self.assertEqual(config["model"]["vocab_size"], 512)

    def test_checkpoints_carry_the_tokenizer(self):
        step = self.folder / "runs/bpe/checkpoints/step-00000004"
        self.assertEqual((step / "tokenizer.json").read_text(), self.tokenizer)
        files = {file["name"]: file for file in json.loads((step / "manifest.json").read_text())["files"]}
        self.assertEqual(files["tokenizer.json"]["sha256"], [hashlib.sha256(self.tokenizer.encode()).hexdigest()])
        # Elsewhere, without the data.
        elsewhere = self.folder / "elsewhere"
        shutil.copytree(step, elsewhere / "step-00000004")
        result = self.run_train("generate", "--checkpoint", "step-00000004", "--prompt", "-", "--tokens", "12",
                                cwd=elsewhere, stdin="Straße".encode())
        self.assertTrue(result.stdout.startswith("Straße".encode()))
        damaged = bytearray((elsewhere / "step-00000004/tokenizer.json").read_bytes())
        damaged[len(damaged) // 2] ^= 1
        (elsewhere / "step-00000004/tokenizer.json").write_bytes(damaged)
        result = self.run_train("generate", "--checkpoint", "step-00000004", "--prompt", "a", cwd=elsewhere, code=2)
        self.assertIn(b"tokenizer.json", result.stderr)

    def test_generate_is_reproducible(self):
        def written(*arguments):
            return self.run_train("generate", "--checkpoint", "runs/bpe", "--prompt", "The dog", "--tokens", "40",
                                  *arguments).stdout
        self.assertEqual(written(), written())
        self.assertNotEqual(written(), written("--seed", "2"))

    def test_eval_knows_bytes(self):
        line = self.run_train("eval", "--checkpoint", "runs/bpe", "--data", "data/val-*.bin", "--json").stdout
        result = json.loads(line)
        self.assertEqual(result["targets"], self.num_tokens - len(DOCUMENTS))
        # The first token of a document is predicted by nothing; the rest stand for their bytes, EOT for none.
        # In model.vocab each letter is a byte.
        vocab = json.loads(self.tokenizer)["model"]["vocab"]
        length = {token: len(letters) for letters, token in vocab.items()}
        first = 0
        for document in DOCUMENTS:
            ids = self.run_train("tokenize", "--tokenizer", "data/tokenizer.json",
                                 stdin=document.encode()).stdout.split()
            first += length[int(ids[0])]
        num_bytes = sum(len(document.encode()) for document in DOCUMENTS) - first
        self.assertAlmostEqual(result["bits_per_byte"], result["loss"] * result["targets"] / math.log(2) / num_bytes,
                               places=12)

    def test_resume_goes_on_with_its_tokenizer(self):
        shutil.copytree(self.folder / "runs/bpe", self.folder / "runs/more")
        result = self.run_train("--config", "config.json", "--set", "name=more", "--set", "training.steps=5",
                                "--resume", "auto").stdout.decode(errors="replace")
        self.assertNotIn("another file", result)
        # The same tokens from another file.
        (self.folder / "spaced.json").write_text(" " + self.tokenizer)
        shutil.copytree(self.folder / "data", self.folder / "plain")
        (self.folder / "plain/meta.json").unlink()
        sets = ["name=more", "training.steps=6", "data.tokenizer=spaced.json", 'data.train=["plain/train-*.bin"]',
                'data.val=["plain/val-*.bin"]', f"data.eot_token={self.eot}", f"model.vocab_size={self.vocab_size}"]
        result = self.run_train("--config", "config.json", "--resume", "auto",
                                *set_options(sets)).stdout.decode(errors="replace")
        self.assertIn("is another file than the checkpoint's", result)

    # ---- What is refused ----

    def test_contradictions_of_meta(self):
        (self.folder / "other.json").write_text(self.other)
        cases = [(["model.vocab_size=300"], ["model.vocab_size is 300", "data/meta.json says", str(self.vocab_size),
                                             "at least"]),
                 ([f"data.eot_token={self.eot + 1}"], [f"data.eot_token is {self.eot + 1}", f"says {self.eot}"]),
                 (["data.eot=start"], ["data.eot is start", "says end"]),
                 (["data.tokenizer=bytes"], ["data.tokenizer is bytes", "data/tokenizer.json (sha256"]),
                 (["data.tokenizer=other.json"], ["data.tokenizer is other.json (sha256",
                                                  "data/tokenizer.json (sha256"]),
                 (["data.tokenizer=nowhere.json"], ["nowhere.json", "path of a tokenizer.json"]),
                 (['sample.prompts=["' + "word " * 40 + '"]'], ["a sample of", "model.context_length 32",
                                                                "shorter prompt"]),
                 (['sample.prompts=["The fox"]', "sample.tokens=31"], ["a sample of", "sample.tokens of at most"])]
        for sets, says in cases:
            with self.subTest(sets=sets):
                self.refused(*sets, says=says)

    def test_masks_that_no_entry_names(self):
        """Seen to fail without check_masks()."""
        shutil.copytree(self.folder / "data", self.folder / "masked")
        self.write_meta(self.folder / "masked", mask=True,
                        **{"tokenizer_sha256": json.loads((self.folder / "data/meta.json").read_text())["tokenizer_sha256"]})
        self.refused('data.train=["masked/train-*.bin"]',
                     says=["data.train[0] names no mask", "masked/meta.json", '"mask": "masked/train-*.mask"'])
        self.refused('data.val=["masked/val-*.bin"]', says=["data.val[0] names no mask"])
        result = self.run_train("eval", "--checkpoint", "runs/bpe", "--data", "masked/val-*.bin")
        self.assertIn(b"eval counts every target", result.stderr)

    def test_tokens_of_two_tokenizers(self):
        self.prepare("mixed", self.other)
        self.refused('data.train=["data/train-*.bin", "mixed/train-*.bin"]',
                     says=["two tokenizers", "data/meta.json", "mixed/meta.json", "prepare both with one"])
        self.refused('data.val=["mixed/val-*.bin"]', says=["two tokenizers"])
        result = self.run_train("eval", "--checkpoint", "runs/bpe", "--data", "mixed/val-*.bin", code=2)
        self.assertIn(b"mixed/meta.json", result.stderr)

    def test_a_tokenizer_that_is_not_there_or_another(self):
        self.prepare("gone", self.tokenizer)
        (self.folder / "gone/tokenizer.json").unlink()
        self.refused('data.train=["gone/train-*.bin"]', "data.val=[]",
                     says=["gone/tokenizer.json, which is not there", "copy it"])
        (self.folder / "gone/tokenizer.json").write_text(self.other)
        self.refused('data.train=["gone/train-*.bin"]', "data.val=[]",
                     says=["gone/tokenizer.json is not the file", "put that file back"])
        # The same file elsewhere is as good.
        self.run_train("--config", "config.json", "--set", 'data.train=["gone/train-*.bin"]', "--set", "data.val=[]",
                       "--set", "data.tokenizer=data/tokenizer.json", "--dry-run")

    def test_a_model_too_small_for_its_tokenizer(self):
        shutil.copytree(self.folder / "data", self.folder / "bare")
        (self.folder / "bare/meta.json").unlink()
        bare = ['data.train=["bare/train-*.bin"]', "data.val=[]", f"data.eot_token={self.eot}", "sample.every=0"]
        self.refused(*bare, says=["config.json: model.vocab_size is missing", "no meta.json beside data.train says it",
                                  "add it"])
        self.refused(*bare, "data.tokenizer=bare/tokenizer.json", "model.vocab_size=400",
                     says=["model.vocab_size is 400", "bare/tokenizer.json has", "at least"])

    def test_a_meta_that_is_none(self):
        folder = self.folder / "broken"
        shutil.copytree(self.folder / "data", folder)
        for name, text in (("no JSON", "{"), ("a list", "[]"), ("empty", "")):
            with self.subTest(name):
                (folder / "meta.json").write_text(text)
                self.refused('data.train=["broken/train-*.bin"]', "data.val=[]",
                             says=["broken/meta.json is no JSON", "prepare the data again"])
        for changes, says in (({"format": "parquet"}, "format"), ({"vocab_size": 0}, "vocab_size"),
                              ({"vocab_size": "4"}, "vocab_size"), ({"vocab_size": None}, "vocab_size"),
                              ({"eot_token": -1}, "eot_token"), ({"eot_token": 100_000}, "eot_token"),
                              ({"eot": "middle"}, "eot"), ({"tokenizer": 3}, "tokenizer"),
                              ({"tokenizer": "../tokenizer.json"}, "tokenizer"), ({"tokenizer": "gpt2"}, "tokenizer"),
                              ({"tokenizer_sha256": None}, "tokenizer_sha256"),
                              ({"tokenizer_sha256": "ab"}, "tokenizer_sha256")):
            with self.subTest(changes=changes):
                self.write_meta(folder, **{"tokenizer_sha256": "0" * 64, **changes})
                self.refused('data.train=["broken/train-*.bin"]', "data.val=[]",
                             says=["broken/meta.json", says, "prepare the data again"])
