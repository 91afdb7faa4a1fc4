"""compare_runs.py: equal bits, tolerance, NaN, checkpoints, damaged input.

Seen to catch: NaN that equals NaN, in logs and in tensors; a tolerance that is absolute.
"""

import json
import math
import pathlib
import struct
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "compare_runs.py"


def entry(step, **changes):
    base = {"step": step, "loss": 2.5, "val_loss": None, "grad_norm": 0.5, "lr": 1e-3, "tokens": 64 * step,
            "tokens_per_second": 1.0 * step, "loss_scale": 1.0, "skipped": False}
    return {**base, **changes}


class CompareRuns(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self.temporary.name)

    def tearDown(self):
        self.temporary.cleanup()

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
        result = subprocess.run([sys.executable, str(SCRIPT), str(self.folder / "a"), str(self.folder / "b"), *arguments],
                                text=True, capture_output=True)
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


if __name__ == "__main__":
    unittest.main()
