"""The trainer as a user runs it: same bits, resume by signal, refusals. Small runs on generated text, CPU only.

Seen to catch: rows_consumed not restored on resume; v not saved; log.jsonl not cut back.
"""

import json
import re
import signal

from .trainer_case import TrainerCase


class Training(TrainerCase):
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

    def test_the_plan_has_all_batches(self):
        """Those of the loader, six of 7 int32 arrays of 128 tokens, and two of the device and of the host.

        Seen to fail when the loader's batches are not planned, and when those of validation always are."""
        for sets, batch in (([], "14.00 KiB"), (["data.val=[]", "sample.every=0"], "7.00 KiB")):
            table = self.run_train("plan", "--dry-run", "--device", "cpu", sets=sets).stdout
            self.assertRegex(table, r"\n  loader +21\.00 KiB\n")
            self.assertRegex(table, rf"\n  batch +{re.escape(batch)}\n")

    def test_another_seed_other_bits(self):
        self.run_train("other-seed", sets=["seed=1"])
        self.assertTrue(self.tensors(self.reference()) != self.tensors("other-seed"))

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

    def test_stopped_by_signal_and_resumed_same_bits(self):
        reference = self.reference()
        for number, name in ((signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")):
            code, output, error = self.run_with(name, lambda process: process.send_signal(number), "--resume", "auto",
                                                step=1)
            if code == 75:  # it may have been done already
                self.assertIn("--resume auto", error)
                self.run_train(name, "--resume", "auto")
            else:
                self.assertEqual(code, 0, output + error)
            self.assert_same_run(reference, name)

    def test_best_fit_killed_and_resumed_same_bits(self):
        """Through several epochs, from one dataset and as a blend.

        Seen to catch: a bookmark that names the next group; the state of the data not saved (a blend begins anew)."""
        blend = [{"path": path, "weight": weight} for path, weight in (("data/train-*.bin", 3), ("data/val-*.bin", 1))]
        for name, train in (("one", []), ("blend", [f"data.train={json.dumps(blend)}"])):
            sets = ["data.packing=best_fit", "training.steps=150", "data.val=[]", "sample.every=0", *train]
            whole = self.run_train(f"fit-{name}", sets=sets)
            if train:
                epochs = [float(number) for number in re.findall(r"([0-9.]+) epochs", whole.stdout)]
                self.assertTrue(len(epochs) == 2 and min(epochs) > 2, whole.stdout)
            for last in (33, 90):
                code, _, error = self.run_with(f"fit-{name}-killed", lambda process: process.kill(), "--resume", "auto",
                                               sets=sets, step=last)
                self.assertEqual(code, -signal.SIGKILL, error)
            resumed = self.run_train(f"fit-{name}-killed", "--resume", "auto", sets=sets)
            self.assertIn("resumed from step", resumed.stdout)
            self.assert_same_log(f"fit-{name}", f"fit-{name}-killed")
            self.assert_same_tensors(f"fit-{name}", f"fit-{name}-killed", 150)

    def test_finished_run_is_left_as_it_is(self):
        reference = self.reference()
        before = self.tensors(reference)
        result = self.run_train(reference, "--resume", "auto")
        self.assertIn("this run is finished", result.stdout)
        self.assertTrue(before == self.tensors(reference))

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
        self.assertIn("nowhere.json", self.train("--config", "nowhere.json", code=2).stderr)

    def test_one_process_owns_a_run(self):
        process = self.start("owned", sets=["training.steps=100000"])
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
            self.assertIn(text, self.train(option).stdout)
        self.train("--nonsense", code=2)
