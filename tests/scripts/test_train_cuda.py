"""The trainer on a GPU as a user runs it: same bits, kills, resume, what a GPU has no room for. Skipped without one."""

import copy
import json
import os
import random
import re
import signal
import subprocess
import unittest

from . import run, trainer_case
from .inputs import temporary_folder
from .trainer_case import TRAIN, TrainerCase

CONFIG = copy.deepcopy(trainer_case.CONFIG)
CONFIG["model"] |= {"d_model": 64, "n_heads": 4, "head_dim": 32}
CONFIG["training"] |= {"device": "cuda"}


def why_not():
    info = json.loads(subprocess.run([TRAIN, "info", "--json"], capture_output=True, text=True, check=True).stdout)
    return None if info["cuda"]["gpus"] else info["cuda"]["no_gpu_because"]


WHY_NOT = why_not()


@unittest.skipIf(WHY_NOT is not None, f"needs a GPU: {WHY_NOT}")
class TrainingOnCuda(TrainerCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = temporary_folder(cls)
        trainer_case.prepare_run(cls.folder, CONFIG)
        # What is timed here stays here, and every run of this class has the same algorithms.
        os.environ["XDG_CACHE_HOME"] = str(cls.folder / "cache")

    def losses(self, name):
        return [entry["loss"] for entry in self.log(name)]

    def test_same_seed_same_bits_in_every_precision(self):
        for precision in ("fp32", "bf16", "fp16"):
            with self.subTest(precision):
                for name in (f"{precision}-one", f"{precision}-two"):
                    self.run_train(name, sets=[f"training.precision={precision}"])
                self.assert_same_run(f"{precision}-one", f"{precision}-two")
                self.assertLess(self.losses(f"{precision}-one")[-1], self.losses(f"{precision}-one")[0])

    def test_fp32_follows_the_cpu(self):
        """DESIGN: within 1e-5 over 20 steps."""
        sets = ["training.steps=20", "training.precision=fp32", "sample.every=0"]
        self.run_train("on-gpu", sets=sets)
        self.run_train("on-cpu", "--device", "cpu", sets=sets)
        for on_gpu, on_cpu in zip(self.losses("on-gpu"), self.losses("on-cpu"), strict=True):
            self.assertLess(abs(on_gpu / on_cpu - 1), 1e-5)

    def test_kinds_of_models_follow_the_cpu(self):
        for name, kind in (("rope", ["model.position=rope", "model.qk_norm=true", "model.tie_embeddings=false",
                                     "training.z_loss=1e-3"]),
                           ("plain", ["model.position=none", "model.n_kv_heads=4", "data.mask_documents=false"])):
            sets = ["training.steps=12", "training.precision=fp32", "sample.every=0", *kind]
            self.run_train(f"{name}-gpu", sets=sets)
            self.run_train(f"{name}-cpu", "--device", "cpu", sets=sets)
            for on_gpu, on_cpu in zip(self.losses(f"{name}-gpu"), self.losses(f"{name}-cpu"), strict=True):
                self.assertLess(abs(on_gpu / on_cpu - 1), 1e-5)

    def test_recompute_does_not_change_the_bits(self):
        self.run_train("kept")
        for level in ("light", "block"):
            self.run_train(level, sets=[f"training.recompute={level}"])
            self.assert_same_run("kept", level)

    def test_profiled_steps_have_the_same_bits(self):
        """They run without graphs; no profiler need be there."""
        self.run_train("not-profiled")
        self.run_train("profiled", "--profile", "3:5")
        self.assert_same_run("not-profiled", "profiled")
        result = self.run_train("beyond", "--profile", "5:1000000", code=2)
        self.assertIn("name steps among these", result.stderr)

    def test_killed_and_resumed_same_bits(self):
        """SIGKILL at random moments; in fp16 the loss scale goes on too. Without a snapshot saves read the GPU."""
        generator = random.Random(5)
        for precision, more in (("bf16", []), ("fp16", ["checkpoint.host_memory=0"]), ("fp32", ["checkpoint.async=false"])):
            name = f"killed-{precision}"
            sets = [f"training.precision={precision}", "training.steps=60", "checkpoint.every=3", "eval.every=9",
                    "sample.every=0", *more]
            self.run_train(f"whole-{precision}", sets=sets)
            for kills in range(20):
                process = self.start(name, "--resume", "auto", sets=sets)
                steps_left = generator.randint(4, 20) if kills < 5 else 100
                for line in process.stdout:
                    steps_left -= line.startswith("step  ")
                    if steps_left == 0:
                        process.kill()
                        break
                _, error = process.communicate()
                if process.returncode == 0:
                    break
                self.assertEqual(process.returncode, -signal.SIGKILL, error)
            self.assertEqual(process.returncode, 0)
            self.assert_same_log(f"whole-{precision}", name)
            self.assert_same_tensors(f"whole-{precision}", name, 60)

    def test_stopped_by_a_signal_and_resumed_same_bits(self):
        self.run_train("uninterrupted")
        code, _, error = self.run_with("stopped", lambda process: process.send_signal(signal.SIGTERM), "--resume",
                                       "auto", step=1)
        self.assertIn(code, (0, 75), error)
        resumed = self.run_train("stopped", "--resume", "auto")
        if "finished" not in resumed.stdout:
            self.assertIn("bits: as if the run had not stopped", resumed.stdout)
        self.assert_same_run("uninterrupted", "stopped")

    def test_eval_and_generate(self):
        self.run_train("written")
        on = {}
        for device in ("cuda", "cpu"):
            on[device] = json.loads(self.train("eval", "--checkpoint", "runs/written", "--data", "data/val-*.bin",
                                               "--json", "--device", device).stdout)
        self.assertEqual(on["cuda"]["targets"], on["cpu"]["targets"])
        # bf16 against fp32: logits carry 8 bits, so a loss near 5 may be off by a few thousandths.
        self.assertLess(abs(on["cuda"]["loss"] / on["cpu"]["loss"] - 1), 2e-3)
        texts = [run(TRAIN, "generate", "--checkpoint", "runs/written", "--prompt", "alpha ", "--tokens", 40,
                     "--device", "cuda", cwd=self.folder).stdout for _ in range(2)]
        self.assertEqual(texts[0], texts[1])
        self.assertTrue(texts[0].startswith(b"alpha "))

    def test_micro_batch_that_fits(self):
        """auto takes what fits, and is kept on resume; a size that is too large is refused with one that fits."""
        self.run_train("auto", sets=["training.micro_batch_size=auto", "training.batch_tokens=4096"])
        resolved = json.loads((self.run_folder("auto") / "config.json").read_text())
        self.assertEqual(resolved["training"]["micro_batch_size"], 4096 // 32)
        huge = ["model.d_model=2048", "model.d_ff=8192", "model.n_layers=24", "model.context_length=4096",
                "training.batch_tokens=4194304", "training.micro_batch_size=1024", "sample.every=0", "data.val=[]"]
        result = self.run_train("huge", sets=huge, code=2)
        self.assertRegex(result.stderr, r"^error: the plan needs .* can be used: use training.micro_batch_size \d+, "
                                        r"the largest that fits\n$")
        fits = int(re.search(r"micro_batch_size (\d+)", result.stderr).group(1))
        self.assertEqual(1024 % fits, 0)

    def test_refusals(self):
        result = self.run_train("odd", sets=["model.head_dim=40"], code=2)
        self.assertIn("32, 64, 96 or 128", result.stderr)
        self.assertEqual(result.stderr.count("\n"), 1)

    def test_the_plan_without_a_gpu_is_the_plan(self):
        def total(environment):
            output = subprocess.run([TRAIN, *self.arguments("plan", "--dry-run")], cwd=self.folder, capture_output=True,
                                    text=True, check=True, env={**os.environ, **environment}).stdout
            return re.search(r"memory plan:.*?total +([^\n]*)", output, re.DOTALL).group(1)

        self.assertEqual(total({}), total({"CUDA_VISIBLE_DEVICES": ""}))
