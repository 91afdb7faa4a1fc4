"""The trainer as a user runs it: same bits, resume, signals, refusals. Small runs on generated text, CPU only.

Seen to catch: rows_consumed not restored on resume; v not saved; log.jsonl not cut back.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRAIN = os.environ.get("INGOT_TRAIN_BINARY", str(ROOT / "train"))

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


class Training(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.temporary.name)
        generator = random.Random(7)
        text = cls.folder / "text"
        text.mkdir()
        words = ["alpha", "beta", "gamma", "delta", "(", ")", "\n", "= 1"]
        for number in range(60):
            length = generator.randint(1, 120)
            (text / f"{number:03}.txt").write_text(" ".join(generator.choice(words) for _ in range(length)))
        subprocess.run([sys.executable, str(ROOT / "scripts/prepare.py"), "--input", str(text), "--tokenizer", "bytes",
                        "--val-fraction", "0.2", "--output", str(cls.folder / "data")],
                       check=True, capture_output=True)
        (cls.folder / "config.json").write_text(json.dumps(CONFIG))

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def command(self, name, *arguments, sets=()):
        command = [TRAIN, "--config", "config.json", "--set", f"name={name}"]
        for assignment in sets:
            command += ["--set", assignment]
        return command + list(arguments)

    def run_train(self, name, *arguments, sets=(), code=0, threads=1):
        result = subprocess.run(self.command(name, *arguments, sets=sets), cwd=self.folder, text=True,
                                capture_output=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        return result

    def run_folder(self, name):
        return self.folder / "runs" / name

    def log(self, name):
        """The lines of log.jsonl without what the clock decides."""
        lines = []
        for line in (self.run_folder(name) / "log.jsonl").read_text().splitlines():
            entry = json.loads(line)
            for key in ("tokens_per_second", "step_seconds", "data_wait_seconds", "memory_bytes"):
                entry.pop(key)
            lines.append(entry)
        return lines

    def tensors(self, name, step=12):
        folder = self.run_folder(name) / "checkpoints" / f"step-{step:08}"
        return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}

    def assert_same_run(self, one, other):
        self.assertEqual(self.log(one), self.log(other))
        self.assertEqual(self.tensors(one), self.tensors(other))

    def reference(self):
        """One uninterrupted run, made by whichever test needs it first."""
        if not self.run_folder("reference").exists():
            self.run_train("reference")
        return "reference"

    def test_same_seed_same_bits_and_one_line_a_step(self):
        reference = self.reference()
        self.run_train("again")
        self.assert_same_run(reference, "again")
        log = self.log(reference)
        self.assertEqual([entry["step"] for entry in log], list(range(1, 13)))
        self.assertEqual([entry["step"] for entry in log if entry["val_loss"] is not None], [4, 8, 12])
        self.assertTrue(all(entry["loss"] == entry["loss"] and 0 < entry["loss"] < 7 for entry in log))
        self.assertLess(log[-1]["loss"], log[0]["loss"])
        self.assertEqual(len(self.tensors(reference)), 2)

    def test_another_seed_other_bits(self):
        self.run_train("other-seed", sets=["seed=1"])
        self.assertNotEqual(self.tensors(self.reference()), self.tensors("other-seed"))

    def test_threads_do_not_change_the_bits(self):
        self.run_train("two-threads", threads=2)
        self.assert_same_run(self.reference(), "two-threads")

    def test_recompute_does_not_change_the_bits(self):
        for level in ("light", "block"):
            self.run_train(level, sets=[f"training.recompute={level}"])
            self.assert_same_run(self.reference(), level)

    def test_position_kinds_train(self):
        for position in ("rope", "none"):
            self.run_train(position, sets=[f"model.position={position}", "model.qk_norm=true",
                                           "model.tie_embeddings=false", "training.z_loss=1e-4"])
            log = self.log(position)
            self.assertLess(log[-1]["loss"], log[0]["loss"])

    def test_killed_and_resumed_same_bits(self):
        """SIGKILL at random moments, a few milliseconds after a step was printed; some may fall into saves."""
        sets = ["training.steps=80", "checkpoint.every=7", "eval.every=9", "sample.every=0"]
        self.run_train("whole", sets=sets)
        generator = random.Random(11)
        kills = 0
        for _ in range(200):
            process = subprocess.Popen(self.command("killed", "--resume", "auto", sets=sets), cwd=self.folder, text=True,
                                       stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                       env={**os.environ, "OMP_NUM_THREADS": "1"})
            steps = generator.randint(1, 15) if kills < 30 else 1000
            for line in process.stdout:
                steps -= line.startswith("step  ")
                if steps == 0:
                    time.sleep(generator.uniform(0, 0.005))
                    process.kill()
                    kills += 1
                    break
            process.communicate()
            if process.returncode == 0:
                break
            self.assertEqual(process.returncode, -signal.SIGKILL)
        self.assertEqual(process.returncode, 0)
        self.assertGreaterEqual(kills, 5)
        self.assertEqual(self.log("whole"), self.log("killed"))
        self.assertEqual(self.tensors("whole", 80), self.tensors("killed", 80))

    def test_stopped_by_signal_and_resumed_same_bits(self):
        reference = self.reference()
        for number, name in ((signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")):
            process = subprocess.Popen(self.command(name, "--resume", "auto"), cwd=self.folder, text=True,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                       env={**os.environ, "OMP_NUM_THREADS": "1"})
            for line in process.stdout:
                if line.startswith("step "):
                    process.send_signal(number)
                    break
            output, error = process.communicate()
            if process.returncode == 75:  # it may have been done already
                self.assertIn("--resume auto", error)
                self.run_train(name, "--resume", "auto")
            else:
                self.assertEqual(process.returncode, 0, output + error)
            self.assert_same_run(reference, name)

    def test_damaged_checkpoint_is_passed_over(self):
        reference = self.reference()
        self.run_train("damaged")
        folder = self.run_folder("damaged") / "checkpoints" / "step-00000012"
        model = folder / "model-00000-of-00001.safetensors"
        model.write_bytes(model.read_bytes()[:-5])
        result = self.run_train("damaged", "--resume", "auto")
        self.assertIn("passing over a damaged checkpoint", result.stderr)
        self.assertIn("resumed from step 10", result.stdout)
        self.assert_same_run(reference, "damaged")

    def test_finished_run_is_left_as_it_is(self):
        reference = self.reference()
        before = self.tensors(reference)
        result = self.run_train(reference, "--resume", "auto")
        self.assertIn("this run is finished", result.stdout)
        self.assertEqual(before, self.tensors(reference))

    def test_save_that_fails_leaves_the_run_alive(self):
        # Files of at most 100 kB (ulimit -f counts blocks of 1 kB): the weights do not fit, the log does.
        command = " ".join(f"'{word}'" for word in self.command("full-disk"))
        result = subprocess.run(["bash", "-c", f"trap '' XFSZ; ulimit -f 100; {command}"], cwd=self.folder, text=True,
                                capture_output=True)
        self.assertIn("training goes on without this checkpoint", result.stderr)
        self.assertEqual(result.returncode, 5, result.stderr)  # the last save had no later one to make up for it
        self.assertEqual([entry["step"] for entry in self.log("full-disk")], list(range(1, 12)))
        self.assertEqual(list((self.run_folder("full-disk") / "checkpoints").iterdir()), [])
        self.run_train("full-disk", "--resume", "auto")
        self.assert_same_run(self.reference(), "full-disk")

    def test_checkpoints_are_kept_and_leftovers_removed(self):
        leftover = self.run_folder("kept") / "checkpoints" / "step-00000003.tmp-1-1"
        leftover.mkdir(parents=True)
        self.run_train("kept", sets=["checkpoint.every=2", "checkpoint.keep=2"])
        names = sorted(path.name for path in (self.run_folder("kept") / "checkpoints").iterdir())
        self.assertEqual(names, ["step-00000010", "step-00000012"])

    def refused(self, *arguments, text, name="refused", sets=(), code=2):
        result = self.run_train(name, *arguments, sets=sets, code=code)
        errors = [line for line in result.stderr.splitlines() if line]
        self.assertEqual(len(errors), 1, result.stderr)
        self.assertIn(text, errors[0])

    def test_refusals(self):
        reference = self.reference()
        self.refused(name=reference, text="--resume auto")
        self.refused("--resume", "auto", name=reference, sets=["model.n_layers=3", "training.steps=20"],
                     text="cannot change the model")
        self.refused("--resume", "auto", name=reference, sets=["seed=5", "training.steps=20"],
                     text="cannot change the seed")
        self.refused(sets=["model.d_modle=32"], text="did you mean model.d_model?")
        self.refused(sets=["model.n_heads=5"], text="not divisible")
        self.refused(sets=["training.batch_tokens=100"], text="training.batch_tokens")
        self.refused(sets=['data.train=["nowhere/*.bin"]'], text="nowhere/*.bin")
        self.refused(sets=["model.vocab_size=200", "data.eot_token=null", "data.tokenizer=null", "sample.every=0"],
                     text="model.vocab_size")
        self.refused(sets=["training.steps=1.5"], text="integer")
        self.refused(sets=["training.device=tpu"], text="training.device")
        result = subprocess.run([TRAIN, "--config", "nowhere.json"], cwd=self.folder, text=True, capture_output=True)
        self.assertEqual(result.returncode, 2)
        self.assertIn("nowhere.json", result.stderr)

    def test_one_process_owns_a_run(self):
        process = subprocess.Popen(self.command("owned", sets=["training.steps=100000"]), cwd=self.folder, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            for line in process.stdout:
                if line.startswith("step "):
                    break
            self.refused(name="owned", text="another process")
        finally:
            process.kill()
            process.communicate()

    def test_nonfinite_steps_stop_the_run(self):
        # A learning rate that throws the weights to infinity within a few steps.
        result = self.run_train("diverged", sets=["optimizer.lr=10", "optimizer.grad_clip=0", "model.init_std=10",
                                                  "training.max_skipped_steps=2", "training.steps=200",
                                                  "optimizer.weight_decay=100", "eval.every=0", "sample.every=0"], code=3)
        self.assertIn("not finite", result.stderr)
        self.assertTrue(all(entry["step"] <= 200 for entry in self.log("diverged")))

    def test_version_and_help(self):
        for option, text in (("--version", "ingot"), ("--help", "--config")):
            result = subprocess.run([TRAIN, option], text=True, capture_output=True)
            self.assertEqual(result.returncode, 0)
            self.assertIn(text, result.stdout)
        self.assertEqual(subprocess.run([TRAIN, "--nonsense"], capture_output=True).returncode, 2)


if __name__ == "__main__":
    unittest.main()
