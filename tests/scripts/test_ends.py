"""What ends a run ahead of its last step, and what is kept of it: data that become shorter or wrong while they are
read, signals at any moment, limits of the system, losses that are not finite. CPU only.

Seen to catch: no handler for SIGBUS (the run dies without a line); the last page of a file that is not looked at; bad
ids of data.val that end a run without a save; a decision that a checkpoint does not keep; signals that are not caught.
"""

import os
import pathlib
import resource
import shutil
import signal
import struct
import subprocess
import time

from .inputs import shard
from .trainer_case import ROOT, TRAIN, TrainerCase

LONG = ["training.steps=2000", "sample.every=0", "eval.every=0", "checkpoint.every=1000000"]


class Data(TrainerCase):
    """Each test has data of its own, spoils them while a run reads them, puts them back, and goes on."""

    def data(self, name):
        shutil.copytree(self.folder / "data", self.folder / name)
        return [f'data.train=["{name}/train-*.bin"]', f'data.val=["{name}/val-*.bin"]']

    def shard(self, name, split="train"):
        return sorted((self.folder / name).glob(f"{split}-*.bin"))[0]

    def ends_and_goes_on(self, name, victim, spoil, sets, *texts):
        """The run ends with code 2 and one line, what was trained is saved, and a run that goes on has the bits of one
        that was left alone."""
        good = victim.read_bytes()
        code, output, error = self.run_with(name, lambda _: spoil(victim), sets=sets)
        self.assertEqual(code, 2, output + error)
        lines = [line for line in error.splitlines() if not line.startswith("note: ")]
        self.assertEqual(len(lines), 1, error)
        for text in (str(victim.relative_to(self.folder)), "stopped after step", "which is saved", *texts):
            self.assertIn(text, lines[0])
        step = int(lines[0].split("after step ")[1].split(",")[0])
        self.assertGreaterEqual(step, 10)
        self.assertEqual(self.checkpoints(name), [f"step-{step:08}"])
        victim.write_bytes(good)
        # Three more steps, and the same run without a stop.
        sets = sets + [f"training.steps={step + 3}", "schedule.type=constant"]
        self.run_train(name, "--resume", "auto", sets=sets)
        return step

    def test_a_shard_that_is_cut_to_nothing(self):
        sets = LONG + self.data("cut") + ["schedule.type=constant", "schedule.warmup_steps=0"]
        step = self.ends_and_goes_on("cut", self.shard("cut"), lambda path: os.truncate(path, 0), sets,
                                     "became shorter while it was read: restore the file")
        self.run_train("uncut", sets=sets + [f"training.steps={step + 3}"])
        self.assert_same_log("uncut", "cut")
        self.assert_same_tensors("uncut", "cut", step + 3)

    def test_a_shard_that_loses_its_last_bytes(self):
        """Within its last page: no signal tells of it."""
        sets = LONG + self.data("last")
        shard = self.shard("last")
        size = shard.stat().st_size // 4096 * 4096 + 2
        self.assertLess(size, shard.stat().st_size)
        self.ends_and_goes_on("last", shard, lambda path: os.truncate(path, size), sets, "became shorter")

    def test_a_shard_that_another_is_copied_over(self):
        sets = LONG + self.data("over")
        other = self.shard("over", "val").read_bytes()
        spoil = lambda path: path.write_bytes(other)
        self.ends_and_goes_on("over", self.shard("over"), spoil, sets, "restore the file")

    def test_a_shard_that_is_read_whole_documents_at_a_time(self):
        sets = LONG + self.data("fit") + ["data.packing=best_fit"]
        self.ends_and_goes_on("fit", self.shard("fit"), lambda path: os.truncate(path, 2000), sets, "became shorter")

    def test_a_mask(self):
        sets = LONG + self.data("masked")
        shard = self.shard("masked")
        mask = shard.with_suffix(".mask")
        mask.write_bytes(b"\1" * ((shard.stat().st_size - 1024) // 2))
        sets += [f'data.train=[{{"path":"masked/{shard.name}","mask":"masked/{mask.name}"}}]']
        self.ends_and_goes_on("masked", mask, lambda path: os.truncate(path, 1), sets, "became shorter")

    def test_the_index_of_megatron(self):
        """Read when a row's documents are looked for: in a new epoch."""
        ids = self.shard_ids()
        folder = self.folder / "megatron"
        folder.mkdir()
        (folder / "a.bin").write_bytes(struct.pack(f"<{len(ids)}H", *ids))
        ends = [i + 1 for i, token in enumerate(ids) if token == 256]
        starts = [0] + ends[:-1]
        (folder / "a.idx").write_bytes(
            b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, len(ends), len(ends) + 1)
            + struct.pack(f"<{len(ends)}i", *(end - start for start, end in zip(starts, ends)))
            + struct.pack(f"<{len(ends)}q", *(2 * start for start in starts))
            + struct.pack(f"<{len(ends) + 1}q", *range(len(ends) + 1)))
        sets = LONG + ['data.train=["megatron/a.bin"]', "data.val=[]", "training.batch_tokens=1024"]
        self.ends_and_goes_on("megatron", folder / "a.idx", lambda path: os.truncate(path, 60), sets, "became shorter")

    def shard_ids(self):
        data = self.shard("data").read_bytes()
        return struct.unpack(f"<{(len(data) - 1024) // 2}H", data[1024:])

    def test_validation_that_becomes_shorter(self):
        sets = LONG + self.data("short-val") + ["eval.every=15"]
        victim = self.shard("short-val", "val")
        self.ends_and_goes_on("short-val", victim, lambda path: os.truncate(path, 0), sets, "became shorter")

    def test_validation_whose_ids_become_wrong(self):
        sets = LONG + self.data("wrong-val") + ["eval.every=15"]

        def spoil(path):
            with open(path, "r+b") as file:
                file.seek(1024)
                file.write(b"\xff\xff" * 200)

        victim = self.shard("wrong-val", "val")
        self.ends_and_goes_on("wrong-val", victim, spoil, sets, "token 0 is 65535, but model.vocab_size is 257")

    def test_other_commands_say_so_too(self):
        """A shard that is cut while `eval` reads it, which has a run's weights already."""
        self.run_train("evaluated")
        path = self.folder / "long.bin"
        path.write_bytes(shard([97, 98, 99, 256] * 500_000))
        process = subprocess.Popen([TRAIN, "eval", "--checkpoint", "runs/evaluated", "--data", "long.bin"],
                                   cwd=self.folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                   env={**os.environ, "OMP_NUM_THREADS": "1"})
        for line in process.stderr:
            if line.startswith("device: "):
                break
        os.truncate(path, 5000)
        output, error = process.communicate()
        self.assertEqual((process.returncode, output), (2, ""), error)
        last = error.splitlines()[-1]  # before it, how far it came
        self.assertEqual(last, "error: long.bin became shorter while it was read: restore the file")


class Signals(TrainerCase):
    def test_every_signal_that_asks_to_stop_saves(self):
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPWR, signal.SIGXCPU, signal.SIGHUP):
            name = f"by-{number.name}"
            with self.subTest(name):
                # Whoever runs the tests under nohup has SIGHUP ignored.
                code, output, error = self.run_with(name, lambda process: process.send_signal(number), sets=LONG,
                                                    preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
                self.assertEqual(code, 75, output + error)
                self.assertRegex(error, rf"stopped by signal {number.value}( \(.*\))?, after step \d+, which is saved: ")
                self.assertEqual(len(self.checkpoints(name)), 1)

    def test_a_second_interrupt_ends_at_once(self):
        """Whatever else came between the two."""
        def interrupt(process):
            process.send_signal(signal.SIGSTOP)
            for number in (signal.SIGINT, signal.SIGTERM):
                process.send_signal(number)
            process.send_signal(signal.SIGCONT)
            status = pathlib.Path(f"/proc/{process.pid}/status")
            is_pending = lambda: int(status.read_text().split("ShdPnd:")[1].split()[0], 16) & 1 << signal.SIGINT - 1
            while is_pending():
                time.sleep(0.001)
            process.send_signal(signal.SIGINT)

        # The save takes longer than that.
        sets = LONG + ["model.d_model=512", "model.d_ff=4096", "training.batch_tokens=32",
                       "training.micro_batch_size=1"]
        code, output, error = self.run_with("impatient", interrupt, sets=sets, step=2)
        self.assertEqual(code, 130, output + error)

    def test_a_signal_before_the_first_step(self):
        """While data are read, and later: nothing was trained, and the line says so; the same command then trains."""
        (self.folder / "large.bin").write_bytes(shard([97, 98, 99, 256] * 4_000_000))
        sets = ['data.train=["large.bin"]']
        for number, wait in enumerate((0.0, 0.02, 0.05, 0.1)):
            name = f"early-{number}"
            process = self.start(name, sets=sets)
            while not (self.run_folder(name) / "lock").exists() and process.poll() is None:
                time.sleep(0.001)
            time.sleep(wait)
            process.send_signal(signal.SIGINT)
            output, error = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 75, output + error)
            last = error.splitlines()[-1]
            if "nothing was trained" in last:
                self.assertIn("before the first step", last)
                self.assertEqual(self.checkpoints(name), [])
                self.assertEqual(len(error.splitlines()), 1)
            else:
                self.assertIn("which is saved: go on with --resume auto", last)
        self.run_train("early-0", "--resume", "auto", sets=sets)

    def test_a_signal_while_a_checkpoint_is_written(self):
        sets = ["training.steps=60", "checkpoint.every=1", "sample.every=0", "eval.every=0", "model.d_model=128"]
        self.run_train("whole", sets=sets)
        for step in (3, 9, 17):
            self.run_with("saving", lambda process: process.send_signal(signal.SIGTERM), "--resume", "auto", sets=sets,
                          step=step)
        self.run_train("saving", "--resume", "auto", sets=sets)
        self.assert_same_log("whole", "saving")
        self.assert_same_tensors("whole", "saving", 60)

    def test_a_limit_of_cpu_time(self):
        """`ulimit -t` sets the hard limit too, at which the system kills without a signal."""
        limit = lambda: resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
        sets = LONG + ["training.steps=1000000"]
        code, output, error = self.run_with("cpu-time", lambda _: None, sets=sets, preexec_fn=limit)
        self.assertEqual(code, 75, output + error)
        self.assertIn("raise ulimit -t", error)
        self.assertEqual(len(self.checkpoints("cpu-time")), 1)

    def test_help_and_readme_agree_about_codes(self):
        text = subprocess.run([TRAIN, "--help"], text=True, capture_output=True, check=True).stdout
        readme = (ROOT / "README.md").read_text()
        for part in ("a second Ctrl-C: ended at once, without saving", "by a signal or", "what was trained is saved"):
            self.assertIn(part, " ".join(text.split()))
            self.assertIn(part, readme)


class NonFinite(TrainerCase):
    def test_a_kill_between_the_save_and_the_end(self):
        """The step whose loss ends the run was saved, its line was not: the run that goes on ends at the same step."""
        sets = ["training.steps=40", "optimizer.lr=10", "optimizer.grad_clip=0", "model.init_std=10",
                "optimizer.weight_decay=100", "eval.every=0", "sample.every=0", "checkpoint.every=1",
                "training.on_nonfinite=stop"]
        self.run_train("diverged", sets=sets, code=3)
        last = self.log("diverged")[-1]["step"]
        self.assertLess(last, 40)
        self.assertIn(f"step-{last:08}", self.checkpoints("diverged"))
        shutil.copytree(self.run_folder("diverged"), self.run_folder("killed"))
        path = self.run_folder("killed") / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:-1]))
        result = self.run_train("killed", "--resume", "auto", sets=sets, code=3)
        self.assertIn(f"not finite at step {last} ", result.stderr)
        self.assert_same_log("diverged", "killed")
        self.assert_same_tensors("diverged", "killed", last)
