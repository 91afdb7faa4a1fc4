"""The folder of a run: it may be renamed, removed or shared with others while the run trains, and hold files that are
not the run's. Nothing that was committed is lost, and nothing of others is written to. CPU only.

Seen to catch: a folder that is not compared with its path; a lock that is the file alone; pruning that counts names; a
config.json replaced whatever it holds; files opened for writing through links.
"""

import json
import os
import shutil
import signal

from .trainer_case import TrainerCase

LONG = ["training.steps=3000", "sample.every=0", "eval.every=0", "checkpoint.every=50", "checkpoint.keep=2"]


class Taken(TrainerCase):
    def assert_stopped(self, result, why):
        """Code 2, one line that says what happened and which step is saved. Gives the step."""
        code, output, error = result
        self.assertEqual(code, 2, output + error)
        self.assertEqual(len(error.splitlines()), 1, error)
        self.assertIn(why, error)
        self.assertIn("which is saved", error)
        return int(error.split("after step ")[1].split(",")[0])

    def test_a_folder_that_is_renamed_keeps_its_run(self):
        elsewhere = self.folder / "runs" / "elsewhere"
        result = self.run_with("renamed", lambda _: self.run_folder("renamed").rename(elsewhere), sets=LONG)
        step = self.assert_stopped(result, "runs/renamed was renamed or removed while the run trained there")
        self.assertIn(f"{elsewhere}/checkpoints/step-{step:08}", result[2])
        self.assertFalse(self.run_folder("renamed").exists(), "nothing is made anew where the folder was")
        sets = LONG + [f"training.steps={step + 3}", "run_dir=runs/elsewhere"]
        result = self.run_train("renamed", "--resume", "auto", sets=sets)
        self.assertIn(f"resumed from step {step} ", result.stdout)
        self.assertEqual([entry["step"] for entry in self.log("elsewhere")], list(range(1, step + 4)))

    def test_a_name_that_is_used_again_is_another_run(self):
        """Both runs go on with what is theirs."""
        def replace(_):
            self.run_folder("reused").rename(self.folder / "runs" / "first")
            self.run_train("reused", sets=["checkpoint.every=4"])

        result = self.run_with("reused", replace, sets=LONG)
        code, output, error = result
        self.assertEqual(code, 2, output + error)
        self.assertRegex(error, "runs/reused was (renamed or removed|replaced by another) while")
        self.assertEqual([entry["step"] for entry in self.log("reused")], list(range(1, 13)))
        self.assertEqual(self.checkpoints("reused"), ["step-00000004", "step-00000008", "step-00000012"])
        self.assertIn(f"{self.folder}/runs/first/checkpoints/step-", error)
        self.assert_same_tensors(self.reference_of_four(), "reused")

    def reference_of_four(self):
        self.run_train("four", sets=["checkpoint.every=4"])
        return "four"

    def test_a_folder_that_is_removed_ends_the_run_with_a_line(self):
        def remove(process):
            process.send_signal(signal.SIGSTOP)
            shutil.rmtree(self.run_folder("removed"))
            process.send_signal(signal.SIGCONT)

        code, output, error = self.run_with("removed", remove, sets=LONG)
        self.assertEqual(code, 5, output + error)
        errors = [line for line in error.splitlines() if not line.startswith("WARNING: ")]
        self.assertEqual(len(errors), 1, error)
        self.assertIn("error: runs/removed was renamed or removed, and what was trained cannot be saved: ", errors[0])
        self.assertFalse(self.run_folder("removed").exists())

    def test_a_run_whose_lock_was_removed_stays_alone(self):
        """`rm lock`: the folder is locked all the same."""
        refused = []

        def take(process):
            process.send_signal(signal.SIGSTOP)
            (self.run_folder("unlocked") / "lock").unlink()
            refused.append(self.run_train("unlocked", "--resume", "auto", sets=LONG, code=2).stderr)
            process.send_signal(signal.SIGCONT)

        result = self.run_with("unlocked", take, sets=LONG)
        self.assertIn("another process trains in runs/unlocked", refused[0])
        step = self.assert_stopped(result, "runs/unlocked/lock was ")
        self.run_train("unlocked", "--resume", "auto", sets=LONG + [f"training.steps={step + 2}"])
        self.assertEqual([entry["step"] for entry in self.log("unlocked")], list(range(1, step + 3)))

    def test_a_lock_that_is_written_to_is_still_the_lock(self):
        act = lambda _: (self.run_folder("scribbled") / "lock").write_text("mine")
        code, output, error = self.run_with("scribbled", act, sets=LONG + ["training.steps=60"])
        self.assertEqual(code, 0, output + error)

    def test_folders_may_lie_behind_links(self):
        """Users keep runs and checkpoints on other disks."""
        disk = self.folder / "disk"
        (disk / "run").mkdir(parents=True)
        (disk / "checkpoints").mkdir()
        (self.folder / "runs").mkdir(exist_ok=True)
        self.run_folder("linked").symlink_to(disk / "run")
        (disk / "run" / "checkpoints").symlink_to(disk / "checkpoints")
        self.run_train("linked")
        self.assert_same_run(self.reference(), "linked")
        self.assertEqual(len(list((disk / "checkpoints").iterdir())), 3)

        # A checkpoint alone may be elsewhere, too.
        (disk / "checkpoints" / "step-00000012").rename(disk / "moved")
        (disk / "checkpoints" / "step-00000012").symlink_to(disk / "moved")

        # Where the link led when the run began is held: nobody points it elsewhere meanwhile.
        victim = self.folder / "victim"
        victim.mkdir()

        def redirect(_):  # at once: the run may look at any moment
            (disk / "run" / "other").symlink_to(victim)
            (disk / "run" / "other").rename(disk / "run" / "checkpoints")

        result = self.run_with("linked", redirect, "--resume", "auto", sets=LONG, step=20)
        step = self.assert_stopped(result, "runs/linked/checkpoints was replaced by another")
        self.assertIn("resumed from step 12 ", result[1])
        self.assertTrue((disk / "moved" / "manifest.json").exists())
        self.assertTrue((disk / "checkpoints" / f"step-{step:08}" / "manifest.json").exists())
        self.assertEqual(list(victim.iterdir()), [])


class Pruning(TrainerCase):
    sets = LONG + ["training.steps=200", "checkpoint.every=20"]

    def test_what_is_not_the_runs_is_neither_counted_nor_removed(self):
        reference = self.run_folder(self.reference())
        names = ["step-00000007", "step-00000030", "step-00000031", "step-90000000", "step-90000001", "step-000000040"]

        def fill(_):
            checkpoints = self.run_folder("company") / "checkpoints"
            shutil.copytree(reference / "checkpoints" / "step-00000012", checkpoints / "step-00000012")  # another run's
            shutil.copytree(reference / "checkpoints" / "step-00000012", checkpoints / "step-90000002")
            for name in names:
                (checkpoints / name).mkdir()

        code, output, error = self.run_with("company", fill, sets=self.sets)
        self.assertEqual(code, 0, output + error)
        kept = [name for name in self.checkpoints("company") if name not in names]
        self.assertEqual(kept, ["step-00000012", "step-00000180", "step-00000200", "step-90000002"])
        for name in names:
            self.assertIn(name, self.checkpoints("company"))

    def test_what_has_the_name_of_the_next_checkpoint_is_set_aside(self):
        source = self.run_folder(self.reference()) / "checkpoints" / "step-00000012"
        act = lambda _: shutil.copytree(source, self.run_folder("occupied") / "checkpoints" / "step-00000200")
        code, output, error = self.run_with("occupied", act, sets=self.sets)
        self.assertEqual(code, 0, output + error)
        self.assertIn("set aside, since it had this name: runs/occupied/checkpoints/step-00000200.set-aside-", output)
        aside = [name for name in self.checkpoints("occupied") if "set-aside" in name]
        self.assertEqual(len(aside), 1)
        manifest = self.run_folder("occupied") / "checkpoints" / aside[0] / "manifest.json"
        self.assertEqual(json.loads(manifest.read_text())["step"], 12)

    def test_a_damaged_one_is_not_counted(self):
        """Of the two newest one is cut short: the one before it stays."""
        def damage(process):
            process.send_signal(signal.SIGINT)

        sets = [entry for entry in self.sets if "keep" not in entry] + ["checkpoint.keep=3"]
        self.run_with("cut", damage, sets=sets, step=70)
        names = self.checkpoints("cut")
        self.assertEqual(len(names), 3)
        weights = self.run_folder("cut") / "checkpoints" / names[1] / "model-00000-of-00001.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4])
        result = self.run_train("cut", "--resume", "auto", sets=self.sets + ["training.steps=90"])
        self.assertIn("resumed", result.stdout)
        # Two whole ones of this run are kept, and the damaged one is nobody's to remove.
        newest = ["step-00000080", "step-00000090"]
        self.assertEqual([name for name in self.checkpoints("cut") if name not in newest], [names[1]])

    def test_a_run_that_goes_on_removes_what_the_process_before_it_wrote(self):
        self.run_train("twice", sets=self.sets + ["training.steps=40"])
        self.assertEqual(self.checkpoints("twice"), ["step-00000020", "step-00000040"])
        self.run_train("twice", "--resume", "auto", sets=self.sets + ["training.steps=80"])
        self.assertEqual(self.checkpoints("twice"), ["step-00000060", "step-00000080"])


class Others(TrainerCase):
    def test_a_config_of_the_users_is_not_replaced(self):
        """`exp/config.json` with run_dir `exp`."""
        folder = self.folder / "exp"
        folder.mkdir()
        config = json.loads((self.folder / "config.json").read_text())
        texts = {"comments": "// my notes\n" + json.dumps({**config, "run_dir": "exp"}),
                 "indented": json.dumps({**config, "run_dir": "exp"}, indent=2) + "\n", "no JSON": "my notes\n"}
        for kind, text in texts.items():
            with self.subTest(kind):
                (folder / "config.json").write_text(text)
                source = "exp/config.json" if kind != "no JSON" else "config.json"
                result = self.train("--config", source, "--set", "run_dir=exp", code=2)
                self.assertIn("exp/config.json was not written by a run", result.stderr)
                self.assertEqual((folder / "config.json").read_text(), text)
                self.assertEqual([path.name for path in folder.iterdir()], ["config.json"], "nothing was begun")

    def test_a_runs_own_config_is_replaced(self):
        self.run_train("own")
        path = self.run_folder("own") / "config.json"
        command = ["--config", "runs/own/config.json", "--resume", "auto", "--set"]
        self.train(*command, "training.steps=14")
        self.assertEqual(json.loads(path.read_text())["training"]["steps"], 14)
        # As an older version wrote it, which had fewer fields; and by hand, in the same form.
        config = json.loads(path.read_text())
        del config["data"]["mask_documents"]
        config["optimizer"]["lr"] = 0.002
        path.write_text(json.dumps(config).replace("0.002", "2E-3"))
        self.train(*command, "training.steps=16")
        self.assertEqual(json.loads(path.read_text())["optimizer"]["lr"], 0.002)

    def test_a_log_of_the_users_is_not_replaced(self):
        folder = self.run_folder("foreign-log")
        folder.mkdir(parents=True)
        (folder / "log.jsonl").write_text('{"time": 1, "text": "of another program"}\n')
        result = self.run_train("foreign-log", code=2)
        self.assertIn("runs/foreign-log/log.jsonl was not written by a run", result.stderr)
        self.assertIn("of another program", (folder / "log.jsonl").read_text())
        self.run_train("foreign-log", sets=["log.jsonl=false"])

    def test_lines_of_others_in_a_log_stay(self):
        self.run_train("mixed-log", sets=["training.steps=6"])
        path = self.run_folder("mixed-log") / "log.jsonl"
        path.write_text("# before the change of lr\n" + path.read_text())
        result = self.run_train("mixed-log", "--resume", "auto")
        self.assertIn("has lines that no run wrote: it stays as", result.stderr)
        aside = list(path.parent.glob("log.jsonl.set-aside-*"))
        self.assertIn("# before the change", aside[0].read_text())
        self.assertEqual([entry["step"] for entry in self.log("mixed-log")], list(range(1, 13)))

    def test_no_link_is_followed_on_writing(self):
        victim = self.folder / "victim.txt"
        for name in ("config.json", "config.json.tmp", "log.jsonl", "log.jsonl.tmp", "lock"):
            victim.write_text("of somebody else\n")
            run = f"link-{name}"
            self.run_train(run, sets=["training.steps=6"])
            path = self.run_folder(run) / name
            path.unlink(missing_ok=True)
            path.symlink_to(victim)
            with self.subTest(name):
                # Step 5 is resumed, so that the log is written anew.
                result = self.run_train(run, "--resume", f"runs/{run}/checkpoints/step-00000005",
                                        code=0 if name.endswith(".tmp") else 2)
                self.assertEqual(victim.read_text(), "of somebody else\n")
                if result.returncode != 0:
                    self.assertIn(f"runs/{run}/{name}", result.stderr)
                    self.assertEqual(len(result.stderr.splitlines()), 1)

    def test_what_is_no_file_is_refused_at_once(self):
        """Seen to hang where a FIFO is opened with waiting."""
        def fifo(path):
            os.mkfifo(path)

        def folder(path):
            path.mkdir()
            (path / "inner").write_text("kept")

        for make in (fifo, folder):
            for name in ("config.json", "config.json.tmp", "log.jsonl", "log.jsonl.tmp", "lock"):
                run = f"{make.__name__}-{name}"
                self.run_train(run, sets=["training.steps=6"])
                path = self.run_folder(run) / name
                path.unlink(missing_ok=True)
                make(path)
                with self.subTest(run):
                    is_replaced = make is fifo and name.endswith(".tmp")
                    result = self.run_train(run, "--resume", f"runs/{run}/checkpoints/step-00000005", timeout=60,
                                            code=0 if is_replaced else 2)
                    if make is folder:
                        self.assertEqual((path / "inner").read_text(), "kept")
                    if not is_replaced:
                        self.assertRegex(result.stderr, f"^error: .*runs/{run}/{name}.*move")

    def test_a_log_that_shares_its_file_keeps_the_copy(self):
        """`cp -l` and backups that link: the copy stays what it is."""
        self.run_train("shared-log", sets=["training.steps=6"])
        path = self.run_folder("shared-log") / "log.jsonl"
        copy = self.folder / "backup.jsonl"
        os.link(path, copy)
        before = copy.read_text()
        self.run_train("shared-log", "--resume", "auto")
        self.assertEqual(copy.read_text(), before)
        self.assertEqual(len(self.log("shared-log")), 12)
