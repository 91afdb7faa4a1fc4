"""prepare.py --format: what llm.c, Megatron-LM and nanoGPT read, each by a reader of its own here, and by ./train, to
which all three are the same data.

Seen to catch: documents of the index that begin one token late; a resumed file that goes on at its old end; a header
before raw ids; lengths of documents left in the output; ids of 32 bits under the code of 16.
"""
from __future__ import annotations

import array
import json
import struct
import subprocess
import sys
from pathlib import Path

from . import TRAIN, run
from .prepare_case import EOT, SCRIPTS, PrepareTest, read_shard

FORMATS = ("llmc", "megatron", "raw")
MODEL = {"n_layers": 1, "d_model": 16, "n_heads": 2, "context_length": 16}


def unpacked(code: str, content: bytes) -> list[int]:
    values = array.array(code, content)
    if sys.byteorder == "big":
        values.byteswap()
    return list(values)


def read_megatron(prefix: Path) -> list[list[int]]:
    """The documents, as megatron/core/datasets/indexed_dataset.py lays them out."""
    raw = Path(f"{prefix}.idx").read_bytes()
    magic, version, code, sequences, documents = struct.unpack("<9sQBQQ", raw[:34])
    assert (magic, version) == (b"MMIDIDX\0\0", 1)
    letter, width = {4: ("i", 4), 8: ("H", 2)}[code]
    lengths = unpacked("i", raw[34:34 + 4 * sequences])
    places = unpacked("q", raw[34 + 4 * sequences:34 + 12 * sequences])
    starts = unpacked("q", raw[34 + 12 * sequences:])
    assert len(starts) == documents and starts[0] == 0 and starts[-1] == sequences
    content = Path(f"{prefix}.bin").read_bytes()
    assert sum(lengths) * width == len(content)
    found = []
    for begin, end in zip(starts, starts[1:]):
        ids: list[int] = []
        for sequence in range(begin, end):
            ids += unpacked(letter, content[places[sequence]:places[sequence] + width * lengths[sequence]])
        found.append(ids)
    return found


def read_raw(path: Path, code: str = "H") -> list[int]:
    return unpacked(code, path.read_bytes())


class Formats(PrepareTest):
    def setUp(self) -> None:
        super().setUp()
        self.texts = [f"document {number} " * (1 + number % 7) for number in range(60)] + ["x" * 500, "y"]
        self.write("a.jsonl", b"".join(
            json.dumps({"text": text, "skip": [[0, len(text) // 2]]}).encode() + b"\n" for text in self.texts))

    def expected(self) -> list[list[int]]:
        """Of the split train, from the shards of llm.c."""
        ids = [token for path in sorted((self.root / "llmc").glob("train-*.bin")) for token in read_shard(path)[1]]
        documents: list[list[int]] = [[]]
        for token in ids:
            documents[-1].append(token)
            if token == EOT:
                documents.append([])
        return documents[:-1]

    def prepare_all(self, *arguments: object, shard_tokens: int = 10**6) -> None:
        for format in FORMATS:
            more = ["--shard-tokens", shard_tokens] if format == "llmc" else []
            self.succeed("--format", format, *more, *arguments, out=self.root / format)

    def entry(self, format: str, split: str, masked: bool = False) -> object:
        """As the summary of prepare.py says it."""
        stem = str(self.root / format / (f"{split}-*" if format == "llmc" else split))
        entry = {"path": stem + ".bin"}
        if format == "raw":
            entry.update(format="raw", dtype="uint16")
        if masked:
            entry["mask"] = stem + ".mask"
        return entry if len(entry) > 1 else entry["path"]

    def log(self, format: str, masked: bool = False) -> list[dict]:
        config = self.root / "config.json"
        config.write_text(json.dumps({
            "name": format, "model": MODEL, "data": {"train": [self.entry(format, "train", masked)],
                                                     "val": [self.entry(format, "val", masked)]},
            "training": {"steps": 6, "batch_tokens": 512, "micro_batch_size": 4}, "eval": {"every": 3}}))
        run(TRAIN, "--config", config, "--device", "cpu", cwd=self.root)
        lines = (self.root / "runs" / format / "log.jsonl").read_text().splitlines()
        return [{key: line[key] for key in ("step", "loss", "val_loss", "grad_norm")} for line in map(json.loads, lines)]

    def test_independent_readers(self) -> None:
        self.prepare_all(shard_tokens=800)
        documents = self.expected()
        self.assertGreater(len(documents), 40)
        self.assertGreater(len(list((self.root / "llmc").glob("train-*.bin"))), 1)
        self.assertEqual(read_megatron(self.root / "megatron" / "train"), documents)
        self.assertEqual(read_raw(self.root / "raw" / "train.bin"), [token for ids in documents for token in ids])
        both = documents + read_megatron(self.root / "megatron" / "val")
        self.assertEqual(sorted(bytes(ids[:-1]).decode() for ids in both), sorted(self.texts))
        for format, files in (("megatron", {"train.bin", "train.idx", "val.bin", "val.idx", "meta.json"}),
                              ("raw", {"train.bin", "val.bin", "meta.json"})):
            self.assertEqual({path.name for path in (self.root / format).iterdir()}, files)
            meta = self.meta(self.root / format)
            self.assertEqual((meta["format"], meta["dtype"]), (format, "uint16"))
            self.assertEqual(meta["train"]["shards"], ["train.bin"])
            self.assertEqual(meta["train"]["documents"], len(documents))

    def test_as_nanogpt_reads_it(self) -> None:
        try:
            import numpy
        except ImportError:
            self.skipTest("the Python package numpy is not here")
        self.prepare_all()
        data = numpy.memmap(self.root / "raw" / "train.bin", dtype=numpy.uint16, mode="r")
        self.assertEqual(data.tolist(), [token for ids in self.expected() for token in ids])

    def test_the_same_data_to_train(self) -> None:
        self.prepare_all()
        expected = self.log("llmc")
        for format in FORMATS[1:]:
            with self.subTest(format=format):
                self.assertEqual(self.log(format), expected)
                entry = self.entry(format, "val")
                data = [entry] if isinstance(entry, str) else [entry["path"], "--format", "raw", "--dtype", "uint16"]
                result = run(TRAIN, "eval", "--checkpoint", "runs/llmc", "--json", "--device", "cpu", "--data", *data,
                             cwd=self.root)
                self.assertEqual(json.loads(result.stdout)["loss"], expected[-1]["val_loss"], result.stderr)

    def test_masks(self) -> None:
        self.prepare_all("--mask-field", "skip")
        shards = sorted((self.root / "llmc").glob("train-*.mask"))
        expected = b"".join(path.read_bytes() for path in shards)
        log = self.log("llmc", masked=True)
        for format in FORMATS[1:]:
            with self.subTest(format=format):
                self.assertEqual((self.root / format / "train.mask").read_bytes(), expected)
                self.assertTrue(self.meta(self.root / format)["mask"])
                self.assertEqual(self.log(format, masked=True), log)

    def test_stopped_and_resumed(self) -> None:
        """Also inside a document that is longer than a unit, and twice. With small buffers, so that files are longer than
        what was committed."""
        small = "shards.COPY_BYTES = 64"
        self.write("long.txt", b"words of a long text " * 40)
        for format in FORMATS[1:]:
            arguments = ["--format", format]
            self.succeed(*arguments, out=self.root / "whole")
            for at in (1, 4, 9):
                with self.subTest(format=format, at=at):
                    out = self.root / f"{format}-{at}"
                    for signal in (15, 9):
                        stopped = self.in_units(*arguments, out=out, at=at, action=signal, before=small)
                        self.assertNotEqual(stopped.returncode, 0, stopped.stderr)
                    result = self.done_in_units(*arguments, out=out, before=small)
                    self.assertIn("going on where", result.stderr)
                    names = sorted(path.name for path in out.iterdir())
                    self.assertEqual(names, sorted(path.name for path in (self.root / "whole").iterdir()))
                    for name in names:
                        self.assertTrue((out / name).read_bytes() == (self.root / "whole" / name).read_bytes(), name)
            for path in (self.root / "whole").iterdir():
                path.unlink()
        stopped = self.in_units("--format", "raw", out=self.root / "other", at=3, action=15)
        self.assertEqual(stopped.returncode, 128 + 15)
        self.assertIn("other --format", self.in_units("--format", "megatron", out=self.root / "other").stderr)

    def test_after_the_files_were_closed(self) -> None:
        """Killed between the end of the files and the switch: what was committed last goes on."""
        before = ("close = write.Output.close\n"
                  "def closed(self): self.sync(); self.train.sync(); close(self); os._exit(3)\n"
                  "write.Output.close = closed")
        for format in FORMATS:
            self.succeed("--format", format, out=self.root / "whole", *["--overwrite"])
            out = self.root / f"closed-{format}"
            self.assertEqual(self.in_units("--format", format, out=out, before=before).returncode, 3)
            self.done_in_units("--format", format, out=out)
            for path in (self.root / "whole").iterdir():
                self.assertTrue((out / path.name).read_bytes() == path.read_bytes(), path.name)

    def test_ids_of_32_bits(self) -> None:
        code = ("import array, sys; sys.dont_write_bytecode = True\n"
                "from prepare.shards import SplitWriter; from prepare.work import Documents\n"
                "for format in ('megatron', 'raw'):\n"
                "    writer = SplitWriter(sys.argv[1], format, format, 5, 4, False); writer._shard = lambda _: format + '.bin'\n"
                "    for ids in ([70000, 1, 2], [3], [1 << 23, 4]):\n"
                "        writer.add(Documents(array.array('I', ids).tobytes(), b'', [len(ids)], 1))\n"
                "    writer.close()\n")
        subprocess.run([sys.executable, "-c", code, str(self.root)], cwd=SCRIPTS, check=True)
        self.assertEqual(read_megatron(self.root / "megatron"), [[70000, 1, 2], [3], [1 << 23, 4]])
        self.assertEqual(read_raw(self.root / "raw.bin", "I"), [70000, 1, 2, 3, 1 << 23, 4])

    def test_the_summary_says_what_a_config_needs(self) -> None:
        for format in FORMATS:
            said = self.succeed("--format", format, "--overwrite").stdout
            data = json.loads("{" + said.splitlines()[-1] + "}")["data"]
            self.root.joinpath(format).mkdir(exist_ok=True)
            self.assertEqual(json.dumps(data["train"][0]).replace(str(self.out), "X"),
                             json.dumps(self.entry(format, "train")).replace(str(self.root / format), "X"))

    def test_refusals(self) -> None:
        for arguments, words in ((["--format", "raw", "--shard-tokens", 5], "--shard-tokens is for --format llmc"),
                                 (["--format", "raw", "--format", "llmc"], "--format is given as raw and as llmc"),
                                 (["--format", "text", "--input-format", "jsonl"], "--input-format is given as text"),
                                 (["--format", "nemo"], "invalid choice")):
            with self.subTest(arguments=arguments):
                self.assert_refused(self.run_on_text(*arguments), words)
        # As in earlier versions.
        self.write("b.log", b'{"text": "one"}\n')
        (self.text / "a.jsonl").unlink()
        self.succeed("--format", "jsonl", "--format", "raw", "--val-fraction", 0)
        self.assertEqual(read_raw(self.out / "train.bin"), [*b"one", EOT])
