"""Which files are taken, and what each of them is."""
from __future__ import annotations

import fnmatch
import hashlib
import os
import stat
import sys
import sysconfig
from collections import Counter
from dataclasses import dataclass, field
from typing import Iterator, Optional

from prepare_common import MB, PrepareError, Stop, counted, tell

MACHINE_TEXT_MIN_BYTES = 1_000_000
SYSTEM_HEADERS = "/usr/include"
COMPRESSIONS = {".gz": "gz", ".zst": "zst"}
FORMATS = ("text", "jsonl", "parquet")


@dataclass(frozen=True)
class InputFile:
    path: str
    size: int  # bytes on the disk
    modified: int  # nanoseconds
    format: str  # one of FORMATS
    compression: str  # "", "gz" or "zst"


def kind_of(path: str, format: Optional[str]) -> tuple[str, str]:
    """Format and compression by the suffix; format, where given, instead of the suffix's.

    A plain .json is text, since it need not hold one record per line (configs and notebooks do not); a compressed one
    is a part of a corpus.
    """
    stem, suffix = os.path.splitext(path.lower())
    compression = COMPRESSIONS.get(suffix, "")
    if compression:
        suffix = os.path.splitext(stem)[1]
    if format is None:
        if suffix in (".jsonl", ".ndjson") or (suffix == ".json" and compression):
            format = "jsonl"
        else:
            format = "parquet" if suffix == ".parquet" else "text"
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

    def takes(self, name: str, relative: str) -> bool:
        included = not self.include or _matches(name, relative, self.include)
        return included and not self.excludes(name, relative)


def _matches(name: str, relative: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(relative, p) for p in patterns)


@dataclass
class Listing:
    files: list[InputFile] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

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
    listing = Listing()
    seen_files: set[str] = set()
    for root in inputs:
        for entry, info in walk(root, chosen, output, listing.skipped, stop):
            if entry.real in seen_files:
                listing.skipped["already taken"] += 1
                continue
            seen_files.add(entry.real)
            listing.files.append(InputFile(entry.path, info.st_size, info.st_mtime_ns, *kind_of(entry.path, format)))
    return listing


def walk(root: str, chosen: Filter, output: str, skipped: Counter[str],
         stop: Stop) -> Iterator[tuple[Entry, os.stat_result]]:
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
            yield entry, info


def enters(folder: Entry, name: str, chosen: Filter, output: str) -> bool:
    if folder.real == output or folder.real == output + ".partial" or folder.real.startswith(output + ".old-"):
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
    """The first of: the sources of Python's standard library, the system's headers."""
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
