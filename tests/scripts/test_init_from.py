"""model.init_from: a new run starts from the weights of a checkpoint, and from one that fits alone.

Seen to catch: weights that are drawn all the same; a field of the model that may differ; moments taken for granted.
"""

import json
import shutil
import unittest

from . import TRAIN, run, set_options
from .import_case import ImportCase, byte_tokenizer
from .inputs import shard
from .interop_case import documents


class InitFrom(ImportCase):
    def setUp(self):
        super().setUp()
        self.write(tokenizer=byte_tokenizer())
        self.import_model()
        (self.folder / "train.bin").write_bytes(shard(documents(1, 40, 30)))
        self.sets = ['data.train=["train.bin"]', "data.val=[]", "training.steps=4", "training.batch_tokens=256",
                     "optimizer.lr=1e-3", "data.eot_token=256"]

    def train(self, *arguments, code=0, sets=()):
        return run(TRAIN, "--config", "out/config.json", *set_options([*self.sets, *sets]), *arguments, code=code,
                   cwd=self.folder)

    def losses(self, name="out-continued"):
        log = (self.folder / "runs" / name / "log.jsonl").read_text()
        return [json.loads(line)["loss"] for line in log.splitlines()]

    def test_starts_from_the_weights_and_resumes(self):
        output = self.train().stdout.decode()
        self.assertIn("model.init_from: the weights of out (step 0), with a new optimizer", output)
        whole = self.losses()
        self.train(sets=["name=drawn", "model.init_from=null"])
        self.assertNotEqual(self.losses("drawn")[0], whole[0])
        # On the way it stops and goes on: the bits are the same, and the imported folder is not read again.
        self.train(sets=["name=stopped", "training.steps=4", "checkpoint.every=2"])
        shutil.rmtree(self.folder / "runs/stopped/checkpoints/step-00000004")
        shutil.move(self.folder / "out", self.folder / "elsewhere")
        shutil.copytree(self.folder / "elsewhere", self.folder / "out", ignore=lambda *_: ["manifest.json"])
        self.train("--resume", "auto", sets=["name=stopped", "checkpoint.every=2"])
        self.assertEqual(self.losses("stopped"), whole)
        one, other = (self.folder / f"runs/{name}/checkpoints/step-00000004/model-00000-of-00001.safetensors"
                      for name in ("out-continued", "stopped"))
        self.assertTrue(one.read_bytes() == other.read_bytes())
        # A run folder and a step folder are taken too: the weights are those of its last step.
        for number, source in enumerate(("runs/stopped", "runs/stopped/checkpoints/step-00000004")):
            text = self.train(sets=[f"name=again{number}", f"model.init_from={source}", "optimizer.lr=0",
                                    "model.context_length=32"]).stdout.decode()
            self.assertIn("(step 4), with a new optimizer", text)
            self.assertIn("context_length is 32, the checkpoint has 64", text)
            copy = self.folder / f"runs/again{number}/checkpoints/step-00000004/model-00000-of-00001.safetensors"
            self.assertTrue(copy.read_bytes() == one.read_bytes())

    def refused(self, *what, arguments=(), sets=()):
        for extra in ((), ("--dry-run",)):
            result = self.train(*arguments, *extra, code=2, sets=sets)
            lines = [line for line in result.stderr.decode().splitlines() if line.startswith("error: ")]
            self.assertEqual(len(lines), 1)
            for text in what:
                self.assertIn(text, lines[0])

    def test_another_model_is_refused(self):
        for field, value in (("n_layers", "2"), ("d_model", "16"), ("n_heads", "1"), ("n_kv_heads", "2"),
                             ("head_dim", "8"), ("d_ff", "16"), ("vocab_size", "258"), ("position", '"alibi"'),
                             ("rope_theta", "500000"), ("tie_embeddings", "true"), ("qkv_bias", "true"),
                             ("qk_norm", "true"), ("norm_eps", "1e-5"), ("rope_scaling.type", '"llama3"')):
            with self.subTest(field):
                then = json.loads((self.folder / "out/config.json").read_text())["model"].get(field, "none")
                self.refused(f"has model.{field} = {json.dumps(then)}", f"set model.{field} to",
                             sets=[f"model.{field}={value}"])

    def test_what_is_no_checkpoint_is_refused(self):
        self.refused("./train import --from source", sets=["model.init_from=source"])
        self.refused("model.init_from: there is no checkpoint none", sets=["model.init_from=none"])
        self.refused("model.init_from is empty", sets=['model.init_from=""'])
        result = self.train("--resume", "out", code=2)
        self.assertIn(b"--set model.init_from=out", result.stderr)
        path = self.folder / "out/model-00000-of-00001.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x55")
        self.refused("model.init_from", "model-00000-of-00001.safetensors")

    def test_another_tokenizer_is_a_warning(self):
        other = byte_tokenizer()
        other["added_tokens"][0]["content"] = "<eos>"
        (self.folder / "other.json").write_text(json.dumps(other))
        self.assertNotIn(b"WARNING", self.train().stderr)
        result = self.train(sets=["name=other", "data.tokenizer=other.json"])
        self.assertIn(b"WARNING: model.init_from: data.tokenizer is another", result.stderr)

if __name__ == "__main__":
    unittest.main()
