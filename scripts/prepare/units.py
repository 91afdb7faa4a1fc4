"""Units of work: Reader cuts them from the input, a worker turns them into tokens, and Output writes those."""
from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Optional

UNIT_BYTES = 4 << 20
MAX_RECORD_BYTES = 256 << 20  # a record of JSONL or parquet is held in memory, several times over
BOM = b"\xef\xbb\xbf"  # UTF-8's byte order mark is no part of the text
MAX_WHOLE_BYTES = 64 << 20  # a document without a place to cut is tokenised at once, in some 50 times its size


class Cursor(NamedTuple):
    """A place in the input: where the next document begins, and how much of it is done if it is in segments."""
    file: int = 0  # index into the listing
    offset: int = 0  # decompressed bytes, or rows of parquet
    line: int = 1  # number of the line, of JSONL
    done: int = 0  # bytes of the document


@dataclass
class Piece:
    """Documents of one file.

    kind file: a whole text file, to be read by the worker. documents: data is a list of texts. lines: data is lines of
    JSONL, the first of which is number `first`. rows: data is a list of texts (of records with --chat), the first of
    which is row `first`; masks are their lists of ranges. segment: data is a part of one document. unreadable: data
    says why.
    """
    kind: str
    path: str
    data: object = None
    first: int = 0
    masks: Optional[list] = None
    is_last: bool = False  # segments: ends the document, whose SHA-256 is digest
    digest: bytes = b""
    is_binary: bool = False  # segments: the document holds a NUL byte
    separators: int = 0  # how many separators (--split-on) were cut out


@dataclass
class Unit:
    pieces: list[Piece]
    cursor: Cursor  # where the next unit begins
    position: int  # bytes on the disk that have been read up to there


def without_bom(data: bytes) -> bytes:
    """`data` is the beginning of a file."""
    return data[len(BOM):] if data.startswith(BOM) else data
