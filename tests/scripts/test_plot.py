"""plot.py: what it reads from a log, the average, the picture, and what it refuses.

Seen to catch: a NaN that spoils the average after it; an average pulled towards 0 at its start; tracebacks for lines
that are nested or hold huge numbers, and for names that are no text; a link that is followed on writing.
"""

import contextlib
import io
import json
import math
import os
import pathlib
import struct
import subprocess
import sys
import unittest

from . import ROOT
from .inputs import temporary_folder

import plot

SCRIPT = ROOT / "scripts" / "plot.py"


def entry(step, **changes):
    base = {"step": step, "loss": 5 / max(step, 1), "val_loss": None, "grad_norm": 0.5, "lr": 1e-3, "tokens": 64 * step,
            "tokens_per_second": 1000.0, "mfu": None, "loss_scale": 1.0, "skipped": False}
    return {**base, **changes}


def matplotlib_is_there():
    pythons = [sys.executable] + [str(path) for path in [ROOT / ".venv/bin/python"] if path.exists()]
    return any(subprocess.run([python, "-c", "import matplotlib"], capture_output=True).returncode == 0
               for python in pythons)


class Folder(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    def write(self, name, entries, tail=""):
        run = self.folder / name
        run.mkdir()
        (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in entries) + tail)
        return run


class Average(unittest.TestCase):
    def test_a_constant_stays_itself_from_its_first_value_on(self):
        for value in plot.smooth([3.0] * 50, 10):
            self.assertAlmostEqual(value, 3.0, delta=3.0 * 50 * 2.0**-52)  # one rounding or so per value

    def test_span_1_changes_nothing(self):
        self.assertEqual(plot.smooth([1.0, 5.0, 2.0], 1), [1.0, 5.0, 2.0])

    def test_nan_is_a_gap_and_no_more(self):
        averaged = plot.smooth([1.0, math.nan, 1.0], 4)
        self.assertEqual([math.isnan(value) for value in averaged], [False, True, False])

    def test_it_weighs_what_is_near_more(self):
        averaged = plot.smooth([0.0] * 10 + [1.0], 3)  # weight 2 / (3 + 1) for the newest, of nearly 1 in all
        self.assertAlmostEqual(averaged[-1], 0.5, delta=0.5**11)


class Reading(Folder):
    def test_values_steps_and_tokens(self):
        run = plot.read_run(self.write("a", [entry(1, val_loss=2.0), entry(2)]))
        self.assertEqual((run.name, run.steps, run.tokens), ("a", [1, 2], [64, 128]))
        self.assertEqual(run.values["loss"], [5.0, 2.5])
        self.assertEqual(run.values["val_loss"][0], 2.0)
        self.assertTrue(math.isnan(run.values["val_loss"][1]))

    def test_nonfinite_values_and_skipped_steps(self):
        run = plot.read_run(self.write("a", [entry(1), entry(2, loss="nan", grad_norm="inf", skipped=True),
                                             entry(3, loss="-inf")]))
        self.assertEqual([math.isnan(value) for value in run.values["loss"]], [False, True, True])
        self.assertTrue(math.isnan(run.values["grad_norm"][1]))
        self.assertEqual(run.skipped, [1])

    def test_torn_last_line(self):
        self.assertEqual(plot.read_run(self.write("a", [entry(1)], tail='{"step": 2, "lo')).steps, [1])

    def test_a_step_that_stands_twice_counts_once(self):
        run = plot.read_run(self.write("a", [entry(1), entry(2), entry(2, loss=9.0), entry(3)]))
        self.assertEqual(run.steps, [1, 2, 3])
        self.assertEqual(run.values["loss"][1], 9.0)

    def test_lines_that_are_no_entries(self):
        whole = json.dumps(entry(3))
        bad = [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"[]", b"3", b"null", b"", b"\0",
               b'{"' + b"x" * (1 << 21) + b'": 1}',
               whole.replace('"step": 3', '"step": 1' + "0" * 400).encode(),
               whole.replace('"step": 3', '"step": 1' + "0" * 5000).encode(),
               whole.replace('"step": 3', '"step": -3').encode(), whole.replace('"step": 3', '"step": 3.5').encode(),
               whole.replace('"step": 3', '"step": 9223372036854775807').encode(),
               whole.replace('"tokens": 192', '"tokens": 1e300').encode(),
               whole.replace('"tokens": 192', '"tokens": "many"').encode(),
               whole.replace('"loss": 1.6666666666666667', '"loss": [1]').encode(),
               whole.replace('"loss": 1.6666666666666667', '"loss": "low"').encode()]
        for index, line in enumerate(bad):
            with self.subTest(line=line[:60]):
                run = self.write(f"bad{index}", [entry(1)])
                with open(run / "log.jsonl", "ab") as log:
                    log.write(line + b"\n" + json.dumps(entry(2)).encode() + b"\n")
                with contextlib.redirect_stderr(io.StringIO()) as said:
                    self.assertEqual(plot.read_run(run).steps, [1, 2])
                self.assertIn("the first is line 2", said.getvalue())

    def test_values_that_no_axis_takes_are_gaps(self):
        huge = json.dumps(entry(1)).replace('"grad_norm": 0.5', '"grad_norm": 1' + "0" * 400)
        run = plot.read_run(self.write("a", [], tail=huge + "\n" + json.dumps(entry(2, grad_norm=1e308)) + "\n" +
                                       json.dumps(entry(3, grad_norm=-1e101)) + "\n" +
                                       json.dumps(entry(4, grad_norm=1e100)) + "\n" +
                                       json.dumps(entry(5, grad_norm=5e-324)) + "\n"))
        self.assertEqual([math.isnan(value) for value in run.values["grad_norm"]], [True, True, True, False, False])
        self.assertEqual(run.values["grad_norm"][3:], [1e100, 0.0])

    def test_names_that_are_the_same(self):
        runs = [plot.Run("x"), plot.Run("x"), plot.Run("y")]
        plot.distinct_names(runs, [pathlib.Path("one/x"), pathlib.Path("two/x"), pathlib.Path("one/y")])
        self.assertEqual([run.name for run in runs], ["one/x", "two/x", "y"])


class Program(Folder):
    def plot(self, *arguments, code=0):
        environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "MPLBACKEND")}
        result = subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], cwd=self.folder, text=True,
                                capture_output=True, env=environment)
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        return result

    def refused(self, *arguments, text):
        lines = self.plot(*arguments, code=2).stderr.splitlines()
        self.assertEqual(len(lines), 1, lines)
        self.assertIn(text, lines[0])

    def test_refusals(self):
        self.refused("nowhere", text="there is no nowhere")
        (self.folder / "bare").mkdir()
        self.refused("bare", text="cannot read bare/log.jsonl")
        self.write("empty", [])
        self.refused("empty", text="no step yet")
        self.write("other", [], tail="hello\n")
        self.refused("other", text="is it the log of a run?")
        self.write("a", [entry(1)])
        self.refused("a", "--output", "a.txt", text=".png, .svg or .pdf")
        self.refused("a", "--smooth", "0", text="--smooth")
        self.refused("a", "--smooth", "nan", text="--smooth")
        self.refused("a", "--x", "hours", text="--x")
        self.refused(text="RUN")

    def assert_png(self, path):
        data = path.read_bytes()
        self.assertEqual(data[:8], b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", data[16:24])
        self.assertGreater(min(width, height), 500)
        return data

    @unittest.skipUnless(matplotlib_is_there(), "matplotlib is neither in this Python nor in .venv")
    def test_pictures(self):
        wild = [entry(step, loss="nan" if step % 7 == 0 else 5 / step, skipped=step % 7 == 0,
                      grad_norm=1e4 if step == 50 else 0.5, val_loss=2.0 if step % 20 == 0 else None)
                for step in range(1, 101)]
        self.write("wild", wild, tail='{"st')
        self.write("one", [entry(1)])
        self.write("none", [entry(1, loss="nan", grad_norm="nan", skipped=True)])
        for name in ("wild", "one", "none"):  # a run that has only begun, and one without any finite value
            with self.subTest(name):
                self.assertIn(f"wrote {name}/plot.png", self.plot(name).stdout)
                self.assert_png(self.folder / name / "plot.png")
        self.plot("one", "wild", "none", "--output", "all.png", "--x", "tokens", "--smooth", "5")
        self.assertNotEqual(self.assert_png(self.folder / "all.png"), self.assert_png(self.folder / "wild/plot.png"))
        self.plot("wild/log.jsonl", "--output", "wild.svg")
        self.assertIn("<svg", (self.folder / "wild.svg").read_text()[:2000])
        note = self.plot(self.write("torn", [entry(1)], tail='{"st\n' + json.dumps(entry(2)) + "\n")).stderr
        self.assertIn("line 2", note)

    def test_logs_that_are_no_files(self):
        for name, make in (("pipe", os.mkfifo), ("device", lambda path: os.symlink("/dev/zero", path)),
                           ("dir", os.mkdir), ("loop", lambda path: os.symlink(path, path))):
            (self.folder / name).mkdir()
            make(self.folder / name / "log.jsonl")
            self.refused(name, text=f"cannot read {name}/log.jsonl")

    @unittest.skipUnless(matplotlib_is_there(), "matplotlib is neither in this Python nor in .venv")
    def test_any_log_gives_a_picture(self):
        extremes = [0, 1e100, 1e-100, -1e100, 1e308, 5e-324, -5.0, 1e-30, 1e30, "nan", "inf", "-inf", None, True,
                    10**30]
        logs = {"all": [entry(step, loss=value, grad_norm=value, lr=value, tokens_per_second=value, val_loss=value)
                        for step, value in enumerate(extremes, 1)],
                "far": [entry(0), entry(2**53, tokens=2**53)], "zero": [entry(0, loss=1.0, tokens=0)],
                "same": [entry(1, tokens=5), entry(2, tokens=5)],
                "spike": [entry(step, grad_norm=1e100 if step == 5 else 1e-100) for step in range(1, 9)],
                "$\\frac$": [entry(1)], "$a_b$ ^{": [entry(1)], "_hidden": [entry(1)], "a\n\x1b[31m\u202e": [entry(1)],
                os.fsdecode(b"\xff"): [entry(1)], "\U0001f600 \u4e2d": [entry(1)]}
        for index, value in enumerate((0, 1e100, -5.0, "nan")):  # a run that has only begun
            logs[f"one{index}"] = [entry(1, loss=value, grad_norm=value, lr=value, tokens_per_second=value,
                                         val_loss=value)]
        for name, entries in logs.items():
            self.write(name, entries)
        # One picture of each, drawn by one process, since matplotlib takes a second to load.
        python = next(python for python in (sys.executable, str(ROOT / ".venv/bin/python"))
                      if subprocess.run([python, "-c", "import matplotlib"], capture_output=True).returncode == 0)
        code = ("import sys\nimport plot\nnames = sys.argv[1:]\n"
                "for index, name in enumerate(names):\n"
                "    sys.argv[1:] = ['--x', ('steps', 'tokens')[index % 2], '--', name]\n"
                "    assert plot.main() == 0, name\n")
        result = subprocess.run([python, "-c", code, *logs], cwd=self.folder, capture_output=True,
                                env={**os.environ, "PYTHONPATH": str(SCRIPT.parent)})
        self.assertEqual(result.returncode, 0, result.stderr.decode(errors="replace"))
        self.assertNotIn(b"Traceback", result.stderr)
        for name in logs:
            self.assert_png(self.folder / name / "plot.png")

    @unittest.skipUnless(matplotlib_is_there(), "matplotlib is neither in this Python nor in .venv")
    def test_no_link_is_followed_on_writing(self):
        run = self.write("a", [entry(1)])
        (self.folder / "victim").write_text("mine")
        for target in ("../victim", "../nowhere"):
            (run / "plot.png").symlink_to(target)
            self.refused("a", text="cannot write a/plot.png: it is a link")
            (run / "plot.png").unlink()
        self.assertEqual((self.folder / "victim").read_text(), "mine")
        os.link(self.folder / "victim", run / "plot.png")
        self.plot("a")
        self.assertEqual((self.folder / "victim").read_text(), "mine")
        self.assert_png(run / "plot.png")
        self.assertEqual(sorted(path.name for path in run.iterdir()), ["log.jsonl", "plot.png"])

    @unittest.skipUnless(matplotlib_is_there(), "matplotlib is neither in this Python nor in .venv")
    def test_output_that_cannot_be_written(self):
        self.write("a", [entry(1)])
        self.refused("a", "--output", "nowhere/a.png", text="cannot write nowhere/a.png")
