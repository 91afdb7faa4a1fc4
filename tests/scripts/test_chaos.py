"""Renames, copies, removals and `cp` over the files of a run while it trains: its folder, checkpoints, shards, masks,
index, config, log and lock. CPU only.

After each of them: the run ends by itself with one line or is stopped with its save; no whole checkpoint of the run is
gone but those that newer ones have replaced; the next process goes on from the newest one. At the end the weights are
those of a run that nobody disturbed. The seed is printed; INGOT_CHAOS_SEED=N repeats it, INGOT_LONG=1 does 200.

Seen to catch: writing by path, pruning by names, a lock that is the file alone, no handler for SIGBUS.
"""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time

from .inputs import shard
from .trainer_case import TrainerCase

NUM_OPERATIONS = 200 if os.environ.get("INGOT_LONG") == "1" else 20
KEEP = 2
SEAL_KEY = '"sha256": "'


def manifest_if_whole(folder):
    """The manifest of a checkpoint all of whose bytes are those that were written, else None."""
    try:
        text = (folder / "manifest.json").read_text()
        at = text.rindex(SEAL_KEY)
        if text[at + len(SEAL_KEY):][:64] != hashlib.sha256(text[:at].encode()).hexdigest():
            return None
        manifest = json.loads(text)
        for file in manifest["files"]:  # of less than one chunk
            data = (folder / file["name"]).read_bytes()
            if len(data) != file["bytes"] or hashlib.sha256(data).hexdigest() != file["sha256"][0]:
                return None
        return manifest
    except (OSError, ValueError, KeyError):
        return None


class Chaos(TrainerCase):
    def setUp(self):
        self.seed = int(os.environ.get("INGOT_CHAOS_SEED", random.randrange(1 << 30)))
        print(f"seed {self.seed}", file=sys.stderr)
        self.random = random.Random(self.seed)
        self.data = self.folder / "chaos"
        self.data.mkdir()
        ids = [self.random.randrange(256) if i % 50 else 256 for i in range(20_000)]
        (self.data / "masked.bin").write_bytes(shard(ids))
        (self.data / "masked.mask").write_bytes(bytes(self.random.randrange(2) for _ in ids))
        (self.data / "large.bin").write_bytes(shard(ids * 55))  # long enough to have an index in a file
        (self.data / "val.bin").write_bytes(shard(ids[:3000]))
        self.pristine = {path.name: path.read_bytes() for path in self.data.iterdir()}
        self.sets = ['data.train=[{"path":"chaos/masked.bin","mask":"chaos/masked.mask","weight":0.5},'
                     '{"path":"chaos/large.bin","weight":0.5}]', 'data.val=["chaos/val.bin"]', "eval.every=7",
                     "checkpoint.every=3", f"checkpoint.keep={KEEP}", "sample.every=0", "schedule.type=constant",
                     "schedule.warmup_steps=0"]
        self.place = self.run_folder("chaos")
        self.where = self.place  # the folder of the run, wherever the last operation has moved it

    def whole(self):
        """step -> manifest of the whole checkpoints of this run."""
        result = {}
        for folder in (self.where / "checkpoints").glob("step-*"):
            manifest = manifest_if_whole(folder) if re.fullmatch(r"step-\d{8}", folder.name) else None
            if manifest and manifest["run"] == self.id and manifest["step"] == int(folder.name[5:]):
                result[manifest["step"]] = manifest
        return result

    def one_of(self, pattern):
        found = sorted(path for path in (self.where / "checkpoints").glob(pattern) if not path.is_symlink())
        return self.random.choice(found) if found else None

    # ---- Operations: each does something while the run trains, and gives what mends it afterwards, or None ----

    def cut(self, path):
        os.truncate(path, self.random.randrange(path.stat().st_size + 1))

    def copy_over(self, path):
        """As `cp` of a file that was fetched in part: the same file is written, from its beginning."""
        data = path.read_bytes()
        path.write_bytes(data[:self.random.randrange(len(data) + 1)])

    def remove(self, path):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def rename(self, path):
        path.rename(path.with_name(f"{path.name}.away-{time.time_ns()}"))

    def replace(self, path):
        """By a file of somebody else, under the same name."""
        other = path.with_name("other")
        other.write_text("of somebody else\n")
        other.rename(path)

    def overwrite(self, path):
        path.write_text("of somebody else\n" * self.random.randrange(1, 300))

    def link(self, path):
        path.unlink()
        (self.folder / "victim").write_text("of somebody else\n")
        path.symlink_to(self.folder / "victim")

    def pipe(self, path):
        path.unlink()
        os.mkfifo(path)

    def spoil_data(self):
        name = self.random.choice(sorted(self.pristine))
        act = self.random.choice([self.cut, self.copy_over, self.copy_over, self.cut, self.remove, self.rename])
        act(self.data / name)
        return f"{act.__name__} {name}"

    def spoil_ids(self):
        name = self.random.choice(["val.bin", "masked.bin"])
        with open(self.data / name, "r+b") as file:
            file.seek(1024)
            file.write(b"\xff\xff" * 3000)
        return f"wrong ids in {name}"

    def spoil_index(self):
        path = self.data / "large.bin.index"
        act = self.random.choice([self.cut, self.copy_over, self.remove, self.overwrite, self.replace])
        act(path)
        return f"{act.__name__} {path.name}"

    def spoil_file_of_run(self):
        name = self.random.choice(["log.jsonl", "config.json", "lock"])
        path = self.where / name
        acts = [self.remove, self.rename, self.overwrite, self.replace, self.link, self.pipe]
        act = self.random.choice(acts + ([self.cut, self.copy_over] if path.stat().st_size else []))
        act(path)
        return f"{act.__name__} {name}"

    def spoil_checkpoint(self):
        path = self.one_of("step-????????")
        act = self.random.choice([self.remove, self.rename])
        if path:
            act(path)
        return f"{act.__name__} {path and path.name}"

    def spoil_file_of_checkpoint(self):
        path = self.one_of("step-????????/*")
        act = self.random.choice([self.cut, self.copy_over, self.remove, self.rename, self.overwrite, self.link])
        if path:
            act(path)
        return f"{act.__name__} {path and path.parent.name}/{path and path.name}"

    def copy_checkpoint(self):
        """Another number for the same: of a later step, or of an earlier one."""
        path = self.one_of("step-????????")
        number = self.random.choice([1, 2, 90000000 + self.random.randrange(1000)])
        target = self.where / "checkpoints" / f"step-{number:08}"
        if path and not target.exists():
            shutil.copytree(path, target)
            self.foreign.add(target.name)
        return f"copy {path and path.name} to {target.name}"

    def make_empty_checkpoint(self):
        target = self.where / "checkpoints" / f"step-{self.random.randrange(90001000, 90002000)}"
        target.mkdir(exist_ok=True)
        self.foreign.add(target.name)
        return f"mkdir {target.name}"

    def take_checkpoints(self):
        act = self.random.choice([self.remove, self.rename])
        act(self.where / "checkpoints")
        return f"{act.__name__} checkpoints"

    def rename_run(self):
        self.where = self.place.with_name(f"chaos-{time.time_ns()}")
        self.place.rename(self.where)
        if self.random.random() < 0.5:
            return "rename the run's folder"
        # Its name is used again. (Another run's id and steps.)
        self.run_train("chaos", sets=self.sets + ["training.steps=4", 'data.train=["data/train-*.bin"]', "data.val=[]"])
        return "rename the run's folder, and train another run of its name"

    def copy_run(self):
        shutil.copytree(self.where, self.place.with_name(f"copy-{time.time_ns()}"),
                        ignore=lambda folder, names: [name for name in names if ".tmp" in name])
        return "copy the run's folder"

    def train_twice(self):
        result = self.run_train("chaos", "--resume", "auto", sets=self.sets, code=2)
        self.assertIn("another process trains in runs/chaos", result.stderr)
        return "start a second process"

    OPERATIONS = [spoil_data] * 5 + [spoil_file_of_run] * 3 + [spoil_file_of_checkpoint] * 3 + [rename_run] * 2 + [
        spoil_ids, spoil_index, spoil_checkpoint, spoil_checkpoint, copy_checkpoint, copy_checkpoint,
        make_empty_checkpoint, take_checkpoints, copy_run, train_twice]

    def mend(self):
        """What a user would do before the next start."""
        for name, data in self.pristine.items():
            (self.data / name).unlink(missing_ok=True)
            (self.data / name).write_bytes(data)
        if self.where != self.place:
            shutil.rmtree(self.place, ignore_errors=True)
            self.where.rename(self.place)
            self.where = self.place
        for name in self.foreign:
            shutil.rmtree(self.place / "checkpoints" / name, ignore_errors=True)
        for name in ("log.jsonl", "config.json", "lock"):
            path = self.place / name
            is_foreign = path.is_symlink() or (path.exists() and not path.is_file())
            if is_foreign or (path.is_file() and path.read_bytes().startswith(b"of somebody else")):
                path.unlink()
            elif name == "config.json" and path.is_file() and not path.read_text().endswith("}\n"):
                path.unlink()  # cut short

    def disturb(self, operation):
        """One process, one operation. Gives what was done."""
        process = self.start("chaos", "--resume", "auto", sets=self.sets + ["training.steps=100000"])
        self.addCleanup(process.kill)
        self.foreign = set()
        wait, output = self.random.randint(2, 8), []
        for line in process.stdout:
            output.append(line)
            wait -= line.startswith("step ")
            if wait == 0:
                break
        if wait > 0:
            self.fail("".join(output) + process.stderr.read())
        takes_checkpoints = operation in (Chaos.take_checkpoints, Chaos.spoil_checkpoint, Chaos.spoil_file_of_checkpoint)
        stands_still = self.random.random() < 0.7 or takes_checkpoints
        if stands_still:
            process.send_signal(signal.SIGSTOP)
        there = self.whole()
        try:
            what = operation(self)
        except OSError as error:  # the run removed it, or wrote into it, in the same moment
            what = f"nothing but in part: {error}"
        before = self.whole()
        process.send_signal(signal.SIGCONT)
        time.sleep(self.random.uniform(0, 0.3))
        end = self.random.choice([signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
        if process.poll() is None:
            process.send_signal(end)
        rest, error = process.communicate(timeout=120)
        text = f"{what}, {end.name}, code {process.returncode}\n{rest}{error}"
        self.check_end(process.returncode, end, error, text)
        # The line of a checkpoint that the operation took may still have been unread.
        self.check_checkpoints(before, there.keys() - before.keys(), rest, error, text)
        return f"{what}: {process.returncode}"

    def check_end(self, code, end, error, text):
        self.assertIn(code, (75, 2, 5) + ((-signal.SIGKILL,) if end == signal.SIGKILL else ()), text)
        errors = [line for line in error.splitlines() if line.startswith("error: ")]
        if code != -signal.SIGKILL:  # that may come behind the line
            self.assertEqual(len(errors), int(code in (2, 5)), text)
        for line in error.splitlines():
            self.assertRegex(line, "^(error|WARNING|note|stopped|evaluating|verifying)", text)

    def check_checkpoints(self, before, taken, output, error, text):
        after = self.whole()
        saved = [int(step) for step in re.findall(r"^checkpoint of step (\d+) committed$", output, re.M)]
        saved += [int(step) for step in re.findall(r"after step (\d+), which is saved", error)]
        for step in set(saved) - taken | before.keys():
            num_newer = sum(other > step for other in after)
            self.assertTrue(step in after or num_newer >= KEEP, f"step {step} is lost of {sorted(after)}: {text}")
        for name in self.foreign:
            self.assertTrue((self.where / "checkpoints" / name).exists(), f"{name} is gone: {text}")
        if (self.folder / "victim").exists():
            self.assertEqual((self.folder / "victim").read_text(), "of somebody else\n", text)

    def test_nothing_is_lost(self):
        self.run_train("chaos", sets=self.sets + ["training.steps=6"])
        manifest = json.loads((self.place / "checkpoints" / "step-00000006" / "manifest.json").read_text())
        self.id = manifest["run"]
        spare = self.folder / "spare"
        for number in range(NUM_OPERATIONS):
            # What an operation destroys is the user's loss: a spare checkpoint keeps the test going.
            newest = max(self.whole())
            shutil.rmtree(spare, ignore_errors=True)
            shutil.copytree(self.place / "checkpoints" / f"step-{newest:08}", spare)
            what = self.disturb(self.random.choice(self.OPERATIONS))
            print(f"{number + 1}: {what}", file=sys.stderr)
            self.mend()
            if not self.whole():
                (self.place / "checkpoints").mkdir(exist_ok=True)
                for folder in (self.place / "checkpoints").glob("step-*"):
                    shutil.rmtree(folder)
                shutil.copytree(spare, self.place / "checkpoints" / f"step-{newest:08}")
        newest = max(self.whole())
        sets = self.sets + [f"training.steps={newest + 3}"]
        result = self.run_train("chaos", "--resume", "auto", sets=sets)
        self.assertIn(f"resumed from step {newest} ", result.stdout)
        self.run_train("undisturbed", sets=sets)
        self.assert_same_tensors("undisturbed", "chaos", newest + 3)
