"""A small run on generated text, as a user starts it: what the tests of ./train share. CPU only."""

import json
import os
import random
import subprocess
import sys
import unittest

from . import ROOT, TRAIN, run, set_options
from .inputs import temporary_folder

CONFIG = {
    "name": "test",
    "model": {"n_layers": 2, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "context_length": 32, "vocab_size": 257},
    "data": {"train": ["data/train-*.bin"], "val": ["data/val-*.bin"], "eot_token": 256, "tokenizer": "bytes"},
    "training": {"steps": 12, "batch_tokens": 256, "micro_batch_size": 4},
    "optimizer": {"lr": 1e-3},
    "eval": {"every": 4, "tokens": 512},
    "checkpoint": {"every": 5},
    "sample": {"every": 6, "prompts": ["ab"], "tokens": 8},
}


def prepare_run(folder, config):
    """Text, its shards in data/, and config.json."""
    generator = random.Random(7)
    text = folder / "text"
    text.mkdir()
    words = ["alpha", "beta", "gamma", "delta", "(", ")", "\n", "= 1"]
    for number in range(60):
        length = generator.randint(1, 120)
        (text / f"{number:03}.txt").write_text(" ".join(generator.choice(words) for _ in range(length)))
    run(sys.executable, ROOT / "scripts/prepare.py", "--input", text, "--tokenizer", "bytes", "--val-fraction", 0.2,
        "--output", folder / "data")
    (folder / "config.json").write_text(json.dumps(config))


class TrainerCase(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = temporary_folder(cls)
        prepare_run(cls.folder, CONFIG)

    def train(self, *arguments, **options):
        """./train with any arguments."""
        return run(TRAIN, *arguments, cwd=self.folder, text=True, **options)

    def arguments(self, name, *arguments, sets=()):
        return ["--config", "config.json", *set_options([f"name={name}", *sets]), *arguments]

    def run_train(self, name, *arguments, sets=(), **options):
        return self.train(*self.arguments(name, *arguments, sets=sets), **options)

    def start(self, name, *arguments, sets=(), **options):
        """The process of a run."""
        return subprocess.Popen([TRAIN, *self.arguments(name, *arguments, sets=sets)], cwd=self.folder, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                env={**os.environ, "OMP_NUM_THREADS": "1"}, **options)

    def run_with(self, name, act, *arguments, sets=(), step=10, **options):
        """Runs, and calls act(process) once the line of `step` was printed. Gives code, output and errors."""
        process = self.start(name, *arguments, sets=sets, **options)
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("step ") and int(line[5:].split("/")[0]) >= step:
                act(process)
                break
        output, error = process.communicate(timeout=120)
        return process.returncode, "".join(lines) + output, error

    def run_folder(self, name):
        return self.folder / "runs" / name

    def log(self, name):
        """The lines of log.jsonl without what the clock decides."""
        lines = []
        for line in (self.run_folder(name) / "log.jsonl").read_text().splitlines():
            entry = json.loads(line)
            for key in ("tokens_per_second", "mfu", "step_seconds", "data_wait_seconds", "memory_bytes",
                        "fastest_rank_seconds"):
                entry.pop(key, None)  # one rank has no fastest one
            lines.append(entry)
        return lines

    def checkpoints(self, name):
        """The names in checkpoints/, what killed runs left behind included."""
        return sorted(path.name for path in (self.run_folder(name) / "checkpoints").iterdir())

    def tensors(self, name, step=12):
        folder = self.run_folder(name) / "checkpoints" / f"step-{step:08}"
        return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}

    def assert_same_run(self, one, other):
        self.assert_same_log(one, other)
        self.assert_same_tensors(one, other)

    # Not assertEqual on the whole: describing how two files of bytes differ would take it minutes.
    def assert_same_log(self, one, other):
        log, other_log = self.log(one), self.log(other)
        self.assertEqual([entry["step"] for entry in log], [entry["step"] for entry in other_log])
        for entry, other_entry in zip(log, other_log):
            self.assertEqual(entry, other_entry)

    def assert_same_tensors(self, one, other, step=12):
        tensors, others = self.tensors(one, step), self.tensors(other, step)
        self.assertEqual(len(tensors), 2)
        self.assertEqual(tensors.keys(), others.keys())
        for name in tensors:
            self.assertTrue(tensors[name] == others[name], f"{name} of step {step} of {one} and {other} differ")

    def reference(self):
        """One uninterrupted run, made by whichever test needs it first."""
        if not self.run_folder("reference").exists():
            self.run_train("reference")
        return "reference"
