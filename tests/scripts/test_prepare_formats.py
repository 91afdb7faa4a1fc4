"""What prepare.py reads: JSONL, parquet, gz and zst, text cut by a separator; masks; and what it refuses, with which
words.

Seen to catch: a separator over the end of a buffer missed; lines not counted from unit to unit; a zstd file that ends
inside a frame; gzip's own error not named; NUL bytes let through; the end of a masked document still a target; replaced
characters of JSONL not counted.
"""
from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Optional

from .prepare_case import PrepareTest, copy_of_scripts, documents, needs, python_with

# Makes FILE from a line of Python whose value is a table: argv is FILE and the line.
MAKE_TABLE = """
import sys, pyarrow as pa, pyarrow.parquet as pq
class Words(pa.ExtensionType):
    def __init__(self): super().__init__(pa.string(), "test.words")
    def __arrow_ext_serialize__(self): return b""
    @classmethod
    def __arrow_ext_deserialize__(cls, storage, serialized): return cls()
words = ["one", None, "zw\u00f6lf", ""]
raw = [None if word is None else word.encode() for word in words]
pq.write_table(eval(sys.argv[2]), sys.argv[1])
"""
# Makes FILE from JSON on standard input: {"columns": {name: values}, "types": {name: type}, "rows_per_group": N}.
MAKE_PARQUET = """
import json, sys, pyarrow as pa, pyarrow.parquet as pq
given = json.load(sys.stdin)
arrays = {name: pa.array(values, type=eval(given["types"][name]) if name in given.get("types", {}) else None)
          for name, values in given["columns"].items()}
pq.write_table(pa.table(arrays), sys.argv[1], row_group_size=given.get("rows_per_group"))
"""
COMPRESS_ZSTD = "import sys, zstandard; sys.stdout.buffer.write(zstandard.compress(sys.stdin.buffer.read()))"


def jsonl(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def zstd(content: bytes) -> bytes:
    return subprocess.run([python_with("zstandard"), "-c", COMPRESS_ZSTD], input=content, stdout=subprocess.PIPE,
                          check=True).stdout


def write_parquet(path: Path, columns: dict, types: Optional[dict] = None, rows_per_group: int = 100) -> None:
    given = {"columns": columns, "types": types or {}, "rows_per_group": rows_per_group}
    subprocess.run([python_with("pyarrow"), "-c", MAKE_PARQUET, str(path)], input=json.dumps(given), text=True,
                   check=True)


class Formats(PrepareTest):
    def read(self, *arguments: object, **options) -> list[bytes]:
        """The documents of the text folder, which must be the same in small units."""
        self.succeed("--val-fraction", 0, "--overwrite", *arguments, **options)
        found = documents(self.out, "train")
        for unit in (7, 64):
            out = self.root / f"units{unit}"
            self.done_in_units("--val-fraction", 0, "--overwrite", *arguments, out=out, unit=unit, **options)
            self.assertEqual(documents(out, "train"), found)
        return found

    def test_jsonl(self) -> None:
        texts = ["one", "", "zwei\nZeilen", "три", "\ud83d\ude00", "nul \0 stays"]
        content = b"\xef\xbb\xbf" + jsonl({"text": texts[0], "id": 1}) + b"\n  \r\n" + jsonl(
            *[{"text": text} for text in texts[1:]], {"text": None})
        self.write("a.jsonl", content.rstrip(b"\n"))  # the last line need not end
        self.write("b.ndjson", b'{"text": "half \\ud800 pair"}\r\n')
        result = self.succeed("--val-fraction", 0)
        self.assertIn("2 empty", result.stdout)
        self.assertIn("UTF-8:   1 document", result.stdout)
        expected = ["one", "zwei\nZeilen", "три", "\U0001f600", "nul \0 stays", "half \ufffd pair"]
        self.assertEqual(self.read(), [text.encode() for text in expected])

    def test_field(self) -> None:
        self.write("a.jsonl", jsonl({"text": "a", "content": "b"}))
        self.assertEqual(self.read("--field", "content"), [b"b"])

    def test_gzip(self) -> None:
        self.write("a.json.gz", gzip.compress(jsonl({"text": "one"})) + gzip.compress(jsonl({"text": "two"})))
        self.write("b.txt.gz", gzip.compress(b"some text\n" * 20))
        self.write("c.gz", gzip.compress(b""))
        self.write("d.json", b'{"text": "a file of its own"}')
        self.assertEqual(self.read(), [b"one", b"two", b"some text\n" * 20, b'{"text": "a file of its own"}'])

    @needs("zstandard")
    def test_zstd(self) -> None:
        python = python_with("zstandard")
        self.write("a.jsonl.zst", zstd(jsonl({"text": "one"})) + zstd(jsonl({"text": "two"})))
        self.write("b.zst", zstd(b"some text\n" * 20))
        self.assertEqual(self.read(python=python), [b"one", b"two", b"some text\n" * 20])

    @needs("pyarrow")
    def test_parquet(self) -> None:
        texts = [f"row {i} " * (i % 5) for i in range(40)]
        texts[7] = None
        for name, kind in (("a", "pa.large_string()"), ("b", "pa.dictionary(pa.int32(), pa.string())"),
                           ("c", "pa.string()")):
            write_parquet(self.text / f"{name}.parquet", {"id": list(range(40)), "body": texts}, {"body": kind}, 11)
        found = self.read("--field", "body", python=python_with("pyarrow"))
        self.assertEqual(found, [text.encode() for text in texts if text] * 3)
        result = self.succeed("--val-fraction", 0, "--field", "body", "--overwrite", python=python_with("pyarrow"))
        self.assertIn("27 empty", result.stdout)

    def test_format_overrides_the_name(self) -> None:
        self.write("records.log", jsonl({"text": "one"}))
        self.assertEqual(self.read("--format", "jsonl"), [b"one"])
        self.assertEqual(self.read("--format", "text"), [jsonl({"text": "one"})])

    def test_separators_as_bytes_split_them(self) -> None:
        """Against bytes.split over the whole file, also where separators overlap themselves and the units' ends."""
        chance = random.Random(1)
        for text, separator in (("\\n\\n", b"\n\n"), ("<|endoftext|>", b"<|endoftext|>"), ("aa", b"aa"),
                                ("\\t", b"\t")):
            with self.subTest(separator=text):
                parts = [separator, separator[:1], separator[:-1], b"a", b"b c\n", b"word " * 9]
                content = b"".join(chance.choice(parts) for _ in range(400))
                self.write("a.txt", content)
                expected = [document for document in content.split(separator) if document]
                self.assertEqual(self.read("--split-on", text), expected)

    def test_backslashes_of_a_separator(self) -> None:
        self.write("a.txt", b"one\\ntwo\nthree")
        self.assertEqual(self.read("--split-on", r"\\n"), [b"one", b"two\nthree"])

    def test_binary_documents_between_separators(self) -> None:
        self.write("a.txt", b"one%%" + b"two" * 50 + b"\0" + b"%%three%%" + b"x" * 300 + b"\0" +
                   b"y" * 300 + b"%%four%%")
        self.assertEqual(self.read("--split-on", "%%"), [b"one", b"three", b"four"])
        result = self.in_units("--split-on", "%%", "--val-fraction", 0, "--overwrite")
        self.assertIn("2 binary", result.stdout)
        self.assertNotIn("empty", result.stdout)

    def write_table(self, name: str, table: str) -> None:
        subprocess.run([python_with("pyarrow"), "-c", MAKE_TABLE, str(self.text / name), table], check=True)

    @needs("pyarrow")
    def test_every_type_of_text(self) -> None:
        python = python_with("pyarrow")
        for column in ("pa.array(words)", "pa.array(words, pa.large_string())", "pa.array(words, pa.string_view())",
                       "pa.array(raw)", "pa.array(raw, pa.large_binary())", "pa.array(raw, pa.binary_view())",
                       "pa.array(words).dictionary_encode()", "pa.array(raw).dictionary_encode()",
                       "pa.array(words, pa.large_string()).dictionary_encode()",
                       "pa.ExtensionArray.from_storage(Words(), pa.array(words))"):
            with self.subTest(column=column):
                self.write_table("a.parquet", f"pa.table({{'id': [1, 2, 3, 4], 'text': {column}}})")
                self.assertEqual(self.read(python=python), [b"one", "zw\u00f6lf".encode()])
        self.write_table("a.parquet", "pa.table({'text': pa.ExtensionArray.from_storage(pa.json_(pa.string()), "
                                      "pa.array(['{\"a\": 1}', None]))})")
        self.assertEqual(self.read(python=python), [b'{"a": 1}'])

    @needs("pyarrow")
    def test_a_column_of_nulls_alone_is_of_empty_documents(self) -> None:
        python = python_with("pyarrow")
        self.write_table("a.parquet", "pa.table({'text': pa.nulls(3), 'skip': pa.nulls(3)})")
        self.assert_refused(self.run_on_text(python=python), "no documents", "3 empty, such as", "a.parquet")
        self.write_table("b.parquet", "pa.table({'text': words, 'skip': pa.nulls(4)})")
        result = self.succeed("--val-fraction", 0, "--mask-field", "skip", python=python)
        self.assertEqual(documents(self.out, "train"), [b"one", "zw\u00f6lf".encode()])
        self.assertIn("5 empty", result.stdout)

    @needs("pyarrow")
    def test_columns_that_stand_twice_or_hold_no_text(self) -> None:
        python = python_with("pyarrow")
        for table, arguments, words in (
                ("pa.table([words, words], names=['text', 'text'])", [], ["2 columns 'text'", "--field"]),
                ("pa.table([words, words, words], names=['text', 'skip', 'skip'])", ["--mask-field", "skip"],
                 ["2 columns 'skip'", "--mask-field"]),
                ("pa.table({'text': pa.array([b'abcd'], pa.binary(4))})", [], ["fixed_size_binary[4] and no text"]),
                ("pa.table({'text': [['a']]})", [], ["list<", "no text", "--field"]),
                ("pa.table({'text': pa.array([1, 2]).dictionary_encode()})", [], ["no text", "--field"]),
                ("pa.table({'text': [{'a': 'b'}]})", [], ["struct<", "no text", "--field"])):
            with self.subTest(table=table):
                self.write_table("a.parquet", table)
                self.assert_refused(self.run_on_text(*arguments, python=python), "a.parquet", *words)
                self.assertFalse(self.out.exists())
        self.write_table("a.parquet", "pa.table([words, words, words], names=['id', 'id', 'text'])")
        self.assertEqual(self.read(python=python), [b"one", "zw\u00f6lf".encode()])

    def test_the_mark_of_utf8_is_no_text(self) -> None:
        """At the beginning of a file, whatever holds it; anywhere else it is a character."""
        mark = b"\xef\xbb\xbf"
        self.write("a.txt", mark + b"one")
        self.write("b.txt.gz", gzip.compress(mark + b"two " * 40))
        self.write("c.txt", b"three" + mark)
        self.write("d.txt", mark + mark + b"four")
        self.write("e.txt", mark)
        expected = [b"one", b"two " * 40, b"three" + mark, mark + b"four"]
        self.assertEqual(self.read(), expected)
        self.assertIn("1 empty", self.succeed("--val-fraction", 0, "--overwrite").stdout)
        self.assertEqual(self.read("--split-on", "%%"), expected)
        self.write("a.txt", mark + b"one%%" + mark + b"two" * 50 + b"%%three")
        self.assertEqual(self.read("--split-on", "%%", "--include", "a.txt"), [b"one", mark + b"two" * 50, b"three"])

    def test_nul_is_a_character_of_records_and_binary_in_text(self) -> None:
        self.write("a.jsonl", b'{"text": "a\\u0000b"}\n')
        self.write("b.txt", b"a\0b")
        self.assertEqual(self.read(), [b"a\0b"])

    def test_a_separator_that_stands_nowhere(self) -> None:
        self.write("a.txt", b"one\r\n---\r\ntwo")
        self.write("b.txt", b"three")
        warning = "WARNING: the text of --split-on stands nowhere in the input"
        for separator, content, words in (
                (r"\n---\n", b"one\r\n---\r\ntwo", [warning, r"'\r\n---\r\n' would be found"]),
                (r"\n===\n", b"one\r\n---\r\ntwo", [warning]), ("-", b"one", [warning])):
            with self.subTest(separator=separator):
                self.write("a.txt", content)
                arguments = ("--val-fraction", 0, "--overwrite", "--split-on", separator)
                for result in (self.succeed(*arguments), self.done_in_units(*arguments, unit=64)):
                    self.assertEqual(result.stderr.count("WARNING"), 1)
                    for word in words:
                        self.assertIn(word, result.stderr)
                    self.assertEqual("would be found" in result.stderr, len(words) == 2)
                self.assertEqual(documents(self.out, "train"), [content, b"three"])
        self.write("a.txt", b"x" * 300 + b"%%")  # found at the end of a document in segments alone
        for unit in (64, 1 << 20):
            result = self.in_units("--val-fraction", 0, "--overwrite", "--split-on", "%%", unit=unit)
            self.assertNotIn("WARNING", result.stderr)

    def test_keys_that_stand_twice(self) -> None:
        self.write("a.jsonl", b'{"text": "the \\"text\\" of", "more": {"text": 1, "skip": 2}, "skip": [], "id": 1, '
                              b'"id": 2}\n')
        self.assertEqual(self.read("--mask-field", "skip"), [b'the "text" of'])

    # ---- Masks ----

    def masks(self, split: str = "train") -> list[int]:
        return [value for path in sorted(self.out.glob(f"{split}-*.mask")) for value in path.read_bytes()]

    def test_masks(self) -> None:
        self.write("a.jsonl", jsonl(
            {"text": "question answer", "skip": [[0, 9]]},
            {"text": "äöü", "skip": [[1, 2]]},  # two bytes a character
            {"text": "abc", "skip": [[2, 3], [0, 1], [0, 0]]},
            {"text": "abcdef", "skip": [[0, 3], [2, 6]]},  # to the end: the document's end is not learnt either
            {"text": "ab", "skip": None}, {"text": "cd", "skip": []}, {"text": "", "skip": []}))
        result = self.succeed("--val-fraction", 0, "--mask-field", "skip", "--shard-tokens", 20)
        self.assertIn(f'"mask": "{self.out}/train-*.mask"', result.stdout)
        self.assertIs(self.meta()["mask"], True)
        self.assertEqual(self.masks(), [0] * 9 + [1] * 6 + [1] + [1, 1, 0, 0, 1, 1, 1] + [0, 1, 0, 0] + [0] * 7 +
                         [1] * 6)
        self.assertEqual([path.stat().st_size for path in sorted(self.out.glob("*.mask"))],
                         [(path.stat().st_size - 1024) // 2 for path in sorted(self.out.glob("*.bin"))])

    @needs("pyarrow")
    def test_masks_of_parquet(self) -> None:
        write_parquet(self.text / "a.parquet", {"text": ["äb", "cd"], "skip": [[[0, 1]], None]})
        self.succeed("--val-fraction", 0, "--mask-field", "skip", python=python_with("pyarrow"))
        self.assertEqual(self.masks(), [0, 0, 1, 1, 1, 1, 1])

    def test_no_masks_unless_asked_for(self) -> None:
        self.write("a.jsonl", jsonl({"text": "a", "skip": [[0, 1]]}))
        self.succeed("--val-fraction", 0)
        self.assertNotIn("mask", self.meta())
        self.assertEqual(list(self.out.glob("*.mask")), [])


# A file and its content, further arguments, and what the line says.
RECORDS = b'{"text": "a"}\n{"text": "b"}\n'
REFUSED = [
    ("a.jsonl", RECORDS + b'{"text": "c"\n', [], ["invalid JSON in line 3 of", "a.jsonl", "--exclude"]),
    ("a.jsonl", RECORDS + b"\n\n{]\n", [], ["invalid JSON in line 5 of"]),
    ("a.jsonl", RECORDS * 9 + b'{"text": "\xff"}\n', [], ["line 19 of", "no UTF-8"]),
    ("a.jsonl", RECORDS + b'{"body": "c", "id": 1}\n', [], ["no field 'text' in line 3 of", "--field", "body, id"]),
    ("a.jsonl", RECORDS, ["--field", "body"], ["no field 'body' in line 1 of", "text"]),
    ("a.jsonl", RECORDS + b'{"text": 7}', [], ["'text' in line 3 of", "no string"]),
    ("a.jsonl", RECORDS + b'["text"]', [], ["line 3 of", "no JSON object", "--input-format text"]),
    ("a.jsonl", RECORDS + b'{"text": "a", "id": 1, "text": "a"}', [], ["'text' stands twice in line 3 of", "--field"]),
    ("a.jsonl", b'{"\\u00e9": "a", "\\u00e9": "a"}', ["--field", "\u00e9"], ["'\u00e9' stands twice in line 1 of"]),
    ("a.jsonl", b'{"text": "a", "skip": [], "skip": [[0, 1]]}', ["--mask-field", "skip"],
     ["'skip' stands twice in line 1 of", "--mask-field"]),
    ("a.jsonl", b"[" * 100_000, [], ["invalid JSON in line 1 of"]),
    ("a.jsonl", RECORDS, ["--mask-field", "skip"], ["no field 'skip' in line 1 of", "--mask-field"]),
    ("a.jsonl", jsonl({"text": "abc", "skip": [[0, 4]]}), ["--mask-field", "skip"],
     ["'skip' in line 1 of", "[0, 4]", "end <= 3"]),
    ("a.jsonl", jsonl({"text": "abc", "skip": [[2, 1]]}), ["--mask-field", "skip"], ["[2, 1]"]),
    ("a.jsonl", jsonl({"text": "abc", "skip": [[0, True]]}), ["--mask-field", "skip"], ["[0, true]"]),
    ("a.jsonl", jsonl({"text": "abc", "skip": {"a": 1}}), ["--mask-field", "skip"], ["no list of [begin, end]"]),
    ("a.txt", b"text", ["--mask-field", "skip"], ["--mask-field", "JSONL"]),
    ("a.txt", b"text", ["--field", "body"], ["--field", "JSONL"]),
    ("a.jsonl", RECORDS, ["--split-on", "x"], ["--split-on", "text"]),
    ("a.txt", b"text", ["--split-on", ""], ["--split-on"]),
    ("a.txt", b"text", ["--eot-token", "</s>"], ["--eot-token", "leave it out"]),
    ("a.txt", b"text", ["--train-mb", "5"], ["--train-mb", "train:N"]),
    ("a.txt", b"text", ["--tokenizer", "train:256"], ["train:256", "257"]),
    ("a.txt", b"text", ["--tokenizer", "train:8k"], ["train:8k", "train:8192"]),
    ("a.txt", b"text", ["--processes", "0"], ["--processes", "between 1"]),
    ("a.txt", b"one document" * 9, [],
     ["single distinct document", "validation split", "--split-on", "--val-fraction 0"]),
    ("a.jsonl", b"\n \n", [], ["no documents"]),
    ("a.gz", gzip.compress(b"text " * 999)[:-9], [], ["a.gz is no whole gz file", "--exclude"]),
    ("a.gz", b"text", [], ["a.gz is no whole gz file"]),
    ("a.gz", gzip.compress(b"text") + b"more", [], ["a.gz is no whole gz file"]),
    ("a.gz", bytes([*gzip.compress(os.urandom(999))[:500], *b"x" * 100]), [], ["a.gz is no whole gz file"]),
    ("a.parquet.gz", gzip.compress(b"text"), [], ["a.parquet.gz", "unpack it"]),
]


class Refusals(PrepareTest):
    def test_refused(self) -> None:
        for name, content, arguments, words in REFUSED:
            with self.subTest(name=name, content=content[:60], arguments=arguments):
                path = self.write(name, content)
                self.assert_refused(self.run_on_text(*arguments), *words)
                self.assertFalse(self.out.exists())
                path.unlink()

    def test_the_first_bad_line_is_named(self) -> None:
        """Whichever process finds which one first."""
        self.write("a.jsonl", (RECORDS * 20 + b"{\n") * 3)
        for processes in (1, 3):
            result = self.in_units("--processes", processes)
            self.assertIn("invalid JSON in line 41 of", result.stderr)

    @needs("zstandard")
    def test_broken_zstd(self) -> None:
        python = python_with("zstandard")
        for content in (zstd(os.urandom(9999))[:-1], zstd(b"text")[:-1], zstd(b"one") + zstd(b"two")[:5], b"text" * 9):
            with self.subTest(content=content[:20]):
                self.write("a.zst", content)
                self.assert_refused(self.run_on_text(python=python), "a.zst is no whole zst file", "--exclude")

    @needs("pyarrow")
    def test_broken_parquet(self) -> None:
        python = python_with("pyarrow")
        write_parquet(self.text / "a.parquet", {"body": ["a"] * 1000, "id": list(range(1000))})
        self.assert_refused(self.run_on_text(python=python), "a.parquet has no column 'text'", "body, id", "--field")
        self.assert_refused(self.run_on_text("--field", "id", python=python), "column 'id'", "int64", "--field")
        whole = (self.text / "a.parquet").read_bytes()
        for content in (b"", b"text", whole[:-1], whole[:200], whole[:20] + b"\xff" * 500 + whole[520:]):
            with self.subTest(content=content[:20]):
                self.write("a.parquet", content)
                self.assert_refused(self.run_on_text("--field", "body", python=python), "a.parquet is no whole parquet",
                                    "--exclude")

    def test_missing_packages(self) -> None:
        """In a Python without any, and a folder without .venv."""
        scripts = copy_of_scripts(self.root / "elsewhere")
        for name, arguments, package in (("a.parquet", [], "pyarrow"), ("a.zst", [], "zstandard"),
                                         ("a.txt", ["--tokenizer", "train:300"], "tokenizers")):
            with self.subTest(package=package):
                path = self.write(name, b"text")
                command = [sys.executable, "-S", "-E", str(scripts / "prepare.py"), "--input", str(self.text),
                           "--output", str(self.out), *arguments]
                result = subprocess.run(command, capture_output=True, text=True, timeout=60)
                self.assert_refused(result, f"needs the Python package {package}, get it with:  cd {scripts.parent} && "
                                    f"python3 -m venv .venv && .venv/bin/pip install {package}")
                self.assertFalse(self.out.exists())
                path.unlink()
