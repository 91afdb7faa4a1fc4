"""Which files are taken, and what each of them is."""
from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import stat
import sys
import sysconfig
from collections import Counter
from dataclasses import dataclass, field
from typing import Iterator, Optional

from support.regular_files import read_regular

from .common import MAX_EXAMPLES, MB, PrepareError, Stop, counted, tell

MACHINE_TEXT_MIN_BYTES = 1_000_000
SYSTEM_HEADERS = "/usr/include"
COMPRESSIONS = {".gz": "gz", ".zst": "zst"}
# Files of these kinds are not read. By their bytes most would be taken for binary, and some for text.
NOT_READ = frozenset((".zstd", ".bz2", ".xz", ".lzma", ".lz4", ".br", ".snappy", ".zip", ".7z", ".rar", ".tar", ".tgz",
                      ".tbz2", ".txz", ".tzst", ".arrow", ".feather", ".avro", ".npy", ".npz", ".h5", ".hdf5",
                      ".tfrecord", ".pdf", ".docx", ".odt", ".epub", ".safetensors"))
UNKNOWN_KIND = "of a kind that is not read"
HASH_NAME = re.compile(r"[0-9a-f]{30,128}", re.ASCII)  # object stores name their files so
REVISION = re.compile(r"[0-9a-f]{40}", re.ASCII)
FORMATS = ("text", "jsonl", "parquet")


@dataclass(frozen=True)
class InputFile:
    path: str
    size: int  # bytes on the disk
    modified: int  # nanoseconds
    format: str  # one of FORMATS
    compression: str  # "", "gz" or "zst"


def suffixes(path: str) -> tuple[str, str]:
    """Returns the suffix of the content, and that of the compression or ""."""
    stem, suffix = os.path.splitext(os.path.basename(path).lower())
    return (os.path.splitext(stem)[1], suffix) if suffix in COMPRESSIONS else (suffix, "")


def format_of(path: str) -> str:
    """Returns the content by the file's name: one of FORMATS, UNKNOWN_KIND, or "" where the name tells nothing.

    A plain .json is text, since it need not hold one record per line (configs and notebooks do not); a compressed one
    is a part of a corpus.
    """
    suffix, compression = suffixes(path)
    if suffix in (".jsonl", ".ndjson") or (suffix == ".json" and compression):
        return "jsonl"
    if suffix == ".parquet":
        return "parquet"
    if suffix in NOT_READ:
        return UNKNOWN_KIND
    return "text" if compression else ""


def kind_of(path: str, format: Optional[str]) -> tuple[str, str]:
    """Returns format and compression by the suffix; `format`, where it is given, replaces that of the suffix."""
    compression = COMPRESSIONS.get(suffixes(path)[1], "")
    format = format or format_of(path) or "text"
    if format == "parquet" and compression:
        raise PrepareError(f"{path} is a compressed parquet file, unpack it first (its pages are compressed as they "
                           "are)")
    return format, compression


@dataclass
class Filter:
    include: list[str]
    exclude: list[str]

    def excludes(self, name: str, relative: str) -> bool:
        return _matches(name, relative, self.exclude)

    def names_hidden(self, name: str, relative: str) -> bool:
        """Returns whether a pattern that begins with a dot asks for the file: '*' does not."""
        dotted = [pattern for pattern in self.include if os.path.basename(pattern).startswith(".")]
        return _matches(name, relative, dotted)

    def takes(self, name: str, relative: str) -> bool:
        included = not self.include or _matches(name, relative, self.include)
        return included and not self.excludes(name, relative)


def _matches(name: str, relative: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(relative, p) for p in patterns)


class Skipped:
    """Counts the inputs that were passed over for each reason, and keeps the first few names."""

    def __init__(self, counts: Optional[dict[str, int]] = None,
                 examples: Optional[dict[str, list[str]]] = None) -> None:
        self.counts: Counter[str] = Counter(counts or {})
        self.examples: dict[str, list[str]] = {reason: list(names) for reason, names in (examples or {}).items()}

    def add(self, reason: str, example: str) -> None:
        self._add(reason, 1, [example])

    def include(self, other: Skipped) -> None:
        for reason, count in other.counts.items():
            self._add(reason, count, other.examples[reason])

    def _add(self, reason: str, count: int, examples: list[str]) -> None:
        self.counts[reason] += count
        kept = self.examples.setdefault(reason, [])
        kept += [example for example in examples if example not in kept][:MAX_EXAMPLES - len(kept)]

    def such_as(self, reason: str) -> str:
        return ", ".join(self.examples[reason])

    def describe(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self.counts.items()))


@dataclass
class Listing:
    files: list[InputFile] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)

    def fingerprint(self) -> str:
        """Changes when a file is added, removed, renamed, or written to."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(b"%s\0%d %d\n" % (os.fsencode(os.path.abspath(file.path)), file.size, file.modified))
        return digest.hexdigest()


@dataclass
class Entry:
    path: str
    relative: str  # below the input folder; empty for the input itself
    real: str


def list_files(inputs: list[str], chosen: Filter, output: str, stop: Stop, format: Optional[str] = None) -> Listing:
    """Lists each file once, however many names lead to it, in the place of the name that says best what it holds."""
    listing = Listing()
    groups: dict[object, list[tuple[int, Entry, os.stat_result]]] = {}
    number = 0
    for root in inputs:
        for entry, info in walk(root, chosen, output, listing.skipped, stop):
            # Two hard links have no path in common.
            identity = (info.st_dev, info.st_ino) if info.st_nlink > 1 else entry.real
            groups.setdefault(identity, []).append((number, entry, info))
            number += 1
    taken = []
    for names in groups.values():
        place, entry, info = min(names, key=lambda name: (rank(name[1].path), name[0]))
        for _, other, _ in names:
            if other is not entry:
                listing.skipped.add("already taken", other.path)
        agreed = format or agreed_format([other.path for _, other, _ in names] + [entry.real])
        taken.append((place, entry, info, agreed))
    for _, entry, info, agreed in sorted(taken, key=lambda file: file[0]):
        if agreed == UNKNOWN_KIND:
            listing.skipped.add(UNKNOWN_KIND, entry.path)
            continue
        named = entry.path if rank(entry.path) <= rank(entry.real) else entry.real
        listing.files.append(InputFile(entry.path, info.st_size, info.st_mtime_ns, *kind_of(named, agreed or None)))
    return listing


def rank(path: str) -> int:
    """Orders names by how much they say of the content, the most first."""
    name = os.path.basename(path)
    if format_of(path):
        return 0
    return 2 if HASH_NAME.fullmatch(name) else 1


def agreed_format(paths: list[str]) -> str:
    """Returns what the names of one file say that it holds, or "". Names that contradict each other are refused."""
    said: dict[str, str] = {}
    for path in paths:
        if format_of(path):
            said.setdefault(format_of(path), path)
    if len(said) > 1:
        first, second = list(said.values())[:2]
        raise PrepareError(f"{first} and {second} are one file, and their names say two things of what it holds, leave "
                           "one of them out with --exclude or pass --input-format")
    return next(iter(said), "")


def walk(root: str, chosen: Filter, output: str, skipped: Skipped,
         stop: Stop) -> Iterator[tuple[Entry, os.stat_result]]:
    """Yields the chosen files below root, depth first and sorted by name, so that equal inputs give equal output."""
    entered: set[str] = set()  # real paths, so that a link to a parent folder ends the walk instead of repeating it
    stack = [Entry(root, "", os.path.realpath(root))]
    while stack:
        stop.check()
        entry = stack.pop()
        name = os.path.basename(entry.path)
        relative = entry.relative or name
        # such as ._x.jsonl of macOS, .DS_Store and .git; a file named on the command line is taken
        is_hidden = entry.relative != "" and name.startswith(".")
        if is_hidden and not chosen.names_hidden(name, relative):
            skipped.add("hidden", entry.path)
            continue
        try:
            info = os.stat(entry.path)
        except OSError as error:
            if chosen.takes(name, relative):
                warn_unreadable(entry.path, error)
                skipped.add("unreadable", entry.path)
            continue
        if stat.S_ISDIR(info.st_mode):
            if entry.real not in entered and enters(entry, name, chosen, output):
                entered.add(entry.real)
                stack.extend(reversed(children(entry, skipped)))
        elif not chosen.takes(name, relative):
            skipped.add("left out by pattern", entry.path)
        elif not stat.S_ISREG(info.st_mode):
            if not entry.relative:
                raise PrepareError(f"{root} in --input is neither a file nor a folder (a pipe or a device has no size, "
                                   "and no place to go on from), write it to a file first")
            skipped.add("not a regular file", entry.path)  # opening a FIFO would wait for a writer forever
        else:
            yield entry, info


def enters(folder: Entry, name: str, chosen: Filter, output: str) -> bool:
    if folder.real == output or folder.real == output + ".partial" or folder.real.startswith(output + ".old-"):
        return False  # never read what this program writes
    if not folder.relative:
        return True  # named on the command line
    return not (name.startswith(".") or name == "__pycache__" or chosen.excludes(name, folder.relative))


def children(folder: Entry, skipped: Skipped) -> list[Entry]:
    try:
        with os.scandir(folder.path) as scan:
            found = sorted(scan, key=lambda item: os.fsencode(item.name))
    except OSError as error:
        warn_unreadable(folder.path, error)
        skipped.add("unreadable", folder.path)
        return []
    entries = []
    for item in found:
        # Only a link needs a full realpath (a system call per path component); the rest inherit the folder's.
        real = os.path.realpath(item.path) if item.is_symlink() else os.path.join(folder.real, item.name)
        relative = os.path.join(folder.relative, item.name)
        entries.append(Entry(item.path, relative, real))
    return without_hub_store(folder, entries, skipped)


# ---- The cache of huggingface_hub ----
#
# For each repository it has a folder: blobs/ with the files, named by their hashes; snapshots/REVISION/ with links to
# them, under their names; refs/main with the revision that a download without further words gave.


def is_hub_cache(folder: str) -> bool:
    if not all(os.path.isdir(os.path.join(folder, name)) for name in ("blobs", "snapshots")):
        return False
    try:
        # Who downloads by a revision's hash has no refs/.
        return os.path.isdir(os.path.join(folder, "refs")) or \
            all(map(REVISION.fullmatch, os.listdir(os.path.join(folder, "snapshots"))))
    except OSError:
        return False


def without_hub_store(folder: Entry, entries: list[Entry], skipped: Skipped) -> list[Entry]:
    """Keeps what belongs to one revision of a hub cache, and all of any other folder."""
    parent, name = os.path.split(folder.real)
    if is_hub_cache(folder.real):
        kept = [entry for entry in entries if os.path.basename(entry.path) == "snapshots"]
        for entry in entries:
            if entry not in kept:
                skipped.add("beside the snapshots of a Hugging Face cache", entry.path)
        return kept
    if name == "blobs" and not folder.relative and is_hub_cache(parent):
        raise PrepareError(f"{folder.path} in --input is where a Hugging Face cache keeps files by their hashes, which "
                           f"do not say what a file holds, name {os.path.join(parent, 'snapshots', 'REVISION')}")
    if name != "snapshots" or not is_hub_cache(parent) or len(entries) < 2:
        return entries
    revision = hub_main_revision(parent)
    kept = [entry for entry in entries if os.path.basename(entry.path) == revision]
    if not kept:
        raise PrepareError(f"{folder.path} holds {len(entries)} revisions of a Hugging Face cache, and its refs/main "
                           f"names none of them, name one, such as {entries[0].path}, in --input")
    for entry in entries:
        if entry not in kept:
            skipped.add("another revision of a Hugging Face cache", entry.path)
    tell(sys.stderr, f"prepare: {folder.path} holds {len(entries)} revisions of a Hugging Face cache, of which "
                     f"{revision} is taken, as its refs/main says\n")
    return kept


def hub_main_revision(folder: str) -> str:
    try:
        return read_regular(os.path.join(folder, "refs", "main"), 1000).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def warn_unreadable(path: str, error: OSError) -> None:
    tell(sys.stderr, f"prepare: skipped {path}: {error.strerror or error}\n")


def machine_text(exclude: list[str], output: str, stop: Stop) -> Listing:
    """Lists the sources of Python's standard library, or, where there are none, the system's headers."""
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
        listing = list_files([folder], chosen, output, stop, "text")
        needed = MACHINE_TEXT_MIN_BYTES if index == 0 else 1
        if listing.bytes >= needed:
            size = f"{counted(len(listing.files), 'file')}, {listing.bytes / MB:.1f} MB"
            tell(sys.stdout, f"machine text: {title}, {folder}: {size}\n")
            return listing
    raise PrepareError(f"this machine has neither Python sources (looked in {stdlib or 'no folder'}) nor headers "
                       f"(looked in {SYSTEM_HEADERS}), name files or folders of your own with --input")
