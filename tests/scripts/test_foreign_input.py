"""Files that somebody else made: ./train reads them within bounds of size, depth and time, promises no more than it has
compared, and what it prints of them is printable and short. CPU only.

Seen to fail: a reader without its limit of depth (a crash), an opening that waits (a FIFO), a match without its limit,
a manifest's names printed as they are, lines of the data that count as no difference.
"""

import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import struct
import subprocess
import tempfile
import unittest

from . import TRAIN, set_options
from .inputs import LLAMA3, O200K, byte_letters, sealed, shard, temporary_folder

IS_LONG = os.environ.get("INGOT_LONG") == "1"

DEPTH = 200_000
DEEP_LIST, DEEP_OBJECT = "[" * DEPTH + "]" * DEPTH, '{"a":' * DEPTH + "1" + "}" * DEPTH
ESCAPES = "\x1b[2J\x1b]0;x\x07\x9b31m\u2028\u202egnp"


def tokenizer(regex=None):
    """A tokenizer.json whose tokens are bytes: each piece that the pattern cuts out becomes its bytes."""
    split = [{"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}] if regex else []
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": split + [
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex is None}]},
            "post_processor": None, "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": {letter: byte for byte, letter in enumerate(byte_letters())}, "merges": []}}


class ForeignInput(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = temporary_folder(cls)
        ids = [number * 7 % 256 if number % 41 else 256 for number in range(6000)]
        (cls.folder / "train.bin").write_bytes(shard(ids))
        (cls.folder / "more.bin").write_bytes(shard(ids[::-1]))
        (cls.folder / "val.bin").write_bytes(shard(ids[:600]))
        (cls.folder / "train.mask").write_bytes(bytes([1, 0] * 3000))
        (cls.folder / "config.json").write_text(json.dumps({
            "model": {"n_layers": 1, "d_model": 16, "n_heads": 2, "context_length": 16, "vocab_size": 257},
            "data": {"train": ["train.bin"], "val": ["val.bin"], "eot_token": 256, "tokenizer": "bytes"},
            "training": {"steps": 4, "batch_tokens": 64, "micro_batch_size": 2}, "checkpoint": {"every": 2}}))
        cls.train(cls.folder, "--set", "name=done", code=0)

    def setUp(self):
        """Each test has a copy of the data, to spoil."""
        self.place = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
        for path in self.folder.glob("*.*"):
            if path.is_file():
                shutil.copy2(path, self.place)

    @staticmethod
    def train(place, *arguments, code, command=("--config", "config.json")):
        result = subprocess.run([TRAIN, *command, *arguments], cwd=place, capture_output=True, timeout=120,
                                stdin=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        output, errors = result.stdout.decode(), result.stderr.decode()  # UTF-8, or this throws
        if code is not None and result.returncode != code:
            raise AssertionError(f"exit code {result.returncode}, not {code}\n{output[-2000:]}{errors[-2000:]}")
        for line in (output + errors).split("\n"):
            if not all(character.isprintable() for character in line.replace("\r", "")):
                raise AssertionError(f"not printable: {line[:300]!r}")
        for line in errors.split("\n"):
            if len(line.encode()) > 1100:
                raise AssertionError(f"{len(line)} characters on one line: {line[:300]!r}")
        return subprocess.CompletedProcess(result.args, result.returncode, output, errors)

    def refused(self, *arguments, says, num_warnings=0, command=("--config", "config.json")):
        lines = self.train(self.place, *arguments, code=2, command=command).stderr.splitlines()
        self.assertEqual(len(lines), num_warnings + 1, lines)
        self.assertTrue(all(line.startswith("WARNING: ") for line in lines[:-1]), lines)
        self.assertTrue(lines[-1].startswith("error: "), lines)
        self.assertIn(says, "\n".join(lines))

    def copy_of_done(self, name="copy"):
        """A run whose newest checkpoint is that of step 2, of 4. Returns its step folder."""
        run = self.place / "runs" / name
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.folder / "runs/done", run)
        shutil.rmtree(run / "checkpoints/step-00000004")
        return run / "checkpoints/step-00000002"

    def manifest(self):
        manifest = json.loads((self.folder / "runs/done/checkpoints/step-00000002/manifest.json").read_text())
        del manifest["sha256"]
        return manifest

    def resume(self, *sets, name="copy", code=0):
        return self.train(self.place, *set_options([f"name={name}", *sets]), "--resume", "auto", code=code)

    # ---- Files that are none ----

    def test_a_pipe_in_place_of_a_file(self):
        def pipe(path):
            path.unlink(missing_ok=True)
            os.mkfifo(path)
            return path

        with_mask = 'data.train=[{"path": "train.bin", "mask": "train.mask"}]'
        for name, sets in (("train.bin", ()), ("val.bin", ()), ("train.mask", ("--set", with_mask)), ("train.idx", ()),
                           ("meta.json", ()), ("t.json", ("--set", "data.tokenizer=t.json"))):
            with self.subTest(name):
                self.setUp()
                pipe(self.place / name)
                self.refused(*sets, says=name)
        self.setUp()
        pipe(self.place / "t.json")
        self.refused(says="t.json", command=("tokenize", "--tokenizer", "t.json"))
        self.refused(says="t.json", command=("eval", "--checkpoint", str(self.folder / "runs/done"), "--data", "t.json"))
        for name in ("manifest.json", "model-00000-of-00001.safetensors", "optimizer-00000-of-00001.safetensors"):
            with self.subTest(name):
                pipe(self.copy_of_done() / name)
                self.refused("--set", "name=copy", "--resume", "auto", says=name, num_warnings=1)
                self.refused(says=name, command=("eval", "--checkpoint", "runs/copy/checkpoints/step-00000002", "--data",
                                                 "val.bin"))
        # One document index more or less does not stop a run.
        self.setUp()
        (self.place / "train.bin").write_bytes(shard([7, 256] * 600_000))
        pipe(self.place / "train.bin.index")
        self.assertIn("train.bin.index is not used", self.train(self.place, code=0).stderr)

    def test_a_file_without_end(self):
        for name in ("meta.json", "t.json"):
            with self.subTest(name):
                self.setUp()
                (self.place / name).symlink_to("/dev/zero")
                self.refused("--set", "data.tokenizer=t.json" if name == "t.json" else "seed=1", says=name)
        self.refused(says="/dev/zero", command=("--config", "/dev/zero"))
        manifest = self.copy_of_done() / "manifest.json"
        manifest.unlink()
        manifest.symlink_to("/dev/zero")
        self.refused("--set", "name=copy", "--resume", "auto", says="manifest.json", num_warnings=1)
        # Regular files, and larger than any of their kind.
        for name, size in (("meta.json", 2 << 20), ("config.json", 2 << 20), ("t.json", 65 << 20)):
            with self.subTest(name, size=size):
                self.setUp()
                with open(self.place / name, "a") as file:
                    file.truncate(size)
                self.refused("--set", "data.tokenizer=t.json" if name == "t.json" else "seed=1", says=name)

    def test_a_config_through_a_pipe(self):
        for source in ("<(sleep 0.2; cat config.json)", "/dev/stdin < <(cat config.json)", "/dev/stdin < config.json"):
            with self.subTest(source):
                self.setUp()
                result = subprocess.run(["bash", "-c", f'"{TRAIN}" --set name=piped --config {source}'], cwd=self.place,
                                        capture_output=True, timeout=60, env={**os.environ, "OMP_NUM_THREADS": "1"})
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertTrue((self.place / "runs/piped/checkpoints/step-00000004").is_dir())

    # ---- JSON ----

    def test_deep_json(self):
        def spoiled(root, keys, raw):
            root = json.loads(json.dumps(root))
            inner = root
            for key in keys[:-1]:
                inner = inner[key]
            inner[keys[-1]] = "@raw@"
            return json.dumps(root).replace('"@raw@"', raw)

        whole = tokenizer(LLAMA3)
        places = [(key,) for key in whole] + [("model", key) for key in whole["model"]]
        places += [("pre_tokenizer", "pretokenizers"), ("pre_tokenizer", "pretokenizers", 0, "pattern"), ("surplus",)]
        sequences = ('{"type":"Sequence","normalizers":[' * 1000 + "]}" * 1000,
                     '{"type":"Sequence","decoders":[' * 1000 + "]}" * 1000)
        for keys in places:
            with self.subTest(keys):
                (self.place / "t.json").write_text(spoiled(whole, keys, DEEP_LIST))
                self.refused(says="t.json", command=("tokenize", "--tokenizer", "t.json"))
        for key, raw in zip(("normalizer", "decoder"), sequences):
            (self.place / "t.json").write_text(spoiled(whole, (key,), raw))
            self.refused(says="nested", command=("tokenize", "--tokenizer", "t.json"))
        for raw in (DEEP_LIST, DEEP_OBJECT, "[" * DEPTH):
            (self.place / "t.json").write_text(raw)
            self.refused(says="nested", command=("tokenize", "--tokenizer", "t.json"))
        meta = {"format": "llmc", "vocab_size": 257, "eot_token": 256, "tokenizer": "bytes", "mask": False}
        for key in meta:
            with self.subTest("meta.json", key=key):
                (self.place / "meta.json").write_text(spoiled(meta, (key,), DEEP_LIST))
                self.refused(says="meta.json is no JSON: line 1, column")
        (self.place / "meta.json").unlink()
        for keys in ([key] for key in self.manifest()):
            with self.subTest("manifest.json", keys=keys):
                (self.copy_of_done() / "manifest.json").write_text(sealed(spoiled(self.manifest(), keys, DEEP_LIST)))
                self.refused("--set", "name=copy", "--resume", "auto", says="nested more than")
        header = DEEP_LIST.encode()
        weights = self.copy_of_done() / "model-00000-of-00001.safetensors"
        weights.write_bytes(struct.pack("<Q", len(header)) + header)
        manifest = self.manifest()
        manifest["files"][0].update(bytes=weights.stat().st_size, sha256=[hashlib.sha256(weights.read_bytes()).hexdigest()])
        (weights.parent / "manifest.json").write_text(sealed(json.dumps(manifest)))
        self.refused("--set", "name=copy", "--resume", "auto", says="nested more than")

    def test_json_says_where(self):
        for text, says in (('{\n "model": 1,\n "model": 2}', 'line 3, column 8: the key "model" is given twice'),
                           ('{\n "seed": 1e999}', "line 2, column"), ('{"seed": ' + "1" * 400 + "}", "line 1, column"),
                           ('{"name": "' + ESCAPES.replace("\n", "") + '"', "case.json"),
                           ("{\n\n" + "[" * 100, "line 3, column")):
            (self.place / "case.json").write_text(text)
            self.refused(says=says, command=("--config", "case.json"))

    # ---- What is printed ----

    def test_what_is_printed_is_printable_and_short(self):
        long = "x" * 400_000
        for assignment in (f"{long}=1", f"model.{long}=1", f"name={long}", f"name={ESCAPES}", f"{ESCAPES}=1",
                           f"model.position={ESCAPES}{long}", f'data.train=["{ESCAPES}"]', f'data.train=["{long}"]',
                           f"data.tokenizer={long}", f"data.tokenizer={ESCAPES}.json", "a." * 100_000 + "b=1",
                           "seed=" + "[" * 100_000):
            with self.subTest(assignment[:40]):
                words = {"--set": assignment[:120_000]}  # one argument of a command has at most 128 KiB
                self.train(self.place, *next(iter(words.items())), code=2)
        manifest = self.manifest()
        manifest["environment"].update({ESCAPES: ESCAPES, "blas": ESCAPES, "x": "y" * 1000, "z" * 1000: 1})
        manifest["config"]["optimizer"]["lr"] = 0.5
        manifest["config"]["data"]["train"] = [f"{ESCAPES}.bin", "y" * 100_000]
        manifest["config"]["name"] = ESCAPES
        (self.copy_of_done() / "manifest.json").write_text(sealed(json.dumps(manifest)))
        output = self.resume().stdout
        self.assertIn(r"\x1b[2J", output)
        self.assertLess(max(map(len, output.splitlines())), 1100)
        for name in (ESCAPES, "x" * 100_000, "../x", "/etc/passwd", "a\0b"):
            manifest = self.manifest()
            manifest["files"][0]["name"] = name
            (self.copy_of_done() / "manifest.json").write_text(sealed(json.dumps(manifest)))
            self.refused("--set", "name=copy", "--resume", "auto", says="manifest.json: files[0].name is ")
        manifest = self.manifest()
        manifest["files"][0]["sha256"] = ["0" * 64]
        (self.copy_of_done() / "manifest.json").write_text(sealed(json.dumps(manifest)))
        (self.place / "runs/copy").rename(self.place / f"runs/{ESCAPES}")
        self.refused(says="their checksum differs", command=(
            "eval", "--checkpoint", f"runs/{ESCAPES}/checkpoints/step-00000002", "--data", "val.bin"))
        model = tokenizer(f"({long}")
        (self.place / "t.json").write_text(json.dumps(model))
        self.refused(says="t.json", command=("tokenize", "--tokenizer", "t.json"))
        model = tokenizer(LLAMA3)
        model["model"]["vocab"][ESCAPES + long] = -1
        (self.place / "t.json").write_text(json.dumps(model))
        self.refused(says="t.json: model.vocab gives", command=("tokenize", "--tokenizer", "t.json"))

    # ---- Patterns ----

    def tokenize(self, regex, text, code=0):
        (self.place / "t.json").write_text(json.dumps(tokenizer(regex)))
        (self.place / "text").write_bytes(text.encode())
        with open(self.place / "text") as stdin:
            return subprocess.run([TRAIN, "tokenize", "--tokenizer", "t.json"], cwd=self.place, stdin=stdin,
                                  capture_output=True, timeout=120)

    def test_patterns_end(self):
        for regex in (r"(?:\p{L}+)+\p{N}", r"(?:\p{L}|\p{L}\p{L})+\p{N}", r"(?:(?:\p{L}*)*)*\p{N}",
                      r"(?:\p{L}+)+(?!\p{L}|\s)\p{N}|\p{L}"):
            for text in ("a" * 42, "a" * 100_000, "b " + "\u00e9" * 5000):
                with self.subTest(regex, text=text[:3]):
                    result = self.tokenize(regex, text)
                    error = result.stderr.decode()
                    self.assertEqual(result.returncode, 2, error)
                    self.assertRegex(error, r"^error: t\.json: .* at byte \d+ of the text .*\n$")
                    self.assertIn(regex[:20], error)

    def test_a_pattern_that_reads_on_from_every_place_ends(self):
        result = self.tokenize(r"(?:\p{L}\p{L})*\p{N}", "a" * 300_000)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn(b"takes too long", result.stderr)

    def test_published_patterns_take_runs_of_any_length(self):
        size = (10 if IS_LONG else 2) * 1_000_000
        for regex in (None, LLAMA3, O200K):
            for character in ("a", "A", " ", "7", "\n", ".", "\u4e2d"):
                with self.subTest(regex, character=character):
                    result = self.tokenize(regex, character * size)
                    self.assertEqual(result.returncode, 0, result.stderr[:500])
                    tokens = len(result.stdout.split())
                    self.assertEqual(tokens, len(character.encode()) * size)

    # ---- Promises ----

    PROMISE = "bits: as if the run had not stopped"

    def test_the_same_data_elsewhere_keep_the_promise(self):
        self.copy_of_done()
        for path in self.place.glob("*.bin"):
            os.utime(path, (1, 1))
        self.assertIn(self.PROMISE, self.resume().stdout)
        self.assertEqual((self.place / "runs/copy/checkpoints/step-00000004/model-00000-of-00001.safetensors").read_bytes(),
                         (self.folder / "runs/done/checkpoints/step-00000004/model-00000-of-00001.safetensors").read_bytes())

    def no_promise(self, why, *sets, name="copy"):
        output = self.resume(*sets, name=name).stdout
        self.assertNotIn(self.PROMISE, output)
        bits = [line for line in output.splitlines() if line.startswith("bits: ")]
        self.assertEqual(len(bits), 1, output)
        self.assertIn("not promised", bits[0])
        self.assertIn(why, bits[0])

    def test_data_that_changed_break_the_promise(self):
        def change(name, at, byte):
            content = bytearray((self.place / name).read_bytes())
            content[at] = byte
            stat = (self.place / name).stat()
            (self.place / name).write_bytes(content)
            os.utime(self.place / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as if it had not been

        for name, says in (("train.bin", "train.bin does not hold what it did"),
                           ("val.bin", "data.val does not hold what it did")):
            with self.subTest(name):
                self.setUp()
                self.copy_of_done()
                change(name, 1024 + 2 * 555, 9)
                self.no_promise(says)
        self.setUp()
        self.copy_of_done()
        (self.place / "train.bin").write_bytes(shard([5] * 5000))
        self.no_promise("train.bin has 5000 tokens, it had 6000")
        # Masks and the order of files, which a glob takes by name.
        self.setUp()
        masked = ('data.train=[{"path": "train.bin", "mask": "train.mask"}]',)
        self.train(self.place, "--set", masked[0], "--set", "name=masked", "--set", "training.steps=2",
                   "--set", "schedule.type=constant", code=0)
        change("train.mask", 100, 0)
        change("train.mask", 101, 1)
        self.no_promise("train.bin does not hold", masked[0], "training.steps=2", "schedule.type=constant", name="masked")

    def test_the_order_of_files_breaks_the_promise(self):
        both = ('data.train=["s-*.bin"]', "training.steps=2", "schedule.type=constant", "name=two")
        (self.place / "s-1.bin").write_bytes((self.place / "train.bin").read_bytes())
        (self.place / "s-2.bin").write_bytes((self.place / "more.bin").read_bytes())
        self.train(self.place, *set_options(both), code=0)
        self.assertIn(self.PROMISE, self.resume(*both[:3], name="two").stdout)
        for old, new in (("s-1.bin", "s-3.bin"), ("s-2.bin", "s-1.bin"), ("s-3.bin", "s-2.bin")):
            (self.place / old).rename(self.place / new)
        self.no_promise("in another order", *both[:3], name="two")

    def test_settings_that_changed_break_the_promise(self):
        self.copy_of_done()
        self.no_promise("optimizer.lr was changed", "optimizer.lr=0.5")

    def test_large_data_are_compared_by_samples(self):
        """300 MB, sparse: what is not read whole is not promised whole, and not at all once it was written again."""
        with open(self.place / "train.bin", "r+b") as file:
            file.write(struct.pack("<3i", 20240520, 1, 150_000_000))
            file.truncate(1024 + 300_000_000)
        sets = ("name=large", "training.steps=2", "data.val=[]", "schedule.type=constant")
        self.train(self.place, *set_options(sets), code=0)
        self.assertIn("as far as sizes, times and samples of the files say", self.resume(*sets[1:], name="large").stdout)
        os.utime(self.place / "train.bin", (1, 1))
        self.no_promise("was written again since", *sets[1:], name="large")

    # ---- Manifests through the commands; thousands of them are tried in tests/src/checkpoint/test_hostile_manifest.cpp ----

    def test_manifests_with_the_right_checksum(self):
        generator = random.Random(15)
        values = ["null", "-1", "0", "9223372036854775808", "1e999", '"abc"', "[]", "{}", "3", json.dumps(ESCAPES),
                  '"' + "x" * 100_000 + '"', "[" * 1000 + "]" * 1000, "true", "1.5"]

        def places(value, keys=()):
            if keys:
                yield keys
            for key in (value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()):
                yield from places(value[key], (*keys, key))

        right = (self.folder / "runs/done/log.jsonl").read_text().splitlines()[-1]
        for number in range(50 if IS_LONG else 15):
            manifest = self.manifest()
            keys, raw = generator.choice(list(places(manifest))), generator.choice(values)
            with self.subTest(number, keys=keys, raw=raw[:40]):
                inner = manifest
                for key in keys[:-1]:
                    inner = inner[key]
                inner[keys[-1]] = "@raw@"
                step = self.copy_of_done()
                text = json.dumps(manifest, indent=2)
                (step / "manifest.json").write_text(sealed(text.replace('"@raw@"', raw)))
                for command in (("eval", "--checkpoint", str(step), "--data", "val.bin"),
                                ("generate", "--checkpoint", str(step), "--prompt", "a", "--tokens", "3"),
                                ("--config", "config.json", "--set", "name=copy", "--resume", "auto")):
                    result = self.train(self.place, command=command, code=None)
                    self.assertIn(result.returncode, (0, 2), result.stderr[-500:])
                    if result.returncode == 2:
                        self.assertEqual(len(re.findall("^error: ", result.stderr, re.MULTILINE)), 1, result.stderr)
                if result.returncode == 0 and keys[0] != "step_state":
                    last = json.loads((self.place / "runs/copy/log.jsonl").read_text().splitlines()[-1])
                    for key in ("step", "loss", "val_loss", "grad_norm"):
                        self.assertEqual(last[key], json.loads(right)[key])
