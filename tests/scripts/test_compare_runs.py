"""compare_runs.py: equal bits, tolerance, NaN, checkpoints, damaged input.

Seen to catch: NaN that equals NaN, in logs and in tensors; a tolerance that is absolute; tensors of no bytes that are
equal; a traceback, whose code 1 says that runs differ; a checkpoint that is removed while it is read.
"""

import json
import math
import os
import shutil
import struct
import subprocess
import sys
import threading
import unittest

from . import ROOT
from .inputs import temporary_folder

SCRIPT = ROOT / "scripts" / "compare_runs.py"


def entry(step, **changes):
    base = {"step": step, "loss": 2.5, "val_loss": None, "grad_norm": 0.5, "lr": 1e-3, "tokens": 64 * step,
            "tokens_per_second": 1.0 * step, "loss_scale": 1.0, "skipped": False}
    return {**base, **changes}


class CompareRuns(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    def write(self, name, entries, weights=None, step=None):
        """A run folder; `weights` maps tensor names to float32 values, in a checkpoint of `step` (the last one)."""
        run = self.folder / name
        run.mkdir(exist_ok=True)
        (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in entries))
        if weights is not None:
            checkpoint = run / "checkpoints" / f"step-{step or entries[-1]['step']:08}"
            checkpoint.mkdir(parents=True)
            header, data = {"__metadata__": {"format": "pt"}}, b""
            for tensor, values in weights.items():
                begin = len(data)
                data += struct.pack(f"<{len(values)}f", *values)
                header[tensor] = {"dtype": "F32", "shape": [len(values)], "data_offsets": [begin, len(data)]}
            text = json.dumps(header).encode()
            (checkpoint / "model-00000-of-00001.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
        return run

    def compare(self, code, *arguments):
        command = [sys.executable, str(SCRIPT), str(self.folder / "a"), str(self.folder / "b"), *arguments]
        result = subprocess.run(command, text=True, capture_output=True, timeout=60)
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        return result.stdout + result.stderr

    def test_equal_runs_whatever_the_clock_says(self):
        self.write("a", [entry(1), entry(2)], {"w": [1.0, 2.0], "x": [0.0]})
        self.write("b", [entry(1, tokens_per_second=9.0), entry(2)], {"w": [1.0, 2.0], "x": [0.0]})
        for options in ([], ["--tolerance", "1e-5"]):
            self.assertIn("equal: 2 common steps, 2 tensors of the checkpoint of step 2", self.compare(0, *options))

    def test_one_bit(self):
        self.write("a", [entry(1), entry(2)])
        self.write("b", [entry(1), entry(2, loss=2.5000000000000004)])
        self.assertIn("step 2: loss", self.compare(1))
        self.compare(0, "--tolerance", "1e-12")

    def test_weights(self):
        # |a - b| = 0.0005 and the larger norm is 5.0004: 1.00e-4 of it.
        self.write("a", [entry(1)], {"w": [3.0, 4.0], "x": [7.0]})
        self.write("b", [entry(1)], {"w": [3.0, 4.0005], "x": [7.0]})
        self.assertIn("checkpoint of step 1: w differs by 1.00e-04", self.compare(1))
        self.compare(1, "--tolerance", "9e-5")
        self.compare(0, "--tolerance", "1.1e-4")

    def test_one_bit_of_a_weight(self):
        self.write("a", [entry(1)], {"w": [0.0]})
        self.write("b", [entry(1)], {"w": [-0.0]})
        self.assertIn("w differs by 0.00e+00", self.compare(1))
        self.compare(0, "--tolerance", "1e-9")

    def test_weights_that_are_not_finite(self):
        for name in ("a", "b"):
            self.write(name, [entry(1)], {"w": [1.0, math.nan]})
        self.assertIn("not finite", self.compare(1))
        self.assertIn("not finite", self.compare(1, "--tolerance", "0.5"))

    def test_tensors_that_do_not_match(self):
        self.write("a", [entry(1)], {"w": [1.0], "x": [1.0]})
        self.write("b", [entry(1)], {"w": [1.0, 2.0]})
        output = self.compare(1, "--tolerance", "0.5")
        self.assertIn("w is F32 [1] and F32 [2]", output)
        self.assertIn("x is in one run alone", output)

    def test_the_newest_checkpoint_that_both_have(self):
        entries = [entry(step) for step in range(1, 6)]
        for name, value in (("a", 1.0), ("b", 2.0)):
            self.write(name, entries, {"w": [1.0]}, step=2)
            self.write(name, entries, {"w": [value]}, step=4)
        self.write("a", entries, {"w": [1.0]}, step=5)
        self.assertIn("checkpoint of step 4", self.compare(1))

    def test_other_settings_are_named(self):
        for name, seed in (("a", 1), ("b", 2)):
            run = self.write(name, [entry(1, loss=seed)])
            (run / "config.json").write_text(json.dumps({"name": name, "seed": seed, "model": {"n_layers": 1}}))
        self.assertIn("the configs differ in seed\n", self.compare(1))

    def test_tolerance_is_relative(self):
        self.write("a", [entry(1, grad_norm=1e-6)])
        self.write("b", [entry(1, grad_norm=2e-6)])
        self.compare(1, "--tolerance", "1e-3")

    def test_nan_never_equals(self):
        self.write("a", [entry(1, loss="nan")])
        self.write("b", [entry(1, loss="nan")])
        self.compare(1)
        self.compare(1, "--tolerance", "0.5")

    def test_a_value_that_one_run_lacks(self):
        self.write("a", [entry(1, val_loss=2.0)])
        self.write("b", [entry(1)])
        self.assertIn("val_loss", self.compare(1))

    def test_fragments_of_several_ranks_are_one_tensor(self):
        """The checkpoints of runs with other numbers of ranks hold the same tensors, in other files."""
        whole = {"w": [1.0, 2.0, 3.0, 4.0, 5.0], "x": [6.0]}

        def ranks(*files):
            self.write("b", [entry(1)])
            folder = self.folder / "b/checkpoints/step-00000001"
            shutil.rmtree(folder, ignore_errors=True)
            for rank, weights in enumerate(files):
                self.write("part", [entry(1)], weights)
                folder.mkdir(parents=True, exist_ok=True)
                (self.folder / "part/checkpoints/step-00000001/model-00000-of-00001.safetensors").rename(
                    folder / f"model-{rank:05}-of-{len(files):05}.safetensors")
                shutil.rmtree(self.folder / "part")

        self.write("a", [entry(1)], whole)
        ranks({"w[0:2]": [1.0, 2.0]}, {"w[2:5]": [3.0, 4.0, 5.0], "x": [6.0]})
        self.assertIn("2 tensors of the checkpoint of step 1", self.compare(0))
        ranks({"w[3:5]": [4.0, 5.0], "x": [6.0]}, {"w[0:1]": [1.0]}, {"w[1:3]": [2.0, 3.0]})
        self.compare(0)
        ranks({"w[0:2]": [1.0, 2.0]}, {"w[2:5]": [3.0, 4.5, 5.0], "x": [6.0]})
        self.assertIn("w differs", self.compare(1))
        self.compare(0, "--tolerance", "0.1")
        ranks({"w[0:2]": [1.0, 2.0]}, {"w[2:4]": [3.0, 4.0], "x": [6.0]})
        self.assertIn("w is F32 [5] and F32 [4]", self.compare(1))
        for files in (({"w[0:2]": [1.0, 2.0]}, {"w[3:5]": [4.0, 5.0]}), ({"w[0:2]": [1.0, 2.0]}, {"w[1:5]": [2.0] * 4}),
                      ({"w[0:2]": [1.0]}, {"w[2:5]": [3.0] * 3}), ({"w": [1.0] * 5}, {"w[0:5]": [1.0] * 5}),
                      ({"w": [1.0] * 5}, {"w": [1.0] * 5})):
            with self.subTest(files=files):
                ranks(*files)
                self.could_not_compare("w")

    def test_bad_input(self):
        self.write("a", [entry(1)])
        self.assertIn("cannot read", self.compare(2))
        self.write("b", [entry(2)])
        self.assertIn("no step in common", self.compare(2))
        (self.folder / "b" / "log.jsonl").write_text('{"step": 1, "lo')
        self.assertIn("line 1", self.compare(2))
        (self.folder / "b" / "log.jsonl").write_text((json.dumps(entry(1)) + "\n") * 2)
        self.assertIn("twice", self.compare(2))
        self.write("b", [entry(1)])
        self.compare(2, "--tolerance", "nan")
        self.compare(2, "--tolerance", "inf")
        self.write("a", [entry(1)], {"w": [1.0]})
        self.write("b", [entry(1)], {"w": [1.0]})
        file = self.folder / "b/checkpoints/step-00000001/model-00000-of-00001.safetensors"
        whole = file.read_bytes()
        for damaged in (b"", whole[:20], whole[:-1], b"\xff" * 8 + whole[8:]):
            file.write_bytes(damaged)
            self.assertIn("no whole safetensors file", self.compare(2))

    # ---- What cannot be compared ----

    def could_not_compare(self, *words):
        """Code 2 and one printable line."""
        output = self.compare(2)
        self.assertTrue(output.startswith("compare_runs: error: could not compare: "), output)
        self.assertTrue(output.endswith("\n") and output[:-1].isprintable(), output)
        self.assertLess(len(output), 1500)
        for word in words:
            self.assertIn(word, output)

    def test_logs_that_are_none(self):
        whole = json.dumps(entry(1))
        self.write("a", [entry(1)])
        self.write("b", [entry(1)])
        path = self.folder / "b" / "log.jsonl"
        for line in (b"\xff\xfe", b"[" * 100_000, b'{"step": ' * 5000, b"[]", b"3", b"null", b"{}", b"\x1b[31m",
                     whole.replace("2.5", "1" + "0" * 400).encode(), whole.replace("2.5", "1e999").encode(),
                     whole.replace("2.5", "-1e999").encode(), whole.replace("2.5", "NaN").encode(),
                     whole.replace("2.5", "[2.5]").encode(), whole.replace("2.5", '"2.5"').encode(),
                     whole.replace('"step": 1', '"step": 1.5').encode(),
                     whole.replace('"step": 1', '"step": -1').encode(),
                     whole.replace('"step": 1', '"step": true').encode(),
                     whole.replace('"step": 1', '"step": 9' + "9" * 400).encode(),
                     whole.replace('"step": 1', '"step": 9' + "9" * 5000).encode(),
                     whole.replace('"loss": 2.5', '"lost": 2.5').encode(),
                     whole.replace('"loss": 2.5', '"loss": 2.5, "loss": 2.5').encode(),
                     b'{"' + b"x" * (1 << 21) + b'": 1}'):
            with self.subTest(line=line[:60]):
                path.write_bytes(line + b"\n")
                self.could_not_compare("log.jsonl, line 1")
                path.write_bytes(json.dumps(entry(2)).encode() + b"\n" + line + b"\n")
                self.could_not_compare("log.jsonl, line 2")
        path.write_bytes(b"")
        self.could_not_compare("no step in common")

    def test_what_is_no_regular_file(self):
        self.write("a", [entry(1)], {"w": [1.0]})
        self.write("b", [entry(1)], {"w": [1.0]})
        tensors = self.folder / "b/checkpoints/step-00000001/model-00000-of-00001.safetensors"
        log = self.folder / "b/log.jsonl"
        for path in (tensors, log):
            kept = path.read_bytes()
            for make in (lambda: os.mkfifo(path), path.mkdir, lambda: path.symlink_to("/dev/zero"),
                         lambda: path.symlink_to(path.name)):
                path.unlink()
                make()
                with self.subTest(path=path.name):
                    self.could_not_compare("cannot read", path.name)
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
                path.write_bytes(kept)
        self.compare(0)

    def header(self, **changes):
        """The run b with one tensor of two values, whose entry in the header is changed; None leaves a key out."""
        run = self.write("b", [entry(1)])
        tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
        text = json.dumps({"w": {key: value for key, value in tensor.items() if value is not None}}).encode()
        self.file(run, struct.pack("<Q", len(text)) + text + struct.pack("<2f", 1.0, 2.0))

    def file(self, run, content):
        folder = run / "checkpoints" / "step-00000001"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model-00000-of-00001.safetensors").write_bytes(content)

    def test_headers_that_contradict_themselves(self):
        self.write("a", [entry(1)], {"w": [1.0, 2.0]})
        self.header()
        self.compare(0)
        for changes in ({"data_offsets": [0, 0]}, {"data_offsets": [0, 4]}, {"data_offsets": [8, 8]},
                        {"data_offsets": [4, 8]}, {"data_offsets": [8, 0]}, {"data_offsets": [0, 16]},
                        {"data_offsets": [0.0, 8.0]}, {"data_offsets": [False, 8]}, {"data_offsets": [0, 1e999]},
                        {"data_offsets": [-8, 0]}, {"data_offsets": [0, 8, 8]}, {"data_offsets": "08"},
                        {"data_offsets": None}, {"data_offsets": [2**63, 2**63 + 8]}, {"data_offsets": [0, 10**400]},
                        {"shape": [1]}, {"shape": [3]}, {"shape": [2.0]}, {"shape": [-2]}, {"shape": [-1, -2]},
                        {"shape": "2"}, {"shape": None}, {"shape": [2, 0]}, {"shape": [10**400]}, {"dtype": "F64"},
                        {"dtype": "F16"}, {"dtype": "\x1b[31m"}, {"dtype": 5}, {"dtype": None}, {"dtype": []},
                        {"more": 1}):
            with self.subTest(**changes):
                self.header(**changes)
                self.could_not_compare("no whole safetensors file")

    def test_no_weight_that_is_zero_bytes_is_equal(self):
        """Both runs say the same of themselves, and the data of one are zeros."""
        text = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 0]}}).encode()
        for name, data in (("a", struct.pack("<2f", 1.0, 2.0)), ("b", bytes(8))):
            self.file(self.write(name, [entry(1)]), struct.pack("<Q", len(text)) + text + data)
        self.could_not_compare("which are 8 bytes, and has 0")

    def test_tensors_that_share_bytes(self):
        data = struct.pack("<3f", 1.0, 2.0, 3.0)
        for second in ([4, 12], [8, 12], [0, 8]):  # over the first, with the shape of another, in its place
            for name in ("a", "b"):
                text = json.dumps({"v": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                                   "w": {"dtype": "F32", "shape": [2], "data_offsets": second}}).encode()
                self.file(self.write(name, [entry(1)]), struct.pack("<Q", len(text)) + text + data)
            with self.subTest(second=second):
                self.could_not_compare("no whole safetensors file")

    def test_headers_that_are_none(self):
        self.write("a", [entry(1)], {"w": [1.0, 2.0]})
        run = self.write("b", [entry(1)])
        for text in (b"[" * 100_000, b'{"w":' * 9000, b"[]", b"3", b'{"w": 3}', b'{"w": {}}', b"\xff", b"", b"{} x",
                     b'{"w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "w": 3}', b"{}"):
            with self.subTest(text=text[:30]):
                self.file(run, struct.pack("<Q", len(text)) + text + (b"" if text == b"{}" else bytes(8)))
                if text == b"{}":  # a file without tensors is whole: the other run has one
                    self.assertIn("w is in one run alone", self.compare(1))
                else:
                    self.could_not_compare("no whole safetensors file")

    def test_checkpoints_without_tensors(self):
        for name in ("a", "b"):
            (self.write(name, [entry(1)]) / "checkpoints" / "step-00000001").mkdir(parents=True)
        self.could_not_compare("hold no safetensors file")
        for name in ("a", "b"):
            self.file(self.folder / name, struct.pack("<Q", 2) + b"{}")
        self.could_not_compare("hold no tensors")

    def test_folders_that_are_no_checkpoints(self):
        for name in ("a", "b"):
            run = self.write(name, [entry(1)], {"w": [1.0]})
            for other in ("step-\u00b2", "step-2", "step-00000002.tmp-1", "step-000000009", "step-", "step-0x000001"):
                (run / "checkpoints" / other).mkdir()
        self.assertIn("1 tensors of the checkpoint of step 1", self.compare(0))

    def test_runs_without_checkpoints_say_so(self):
        self.write("a", [entry(1)])
        self.write("b", [entry(1)])
        self.assertIn("no checkpoint in common, since neither has one", self.compare(0))
        self.write("b", [entry(1)], {"w": [1.0]})
        self.assertIn("no checkpoint in common\n", self.compare(0))

    def test_checkpoints_that_are_removed_meanwhile(self):
        """Beside runs that save each step and keep one, as ./train does: renamed into place, and renamed before it is
        removed. Equal, or not to be compared, and never different."""
        for name in ("a", "b"):
            self.write(name, [entry(1)], {f"w{i}": [1.0] * 500 for i in range(40)})
        stop = threading.Event()

        def save_and_remove(run):
            step = 1
            while not stop.is_set():
                old, new = (run / "checkpoints" / f"step-{at:08}" for at in (step, step + 1))
                temporary = new.with_name(new.name + ".tmp-1")
                shutil.copytree(old, temporary)
                temporary.rename(new)
                doomed = old.with_name(old.name + ".tmp-removed-1")
                old.rename(doomed)
                shutil.rmtree(doomed)
                step += 1

        threads = [threading.Thread(target=save_and_remove, args=(self.folder / name,)) for name in ("a", "b")]
        for thread in threads:
            thread.start()
        try:
            for _ in range(12):
                result = subprocess.run([sys.executable, str(SCRIPT), str(self.folder / "a"), str(self.folder / "b")],
                                        text=True, capture_output=True, timeout=60)
                self.assertIn(result.returncode, (0, 2), result.stdout + result.stderr)
                self.assertEqual(result.stderr.count("\n"), int(result.returncode == 2), result.stderr)
                self.assertNotIn("internal fault", result.stderr)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        for name in ("a", "b"):
            shutil.rmtree(self.folder / name / "checkpoints")
            self.write(name, [entry(1)], {"w": [1.0]})
        self.compare(0)
