#!/usr/bin/env python3
"""Turn text on disk into token shards that Ingot trains on.

Every file becomes one document: its bytes, then one end-of-text token. The documents are split into train and val
by their content and written as .bin shards (256 int32 of header, then uint16 tokens) with a meta.json beside them.
Needs Python 3.9 or later and nothing else.
"""
from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import shutil
import signal
import stat
import struct
import sys
import sysconfig
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import BinaryIO, Callable, Iterator, NoReturn, TextIO

MAGIC, VERSION, HEADER_INTS = 20240520, 1, 256
MAX_TOKENS = 2**31 - 1  # the header counts tokens in an int32
MAX_SHARDS = 100_000  # five digits in the name keep the shards in order when sorted by name
EOT, VOCAB_SIZE = 256, 257  # bytes are 0..255, end-of-text comes after them
EOT_BYTES = struct.pack("<H", EOT)
CHUNK = 1 << 20
MB = 1e6
MACHINE_TEXT_MIN_BYTES = 1_000_000
SYSTEM_HEADERS = "/usr/include"

EXAMPLES = """\
examples:
  # the Python files and notes of two folders, one file in twenty kept for validation
  python3 scripts/prepare.py --input ~/src ~/notes --include '*.py' '*.md' --output data/mine

  # no data at hand: the text that comes with every machine, enough for a first run
  python3 scripts/prepare.py --machine-text --output data/tiny

A pattern is compared with the file name and with the path below the input folder; '*' also matches '/'. --exclude
takes whole folders too. Hidden folders and __pycache__ are never entered; links are followed, each file is taken once.
Empty files, files that contain a NUL byte (binary) and unreadable files are skipped and counted.
"""


class PrepareError(Exception):
    """Ends the run with one line on stderr; code 2: usage or input, code 1: a fault of the machine."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


class Interrupted(Exception):
    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Stop:
    """Remembers a stop signal until the work asks for it.

    An exception raised by a signal handler could land anywhere, also between making a folder and noting that it has
    to be removed. Asking at safe points leaves no such gap, and a second Ctrl-C cannot break the cleaning up.
    """

    def __init__(self) -> None:
        self.signum = 0

    def install(self) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) != signal.SIG_IGN:  # nohup and background jobs ignore some on purpose
                signal.signal(signum, self._remember)

    def _remember(self, signum: int, _frame: object) -> None:
        self.signum = self.signum or signum

    def check(self) -> None:
        if self.signum:
            raise Interrupted(self.signum)


def tell(stream: TextIO, text: str) -> None:
    """Writes a message; one that nobody reads any more (a closed pipe) must not end a run that goes well."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Progress:
    """A bar on a terminal, a plain line every five seconds anywhere else; all of it on stderr."""

    def __init__(self, total_bytes: int) -> None:
        self.total = total_bytes
        self.done = 0
        self.terminal = sys.stderr.isatty()
        self.interval = 0.1 if self.terminal else 5.0
        self.start = self.last = time.monotonic()

    def advance(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last >= self.interval:
            self.last = now
            self._show(now)

    def _show(self, now: float) -> None:
        speed = self.done / MB / max(now - self.start, 1e-9)
        text = f"{self.done / MB:.1f} of {self.total / MB:.1f} MB, {speed:.1f} MB/s"
        if self.done > 0:
            left = round(max(0, self.total - self.done) / MB / max(speed, 1e-9))
            text += f", {left // 60}m{left % 60:02}s left"
        if self.terminal:
            filled = int(30 * min(1.0, self.done / max(self.total, 1)))
            tell(sys.stderr, f"\r[{'#' * filled}{'.' * (30 - filled)}] {text}\033[K")
        else:
            tell(sys.stderr, f"prepare: {text}\n")

    def finish(self) -> None:
        if self.terminal:
            tell(sys.stderr, "\r\033[K")


# ---- finding the files ------------------------------------------------------------------------------------------


@dataclass
class Filter:
    include: list[str]
    exclude: list[str]

    def excludes(self, name: str, relative: str) -> bool:
        return _matches(name, relative, self.exclude)

    def takes(self, name: str, relative: str) -> bool:
        included = not self.include or _matches(name, relative, self.include)
        return included and not self.excludes(name, relative)


def _matches(name: str, relative: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(relative, p) for p in patterns)


@dataclass
class Listing:
    files: list[tuple[str, int]] = field(default_factory=list)  # path, size
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.files)


@dataclass
class Entry:
    path: str
    relative: str  # below the input folder; empty for the input itself
    real: str


def list_files(inputs: list[str], chosen: Filter, output: str, stop: Stop) -> Listing:
    listing = Listing()
    seen_files: set[str] = set()
    for root in inputs:
        for entry, size in walk(root, chosen, output, listing.skipped, stop):
            if entry.real in seen_files:
                listing.skipped["already taken"] += 1
                continue
            seen_files.add(entry.real)
            listing.files.append((entry.path, size))
    return listing


def walk(root: str, chosen: Filter, output: str, skipped: Counter[str], stop: Stop) -> Iterator[tuple[Entry, int]]:
    """Yields the chosen files below root, depth first and sorted by name, so that equal inputs give equal output."""
    entered: set[str] = set()  # real paths: a link back to a parent folder ends here instead of going round
    stack = [Entry(root, "", os.path.realpath(root))]
    while stack:
        stop.check()
        entry = stack.pop()
        name = os.path.basename(entry.path)
        relative = entry.relative or name
        try:
            info = os.stat(entry.path)
        except OSError as error:
            if chosen.takes(name, relative):
                warn_unreadable(entry.path, error)
                skipped["unreadable"] += 1
            continue
        if stat.S_ISDIR(info.st_mode):
            if entry.real not in entered and enters(entry, name, chosen, output):
                entered.add(entry.real)
                stack.extend(reversed(children(entry, skipped)))
        elif not chosen.takes(name, relative):
            skipped["left out by pattern"] += 1
        elif not stat.S_ISREG(info.st_mode):
            skipped["not a regular file"] += 1  # opening a FIFO would wait for a writer forever
        else:
            yield entry, info.st_size


def enters(folder: Entry, name: str, chosen: Filter, output: str) -> bool:
    if folder.real == output or folder.real.startswith((output + ".tmp-", output + ".old-")):
        return False  # never read what this program writes
    if not folder.relative:
        return True  # named on the command line
    return not (name.startswith(".") or name == "__pycache__" or chosen.excludes(name, folder.relative))


def children(folder: Entry, skipped: Counter[str]) -> list[Entry]:
    try:
        with os.scandir(folder.path) as scan:
            found = sorted(scan, key=lambda item: os.fsencode(item.name))
    except OSError as error:
        warn_unreadable(folder.path, error)
        skipped["unreadable"] += 1
        return []
    entries = []
    for item in found:
        # Only a link needs a full realpath (a system call per path component); the rest inherit the folder's.
        real = os.path.realpath(item.path) if item.is_symlink() else os.path.join(folder.real, item.name)
        relative = os.path.join(folder.relative, item.name)
        entries.append(Entry(item.path, relative, real))
    return entries


def warn_unreadable(path: str, error: OSError) -> None:
    tell(sys.stderr, f"prepare: skipped {path}: {error.strerror or error}\n")


def machine_text(exclude: list[str], output: str, stop: Stop) -> Listing:
    stdlib = sysconfig.get_path("stdlib") or ""
    version = "%d.%d.%d" % sys.version_info[:3]
    without = ["site-packages", "dist-packages", "__pycache__"]
    sources = [
        (f"the standard library of Python {version}", stdlib, Filter(["*.py"], without + exclude)),
        ("the system headers", SYSTEM_HEADERS, Filter(["*.h", "*.hpp"], exclude)),
    ]
    for index, (title, folder, chosen) in enumerate(sources):
        if not os.path.isdir(folder):
            continue
        listing = list_files([folder], chosen, output, stop)
        needed = MACHINE_TEXT_MIN_BYTES if index == 0 else 1
        if listing.bytes >= needed:
            size = f"{len(listing.files)} files, {listing.bytes / MB:.1f} MB"
            tell(sys.stdout, f"machine text: {title}, {folder}: {size}\n")
            return listing
    raise PrepareError(f"this machine has neither Python sources (looked in {stdlib or 'no folder'}) nor headers "
                       f"(looked in {SYSTEM_HEADERS}), name files or folders of your own with --input")


# ---- reading and writing ----------------------------------------------------------------------------------------


@dataclass
class Split:
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    shards: list[str] = field(default_factory=list)


class ShardWriter:
    """Writes the documents of one split, and starts a new shard where a document ends."""

    def __init__(self, folder: str, name: str, shard_tokens: int, stop: Stop) -> None:
        self.folder, self.name, self.shard_tokens, self.stop = folder, name, shard_tokens, stop
        self.split = Split()
        self.file: BinaryIO | None = None
        self.tokens = 0  # in the open shard

    def add(self, document: bytearray) -> None:
        count = len(document) + 1
        if self.tokens + count > MAX_TOKENS:
            self.close()
        if self.file is None:
            self._open()
        self._write_tokens(document)
        self.tokens += count
        self.split.documents += 1
        self.split.tokens += count
        self.split.bytes += len(document)
        if self.tokens >= self.shard_tokens:
            self.close()

    def _open(self) -> None:
        if len(self.split.shards) >= MAX_SHARDS:
            raise PrepareError(f"more than {MAX_SHARDS} {self.name} shards, raise --shard-tokens "
                               f"(now {self.shard_tokens})")
        name = f"{self.name}-{len(self.split.shards):05d}.bin"
        self.file = open(os.path.join(self.folder, name), "wb", buffering=CHUNK)
        self.split.shards.append(name)
        self.file.write(header(0))  # the count is known when the shard is closed

    def _write_tokens(self, document: bytearray) -> None:
        assert self.file is not None
        with memoryview(document) as view:
            for start in range(0, len(view), CHUNK):
                self.stop.check()
                # Latin-1 maps byte b to character b, and UTF-16 writes that character as the uint16 b.
                self.file.write(str(view[start:start + CHUNK], "latin-1").encode("utf-16-le"))
        self.file.write(EOT_BYTES)

    def close(self) -> None:
        if self.file is None:
            return
        with self.file as file:
            file.seek(0)
            file.write(header(self.tokens))
            file.flush()
            os.fsync(file.fileno())  # some disks report that they are full only now
        self.file = None
        self.tokens = 0

    def abandon(self) -> None:
        """Lets go of an unfinished shard; what is still in its buffer may no longer fit on the disk."""
        if self.file is not None:
            try:
                self.file.close()
            except OSError:
                pass
            self.file = None


def header(tokens: int) -> bytes:
    return struct.pack(f"<{HEADER_INTS}i", MAGIC, VERSION, tokens, *[0] * (HEADER_INTS - 3))


def read_document(path: str, progress: Callable[[int], None], stop: Stop) -> bytearray | None:
    """The bytes of a file, or None if it holds a NUL byte. Reading stops at the first one."""
    document = bytearray()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            stop.check()
            progress(len(chunk))
            if b"\0" in chunk:
                return None
            if len(document) + len(chunk) + 1 > MAX_TOKENS:
                raise PrepareError(f"{path} holds more than {MAX_TOKENS - 1} bytes, which no shard can hold, "
                                   "split the file or leave it out with --exclude")
            document += chunk
    return document


@dataclass
class Packed:
    """What one pass over the files wrote."""
    train: Split
    val: Split
    skipped: Counter[str]
    smallest: int  # the extremes of the content hashes; equal if there are fewer than two distinct documents
    largest: int


class Packer:
    def __init__(self, listing: Listing, folder: str, shard_tokens: int, stop: Stop) -> None:
        self.listing, self.folder, self.shard_tokens, self.stop = listing, folder, shard_tokens, stop
        self.warned: set[str] = set()

    def pack(self, val_below: int) -> Packed:
        """Writes all shards; a document whose content hash is below val_below goes to val."""
        train = ShardWriter(self.folder, "train", self.shard_tokens, self.stop)
        val = ShardWriter(self.folder, "val", self.shard_tokens, self.stop)
        packed = Packed(train.split, val.split, Counter(), 2**256, -1)
        progress = Progress(self.listing.bytes)
        try:
            for document in self._documents(packed.skipped, progress):
                content = int.from_bytes(hashlib.sha256(document).digest(), "big")
                packed.smallest = min(packed.smallest, content)
                packed.largest = max(packed.largest, content)
                (val if content < val_below else train).add(document)
            train.close()
            val.close()
        finally:
            train.abandon()
            val.abandon()
            progress.finish()
        return packed

    def _documents(self, skipped: Counter[str], progress: Progress) -> Iterator[bytearray]:
        for path, size in self.listing.files:
            self.stop.check()
            before = progress.done
            try:
                document = read_document(path, progress.advance, self.stop)
            except OSError as error:
                if path not in self.warned:  # a second pass says nothing twice
                    progress.finish()
                    warn_unreadable(path, error)
                    self.warned.add(path)
                skipped["unreadable"] += 1
                document = None
            else:
                if document is None:
                    skipped["binary"] += 1
                elif not document:
                    skipped["empty"] += 1
            progress.advance(max(0, before + size - progress.done))  # count what was not read of it as done
            if document:
                yield document


def pack_both_splits(packer: Packer, val_fraction: float) -> Packed:
    """Packs once; if chance left a split empty (few documents), moves the border by one document and packs again."""
    packed = packer.pack(int(val_fraction * 2.0**256))
    if packed.largest < 0:
        found = describe(packer.listing.skipped + packed.skipped) or "none"
        raise PrepareError(f"no documents in the input (files skipped: {found}), "
                           "check --input, --include and --exclude")
    if val_fraction == 0 or (packed.train.documents and packed.val.documents):
        return packed
    if packed.smallest == packed.largest:
        raise PrepareError("the input holds a single distinct document, so it cannot be split into train and val, "
                           "add files, cut the file into several, or pass --val-fraction 0")
    for name in os.listdir(packer.folder):
        os.remove(os.path.join(packer.folder, name))
    packed = packer.pack(packed.smallest + 1 if not packed.val.documents else packed.largest)
    if not (packed.train.documents and packed.val.documents):
        raise PrepareError("the input files changed during the run, run again when nothing writes to them")
    return packed


def write_meta(folder: str, packed: Packed) -> None:
    tokens = packed.train.tokens + packed.val.tokens
    meta = {
        "format": "llmc",
        "dtype": "uint16",
        "tokenizer": "bytes",
        "vocab_size": VOCAB_SIZE,
        "eot_token": EOT,
        "eot": "end",
        "bytes_per_token": (packed.train.bytes + packed.val.bytes) / tokens,
        "train": vars(packed.train),
        "val": vars(packed.val),
    }
    with open(os.path.join(folder, "meta.json"), "w", encoding="utf-8") as file:
        json.dump(meta, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


# ---- the output folder ------------------------------------------------------------------------------------------


def is_prepared(item: os.DirEntry[str]) -> bool:
    known = item.name == "meta.json" or item.name.endswith((".bin", ".idx", ".docs"))
    return known and not item.is_dir(follow_symlinks=False)


def check_output(output: str, overwrite: bool) -> None:
    """Refuses an output that stands in the way; called again before the switch, since a run may take hours."""
    if not os.path.lexists(output):
        return
    if not os.path.isdir(output):
        raise PrepareError(f"{output} is not a folder, choose another --output")
    try:
        with os.scandir(output) as scan:
            items = sorted(scan, key=lambda item: item.name)
    except OSError as error:
        raise PrepareError(f"cannot look into {output}: {error.strerror}, choose another --output") from error
    if items and not overwrite:
        raise PrepareError(f"{output} exists and is not empty, pass --overwrite to replace it or choose another "
                           "--output")
    for item in items:
        if not is_prepared(item):
            raise PrepareError(f"{output} holds {item.name}, which is no prepared file, so --overwrite leaves it "
                               "alone, move that away or choose another --output")


def switch(tmp: str, output: str, overwrite: bool) -> None:
    """Puts the complete folder in place. The old one moves aside first and is deleted last."""
    check_output(output, overwrite)
    if not os.path.isdir(output) or not os.listdir(output):
        os.rename(tmp, output)  # replaces an empty folder, and fails if it has just been filled
        return
    old = f"{output}.old-{os.getpid()}"
    os.rename(output, old)
    try:
        os.rename(tmp, output)
    except OSError:
        os.rename(old, output)
        raise
    remove_old(old)


def remove_old(old: str) -> None:
    try:
        with os.scandir(old) as scan:
            for item in list(scan):
                if is_prepared(item):
                    os.remove(item.path)
        os.rmdir(old)
    except OSError as error:  # the new folder is in place, so this is no failure of the run
        tell(sys.stderr, f"prepare: the replaced folder is still at {old}: {error.strerror}\n")


def build(listing: Listing, output: str, args: argparse.Namespace, stop: Stop) -> Packed:
    tmp = f"{output}.tmp-{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(output), exist_ok=True)
        os.mkdir(tmp)
    except OSError as error:
        raise PrepareError(f"cannot make the folder {tmp}: {error.strerror}, choose another --output") from error
    try:
        packed = pack_both_splits(Packer(listing, tmp, args.shard_tokens, stop), args.val_fraction)
        write_meta(tmp, packed)
        stop.check()
        switch(tmp, output, args.overwrite)
    except OSError as error:  # files that cannot be read are skipped, so this one is about writing
        raise PrepareError(f"cannot write {output}: {error.strerror or error}, it was left as it was, "
                           "free some space or choose another --output", code=1) from error
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    return packed


# ---- the command line -------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"prepare: error: {message}, see --help\n")


def fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def token_count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= MAX_TOKENS:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {MAX_TOKENS}")
    return value


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="prepare", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
                    description="Turn text on disk into token shards for training.", epilog=EXAMPLES)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", action="extend", metavar="PATH",
                        help="files and folders; each file becomes one document")
    source.add_argument("--machine-text", action="store_true",
                        help="the sources of Python's standard library or else the system headers of this machine")
    parser.add_argument("--tokenizer", default="bytes", metavar="NAME",
                        help="bytes: one token per byte, 256 ends a document (the only one and the default)")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the shards and meta.json go")
    parser.add_argument("--include", nargs="+", action="extend", default=[], metavar="GLOB",
                        help="take only files that match one of these patterns")
    parser.add_argument("--exclude", nargs="+", action="extend", default=[], metavar="GLOB",
                        help="leave out files and folders that match one of these patterns")
    parser.add_argument("--val-fraction", type=fraction, default=0.05, metavar="X",
                        help="share of the documents for validation, chosen by content; 0 for none (default 0.05)")
    parser.add_argument("--shard-tokens", type=token_count, default=100_000_000, metavar="N",
                        help="end a shard with the document that reaches N tokens (default 100000000)")
    parser.add_argument("--overwrite", action="store_true",
                        help="replace FOLDER if it holds prepared files alone, once the new ones are complete")
    return parser


def check_arguments(args: argparse.Namespace, output: str) -> None:
    if args.tokenizer != "bytes":
        raise PrepareError(f"unknown tokenizer '{args.tokenizer}' in --tokenizer, the only one is 'bytes'")
    if args.machine_text and args.include:
        raise PrepareError("--machine-text chooses its own files, drop --include or use --input")
    for path in args.input or []:
        if not os.path.lexists(path):
            raise PrepareError(f"no such file or folder: {path} in --input, check the path")
        real = os.path.realpath(path)
        if real == output or real.startswith(os.path.join(output, "")):
            raise PrepareError(f"{path} in --input lies in the output folder {output}, choose another --output")
    check_output(output, args.overwrite)


def describe(skipped: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))


def summary(packed: Packed, skipped: Counter[str], output: str, seconds: float) -> str:
    lines = []
    for name, split in (("train", packed.train), ("val", packed.val)):
        lines.append(f"{name + ':':9}{split.documents} documents, {split.tokens} tokens, "
                     f"{len(split.shards)} shard{'' if len(split.shards) == 1 else 's'}")
    read = (packed.train.bytes + packed.val.bytes) / MB
    lines.append(f"skipped: {describe(skipped) or 'nothing'}")
    lines.append(f"time:    {seconds:.1f} s, {read:.1f} MB of text, {read / max(seconds, 1e-9):.1f} MB/s")
    data: dict[str, object] = {"train": [os.path.join(output, "train-*.bin")]}
    if packed.val.documents:
        data["val"] = [os.path.join(output, "val-*.bin")]
    data.update({"eot_token": EOT, "tokenizer": "bytes"})
    lines += ["", "for the config:", f'  "model": {{ ..., "vocab_size": {VOCAB_SIZE} }},', f'  "data": {json.dumps(data)}']
    return "\n".join(lines)


def run(args: argparse.Namespace, stop: Stop) -> None:
    start = time.monotonic()
    output = os.path.realpath(args.output)  # a link to a folder stays a link, its target is what gets filled
    check_arguments(args, output)
    if args.machine_text:
        listing = machine_text(args.exclude, output, stop)
    else:
        listing = list_files(args.input, Filter(args.include, args.exclude), output, stop)
    packed = build(listing, output, args, stop)
    seconds = time.monotonic() - start
    tell(sys.stdout, summary(packed, listing.skipped + packed.skipped, args.output, seconds) + "\n")


def fail(message: str) -> None:
    tell(sys.stderr, "prepare: error: " + message.replace("\n", " ") + "\n")


def main(argv: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):  # a file name need not be printable in this locale
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    stop = Stop()
    try:
        args = make_parser().parse_args(argv)
        stop.install()
        run(args, stop)
        return 0
    except PrepareError as error:
        fail(str(error))
        return error.code
    except Interrupted as error:
        fail(f"stopped by {error}, the output was not touched, run again to start over")
        return 128 + error.signum
    except KeyboardInterrupt:  # before the signal handlers stood
        return 130
    except MemoryError:
        fail("out of memory, a document is held in memory as a whole, split the largest files")
        return 1
    except Exception as error:
        trace = error.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        line = trace.tb_lineno if trace else 0
        fail(f"internal fault: {type(error).__name__}: {error}, at line {line}, please report it")
        return 1


if __name__ == "__main__":
    sys.exit(main())
