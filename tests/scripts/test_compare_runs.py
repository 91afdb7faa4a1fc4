"""compare_runs.py: equal bits, tolerance, NaN, damaged logs.

Seen to catch: NaN that equals NaN; a tolerance that is absolute.
"""

import json
import pathlib
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

    def write(self, name, entries, tensors=None):
        run = self.folder / name
        checkpoint = run / "checkpoints" / f"step-{entries[-1]['step']:08}"
        checkpoint.mkdir(parents=True)
        (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in entries))
        if tensors is not None:
            (checkpoint / "model-00000-of-00001.safetensors").write_bytes(tensors)

    def compare(self, code, *arguments):
        result = subprocess.run([sys.executable, str(SCRIPT), str(self.folder / "a"), str(self.folder / "b"), *arguments],
                                text=True, capture_output=True)
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        return result.stdout + result.stderr

    def test_equal_runs_whatever_the_clock_says(self):
        self.write("a", [entry(1), entry(2)], b"weights")
        self.write("b", [entry(1, tokens_per_second=9.0), entry(2)], b"weights")
        self.assertIn("equal: 2 common steps, 1 checkpoint files", self.compare(0))

    def test_one_bit(self):
        self.write("a", [entry(1), entry(2)])
        self.write("b", [entry(1), entry(2, loss=2.5000000000000004)])
        self.assertIn("step 2: loss", self.compare(1))
        self.compare(0, "--tolerance", "1e-12")

    def test_weights(self):
        self.write("a", [entry(1)], b"weights")
        self.write("b", [entry(1)], b"Weights")
        self.assertIn("model-00000-of-00001.safetensors differs", self.compare(1))

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
        self.compare(2, "--tolerance", "nan")


if __name__ == "__main__":
    unittest.main()
