"""prepare.py stopped and run again, and run by several processes: the same bytes as in one go by one.

Runs are stopped after an exact number of units, by SIGKILL, SIGINT or SIGTERM sent to themselves.

Seen to catch: an open shard not cut back; the spool of a document removed before the commit after it; the part of a
document that is done not hashed again; the extremes of the hashes, or the moved border, not restored; a torn line left
in the journal; a worker's connection not given back when it dies; the time of a file left out of the fingerprint.
"""
from __future__ import annotations

import fcntl
import gzip
import json
import os
import resource
import signal

from .prepare_case import PrepareTest, documents, needs, python_with, tree


ARGUMENTS = ("--val-fraction", 0.3, "--shard-tokens", 150)


class Base(PrepareTest):
    def setUp(self) -> None:
        super().setUp()
        for i in range(12):
            self.write(f"a{i:02d}.txt", b"a small file, number %d" % i)
        self.write("giant.txt", b"".join(b"line %d of one document\n" % i for i in range(40)))  # 15 segments
        self.write("hidden.txt", b"binary only at its end " * 12 + b"\0" + b"x" * 300)
        records = [json.dumps({"text": "text %d " % i * (i % 9), "skip": [[0, i % 5]] if i % 9 else None}).encode()
                   for i in range(60)]
        self.write("records.jsonl", b"\n".join(records))
        self.write("records.jsonl.gz", gzip.compress(b"\n".join(records[::-1])))

    def units(self, result) -> int:
        return int(result.stderr.rsplit("units:", 1)[1])

    def whole(self, *arguments: object, **options) -> tuple[dict[str, bytes], int]:
        """What an uninterrupted run by one process writes, and in how many units."""
        out = self.root / "whole"
        result = self.done_in_units(*arguments, "--processes", 1, out=out, **options)
        return tree(out), self.units(result)

    def stop_and_go_on(self, whole: tuple[dict[str, bytes], int], at: int, signum: int, *arguments: object,
                       **options) -> None:
        """What the run killed after unit number `at` has committed, all units before it, is not done again."""
        expected, units = whole
        stopped = self.in_units(*arguments, "--processes", 3, at=at, action=signum, **options)
        codes = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}
        self.assertEqual(stopped.returncode, codes[signum], stopped.stderr)
        self.assertFalse(self.out.exists())
        if signum != signal.SIGKILL:
            self.assertRegex(stopped.stderr, "error: stopped by SIG[A-Z]+, run the same command again to go on")
        gone_on = self.done_in_units(*arguments, "--processes", 2, **options)
        self.assertIn("going on where a stopped run left off", gone_on.stderr)
        self.assertEqual(tree(self.out), expected)
        # Fewer are possible: units of lines are counted from where the run goes on.
        self.assertLessEqual(self.units(gone_on), units - at + (signum == signal.SIGKILL))
        self.assert_no_leftovers()
        for path in self.out.iterdir():
            path.unlink()
        self.out.rmdir()


class Resume(Base):
    def test_any_number_of_processes_and_any_units(self) -> None:
        expected, units = self.whole(*ARGUMENTS)
        self.assertGreater(units, 40)
        for arguments, options in ((["--processes", 4], {}), (["--processes", 2], {"unit": 50}),
                                   (["--processes", 2], {"unit": 1 << 20})):
            with self.subTest(arguments=arguments, options=options):
                self.done_in_units(*ARGUMENTS, "--overwrite", *arguments, **options)
                self.assertEqual(tree(self.out), expected)
        found = documents(self.out, "train") + documents(self.out, "val")
        self.assertEqual(len(found), 12 + 1 + 2 * (60 - 7))
        self.assertEqual(sum(len(text) > 900 for text in found), 1)

    def test_killed_anywhere(self) -> None:
        expected, units = self.whole(*ARGUMENTS)
        for at in {2, 5, 8, 13, 19, 22, 24, 26, 31, 37, 44, units}:  # files, segments, the binary one, lines, .gz
            with self.subTest(at=at):
                self.stop_and_go_on((expected, units), at, signal.SIGKILL, *ARGUMENTS)

    def test_stopped_by_signals(self) -> None:
        expected, units = self.whole(*ARGUMENTS)
        self.stop_and_go_on((expected, units), 9, signal.SIGINT, *ARGUMENTS)
        self.stop_and_go_on((expected, units), 30, signal.SIGTERM, *ARGUMENTS)

    def test_stopped_before_anything_is_done(self) -> None:
        """The first unit's result is not committed when the signal comes; nothing is left."""
        stopped = self.prepare("--input", self.text, "--output", self.out, "--restart",
                               preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)))
        self.assert_refused(stopped, "cannot write", "run it again", code=1)
        self.assertEqual(list(self.out.parent.iterdir()), [])

    def test_killed_in_the_second_pass(self) -> None:
        """The border between the splits has moved, and stays where it is."""
        arguments = ("--val-fraction", 1e-9)
        expected, units = self.whole(*arguments)
        self.assertEqual(units % 2, 0)
        self.stop_and_go_on((expected, units), units // 2 + 20, signal.SIGKILL, *arguments)
        for at in (units // 2, units // 2 - 3, units // 2 - 20):
            self.stop_and_go_on((expected, units), at, signal.SIGKILL, *arguments)

    def test_with_masks(self) -> None:
        arguments = ("--include", "records*", "--mask-field", "skip", *ARGUMENTS)
        expected, units = self.whole(*arguments)
        self.assertIn("train-00001.mask", expected)
        for at in (3, units // 2, units - 1):
            self.stop_and_go_on((expected, units), at, signal.SIGKILL, *arguments)

    def test_torn_line_in_the_journal(self) -> None:
        expected, units = self.whole(*ARGUMENTS)
        self.in_units(*ARGUMENTS, at=9, action=signal.SIGKILL)
        with open(self.partial / "journal.jsonl", "ab") as journal:
            journal.write(b'{"cursor": [0, 1')
        result = self.in_units(*ARGUMENTS, at=5, action=signal.SIGKILL)
        self.assertIn("going on", result.stderr)
        result = self.in_units(*ARGUMENTS)
        self.assertLessEqual(self.units(result), units - 8 - 4)
        self.assertEqual(tree(self.out), expected)

    def test_another_command_is_refused(self) -> None:
        self.in_units(*ARGUMENTS, at=9, action=signal.SIGKILL)
        before = tree(self.partial)
        for arguments, word in ((["--val-fraction", 0.2], "--val-fraction"), (["--shard-tokens", 7], "--shard-tokens"),
                                (["--field", "skip"], "--field"), (["--split-on", "x"], "--split-on"),
                                (["--exclude", "a01.txt"], "input files"), (["--format", "text"], "formats")):
            with self.subTest(arguments=arguments):
                self.assert_error(self.run_on_text(*ARGUMENTS, *arguments), word, "--restart")
                self.assertEqual(tree(self.partial), before)

    def test_changed_input_is_refused(self) -> None:
        self.in_units(*ARGUMENTS, at=9, action=signal.SIGKILL)
        path = self.text / "a03.txt"
        info = path.stat()
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns + 1))
        self.assert_error(self.run_on_text(*ARGUMENTS), "input files")
        result = self.succeed(*ARGUMENTS, "--restart")
        self.assertNotIn("going on", result.stderr)

    def test_damaged_work_is_refused(self) -> None:
        self.in_units(*ARGUMENTS, at=30, action=signal.SIGKILL)
        os.truncate(self.partial / "train-00000.bin", 1100)
        self.assert_error(self.run_on_text(*ARGUMENTS), "train-00000.bin is not whole", "--restart")

    def damage(self, journal: bytes) -> None:
        """What a stopped run left, with other lines after the first of its journal."""
        if not self.kept:
            self.in_units(*ARGUMENTS, at=30, action=signal.SIGKILL)
            self.kept.update(tree(self.partial))
        self.partial.mkdir(exist_ok=True)
        for name, content in self.kept.items():
            (self.partial / name).write_bytes(content)
        (self.partial / "journal.jsonl").write_bytes(journal)

    def test_damaged_journal_is_refused(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.damage(b"")
        lines = self.kept["journal.jsonl"].splitlines(keepends=True)
        state = json.loads(lines[-1])
        changes = [{"cursor": value}
                   for value in (None, 3, [], [0, 0, 1], [0, 0, 1, "0"], [0, -1, 1, 0], [0.5] * 4, {})]
        changes += [{"cursor": [10**400, 0, 1, 0]}, {"cursor": [10**9, 0, 1, 0]}, {"position": "0"}, {"position": None}]
        changes += [{"train": value} for value in (None, [], {}, {**state["train"], "shards": -1},
                                                   {**state["train"], "shards": 10**9},
                                                   {**state["train"], "open": "1"},
                                                   {**state["train"], "tokens": 1e300})]
        changes += [{"spool": value} for value in (0, [], [0, 0, 0], [-1, 0, True], [1 << 40, 0, True])]
        changes += [{"spools": -1}, {"spools": True}, {"separators": None}, {"smallest": 3}, {"smallest": "x"},
                    {"largest": "9" * 5000}, {"skipped": []}, {"skipped": {"empty": "1"}}, {"examples": {"other": "a"}},
                    {"examples": {"empty": 3}}, {"replaced": None}, {"more": 1}]
        tails = [json.dumps({**state, **change}).encode() + b"\n" for change in changes]
        tails += [b"[]\n", b"3\n", b'"text"\n', b"{}\n", b"true\n", b'{"train": {"train": 1}}\n']
        journals = [lines[0] + tail for tail in tails] + [lines[0] + lines[1] + tail for tail in tails[-6:]]
        command = json.loads(lines[0])
        journals += [json.dumps({**command, "val below": value}).encode() + b"\n" + lines[-1]
                     for value in (None, 3, "-1", "x", "9" * 5000)]
        for journal in journals:
            with self.subTest(journal=journal[-120:]):
                self.damage(journal)
                self.assert_error(self.run_on_text(*ARGUMENTS), "--restart")
                self.assertEqual((self.partial / "journal.jsonl").read_bytes(), journal)
        self.succeed(*ARGUMENTS, "--restart")

    def test_work_of_another_version_is_refused(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.damage(b"")
        first, *rest = self.kept["journal.jsonl"].splitlines(keepends=True)
        command = {**json.loads(first), "version of prepare.py": 1}
        for state in (rest[-1], b'{"cursor": [0, 0, 1, 0]}\n'):
            self.damage(json.dumps(command).encode() + b"\n" + state)
            self.assert_error(self.run_on_text(*ARGUMENTS),
                              "with other version of prepare.py, give that command again, or pass --restart")

    def test_torn_and_nested_ends_of_a_journal_are_cut_off(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.damage(b"")
        for tail in (b"[" * 200_000 + b"\n", b'{"a":' * 100_000 + b"\n", b"\xff\xfe\n", b"\x00\n", b"null\n", b"{"):
            with self.subTest(tail=tail[:10]):
                self.damage(self.kept["journal.jsonl"] + tail)
                result = self.done_in_units(*ARGUMENTS, "--overwrite")
                self.assertIn("going on", result.stderr)

    def test_a_journal_of_another_is_spared(self) -> None:
        self.partial.mkdir(parents=True)
        for content in (b"mine\n", b'{"step": 1}\n', b"[]\n", b"\0"):
            (self.partial / "journal.jsonl").write_bytes(content)
            for arguments in ([], ["--restart"]):
                self.assert_error(self.run_on_text(*ARGUMENTS, *arguments), "journal.jsonl that is none of prepare.py")
                self.assertEqual(tree(self.partial), {"journal.jsonl": content})

    def test_shards_without_a_journal_are_spared(self) -> None:
        self.partial.mkdir(parents=True)
        (self.partial / "train-00000.bin").write_bytes(b"mine")
        self.assert_error(self.run_on_text(*ARGUMENTS, "--restart"), "holds train-00000.bin")
        self.assertEqual(tree(self.partial), {"train-00000.bin": b"mine"})

    def test_no_link_is_written_through(self) -> None:
        """In OUTPUT.partial, before a run and before it goes on: what a link names is as it was."""
        victim = self.root / "victim"
        self.partial.mkdir(parents=True)
        for make in (os.symlink, os.link):
            for name in ("journal.jsonl", "train-00000.bin"):
                for has_work in (False, True):
                    with self.subTest(make=make.__name__, name=name, has_work=has_work):
                        if has_work:
                            self.in_units(*ARGUMENTS, at=30, action=signal.SIGKILL)
                            content = (self.partial / name).read_bytes()
                            (self.partial / name).unlink()
                        else:
                            content = b'{"version of prepare.py": 2}\n' if name == "journal.jsonl" else b"mine"
                        victim.write_bytes(content)
                        make(victim, self.partial / name)
                        self.assert_error(self.run_on_text(*ARGUMENTS))
                        self.assertEqual(victim.read_bytes(), content)
                        for path in self.partial.iterdir():
                            path.unlink()

    def test_names_that_appear_meanwhile_are_not_written_through(self) -> None:
        """Links with the names of shards to come, made after the folder was looked at: the run takes their names."""
        victim = self.root / "victim"
        victim.write_bytes(b"mine")
        names = ["train-00000.bin", "train-00001.bin", "val-00000.bin", "document-1.tokens", "meta.json.bin",
                 "meta.json"]
        for make in ("symlink", "link"):
            with self.subTest(make):
                before = (f"begin = write.Work.begin\n"
                          f"def planted(self, *a, **k):\n"
                          f"    begin(self, *a, **k)\n"
                          f"    [os.{make}({str(victim)!r}, self.folder + '/' + name) for name in {names!r}]\n"
                          "write.Work.begin = planted")
                self.done_in_units(*ARGUMENTS, "--overwrite", before=before)
                self.assertEqual(victim.read_bytes(), b"mine")
                self.assertFalse([path for path in self.out.iterdir() if path.is_symlink()])

    def test_a_partial_folder_that_is_a_link_is_refused(self) -> None:
        elsewhere = self.root / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "train-00000.bin").write_bytes(b"mine")
        self.out.parent.mkdir()
        self.partial.symlink_to(elsewhere)
        self.assert_error(self.run_on_text(*ARGUMENTS, "--restart"), "out.partial is a link")
        self.assertEqual(tree(elsewhere), {"train-00000.bin": b"mine"})

    def test_work_of_another_process(self) -> None:
        self.partial.mkdir(parents=True)
        with open(self.partial / "journal.jsonl", "w") as journal:
            fcntl.flock(journal, fcntl.LOCK_EX)
            self.assert_error(self.run_on_text(), "another prepare.py is at work")

    def test_foreign_files_are_spared(self) -> None:
        self.partial.mkdir(parents=True)
        (self.partial / "thesis.tex").write_text("mine")
        self.assert_error(self.run_on_text(), "thesis.tex")
        self.assertEqual(tree(self.partial), {"thesis.tex": b"mine"})

    def test_bad_input_leaves_nothing(self) -> None:
        self.write("zz.jsonl", b'{"text": "a"}\n{"text": \n')
        self.assert_error(self.in_units(*ARGUMENTS))
        self.assertEqual(list(self.out.parent.iterdir()), [])

    def test_full_disk_keeps_what_is_done(self) -> None:
        expected, _ = self.whole(*ARGUMENTS)
        result = self.in_units(*ARGUMENTS, at=20, action="raise OSError(28, 'No space left on device')")
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn("No space left on device", result.stderr)
        self.assertIn("run the same command again to go on", result.stderr)
        self.assertFalse(self.out.exists())
        result = self.in_units(*ARGUMENTS)
        self.assertIn("going on", result.stderr)
        self.assertEqual(tree(self.out), expected)

    def test_killed_worker(self) -> None:
        """As the system does when memory runs out."""
        expected, _ = self.whole(*ARGUMENTS)
        kill = "import multiprocessing as m; [os.kill(p.pid, 9) for p in m.active_children()]"
        result = self.in_units(*ARGUMENTS, at=20, action=kill)
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn("--processes", result.stderr)
        result = self.in_units(*ARGUMENTS)
        self.assertIn("going on", result.stderr)
        self.assertEqual(tree(self.out), expected)


@needs("tokenizers")
class Tokenizers(Base):
    """The same with a tokenizer that is trained on the input before."""

    def test_killed_anywhere(self) -> None:
        arguments = ("--include", "records*", "giant.txt", "a*", "--tokenizer", "train:280", *ARGUMENTS)
        python = python_with("tokenizers")
        expected, units = self.whole(*arguments, python=python)
        for at in (1, 5, 8, 19, 31, units):
            with self.subTest(at=at):
                self.stop_and_go_on((expected, units), at, signal.SIGKILL, *arguments, python=python)
