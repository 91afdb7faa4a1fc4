"""What a run survives: kills, damaged files, full disks, time limits. CPU only. (Its folder: test_run_folder.py; what
ends it: test_ends.py.)

INGOT_LONG=1 makes the two random tests long: 100 kills, 200 damaged checkpoints.

Seen to catch: AdamW not waiting for the snapshot; files that are not verified; a checkpoint written under its final name;
no look at the free space; the log not cut back; rows_consumed not restored; pruning that counts a damaged checkpoint as
one of the newest.
"""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

from .trainer_case import TrainerCase

IS_LONG = os.environ.get("INGOT_LONG") == "1"
SEAL_KEY, SEAL_END = '"sha256": "', '"\n}\n'


def seal(text):
    """A manifest with its last key made anew."""
    body = text[: text.rindex(SEAL_KEY)]
    return body + SEAL_KEY + hashlib.sha256(body.encode()).hexdigest() + SEAL_END


class Kills(TrainerCase):
    def test_killed_and_resumed_same_bits(self):
        """SIGKILL at random moments, between steps and inside saves: no bit and no line of the log is lost."""
        num_kills, steps = (100, 900) if IS_LONG else (12, 110)
        sets = [f"training.steps={steps}", "checkpoint.every=3", "eval.every=9", "sample.every=0", "model.d_model=64"]
        self.run_train("whole", sets=sets)
        generator = random.Random(11)
        kills = kills_inside_saves = 0
        for _ in range(10 * num_kills):
            process = self.start("killed", "--resume", "auto", sets=sets)
            steps_left = generator.randint(1, 8) if kills < num_kills else steps + 1
            for line in process.stdout:
                steps_left -= line.startswith("step  ")
                if steps_left == 0:
                    time.sleep(generator.uniform(0, 0.006))
                    process.kill()
                    kills += 1
                    break
            _, error = process.communicate()
            checkpoints = self.run_folder("killed") / "checkpoints"
            kills_inside_saves += any(".tmp-" in path.name for path in checkpoints.iterdir())
            if process.returncode == 0:
                break
            self.assertEqual(process.returncode, -signal.SIGKILL, error)
            self.assertNotIn("damaged", error)
        self.assertEqual(process.returncode, 0)
        self.assertGreaterEqual(kills, num_kills)
        self.assertGreater(kills_inside_saves, 0)
        print(f"{kills} kills, {kills_inside_saves} inside saves", file=sys.stderr)
        self.assert_same_log("whole", "killed")
        self.assert_same_tensors("whole", "killed", steps)


class Stops(TrainerCase):
    def test_any_moment_is_good_for_a_signal(self):
        """A handler that interrupts a thread inside a product destroyed one stopped run in a hundred: of 300, the long
        form, such a fault would spare few; of 12 it spares most."""
        generator = random.Random(3)
        for number in range(300 if IS_LONG else 12):
            step = generator.randint(1, 4)
            number_of_signal = generator.choice([signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
            code, output, error = self.run_with(f"stop-{number}", lambda process: process.send_signal(number_of_signal),
                                                sets=["training.steps=60"], step=step)
            self.assertIn(code, (0, 75), output + error)

    def test_under_nohup_a_closed_terminal_stops_nothing(self):
        """Seen to fail when SIGHUP is caught although it was ignored."""
        code, output, error = self.run_with("nohup", lambda process: process.send_signal(signal.SIGHUP),
                                            sets=["training.steps=20"], step=1,
                                            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
        self.assertEqual(code, 0, output + error)
        self.assertEqual(len(self.log("nohup")), 20)

    def test_a_run_outlives_the_reader_of_its_output(self):
        """`./train | head`. Seen to fail without SIGPIPE ignored."""
        process = self.start("pipe", sets=["training.steps=20"])
        process.stdout.readline()
        process.stdout.close()
        error = process.stderr.read()
        self.assertEqual(process.wait(timeout=60), 0, error)
        self.assertEqual(len(self.log("pipe")), 20)


class Damage(TrainerCase):
    def damage(self, path, generator):
        """One flipped bit, a truncation or a deletion; says which."""
        data = bytearray(path.read_bytes())
        kind = generator.choice(["flip", "flip", "flip", "truncate", "delete"])
        if kind == "delete":
            path.unlink()
        elif kind == "truncate":
            path.write_bytes(data[: generator.randrange(len(data))])
        else:
            # Headers are short: half of the flips go there.
            at = generator.randrange(min(len(data), 4000) if generator.random() < 0.5 else len(data))
            data[at] ^= 1 << generator.randrange(8)
            path.write_bytes(data)
            kind = f"flip at {at}"
        return kind

    def test_any_damage_is_found_and_the_one_before_taken(self):
        reference = self.run_folder(self.reference())
        files = ["manifest.json", "model-00000-of-00001.safetensors", "optimizer-00000-of-00001.safetensors"]
        generator = random.Random(5)
        for number in range(200 if IS_LONG else 25):
            run = self.run_folder("damaged")
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(reference, run)
            victim = run / "checkpoints" / "step-00000012" / files[number % 3]
            kind = self.damage(victim, generator)
            with self.subTest(file=victim.name, kind=kind):
                result = self.run_train("damaged", "--resume", "auto")
                self.assertIn("passing over a damaged checkpoint", result.stderr)
                self.assertIn(f"step-00000012/{victim.name}", result.stderr)
                self.assertIn("resumed from step 10 ", result.stdout)
                self.assert_same_run("reference", "damaged")

    def test_when_nothing_is_whole_the_run_is_refused(self):
        shutil.copytree(self.run_folder(self.reference()), self.run_folder("ruined"))
        for manifest in self.run_folder("ruined").glob("checkpoints/*/manifest.json"):
            manifest.write_text(manifest.read_text().replace('"step": ', '"step":  '))
        result = self.run_train("ruined", "--resume", "auto", code=2)
        self.assertIn("none of the 3 checkpoints", result.stderr)

    def test_a_damaged_newest_checkpoint_is_not_counted_as_kept(self):
        sets = ["checkpoint.every=2", "checkpoint.keep=1"]
        self.run_train("miscounted", sets=sets + ["checkpoint.keep=2"])
        newest = self.run_folder("miscounted") / "checkpoints" / "step-00000012" / "manifest.json"
        newest.write_text(newest.read_text()[:-9])
        result = self.run_train("miscounted", "--resume", "auto", sets=sets + ["training.steps=11"])
        self.assertIn("set aside", result.stdout)
        self.run_train("miscounted", "--resume", "auto", sets=sets + ["training.steps=12"])
        self.assert_same_run_but_lr("miscounted")

    def assert_same_run_but_lr(self, name):
        self.assertEqual([entry["step"] for entry in self.log(name)], list(range(1, 13)))
        names = [path.name for path in (self.run_folder(name) / "checkpoints").iterdir() if "set-aside" not in path.name]
        self.assertEqual(names, ["step-00000012"])

    def test_another_version_is_refused_and_not_passed_over(self):
        shutil.copytree(self.run_folder(self.reference()), self.run_folder("newer"))
        manifest = self.run_folder("newer") / "checkpoints" / "step-00000012" / "manifest.json"
        text = manifest.read_text()
        self.assertEqual(seal(text), text)
        manifest.write_text(seal(text.replace('"format_version": 2', '"format_version": 4')))
        result = self.run_train("newer", "--resume", "auto", code=2)
        self.assertIn("format version 4, this program reads versions 2 and 3", result.stderr)


class Saving(TrainerCase):
    def test_asynchronous_saves_have_the_bytes_of_synchronous_ones(self):
        # Writing takes much longer than a step: an update that does not wait would be seen in the files.
        sets = ["model.d_model=256", "model.d_ff=1024", "training.batch_tokens=32", "training.micro_batch_size=1",
                "training.steps=4", "checkpoint.every=1", "checkpoint.keep=100", "sample.every=0", "eval.every=0"]
        result = self.run_train("synchronous", sets=sets + ["checkpoint.async=false"])
        self.assertIn("kept, synchronous", result.stdout)
        bytes_of_flat = sum(len(data) for data in self.tensors("synchronous", 4).values()) // 3
        for name, memory, expected in (("snapshot", "auto", ", from a snapshot"),
                                       ("moments", 5 * bytes_of_flat // 2, "the moments from a snapshot"),
                                       ("no-snapshot", 0, "without a snapshot")):
            result = self.run_train(name, sets=sets + [f"checkpoint.host_memory={memory}"])
            self.assertIn(expected, result.stdout)
            for step in range(1, 5):
                self.assert_same_tensors("synchronous", name, step)

    def test_checkpoints_are_kept_and_leftovers_removed(self):
        leftover = self.run_folder("kept") / "checkpoints" / "step-00000003.tmp-1-1"
        leftover.mkdir(parents=True)
        self.run_train("kept", sets=["checkpoint.every=1", "checkpoint.keep=2", "checkpoint.keep_every=4"])
        names = sorted(path.name for path in (self.run_folder("kept") / "checkpoints").iterdir())
        self.assertEqual(names, ["step-00000004", "step-00000008", "step-00000011", "step-00000012"])

    def test_save_that_fails_leaves_the_run_alive(self):
        """Files of at most 100 kB: the weights do not fit, the log does. Seen to fail, with SIGXFSZ as the end of the
        run, where that signal is not ignored."""
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 10, resource.RLIM_INFINITY))
        # The last save had no later one to make up for it.
        result = self.run_train("limited", preexec_fn=limit, code=5)
        self.assertIn("training goes on without this checkpoint", result.stderr)
        self.assertIn("raise the limit of a file's size (ulimit -f)", result.stderr)
        self.assertEqual([entry["step"] for entry in self.log("limited")], list(range(1, 12)))
        self.assertEqual(list((self.run_folder("limited") / "checkpoints").iterdir()), [])
        self.run_train("limited", "--resume", "auto")
        self.assert_same_run(self.reference(), "limited")

    def test_full_disk(self):
        """A file system with room for one checkpoint and no second one."""
        disk = self.folder / "disk"
        disk.mkdir()
        size = sum(len(data) for data in self.tensors(self.reference()).values())
        mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size * 3 // 2 + (1 << 20)}", "tmpfs", str(disk)],
                               capture_output=True, text=True)
        if mount.returncode != 0:
            self.skipTest(f"no file system can be mounted here: {mount.stderr.strip()}")
        try:
            sets = [f"run_dir={disk}/run"]
            result = self.run_train("full", sets=sets, code=5)
            self.assertIn("a checkpoint needs", result.stderr)
            self.assertIn("training goes on without this checkpoint", result.stderr)
            names = [path.name for path in (disk / "run" / "checkpoints").iterdir()]
            self.assertEqual(names, ["step-00000005"])  # whole, and nothing half-written beside it
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            result = self.run_train("full", "--resume", "auto", sets=sets)
            self.assertIn("resumed from step 5 ", result.stdout)
            shutil.copytree(disk / "run", self.run_folder("full"))
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)
        self.assert_same_run("reference", "full")

    def test_a_folder_that_cannot_be_written_costs_checkpoints_alone(self):
        sets = ["training.steps=400", "sample.every=0", "eval.every=0", "checkpoint.every=50"]

        def block(_):
            folder = self.run_folder("blocked") / "checkpoints"
            folder.rename(self.run_folder("blocked") / "old-checkpoints")
            folder.write_text("a file is in the way")

        code, _, error = self.run_with("blocked", block, sets=sets)
        self.assertEqual(code, 5, error)
        self.assertIn("training goes on without this checkpoint", error)
        self.assertEqual(len(self.log("blocked")), 399)  # the last step's save comes before its line


class Resuming(TrainerCase):
    def test_max_minutes_saves_and_stops(self):
        sets = ["training.steps=400", "sample.every=0", "eval.every=50", "checkpoint.every=1000"]
        self.run_train("unlimited", sets=sets)
        for _ in range(3):  # an eighth of a second each: far too little for 400 steps, whatever the machine
            result = self.run_train("limited", "--resume", "auto", sets=sets + ["training.max_minutes=0.002"], code=75)
            self.assertIn("stopped after training.max_minutes 0.002", result.stderr)
        self.run_train("limited", "--resume", "auto", sets=sets)
        self.assert_same_log("unlimited", "limited")
        self.assert_same_tensors("unlimited", "limited", 400)

    def test_resume_from_a_path(self):
        reference = self.run_folder(self.reference())
        # Back to an earlier step of the same run: what lay ahead is set aside, the log is cut.
        shutil.copytree(reference, self.run_folder("back"))
        result = self.run_train("back", "--resume", "runs/back/checkpoints/step-00000005")
        self.assertIn("resumed from step 5 ", result.stdout)
        self.assertEqual(result.stdout.count("set aside"), 2)
        self.assert_same_run("reference", "back")
        # From another run: this one begins there.
        result = self.run_train("fork", "--resume", str(reference), sets=["training.steps=15", "optimizer.lr=1e-4"])
        self.assertIn("changed from now on: optimizer.lr was 0.001, is 0.0001", result.stdout)
        self.assertEqual([entry["step"] for entry in self.log("fork")], [12, 13, 14, 15])
        # But not where there is a run already.
        result = self.run_train("back", "--resume", str(reference), sets=["training.steps=20"], code=2)
        self.assertIn("belongs to another run", result.stderr)
        result = self.run_train("new", "--resume", "runs/nowhere", code=2)
        self.assertIn("there is no checkpoint runs/nowhere", result.stderr)

    def test_a_finished_run_is_left_as_it_is_and_can_be_made_longer(self):
        name = "finished"
        self.run_train(name, sets=["eval.every=5"])
        before = (self.run_folder(name) / "log.jsonl").read_bytes()
        result = self.run_train(name, "--resume", "auto", sets=["eval.every=5"])
        self.assertIn("this run is finished", result.stdout)
        self.assertEqual((self.run_folder(name) / "log.jsonl").read_bytes(), before)
        self.run_train(name, "--resume", "auto", sets=["eval.every=5", "training.steps=14"])
        log = (self.run_folder(name) / "log.jsonl").read_bytes()
        self.assertTrue(log.startswith(before))
        self.assertEqual([entry["step"] for entry in self.log(name)], list(range(1, 15)))

    def test_a_config_that_resumes_from_its_resolved_form(self):
        self.run_train("resolved", sets=["training.steps=null", "training.epochs=0.5"])
        config = json.loads((self.run_folder("resolved") / "config.json").read_text())
        self.assertGreater(config["training"]["steps"], 0)
        self.assertIsNone(config["training"]["epochs"])
        again = self.train("--config", "runs/resolved/config.json", "--resume", "auto")
        self.assertIn("this run is finished", again.stdout)
        self.assertNotIn("changed", again.stdout)
