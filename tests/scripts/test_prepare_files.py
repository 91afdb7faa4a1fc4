"""Which files prepare.py takes, and as what: names and links, stores of objects, hidden files, kinds that are not read.

Seen to catch: a blob taken before the link that names it; a file taken by its first name; a hard link taken twice; a
suffix that is not read and not named; ._x.jsonl read as records; a FIFO waited for; advice that names no option.
"""
from __future__ import annotations

import ast
import itertools
import os
import re
import subprocess
import sys
import unittest
from pathlib import Path

from .prepare_case import SCRIPTS, PrepareTest, documents, needs, python_with

RECORDS = b'{"text": "one"}\n{"text": "two"}\n'
PARQUET = ("import sys, pyarrow as pa, pyarrow.parquet as q; "
           "q.write_table(pa.table({'text': ['one', 'two']}), sys.argv[1])")


class Case(PrepareTest):
    def link(self, name: str, target: str) -> None:
        path = self.text / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    def take(self, *arguments: object, **options) -> tuple[list[bytes], str]:
        """The documents, and what was said."""
        result = self.succeed("--val-fraction", 0, "--overwrite", *arguments, **options)
        return documents(self.out, "train"), result.stdout + result.stderr


class Names(Case):
    def test_a_link_says_what_its_file_is(self) -> None:
        """Whichever of the names comes first: a store before its links, after them, and outside of the input."""
        for store, link in (("annex/SHA256E-s33--ab", "corpus/x.ndjson"), ("zzz/9", "corpus/x.jsonl"),
                            ("../outside/4f", "corpus/x.jsonl")):
            with self.subTest(store=store):
                stored = self.write(store, RECORDS)
                self.link(link, str(stored))
                found, said = self.take()
                self.assertEqual(found, [b"one", b"two"])
                self.assertEqual("1 already taken" in said, not store.startswith(".."))
                stored.unlink()
                (self.text / link).unlink()

    def test_a_link_without_a_suffix_is_what_its_file_is(self) -> None:
        stored = self.write("../outside/x.jsonl", RECORDS)
        self.link("latest", str(stored))
        self.assertEqual(self.take()[0], [b"one", b"two"])

    def test_every_order_of_names_gives_the_same(self) -> None:
        for names in itertools.permutations(("a", "b", "c")):
            with self.subTest(names=names):
                blob, known, other = names
                stored = self.write(f"{blob}/{'0f' * 20}", RECORDS)
                self.link(f"{known}/x.jsonl", str(stored))
                self.link(f"{other}/notes", str(stored))
                found, said = self.take()
                self.assertEqual(found, [b"one", b"two"])
                self.assertIn("2 already taken", said)
                for name in names:
                    for path in (self.text / name).iterdir():
                        path.unlink()

    def test_hard_links_are_one_file(self) -> None:
        stored = self.write("cache/" + "ab" * 16, RECORDS)
        (self.text / "data").mkdir()
        os.link(stored, self.text / "data" / "x.jsonl")
        found, said = self.take()
        self.assertEqual(found, [b"one", b"two"])
        self.assertIn("already taken: such as", said)

    def test_compressed_by_the_name_of_the_link(self) -> None:
        import gzip
        stored = self.write("a/" + "0" * 40, gzip.compress(RECORDS))
        self.link("b/x.jsonl.gz", str(stored))
        self.assertEqual(self.take()[0], [b"one", b"two"])

    def test_names_that_contradict_each_other_are_refused(self) -> None:
        self.write("x.jsonl", RECORDS)
        self.link("y.parquet", "x.jsonl")
        self.assert_refused(self.run_on_text(), "x.jsonl", "y.parquet", "--exclude", "--input-format")
        self.assertEqual(self.take("--exclude", "*.parquet")[0], [b"one", b"two"])
        self.assertEqual(self.take("--format", "jsonl")[0], [b"one", b"two"])

    @needs("pyarrow")
    def test_parquet_in_a_store(self) -> None:
        (self.text / "blobs").mkdir()
        subprocess.run([python_with("pyarrow"), "-c", PARQUET, str(self.text / "blobs" / "7c")], check=True)
        self.link("named/x.parquet", str(self.text / "blobs" / "7c"))
        self.assertEqual(self.take(python=python_with("pyarrow"))[0], [b"one", b"two"])


class HubCache(Case):
    """As huggingface_hub makes it: blobs/, refs/ and snapshots/REVISION/ with links."""
    FIRST, SECOND = "a" * 40, "b" * 40

    def revision(self, name: str, files: dict[str, bytes]) -> None:
        for file, content in files.items():
            blob = self.write(f"blobs/{content.hex()[:40]}", content)
            self.link(f"snapshots/{name}/{file}", os.path.relpath(blob, self.text / "snapshots" / name))

    def setUp(self) -> None:
        super().setUp()
        self.revision(self.FIRST, {"p1.jsonl": RECORDS, "p2.jsonl": b'{"text": "three"}\n'})
        self.write("refs/main", self.FIRST.encode())

    def test_one_revision(self) -> None:
        for root in (self.text, self.text / "snapshots", self.text / "snapshots" / self.FIRST):
            with self.subTest(root=root):
                result = self.prepare("--input", root, "--output", self.out, "--val-fraction", 0, "--overwrite")
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertEqual(documents(self.out, "train"), [b"one", b"two", b"three"])

    def test_several_repositories(self) -> None:
        folder = self.root / "hub" / "datasets--some--books"
        folder.parent.mkdir()
        self.text.rename(folder)
        self.text.mkdir()
        result = self.prepare("--input", folder.parent, "--output", self.out, "--val-fraction", 0)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(documents(self.out, "train"), [b"one", b"two", b"three"])

    def test_several_revisions(self) -> None:
        self.revision(self.SECOND, {"p1.jsonl": b'{"text": "newer"}\n'})
        for main, expected in ((self.FIRST, [b"one", b"two", b"three"]), (self.SECOND + "\n", [b"newer"])):
            self.write("refs/main", main.encode())
            found, said = self.take()
            self.assertEqual(found, expected)
            self.assertIn(f"{main.strip()} is taken", said)
            self.assertIn("1 another revision of a Hugging Face cache", said)
        for main in (b"", b"c" * 40, b"\xff"):
            self.write("refs/main", main)
            self.assert_refused(self.run_on_text("--overwrite"), "2 revisions", f"snapshots/{self.FIRST}", "--input")
        (self.text / "refs/main").unlink()
        (self.text / "refs").rmdir()  # whoever downloads by a revision's hash has none
        self.assert_refused(self.run_on_text("--overwrite"), "2 revisions")
        result = self.prepare("--input", self.text / "snapshots" / self.SECOND, "--output", self.out, "--overwrite",
                              "--val-fraction", 0)
        self.assertEqual((result.returncode, documents(self.out, "train")), (0, [b"newer"]))

    def test_blobs_alone_are_refused(self) -> None:
        result = self.prepare("--input", self.text / "blobs", "--output", self.out)
        self.assert_refused(result, "blobs", "snapshots/REVISION")

    def test_folders_of_these_names_elsewhere_are_folders(self) -> None:
        for name in ("blobs/a.txt", "snapshots/b.txt"):
            path = self.root / "other" / name
            path.parent.mkdir(parents=True)
            path.write_bytes(name.encode())
        result = self.prepare("--input", self.root / "other", "--output", self.out, "--val-fraction", 0)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(documents(self.out, "train"), [b"blobs/a.txt", b"snapshots/b.txt"])


class PassedOver(Case):
    def test_kinds_that_are_not_read_are_named(self) -> None:
        self.write("a.txt", b"text")
        for name in ("x.jsonl.zstd", "x.bz2", "x.XZ", "x.tar.gz", "x.zip", "x.arrow", "x.pdf"):
            with self.subTest(name):
                path = self.write(name, b"without a NUL")
                found, said = self.take()
                self.assertEqual(found, [b"text"])
                self.assertIn("skipped: 1 of a kind that is not read\n", said)
                self.assertRegex(said, f"of a kind that is not read: such as .*/{name} \\(.*--input-format")
                path.unlink()
        path = self.write("x.bz2", b"without a NUL")
        self.assertEqual(self.take("--format", "text")[0], [b"text", b"without a NUL"])
        (self.text / "a.txt").unlink()
        self.assert_refused(self.run_on_text("--overwrite"), "1 of a kind that is not read", "x.bz2")

    def test_binary_and_empty_ones_are_named(self) -> None:
        self.write("a.txt", b"text")
        self.write("b.dat", b"a\0b")
        self.write("c.dat", b"a\0b")
        self.write("d.txt", b"")
        said = self.take()[1]
        self.assertIn("skipped: 2 binary, 1 empty\n", said)
        self.assertRegex(said, "binary: such as .*/b.dat")
        self.assertRegex(said, "empty: such as .*/d.txt")

    def test_hidden_files_are_passed_over(self) -> None:
        self.write("x.jsonl", RECORDS)
        for name in ("._x.jsonl", ".DS_Store", "sub/._y.parquet", ".git/HEAD", ".config.txt"):
            self.write(name, b"\x00\x05\x16\x07 no record")
        self.link(".#lock", "nowhere")
        found, said = self.take()
        self.assertEqual(found, [b"one", b"two"])
        self.assertIn("6 hidden", said)
        self.assertNotIn("unreadable", said)
        hidden = self.write(".config.txt", b"asked for")
        self.assertEqual(self.take("--include", ".config*")[0], [b"asked for"])
        result = self.prepare("--input", hidden, "--output", self.out, "--overwrite", "--val-fraction", 0)
        self.assertEqual((result.returncode, documents(self.out, "train")), (0, [b"asked for"]))

    def test_what_is_no_file_is_refused_where_it_is_named(self) -> None:
        self.write("a.txt", b"text")
        pipe = self.root / "pipe"
        os.mkfifo(pipe)
        for path in (pipe, Path("/dev/zero"), Path("/dev/null")):
            for arguments, words in ((["--input", path], ["--input", str(path)]),
                                     (["--input", self.text, "--tokenizer", path], ["--tokenizer", str(path)])):
                with self.subTest(path=path, arguments=arguments[-2:]):
                    self.assert_refused(self.prepare(*arguments, "--output", self.out), *words)

    def test_a_file_that_became_a_pipe_is_not_waited_for(self) -> None:
        """Between the listing and the reading: small ones are opened by a worker, others by the program."""
        for name, arguments in (("b.txt", []), ("b.jsonl", []), ("b.txt", ["--split-on", "%%"])):
            with self.subTest(name=name, arguments=arguments):
                self.write("a" + name[1:], RECORDS)
                path = self.write(name, RECORDS)
                become = (f"pool = work.Pool.__init__\n"
                          f"def init(*a):\n    os.remove({str(path)!r}); os.mkfifo({str(path)!r}); pool(*a)\n"
                          "work.Pool.__init__ = init")
                result = self.done_in_units("--val-fraction", 0, "--overwrite", *arguments, before=become, unit=1 << 20)
                self.assertIn("it is no regular file", result.stderr)
                for left in self.text.iterdir():
                    left.unlink()


class Messages(unittest.TestCase):
    """Advice that names an option names one that there is."""

    def test_options_that_are_named_exist(self) -> None:
        for program, parts in (("prepare.py", "prepare/*.py"), ("plot.py", "plot.py"),
                               ("compare_runs.py", "compare_runs.py")):
            said = subprocess.run([sys.executable, str(SCRIPTS / program), "--help"], capture_output=True,
                                  text=True).stdout
            # --upgrade is pip's; ./train is asked with the other two.
            known = set(re.findall(r"--[a-z][a-z-]*", said)) | {"--upgrade", "--tokenizer", "--count"}
            self.assertGreater(len(known), 4)
            paths = sorted(SCRIPTS.glob(parts))
            self.assertTrue(paths)
            for path in paths:
                with self.subTest(path.name):
                    strings = [node.value for node in ast.walk(ast.parse(path.read_text()))
                               if isinstance(node, ast.Constant) and isinstance(node.value, str)]
                    self.assertLessEqual(set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", " ".join(strings))), known)
