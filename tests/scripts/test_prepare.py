"""Tests of scripts/prepare.py. Run: python3 -m unittest tests/scripts/test_prepare.py -v"""
from __future__ import annotations

import contextlib
import io
import os
import resource
import struct
import subprocess
import sys
import unittest
from unittest import mock

from .prepare_case import SCRIPT, PrepareTest, documents, read_shard, tree

from prepare import command


class Format(PrepareTest):
    def test_exact_bytes_of_a_shard(self) -> None:
        self.write("a.txt", b"A\xff\n")
        self.succeed("--val-fraction", 0)
        expected = struct.pack("<256i", 20240520, 1, 4, *[0] * 253) + b"A\0\xff\0\n\0\0\1"
        self.assertEqual(tree(self.out).keys(), {"meta.json", "train-00000.bin"})
        self.assertEqual((self.out / "train-00000.bin").read_bytes(), expected)

    def test_every_byte_but_nul_survives(self) -> None:
        content = bytes(range(1, 256)) * 10_000  # more than one write buffer
        self.write("a.txt", content)
        self.succeed("--val-fraction", 0)
        self.assertEqual(documents(self.out, "train"), [content])

    def test_documents_are_kept_apart_and_sorted(self) -> None:
        self.write("b.txt", b"two")
        self.write("a/z.txt", b"one")
        self.write("c.txt", b"three\n")
        self.succeed("--val-fraction", 0)
        self.assertEqual(documents(self.out, "train"), [b"one", b"two", b"three\n"])

    def test_meta(self) -> None:
        self.write("a.txt", b"12345")
        self.write("b.txt", b"123")
        self.succeed("--val-fraction", 0)
        self.assertEqual(self.meta(), {
            "format": "llmc", "dtype": "uint16", "tokenizer": "bytes", "vocab_size": 257, "eot_token": 256,
            "eot": "end", "bytes_per_token": 0.8,
            "train": {"documents": 2, "tokens": 10, "bytes": 8, "shards": ["train-00000.bin"]},
            "val": {"documents": 0, "tokens": 0, "bytes": 0, "shards": []},
        })

    def test_deterministic(self) -> None:
        self.write_many(50)
        first, second = self.root / "first", self.root / "second"
        self.succeed(out=first)
        self.succeed(out=second)
        self.assertEqual(tree(first), tree(second))

    def test_shards_are_cut_between_documents(self) -> None:
        for name, size in (("a", 3), ("b", 3), ("c", 30), ("d", 1)):  # 4 + 4, 31, 2 tokens
            self.write(name, name.encode() * size)
        self.succeed("--val-fraction", 0, "--shard-tokens", 5)
        shards = ["train-00000.bin", "train-00001.bin", "train-00002.bin"]
        self.assertEqual(self.meta()["train"]["shards"], shards)
        self.assertEqual([len(read_shard(self.out / s)[1]) for s in shards], [8, 31, 2])
        self.assertEqual(documents(self.out, "train"), [b"aaa", b"bbb", b"c" * 30, b"d"])

    def test_summary(self) -> None:
        self.write_many(60)
        result = self.succeed()
        for word in ('"train": [', '"val": [', '"vocab_size": 257', '"eot_token": 256', '"bytes"', "MB/s", "shard",
                     str(self.out / "train-*.bin")):
            self.assertIn(word, result.stdout)
        self.assertEqual(result.stderr, "")


class Splitting(PrepareTest):
    def test_by_content(self) -> None:
        for i in range(200):
            self.write(f"{i:03d}.txt", b"text %d" % (i % 100))  # every content twice
        self.succeed("--val-fraction", 0.3)
        train, val = documents(self.out, "train"), documents(self.out, "val")
        self.assertEqual(len(train) + len(val), 200)
        self.assertEqual(set(train) & set(val), set())
        self.assertTrue(20 < len(val) < 100, len(val))
        self.assertEqual(self.meta()["val"]["documents"], len(val))

    def test_a_document_keeps_its_side_when_others_come(self) -> None:
        self.write_many(100)
        self.succeed("--val-fraction", 0.2)
        before = set(documents(self.out, "val"))
        self.write("new.txt", b"new")
        self.succeed("--val-fraction", 0.2, "--overwrite")
        self.assertEqual(set(documents(self.out, "val")) - {b"new"}, before)

    def test_two_documents_fill_both_sides(self) -> None:
        self.write("a.txt", b"one")
        self.write("b.txt", b"two")
        for val_fraction in (0.000001, 0.999999):
            with self.subTest(val_fraction=val_fraction):
                self.succeed("--val-fraction", val_fraction, "--overwrite")
                train, val = documents(self.out, "train"), documents(self.out, "val")
                self.assertEqual((len(train), len(val)), (1, 1))
                self.assertEqual({train[0], val[0]}, {b"one", b"two"})
                self.assertEqual(self.meta()["train"]["documents"], 1)

    def test_moved_document_takes_its_copies_along(self) -> None:
        for name in "abcdef":
            self.write(name, b"one" if name in "ace" else b"two")
        self.succeed("--val-fraction", 0.000001)
        train, val = documents(self.out, "train"), documents(self.out, "val")
        self.assertEqual((len(train), len(val)), (3, 3))
        self.assertEqual(set(train) & set(val), set())

    def test_one_distinct_document_is_refused(self) -> None:
        self.write("a.txt", b"same")
        self.write("b.txt", b"same")
        self.assert_refused(self.run_on_text(), "--val-fraction 0")
        self.assertFalse(self.out.exists())


class Files(PrepareTest):
    def test_empty_and_binary_are_skipped(self) -> None:
        self.write("a.txt", b"text")
        self.write("empty.txt", b"")
        self.write("start.bin", b"\0text")
        self.write("late.bin", b"x" * (3 << 20) + b"\0")
        result = self.succeed("--val-fraction", 0)
        self.assertEqual(documents(self.out, "train"), [b"text"])
        self.assertIn("2 binary, 1 empty", result.stdout)

    def test_nothing_left_is_refused(self) -> None:
        self.write("empty.txt", b"")
        self.assert_refused(self.run_on_text(), "no documents", "1 empty")

    @unittest.skipIf(os.geteuid() == 0, "root reads everything")
    def test_unreadable_is_named_and_counted(self) -> None:
        self.write("a.txt", b"text")
        self.write("locked.txt", b"secret").chmod(0)
        result = self.succeed("--val-fraction", 0)
        self.assertIn("locked.txt: Permission denied", result.stderr)
        self.assertIn("1 unreadable", result.stdout)

    def test_broken_link_is_named_and_counted(self) -> None:
        self.write("a.txt", b"text")
        (self.text / "gone.txt").symlink_to("nowhere")
        (self.text / "self.txt").symlink_to("self.txt")
        result = self.succeed("--val-fraction", 0)
        self.assertIn("gone.txt: No such file", result.stderr)
        self.assertIn("2 unreadable", result.stdout)
        self.assertEqual(documents(self.out, "train"), [b"text"])

    def test_fifo_is_skipped(self) -> None:
        self.write("a.txt", b"text")
        os.mkfifo(self.text / "pipe.txt")
        result = self.succeed("--val-fraction", 0)
        self.assertIn("1 not a regular file", result.stdout)

    def test_link_loop_ends(self) -> None:
        self.write("sub/a.txt", b"text")
        (self.text / "sub" / "up").symlink_to("..")
        (self.text / "sub" / "here").symlink_to(".")
        self.succeed("--val-fraction", 0)
        self.assertEqual(documents(self.out, "train"), [b"text"])

    def test_links_are_followed_and_files_taken_once(self) -> None:
        self.write("a.txt", b"inside")
        elsewhere = self.root / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "b.txt").write_bytes(b"outside")
        (self.text / "link").symlink_to(elsewhere)
        (self.text / "same.txt").symlink_to("a.txt")
        result = self.succeed("--val-fraction", 0, "--input", self.text, self.text / "a.txt", elsewhere)
        self.assertEqual(documents(self.out, "train"), [b"inside", b"outside"])
        self.assertIn("already taken", result.stdout)

    def test_hidden_folders_and_caches_are_not_entered(self) -> None:
        for name in (".git/a.txt", "__pycache__/b.txt", "sub/.venv/c.txt"):
            self.write(name, b"hidden")
        self.write("a.txt", b"text")
        self.succeed("--val-fraction", 0)
        self.assertEqual(documents(self.out, "train"), [b"text"])

    def test_include_and_exclude(self) -> None:
        for name in ("a.py", "b.md", "c.txt", "tests/d.py", "lib/old/e.py", "lib/f.py"):
            self.write(name, name.encode())
        result = self.succeed("--val-fraction", 0, "--include", "*.py", "*.md", "--exclude", "tests", "lib/old/*")
        self.assertEqual(documents(self.out, "train"), [b"a.py", b"b.md", b"lib/f.py"])
        self.assertIn("2 left out by pattern", result.stdout)

    def test_output_inside_input_is_not_read(self) -> None:
        self.write_many(3)
        out = self.text / "prepared"
        self.succeed("--val-fraction", 0, out=out)
        before = tree(out)
        self.succeed("--val-fraction", 0, "--overwrite", out=out)
        self.assertEqual(tree(out), before)

    def test_name_that_is_not_utf8(self) -> None:
        path = os.path.join(os.fsencode(self.text), b"\xff.txt")
        try:
            with open(path, "wb") as file:
                file.write(b"text")
        except OSError:
            self.skipTest("the file system wants UTF-8 names")
        os.symlink(b"nowhere", os.path.join(os.fsencode(self.text), b"\xfe.txt"))
        self.succeed("--val-fraction", 0)


class Refusals(PrepareTest):
    def test_missing_input(self) -> None:
        result = self.prepare("--input", self.root / "nope", "--output", self.out)
        self.assert_refused(result, "nope", "--input")
        self.assertFalse(self.out.parent.exists())

    def test_unknown_tokenizer(self) -> None:
        self.write_many(3)
        self.assert_refused(self.run_on_text("--tokenizer", "gpt2"), "gpt2", "bytes")

    def test_bad_arguments(self) -> None:
        self.write_many(3)
        for arguments in (["--val-fraction", 1], ["--val-fraction", -0.1], ["--val-fraction", "nan"],
                          ["--shard-tokens", 0], ["--shard-tokens", 2**31], ["--machine-text"], ["--unknown"]):
            with self.subTest(arguments=arguments):
                self.assert_refused(self.run_on_text(*arguments))
        self.assert_refused(self.prepare("--output", self.out), "--input")

    def test_existing_output(self) -> None:
        self.write_many(3)
        self.out.mkdir(parents=True)
        self.succeed()  # an empty folder is no obstacle
        before = tree(self.out)
        self.write("new.txt", b"new")
        self.assert_refused(self.run_on_text(), str(self.out), "--overwrite")
        self.assertEqual(tree(self.out), before)

    def test_output_that_is_a_file(self) -> None:
        self.write_many(3)
        out = self.root / "file"
        out.write_text("mine")
        self.assert_refused(self.run_on_text("--overwrite", out=out), "not a folder")
        self.assertEqual(out.read_text(), "mine")

    def test_overwrite(self) -> None:
        self.write_many(3)
        self.succeed("--val-fraction", 0, "--shard-tokens", 1)
        for name in ("train-00000.idx", "train-00000.docs", "train-00000.bin.index", "train-00000.mask",
                     "tokenizer.json"):
            (self.out / name).write_bytes(b"cache")
        self.write("new.txt", b"new")
        self.succeed("--val-fraction", 0, "--overwrite")
        self.assertEqual(tree(self.out).keys(), {"meta.json", "train-00000.bin"})
        self.assertIn(b"new", documents(self.out, "train"))

    def test_overwrite_spares_other_files(self) -> None:
        self.write_many(3)
        self.succeed()
        for foreign in ("notes.txt", "sub.bin/model"):
            with self.subTest(foreign=foreign):
                path = self.out / foreign
                path.parent.mkdir(exist_ok=True)
                path.write_text("mine")
                before = tree(self.out)
                self.assert_refused(self.run_on_text("--overwrite"), foreign.split("/")[0])
                self.assertEqual(tree(self.out), before)
                path.unlink()

    def test_overwrite_spares_what_was_not_prepared(self) -> None:
        """Weights and indexes of others have the suffixes too; a link to a shard is not the shard."""
        self.write_many(3)
        for name in ("pytorch_model.bin", "train.bin", "corpus.idx", "train-00000.bin"):
            with self.subTest(name):
                out = self.root / name.replace(".", "-")
                out.mkdir()
                (out / name).write_bytes(b"mine")
                self.assert_refused(self.run_on_text("--overwrite", out=out), str(out), "--output")
                self.assertEqual(tree(out), {name: b"mine"})
        self.succeed()
        (self.out / "train-00000.mask").symlink_to(self.root / "elsewhere")
        self.assert_refused(self.run_on_text("--overwrite"), "train-00000.mask")

    def test_failed_overwrite_keeps_the_old(self) -> None:
        self.write_many(3)
        self.succeed()
        before = tree(self.out)
        self.assert_refused(self.run_on_text("--overwrite", "--include", "*.nothing"), "no documents")
        self.assertEqual(tree(self.out), before)

    def test_input_inside_output(self) -> None:
        self.write_many(3)
        self.succeed()
        result = self.prepare("--input", self.out / "meta.json", "--output", self.out, "--overwrite")
        self.assert_refused(result, "output")

    def test_help(self) -> None:
        result = self.prepare("--help")
        self.assertEqual(result.returncode, 0)
        self.assertEqual(result.stdout.count("python3 scripts/prepare.py"), 6)


class Faults(PrepareTest):
    def test_write_error_leaves_nothing(self) -> None:
        """A file size limit stands in for a full disk."""
        self.write("a.txt", b"x" * (8 << 20))
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # noqa: E731
        result = self.run_on_text("--val-fraction", 0, preexec_fn=limit)
        self.assert_refused(result, "cannot write", str(self.out), code=1)
        self.assertFalse(self.out.exists())

    def test_closed_pipe_does_not_spoil_the_output(self) -> None:
        self.write_many(3)
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, str(SCRIPT), "--input", str(self.text), "--output", str(self.out)]
        code = subprocess.run(command, stdout=writer, stderr=writer, timeout=60).returncode
        os.close(writer)
        self.assertEqual(code, 0)
        self.assertEqual(self.meta()["train"]["documents"] + self.meta()["val"]["documents"], 3)


class Limits(PrepareTest):
    """What needs gigabytes or another machine is tested with smaller numbers, which the worker processes inherit."""

    def call(self, *args: object) -> tuple[int, str, str]:
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), \
                mock.patch.object(command.Stop, "install"):
            code = command.main(["--output", str(self.out), "--val-fraction", "0", *map(str, args)])
        return code, stdout.getvalue(), stderr.getvalue()

    def test_document_too_big_for_a_shard(self) -> None:
        self.write("big.txt", b"x" * 100)
        with mock.patch("prepare.units.UNIT_BYTES", 16), mock.patch("prepare.write.MAX_TOKENS", 100):
            code, _, stderr = self.call("--input", self.text, "--shard-tokens", 50)
        self.assertEqual(code, 2, stderr)
        self.assertIn("big.txt", stderr)
        self.assert_no_leftovers()
        self.assertFalse(self.out.exists())

    def test_no_shard_passes_the_limit(self) -> None:
        for name in "ab":
            self.write(name, name.encode() * 60)
        for unit in (16, 1000):  # documents in segments, and whole ones
            with self.subTest(unit=unit), mock.patch("prepare.units.UNIT_BYTES", unit), \
                    mock.patch("prepare.shards.MAX_TOKENS", 100):
                code, _, stderr = self.call("--input", self.text, "--shard-tokens", 100, "--overwrite")
                self.assertEqual(code, 0, stderr)
                self.assertEqual([len(read_shard(p)[1]) for p in sorted(self.out.glob("*.bin"))], [61, 61])

    def test_machine_text_falls_back_to_headers(self) -> None:
        self.write("a.h", b"int a;")
        self.write("sub/b.hpp", b"int b;")
        self.write("c.txt", b"text")
        with mock.patch("prepare.files.SYSTEM_HEADERS", str(self.text)), \
                mock.patch("sysconfig.get_path", return_value=str(self.text)):  # less than 1 MB of *.py
            code, stdout, stderr = self.call("--machine-text")
        self.assertEqual(code, 0, stderr)
        self.assertIn("system headers", stdout)
        self.assertEqual(documents(self.out, "train"), [b"int a;", b"int b;"])

    def test_internal_fault_is_one_line(self) -> None:
        self.write_many(2)
        with mock.patch.object(command, "meta_json", side_effect=ZeroDivisionError("boom")):
            code, _, stderr = self.call("--input", self.text)
        self.assertEqual((code, stderr.count("\n")), (1, 1), stderr)
        self.assertIn("ZeroDivisionError: boom", stderr)
        self.assertFalse(self.out.exists())
        self.assert_no_leftovers()


class MachineText(PrepareTest):
    def test_machine_text(self) -> None:
        result = self.prepare("--machine-text", "--output", self.out)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("machine text: the s", result.stdout)  # standard library or system headers
        meta = self.meta()
        self.assertGreater(meta["train"]["tokens"], 100_000)
        self.assertGreater(meta["val"]["documents"], 0)
        for split in ("train", "val"):
            count = sum(struct.unpack("<3i", (self.out / s).read_bytes()[:12])[2] for s in meta[split]["shards"])
            size = sum((self.out / s).stat().st_size - 1024 for s in meta[split]["shards"])
            self.assertEqual((count, size), (meta[split]["tokens"], 2 * meta[split]["tokens"]))
