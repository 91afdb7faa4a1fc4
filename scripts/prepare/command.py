"""One run of prepare.py, from its arguments to a complete folder; prepare.py names the parts."""
from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Optional

from support.packages import ROOT
from support.regular_files import read_regular

from .arguments import DEFAULT_TRAIN_MB, check_arguments, parse_arguments, text_field, vocabulary_to_train
from .common import MB, Interrupted, PrepareError, Progress, Stop, counted, require_packages, tell
from .files import UNKNOWN_KIND, Filter, Listing, Skipped, list_files, machine_text
from .read import Reader, with_crlf
from .shards import dtype_of
from .tokenize import MAX_TOKENIZER_BYTES, BytesTokenizer, JsonTokenizer
from .train import Sample, train_in_child
from .work import Pool, Worker
from .write import Output, Work, meta_json, write_file

if TYPE_CHECKING:
    from .chat import ChatTemplate
    from .chat_work import Chats

VERSION = 3  # of the results: a run does not go on with unfinished work of another version
ASK_SECONDS = 60  # that ./train may take to read a tokenizer.json; the largest ones take two

def check_listing(listing: Listing, args: argparse.Namespace) -> None:
    """Refuses options that have no files to work on; goes on in .venv where this Python lacks a package for the
    files."""
    first: dict[str, str] = {}
    needed: dict[str, str] = {}
    if args.tokenizer != "bytes":
        needed["tokenizers"] = f"--tokenizer {args.tokenizer}"
    if args.chat:
        needed["jinja2"] = "--chat"
    for file in listing.files:
        first.setdefault(file.format, file.path)
        if file.format == "parquet":
            needed.setdefault("pyarrow", file.path)
        if file.compression == "zst":
            needed.setdefault("zstandard", file.path)
    has_records = "jsonl" in first or "parquet" in first
    if listing.files:
        for value, option in ((args.field, "--field"), (args.mask_field, "--mask-field")):
            if value is not None and not has_records:
                raise PrepareError(f"{option} is for JSONL and parquet, and the input is text alone, leave it out or "
                                   "pass --input-format jsonl")
        for is_given, option in ((args.mask_field is not None, "--mask-field"), (args.chat, "--chat")):
            if is_given and "text" in first:
                raise PrepareError(f"{option} is for JSONL and parquet, and {first['text']} is text, leave it out with "
                                   "--exclude or pass --input-format jsonl")
        if args.split_on is not None and "text" not in first:
            raise PrepareError("--split-on is for text files, and the input has none, leave it out or pass "
                               "--input-format text")
    require_packages(needed)


ADVICE = {UNKNOWN_KIND: "unpack or convert them, or pass --input-format if a name is wrong",
          "binary": "text files with a NUL byte in them"}


def describe(skipped: Skipped) -> list[str]:
    """Says what was passed over, by reason, with an example of each."""
    lines = [f"skipped: {skipped.describe() or 'nothing'}"]
    for reason in sorted(skipped.examples):
        advice = f" ({ADVICE[reason]})" if reason in ADVICE else ""
        lines.append(f"         {reason}: such as {skipped.such_as(reason)}{advice}")
    return lines


def summary(output: Output, tokenizer: BytesTokenizer | JsonTokenizer, skipped: Skipped, args: argparse.Namespace,
            seconds: float, read_before: int) -> str:
    """`read_before` is how many bytes of text an earlier, stopped run did."""
    lines = []
    for name, split in (("train", output.train.split), ("val", output.val.split)):
        lines.append(f"{name + ':':9}{counted(split.documents, 'document')}, {counted(split.tokens, 'token')}, "
                     f"{counted(len(split.shards), 'shard' if args.format == 'llmc' else 'file')}")
    text_bytes = output.train.split.bytes + output.val.split.bytes
    if tokenizer.name != "bytes":
        tokens = output.train.split.tokens + output.val.split.tokens
        verb = "begins" if tokenizer.eot_side == "start" else "ends"
        lines.append(f"tokens:  {text_bytes / tokens:.3f} bytes each, {tokenizer.eot_name} {verb} a document")
    lines += describe(skipped)
    if output.replaced:
        were = "was" if output.replaced == 1 else "were"
        lines.append(f"UTF-8:   {counted(output.replaced, 'document')} {were} not, what was unreadable became U+FFFD")
    read = (text_bytes - read_before) / MB
    lines.append(f"time:    {seconds:.1f} s, {read:.1f} MB of text, {read / max(seconds, 1e-9):.1f} MB/s")

    def entry(name: str) -> object:
        path = os.path.join(args.output, f"{name}-*.bin" if args.format == "llmc" else f"{name}.bin")
        found = {"path": path}
        if args.format == "raw":
            found.update(format="raw", dtype=dtype_of("raw", tokenizer.width))
        if output.train.has_masks:
            found["mask"] = path[:-len(".bin")] + ".mask"
        return found if len(found) > 1 else path

    data: dict[str, object] = {"train": [entry("train")]}
    if output.val.split.documents:
        data["val"] = [entry("val")]
    name = "bytes" if tokenizer.name == "bytes" else os.path.join(args.output, tokenizer.name)
    data["eot_token"] = tokenizer.eot
    if tokenizer.eot_side == "start":
        data["eot"] = "start"
    data["tokenizer"] = name
    lines += ["", "for the config:", f'  "model": {{ ..., "vocab_size": {tokenizer.vocab_size} }},',
              f'  "data": {json.dumps(data)}']
    return "\n".join(lines)


def read_tokenizer(path: str) -> bytes:
    try:
        return read_regular(path, MAX_TOKENIZER_BYTES)
    except OSError as error:
        raise PrepareError(f"cannot read the tokenizer {path}: {error.strerror}, name another file in "
                           "--tokenizer") from error


def note_what_train_cannot_read(path: str) -> None:
    """Asks ./train, if it is built, since it alone knows. The work goes on, since training needs nothing but ids."""
    try:
        answer = subprocess.run([str(ROOT / "train"), "tokenize", "--tokenizer", path], stdin=subprocess.DEVNULL,
                                capture_output=True, timeout=ASK_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return
    if answer.returncode == 2:
        why = answer.stderr.decode("utf-8", "replace").strip().replace("\n", " ")
        tell(sys.stderr, "prepare: note: ./train can train on these shards, but writes no text with this tokenizer (no "
                         f"samples, no ./train generate, no bits per byte): {why.partition('error: ')[2] or why}\n")


class Preparation:
    """One run of the command, from the listing to the complete folder."""

    def __init__(self, args: argparse.Namespace, listing: Listing, output: str, stop: Stop) -> None:
        self.args, self.listing, self.stop = args, listing, stop
        self.vocab_size = vocabulary_to_train(args)
        self.field = text_field(args)
        self.has_masks = args.mask_field is not None or args.chat
        self.tokenizer: BytesTokenizer | JsonTokenizer = BytesTokenizer()
        if args.tokenizer != "bytes" and self.vocab_size is None:
            self.tokenizer = JsonTokenizer(args.tokenizer, read_tokenizer(args.tokenizer), args.eot_token)
            note_what_train_cannot_read(args.tokenizer)
        self.template: Optional[ChatTemplate] = None
        self.context: Optional[int] = None
        self.chats: Optional[Chats] = None
        if args.chat:
            from .chat import longest_text, read_template
            self.template = read_template(args.tokenizer, args.chat_template, time.time())
            self.context = args.context or longest_text(args.tokenizer)
        self.work = Work(output)
        self.output: Optional[Output] = None
        self.read_before = 0  # bytes of text that an earlier run did
        self.warned: set[str] = set()
        self.has_crlf_separator = False  # the text of --split-on occurs, with other line breaks

    def command(self) -> dict:
        """Returns what the result depends on. The keys are the words of the message that one of them changed."""
        args = self.args
        name = self.tokenizer.sha256 or args.tokenizer
        return {"version of prepare.py": VERSION, "input files": self.listing.fingerprint(), "--tokenizer": name,
                "--eot-token": self.tokenizer.eot, "--train-mb": args.train_bytes, "--field": self.field,
                "--mask-field": args.mask_field, "--format": args.format, "--chat": args.chat,
                "--context": self.context, "the chat template": self.template.name() if self.template else None,
                "--split-on": os.fsdecode(args.split_on or b""),
                "--val-fraction": args.val_fraction, "--shard-tokens": args.shard_tokens,
                "formats": sorted({(file.format, file.compression) for file in self.listing.files})}

    def run(self) -> None:
        try:
            self._begin_or_go_on()
            self._pack()
            assert self.output is not None
            content = meta_json(self.output, self.tokenizer, self.args.format, self.has_masks)
            write_file(self.work.folder, "meta.json", content)
            if self.tokenizer.json is not None:
                write_file(self.work.folder, "tokenizer.json", self.tokenizer.json)
            self.stop.check()
            self.work.switch(self.args.overwrite)
        except BaseException as error:
            if self.output is not None:
                self.output.abandon()
            is_input_bad = isinstance(error, PrepareError) and error.code == 2 and not isinstance(error, Refused)
            is_others = isinstance(error, Refused)  # the unfinished work stays as it is
            if not is_others and (self.work.state is None or is_input_bad):
                self.work.remove()
            elif isinstance(error, Interrupted):
                error.advice = f"run the same command again to go on, what is done is in {self.work.folder}"
            if isinstance(error, OSError):  # reading reports its own errors, so that this one is of writing
                kept = "run the same command again to go on" if self.work.state is not None else "run it again"
                raise PrepareError(f"cannot write {self.work.output}: {error.strerror or error}, it was left as it "
                                   f"was, free some space and {kept}, or choose another --output", code=1) from error
            raise

    def _begin_or_go_on(self) -> None:
        command = json.loads(json.dumps(self.command()))
        done = self.work.state
        if (done is not None or self.work.damage) and not self.args.restart:
            changed = [key for key in command if self.work.command.get(key) != command[key]]
            if changed and (done is not None or "version of prepare.py" in changed):
                self.work.journal.close()
                raise Refused(f"{self.work.folder} holds what a stopped run did with other {', '.join(changed)}, give "
                              "that command again, or pass --restart to throw it away")
        if self.work.damage and not self.args.restart:
            self.work.journal.close()
            raise Refused(f"what a stopped run left in {self.work.folder} is damaged ({self.work.damage}), pass "
                          "--restart to begin anew")
        if done is not None and not self.args.restart:
            tell(sys.stderr, f"prepare: going on where a stopped run left off, at {done['position'] / MB:.1f} of "
                             f"{self.listing.bytes / MB:.1f} MB\n")
        else:
            self.val_below = int(self.args.val_fraction * 2.0**256)
            now = {"now": self.template.now} if self.template else {}
            self.work.begin({**command, "val below": str(self.val_below), **now})
        self.val_below = int(self.work.command["val below"])
        self._prepare_chats()
        self._train_tokenizer()
        self.output = self._new_output()
        if self.work.state is not None:
            try:
                self.output.restore(self.work.state)
                if self.output.cursor.file > len(self.listing.files):
                    raise ValueError("its journal ends behind the last file")
            except (OSError, ValueError, struct.error) as error:
                self.work.journal.close()
                raise Refused(f"what a stopped run left in {self.work.folder} is damaged ({error}), pass --restart to "
                              "begin anew") from error
        self.read_before = self.output.train.split.bytes + self.output.val.split.bytes

    def _new_output(self) -> Output:
        return Output(self.work.folder, self.tokenizer, self.args.format, self.args.shard_tokens, self.has_masks)

    def _prepare_chats(self) -> None:
        if self.template is None:
            return
        from .chat_work import Chats
        now = self.work.command.get("now")  # the time of the run that began this, so that all texts have one date
        if isinstance(now, float) and 0 <= now < 1e11:
            self.template.now = now
        assert isinstance(self.tokenizer, JsonTokenizer)
        self.chats = Chats(self.template, self.tokenizer, self.context)
        self.chats.prepare(self.args.eot_token is not None, self.stop)

    def _train_tokenizer(self) -> None:
        """Trains the tokenizer, or takes the one that was trained before the run was stopped."""
        if self.vocab_size is None:
            return
        path = os.path.join(self.work.folder, "tokenizer.json")
        if self.work.state is None:
            budget = self.args.train_bytes or round(DEFAULT_TRAIN_MB * MB)
            sample = Sample(self.listing, budget, self.field, self.args.split_on or b"", self.stop)
            part = "all of the text" if sample.fraction >= 1 else f"a sample of about {budget / MB:g} MB (--train-mb)"
            tell(sys.stderr, f"prepare: training a tokenizer of {self.vocab_size} tokens on {part}\n")
            content, text_bytes = train_in_child(sample, self.vocab_size, self.args.processes, self.stop)
            write_file(self.work.folder, "tokenizer.json", content)
        self.tokenizer = JsonTokenizer(path, read_tokenizer(path), None)
        if self.work.state is None:
            if self.tokenizer.vocab_size < self.vocab_size:
                tell(sys.stderr, f"prepare: the text gave {self.tokenizer.vocab_size} tokens, not {self.vocab_size}: "
                                 "there is nothing else in it to merge\n")
            self.work.commit(self._new_output(), is_due=True)

    def _pack(self) -> None:
        """Packs once; if chance left a split empty (few documents), moves the border by one and packs again."""
        self._pack_once()
        output = self.output
        assert output is not None
        if output.largest < 0:
            skipped = self.skipped()
            found = ", ".join(f"{count} {reason}, such as {skipped.such_as(reason)}"
                              for reason, count in sorted(skipped.counts.items()))
            raise PrepareError(f"no documents in the input (skipped: {found or 'none'}), check --input, --include and "
                               "--exclude")
        self._warn_of_split_on()
        if self.args.val_fraction == 0 or (output.train.split.documents and output.val.split.documents):
            return
        if output.smallest == output.largest:
            raise PrepareError("the input holds a single distinct document, so that the validation split would be "
                               "empty, add files, cut text files into documents with --split-on, or pass "
                               "--val-fraction 0")
        self.val_below = output.smallest + 1 if not output.val.split.documents else output.largest
        self.work.begin({**self.work.command, "val below": str(self.val_below)}, keep=("tokenizer.json",))
        self.output = output = self._new_output()
        self.read_before = 0
        self.work.commit(output, is_due=True)
        self._pack_once()
        if not (output.train.split.documents and output.val.split.documents):
            raise PrepareError("the input files changed during the run, run again when nothing writes to them")

    def skipped(self) -> Skipped:
        """Returns what the listing and the reading passed over."""
        assert self.output is not None
        total = Skipped()
        total.include(self.listing.skipped)
        total.include(self.output.skipped)
        return total

    def _warn_of_split_on(self) -> None:
        """Warns where the separator occurs nowhere: it is most likely mistyped, though one document a file may be
        right."""
        separator = self.args.split_on
        assert self.output is not None
        if not separator or self.output.separators:
            return
        advice = ""
        if self.has_crlf_separator:
            escaped = os.fsdecode(with_crlf(separator)).replace("\r", "\\r").replace("\n", "\\n")
            advice = f"; the lines there end with CRLF, --split-on '{escaped}' would be found"
        tell(sys.stderr, "prepare: WARNING: the text of --split-on stands nowhere in the input, so each text file is "
                         f"one document{advice}\n")

    def _pack_once(self) -> None:
        output = self.output
        assert output is not None
        worker = Worker(self.tokenizer, self.field, self.args.mask_field, self.val_below)
        if self.chats is not None:
            from .chat_work import ChatWorker
            worker = ChatWorker(self.tokenizer, self.field, None, self.val_below, self.chats)
        reader = Reader(self.listing, self.field, self.args.mask_field, self.args.split_on or b"", self.tokenizer.cut,
                        self.stop, self.args.chat)
        pool = Pool(worker, self.args.processes)
        progress = Progress(self.listing.bytes, output.position)
        try:
            for unit, result in pool.run(reader.units(output.cursor), self.stop):
                for path, warning in result.warnings:
                    if path not in self.warned:  # a second pass says nothing twice
                        progress.finish()
                        tell(sys.stderr, f"prepare: {warning}\n")
                        self.warned.add(path)
                output.add(unit, result, self.val_below)
                progress.advance(max(0, unit.position - progress.done))
                self.work.commit(output)
            output.close()
            output.remove_old()
        except Interrupted:
            if output.position:
                self.work.commit(output, is_due=True)
            raise
        finally:
            self.has_crlf_separator |= reader.has_crlf_separator
            pool.close()
            progress.finish()


class Refused(PrepareError):
    """There is unfinished work of another command, which stays as it is."""


def run(args: argparse.Namespace, stop: Stop) -> None:
    start = time.monotonic()
    output = os.path.realpath(args.output)  # a link to a folder stays a link, its target is what gets filled
    check_arguments(args, output)
    if args.machine_text:
        listing = machine_text(args.exclude, output, stop)
    else:
        listing = list_files(args.input, Filter(args.include, args.exclude), output, stop, args.input_format)
    check_listing(listing, args)
    preparation = Preparation(args, listing, output, stop)
    preparation.run()
    done = preparation.output
    assert done is not None
    tell(sys.stdout, summary(done, preparation.tokenizer, preparation.skipped(), args,
                             time.monotonic() - start, preparation.read_before) + "\n")


def fail(message: str) -> None:
    tell(sys.stderr, "prepare: error: " + message.replace("\n", " ") + "\n")


def main(argv: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):  # a file name need not be printable in this locale
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    stop = Stop()
    try:
        args = parse_arguments(argv)
        stop.install()
        run(args, stop)
        return 0
    except PrepareError as error:
        fail(str(error))
        return error.code
    except Interrupted as error:
        fail(f"stopped by {error}, {error.advice}")
        return 128 + error.signum
    except KeyboardInterrupt:  # before the signal handlers were installed
        return 130
    except MemoryError:
        fail("out of memory, lower --processes")
        return 1
    except Exception as error:
        trace = error.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        line = trace.tb_lineno if trace else 0
        fail(f"internal fault: {type(error).__name__}: {error}, at line {line}, please report it")
        return 1
