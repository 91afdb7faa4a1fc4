"""Bad input, as a user meets it: `./train ...` ends with exit code 2 and one line: what, where, and what to do.

The cases are those of refusal_tables.py.

Seen to catch: the hint of the nearest name left out; the count in a shard's header not compared with its size; a kernel
of attention not compared with the precision; an unknown argument that is ignored.
"""

import fcntl
import json
import os
import pathlib
import re
import shutil
import struct
import unittest

from . import TRAIN, run, set_options
from .inputs import sealed, shard, temporary_folder
from .refusal_tables import ARGUMENTS, FILES, GOOD, RAW, SHARDS, VALUES

# What a line tells the reader to do. A message without any of these leaves them alone with the problem.
FIXES = re.compile(r"\b(must|did you mean|belongs at|try|use|set|add|remove|keep|check|close|write|name|give|make|"
                   r"copy|choose|wait|move|go on|start|see|raise|lower|leave|put|look|known|options)\b", re.IGNORECASE)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class Refusals(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = temporary_folder(cls)
        for name in ("train.bin", "val.bin"):
            (cls.folder / name).write_bytes(shard(ids=[number % 257 for number in range(600)]))
        (cls.folder / "other.bin").write_bytes(shard(ids=[300] * 600))
        (cls.folder / "raw.bin").write_bytes(shard(ids=range(256))[1024:])
        (cls.folder / "silent.bin").write_bytes(shard(ids=[256] * 600))  # empty documents alone
        (cls.folder / "folder").mkdir()
        (cls.folder / "good.json").write_text(GOOD)
        cls.run_train("--config", "good.json", code=0)  # the table changes one thing at a time in what works
        cls.run_train("--config", "good.json", "--set", "name=done", code=0)
        cls.run_train("--config", "good.json", "--set", "name=ids", "--set", "data.tokenizer=null", code=0)

    def setUp(self):
        (self.folder / "case.json").write_text(GOOD)

    @classmethod
    def run_train(cls, *arguments, code):
        return run(TRAIN, *arguments, code=code, cwd=cls.folder, text=True, timeout=60, errors="replace")

    def refused(self, *arguments, says, fix=None, code=2, num_warnings=0):
        """Ends with one line that says so; returns what stands on stdout."""
        result = self.run_train(*arguments, code=code)
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        warnings, errors = lines[:num_warnings], lines[num_warnings:]
        self.assertTrue(all("WARNING" in line for line in warnings), lines)
        self.assertEqual(len(errors), 1, "one line, not:\n" + "\n".join(line[:300] for line in lines))
        self.assertLess(len(errors[0]), 500, "a line that nobody reads to its end")
        self.assertTrue(errors[0].startswith("error: "), errors[0])
        self.assertIn(says, errors[0])
        after = errors[0][errors[0].index(says) + len(says):]
        if fix is not None:
            self.assertIn(fix, errors[0])
        else:
            self.assertRegex(after, FIXES, f"no fix in: {errors[0]}")
        return result.stdout

    def refused_with(self, *assignments, says, fix=None, arguments=(), **more):
        self.refused("--config", "case.json", *set_options(assignments), *arguments, says=says, fix=fix, **more)

    def test_there_are_enough(self):
        self.assertGreaterEqual(len(FILES) + len(VALUES) + len(ARGUMENTS) + len(SHARDS), 60)

    def test_config_files(self):
        for name, text, says, fix in FILES:
            with self.subTest(name):
                (self.folder / "case.json").write_bytes(text if isinstance(text, bytes) else text.encode())
                self.refused("--config", "case.json", says=says, fix=fix)

    def test_values(self):
        for assignment, says, fix in VALUES:
            with self.subTest(assignment):
                self.refused_with(assignment, says=says, fix=fix)

    def test_command_lines(self):
        for arguments, says, fix in ARGUMENTS:
            with self.subTest(" ".join(arguments)):
                self.assertRegex(self.refused(*arguments, says=says, fix=fix), r"\A(device: .*\n)?\Z")

    def test_no_such_device(self):
        if pathlib.Path("/dev/nvidia0").exists():
            self.skipTest("this machine has a GPU")
        self.refused_with(arguments=["--device", "cuda"], says="cuda", fix="cpu")
        self.refused_with("training.device=cuda", says="cuda", fix="cpu")

    def test_attention_kernels(self):
        for kernel in ("simt", "sm80", "sm90"):
            asked = f"training.attention={kernel}"
            self.refused_with(asked, "training.device=cpu", says=f'training.attention is "{kernel}"', fix='to "auto"')
            self.refused_with(asked, arguments=["--device", "cpu"], says="training.attention", fix='to "auto"')
        cuda = ("training.device=cuda",)
        for kernel in ("sm80", "sm90"):
            self.refused_with(f"training.attention={kernel}", *cuda, "training.precision=fp32",
                              says=f'training.attention is "{kernel}"', fix='training.precision to "bf16"')
        for head_dim in (32, 96):
            self.refused_with("training.attention=sm90", *cuda, f"model.head_dim={head_dim}", arguments=["--dry-run"],
                              says=f"sm90 takes heads of 64 or 128 elements, not of {head_dim}", fix="training.attention")

    def test_shards(self):
        for name, content, says, fix in SHARDS:
            with self.subTest(name):
                (self.folder / "bad.bin").write_bytes(content)
                self.refused_with('data.train=["bad.bin"]', says=says, fix=fix)
        (self.folder / "bad.bin").write_bytes(shard()[:-2])
        self.refused_with('data.train=["train.bin", "bad.bin"]', says="bad.bin", fix="copy it")
        self.refused_with('data.val=["bad.bin"]', says="bad.bin", fix="copy it")
        (self.folder / "bad.bin").write_bytes(shard(ids=range(16)))
        self.refused_with('data.val=["bad.bin"]', says="data.val")

    def test_raw_ids(self):
        for name, dtype, content, says, fix in RAW:
            with self.subTest(name):
                (self.folder / "bad.bin").write_bytes(content)
                self.refused_with(f'data.train=[{{"path": "bad.bin", "format": "raw", "dtype": "{dtype}"}}]', says=says,
                                  fix=fix)

    def test_empty_documents(self):
        """They are data that occur, and harmless: nothing is predicted from them. A split of nothing else is refused.

        Seen to fail when has_target() is left out (the validation loss is NaN), when require_targets() is (training
        goes through its steps and learns nothing), or looks at the first dataset of a blend alone."""
        ids = [256, 256, 5, 6, 256, 256] * 100
        (self.folder / "gaps.bin").write_bytes(shard(ids=ids))
        for eot in ("start", "end"):
            for packing in ("stream", "best_fit"):
                with self.subTest(eot=eot, packing=packing):
                    sets = [f"name=gaps-{eot}-{packing}", 'data.train=["gaps.bin"]', 'data.val=["gaps.bin"]',
                            f"data.eot={eot}", f"data.packing={packing}"]
                    self.run_train("--config", "good.json", *set_options(sets), code=0)
                    log = (self.folder / f"runs/gaps-{eot}-{packing}/log.jsonl").read_text().splitlines()
                    for line in map(json.loads, log):
                        self.assertIsInstance(line["loss"], float)
                    self.assertIsInstance(line["val_loss"], float)
        self.refused_with('data.val=["silent.bin"]', "data.eot=end", says="data.val holds nothing to predict",
                          fix="set data.val to []")
        (self.folder / "none.mask").write_bytes(bytes(600))
        self.refused_with('data.val=[{"path": "gaps.bin", "mask": "none.mask"}]', says="data.val holds nothing to predict",
                          fix="its mask")
        self.refused_with('data.train=["silent.bin"]', "data.eot=end", says="data.train holds nothing to predict",
                          fix="add text")
        self.refused_with('data.train=[{"path": "gaps.bin", "mask": "none.mask"}]', "data.mask_documents=false",
                          says="data.train holds nothing to predict", fix="check the mask")
        self.refused_with('data.train=[{"path": "train.bin", "weight": 1}, {"path": "silent.bin", "weight": 1}]',
                          "data.eot=end", says="data.train[1] holds nothing to predict", fix="add text")
        # As one document each EOT follows another, and where EOT opens documents it is the right answer.
        for number, sets in enumerate(("data.eot=start", "data.mask_documents=false")):
            self.run_train("--config", "good.json", "--set", f"name=silent-{number}", "--set",
                           'data.train=["silent.bin"]', "--set", "data.val=[]", "--set", sets, code=0)

    def test_megatron(self):
        def index(code=4, version=1, lengths=(30, 34), documents=(0, 1, 2)):
            pointers = [4 * sum(lengths[:s]) for s in range(len(lengths))]
            return (b"MMIDIDX\0\0" + struct.pack("<QBQQ", version, code, len(lengths), len(documents)) +
                    struct.pack(f"<{len(lengths)}i{len(lengths)}q{len(documents)}q", *lengths, *pointers, *documents))

        (self.folder / "meg.bin").write_bytes(struct.pack("<64i", *range(64)))
        for name, content, says, fix in (("no byte", b"", "meg.idx", None), ("text", b"x" * 500, "meg.idx", None),
                                         ("cut short", index()[:-8], "cut short", "copy"),
                                         ("multimodal", index() + b"\0\0", "multimodal", "use text"),
                                         ("floats", index(code=7), "dtype code 7", "uint16"),
                                         ("version", index(version=2), "version 2", None),
                                         ("of another .bin", index(lengths=(30, 35)), "meg.idx", "copy both"),
                                         ("longer", index() + bytes(8), "longer than it says", "copy"),
                                         ("no sequence", index(lengths=(), documents=(0,)), "it is empty", "make it"),
                                         ("counts that overflow", index()[:18] + b"\xff" * 16 + index()[34:],
                                          "cut short", "copy"),
                                         ("negative length", index(lengths=(70, -6)), "meg.idx", "copy both"),
                                         ("a gap", index()[:42] + struct.pack("<2q", 0, 124) + index()[58:], "meg.idx",
                                          "copy"),
                                         ("documents", index(documents=(0, 9, 2)), "sequence 9", "copy"),
                                         ("documents backwards", index(lengths=(20, 20, 24), documents=(0, 2, 1, 3)),
                                          "before document 1 ends", "copy"),
                                         ("not all documents", index(documents=(0, 1, 1)), "document index", "make it")):
            with self.subTest(name):
                (self.folder / "meg.idx").write_bytes(content)
                self.refused_with('data.train=["meg.bin"]', says=says, fix=fix)
        (self.folder / "meg.idx").write_bytes(index())
        (self.folder / "meg.bin").write_bytes(struct.pack("<64i", *range(63), -5))
        self.refused_with('data.train=["meg.bin"]', says="token 63 is -5", fix="copy")
        (self.folder / "meg.bin").write_bytes(struct.pack("<64i", *range(63), 300))
        self.refused_with('data.train=["meg.bin"]', says="token 63 is 300", fix="301")
        (self.folder / "meg.bin").write_bytes(bytes(255))
        self.refused_with('data.train=["meg.bin"]', says="255 bytes, which is no whole number of int32", fix="copy both")
        (self.folder / "meg.bin").write_bytes(b"")
        self.refused_with('data.train=["meg.bin"]', says="its .bin is empty", fix="leave it out")
        self.refused_with('data.train=["meg.idx"]', says="meg.idx is a Megatron index", fix="name the .bin")
        (self.folder / "meg.bin").write_bytes(bytes(256))
        (self.folder / "meg.idx").unlink()
        self.refused_with('data.train=["meg.bin"]', says="meg.bin", fix="prepare.py")

    def test_epochs_of_a_blend(self):
        self.refused_with('data.train=[{"path": "train.bin", "weight": 1}, {"path": "val.bin", "weight": 1}]',
                          "training.epochs=1", "training.steps=null", says="training.epochs", fix="training.steps")

    def test_schedules_that_do_not_fit(self):
        self.refused_with("schedule.type=wsd", "schedule.decay_steps=2", "schedule.warmup_steps=1",
                          says="schedule.warmup_steps + schedule.decay_steps")

    def test_vocabulary_too_small_for_bytes(self):
        self.refused_with("model.vocab_size=200", "data.eot_token=null", says="model.vocab_size 200", fix="257")

    def test_samples_that_do_not_fit(self):
        self.refused_with("sample.every=1", 'sample.prompts=["0123456789"]', "sample.tokens=10",
                          says="sample", fix="at most 6")

    # ---- Run folders ----

    def test_a_run_that_is_there_already(self):
        self.refused_with("name=done", says="runs/done", fix="--resume auto")

    def test_resumed_as_something_else(self):
        for assignment, says in (("model.n_layers=2", "model.n_layers"), ("model.position=rope", "model.position"),
                                 ("model.d_ff=64", "model.d_ff"), ("seed=7", "seed")):
            with self.subTest(assignment):
                self.refused_with("name=done", assignment, "training.steps=4", arguments=["--resume", "auto"],
                                  says=says, fix="name")

    def copy_of_done(self, name):
        shutil.copytree(self.folder / "runs/done", self.folder / "runs" / name)
        return self.folder / "runs" / name / "checkpoints/step-00000002"

    def test_checkpoint_of_another_version(self):
        path = self.copy_of_done("version") / "manifest.json"
        manifest = json.loads(path.read_text())
        del manifest["sha256"]
        manifest["format_version"] = 99
        path.write_text(sealed(json.dumps(manifest, indent=2)))
        self.refused_with("name=version", arguments=["--resume", "auto"], says="version 99")

    def test_no_checkpoint_is_whole(self):
        for name, damage in (("no-manifest", lambda step: (step / "manifest.json").unlink()),
                             ("empty-manifest", lambda step: (step / "manifest.json").write_text("")),
                             ("no-weights", lambda step: next(step.glob("model-*")).unlink()),
                             ("one-bit", lambda step: flip_a_bit(next(step.glob("model-*")))),
                             ("manifest-changed", lambda step: flip_a_bit(step / "manifest.json")),
                             ("short-weights", lambda step: os.truncate(next(step.glob("model-*")), 100))):
            with self.subTest(name):
                damage(self.copy_of_done(name))
                self.refused_with(f"name={name}", arguments=["--resume", "auto"], says=f"runs/{name}", num_warnings=1)

    def test_run_folder_that_cannot_be(self):
        (self.folder / "file").write_text("")
        self.refused_with("run_dir=file", says="file", fix="run_dir")
        self.refused_with("run_dir=file/inner", says="file/inner", fix="run_dir")
        (self.folder / "half").mkdir()
        (self.folder / "half/checkpoints").write_text("")
        self.refused_with("run_dir=half", says="half", fix="run_dir")

    def test_run_folder_of_another_process(self):
        (self.folder / "owned").mkdir()
        with open(self.folder / "owned/lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.refused_with("run_dir=owned", says="another process")
