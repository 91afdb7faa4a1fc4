"""What the tests of prepare.py share: a folder of text, the command, its output read independently."""
from __future__ import annotations

import array
import functools
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Optional

from . import ROOT
from .inputs import temporary_folder

SCRIPTS = ROOT / "scripts"
SCRIPT = SCRIPTS / "prepare.py"
EOT = 256

# Runs the command in small units, each of which is committed, and does something after unit number `at` is written and
# before it is committed. What is patched is inherited by the worker processes.
DRIVER = """
import os, sys
sys.argv[0] = "prepare.py"
from prepare import command, read, shards, tokenize, units, work, write
units.UNIT_BYTES, read.FILE_COST = {unit}, 1
tokenize.SLICE_BYTES = {unit} // 2
write.COMMIT_SECONDS = 0
os.fsync = lambda number: None  # for power failures, which are not tested
{before}
add, num_units = write.Output.add, 0
def counted(self, *arguments):
    global num_units
    num_units += 1
    add(self, *arguments)
    if num_units == {at}:
        {action}
write.Output.add = counted
code = command.main()
print("units:", num_units, file=sys.stderr)
sys.exit(code)
"""


@functools.lru_cache(maxsize=None)
def python_with(*packages: str) -> Optional[str]:
    """A Python that has the packages, this one or that of .venv or .venv-interop; None if none has."""
    code = "import " + ", ".join(packages)
    for python in (sys.executable, str(ROOT / ".venv/bin/python"), str(ROOT / ".venv-interop/bin/python")):
        if os.path.exists(python) and subprocess.run([python, "-c", code], capture_output=True).returncode == 0:
            return python
    return None


def needs(*packages: str):
    """Skips a test where the packages are missing, and says so; with INGOT_REQUIRE_INTEROP=1 tests against transformers
    fail then."""
    is_required = "transformers" in packages and os.environ.get("INGOT_REQUIRE_INTEROP") == "1"
    return unittest.skipUnless(is_required or python_with(*packages),
                               f"the Python package {' or '.join(packages)} is not here")


def read_shard(path: Path) -> tuple[list[int], list[int]]:
    """Header and tokens, read independently of the code under test."""
    raw = path.read_bytes()
    header = list(struct.unpack("<256i", raw[:1024]))
    tokens = array.array("I" if header[1] == 7 else "H", raw[1024:])
    if sys.byteorder == "big":
        tokens.byteswap()
    return header, list(tokens)


def documents(folder: Path, split: str) -> list[bytes]:
    """The documents of all shards of bytes of a split, in order; fails if a shard ends inside a document."""
    return [bytes(ids) for ids in token_documents(folder, split, EOT)]


def token_documents(folder: Path, split: str, eot: int) -> list[list[int]]:
    found = []
    for path in sorted(folder.glob(f"{split}-*.bin")):
        header, tokens = read_shard(path)
        assert header[:3] in ([20240520, 1, len(tokens)], [20240801, 7, len(tokens)]) and not any(header[3:]), path
        assert tokens[-1] == eot, f"{path} ends inside a document"
        document: list[int] = []
        for token in tokens:
            if token == eot:
                found.append(document)
                document = []
            else:
                document.append(token)
    return found


def copy_of_scripts(folder: Path) -> Path:
    """prepare.py and what it imports, in a checkout that has nothing else; its scripts/."""
    return Path(shutil.copytree(SCRIPTS, folder / "scripts", ignore=shutil.ignore_patterns("__pycache__")))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class PrepareTest(unittest.TestCase):
    maxDiff = 2000

    def setUp(self) -> None:
        self.root = temporary_folder(self).resolve()
        self.text = self.root / "text"
        self.text.mkdir()
        self.out = self.root / "data" / "out"
        self.partial = self.out.with_name("out.partial")

    def write(self, name: str, content: bytes) -> Path:
        path = self.text / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def write_many(self, count: int) -> None:
        for i in range(count):
            self.write(f"{i:03d}.txt", b"document %d" % i)

    def prepare(self, *args: object, python: str = sys.executable, **options) -> subprocess.CompletedProcess:
        command = [python, str(SCRIPT), *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)

    def run_on_text(self, *args: object, out: Optional[Path] = None, **options) -> subprocess.CompletedProcess:
        return self.prepare("--input", self.text, "--output", out or self.out, *args, **options)

    def succeed(self, *args: object, out: Optional[Path] = None, **options) -> subprocess.CompletedProcess:
        result = self.run_on_text(*args, out=out, **options)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assert_no_leftovers()
        return result

    def done_in_units(self, *args: object, **options) -> subprocess.CompletedProcess:
        result = self.in_units(*args, **options)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result

    def in_units(self, *args: object, out: Optional[Path] = None, unit: int = 64, at: int = 0, action: object = 0,
                 before: str = "", python: str = sys.executable) -> subprocess.CompletedProcess:
        """The command by DRIVER, in units of `unit` bytes. action: a signal that it gets, or a line of Python; before:
        a line for its beginning."""
        if isinstance(action, int):
            action = f"os.kill(os.getpid(), {int(action)})"
        code = DRIVER.format(unit=unit, at=at, action=action, before=before)
        command = [python, "-c", code, "--input", str(self.text), "--output", str(out or self.out), *map(str, args)]
        # Whoever runs this test may have SIGINT ignored, which a child would inherit.
        return subprocess.run(command, cwd=SCRIPTS, capture_output=True, text=True, timeout=60,
                              preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))

    def assert_no_leftovers(self) -> None:
        self.assertEqual([p for p in self.root.rglob("*") if ".partial" in p.name or ".old-" in p.name], [])

    def assert_error(self, result: subprocess.CompletedProcess, *words: str, code: int = 2) -> None:
        """Ends with one error, which names all words; DRIVER adds a line behind it."""
        self.assertEqual(result.returncode, code, result.stderr)
        last = [line for line in result.stderr.splitlines() if not line.startswith("units: ")][-1]
        self.assertTrue(last.startswith("prepare: error: "), result.stderr)
        self.assertEqual(result.stderr.count("error:"), 1, result.stderr)
        self.assertNotRegex(result.stderr, "internal fault|Traceback")
        for word in words:
            self.assertIn(word, last)

    def assert_refused(self, result: subprocess.CompletedProcess, *words: str, code: int = 2) -> None:
        self.assert_error(result, *words, code=code)
        self.assert_no_leftovers()

    def meta(self, out: Optional[Path] = None) -> dict:
        return json.loads(((out or self.out) / "meta.json").read_text())
