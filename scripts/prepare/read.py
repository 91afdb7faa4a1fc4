"""Cuts the input into units of work, in an order that depends on nothing but the input.

Whole documents go into a unit until it holds about UNIT_BYTES, so that memory is bounded by units and not by files. A
text document larger than that becomes segments, units of their own. Where units are cut changes no result: documents
are tokenised one by one, and segments are cut where the tokenizer says that it makes no difference.
"""
from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Callable, Iterator, NamedTuple, Optional

from . import units
from .common import MB, PrepareError, Stop
from .files import InputFile, Listing
from .streams import Stream
from .units import MAX_RECORD_BYTES, MAX_WHOLE_BYTES, Cursor, Piece, Unit, without_bom

FILE_COST = 4096  # bytes that could be tokenised while a small file is opened


class Step(NamedTuple):
    piece: Piece
    weight: int
    cursor: Cursor
    position: int


@dataclass
class Reader:
    """cut(buffer, limit) returns the last place in (0, limit] at which a document may be cut, or 0."""
    listing: Listing
    field: str
    mask_field: Optional[str]
    separator: bytes
    cut: Callable[[bytes, int], int]
    stop: Stop
    is_chat: bool = False
    has_crlf_separator: bool = False  # the separator with CRLF for its line breaks was found

    def units(self, cursor: Cursor) -> Iterator[Unit]:
        pieces: list[Piece] = []
        weight = 0
        last = None
        for step in self._steps(cursor):
            if step.piece.kind == "segment":
                if last is not None:
                    yield Unit(pieces, last.cursor, last.position)
                    pieces, weight, last = [], 0, None
                yield Unit([step.piece], step.cursor, step.position)
                continue
            pieces.append(step.piece)
            weight += step.weight
            last = step
            if weight >= units.UNIT_BYTES:
                yield Unit(pieces, last.cursor, last.position)
                pieces, weight, last = [], 0, None
        if last is not None:
            yield Unit(pieces, last.cursor, last.position)

    def _steps(self, cursor: Cursor) -> Iterator[Step]:
        before = sum(file.size for file in self.listing.files[:cursor.file])
        for index in range(cursor.file, len(self.listing.files)):
            self.stop.check()
            file = self.listing.files[index]
            following = Cursor(index + 1)
            at_end = before + file.size
            if is_read_by_worker(file, self.separator) and not cursor.done:
                yield Step(Piece("file", file.path), file.size + FILE_COST, following, at_end)
            else:
                try:
                    steps = self._open(file, cursor)
                except OSError as error:
                    piece = Piece("unreadable", file.path, error.strerror or str(error))
                    yield Step(piece, FILE_COST, following, at_end)
                else:
                    for piece, weight, place, position in steps:
                        at = following if place is None else place._replace(file=index)
                        yield Step(piece, weight, at, at_end if place is None else before + position)
            before = at_end
            cursor = following

    def _open(self, file: InputFile, cursor: Cursor) -> Iterator[tuple[Piece, int, Optional[Cursor], int]]:
        """Yields pieces with their weights, the place after each (None: the end of the file), and the position on the
        disk."""
        if file.format == "parquet":
            from .parquet import open_parquet, rows
            parquet = open_parquet(file, self.field, self.mask_field, self.is_chat)
            return rows(file, parquet, self.field, self.mask_field, cursor, self.is_chat)
        stream = Stream(file, self.stop)
        return self._lines(stream, cursor) if file.format == "jsonl" else self._text(stream, cursor)

    def _lines(self, stream: Stream, cursor: Cursor) -> Iterator[tuple[Piece, int, Optional[Cursor], int]]:
        with stream:
            stream.skip(cursor.offset)
            offset, line, buffer, is_at_end = cursor.offset, cursor.line, b"", False
            while not is_at_end:
                chunk = stream.read(units.UNIT_BYTES)
                is_at_end = len(chunk) < units.UNIT_BYTES
                buffer += chunk
                end = len(buffer) if is_at_end else buffer.rfind(b"\n") + 1
                if end:
                    piece = Piece("lines", stream.file.path, buffer[:end], first=line)
                    line += buffer.count(b"\n", 0, end)
                    offset += end
                    buffer = buffer[end:]
                    place = None if is_at_end else Cursor(0, offset, line)
                    yield piece, end, place, stream.position
                if len(buffer) > MAX_RECORD_BYTES:
                    raise PrepareError(f"line {line} of {stream.file.path} is longer than {MAX_RECORD_BYTES / MB:.0f} "
                                       "MB, cut it into several or leave the file out with --exclude")

    def _text(self, stream: Stream, cursor: Cursor) -> Iterator[tuple[Piece, int, Optional[Cursor], int]]:
        """Yields the documents between separators, or the file as one. Separators are found from left to right and do
        not overlap.

        `start` is where the document at the head of the buffer starts; a document in segments has left the first
        `done` bytes of it behind.
        """
        path, separator = stream.file.path, self.separator
        with stream:
            stream.skip(cursor.offset)
            start, done, buffer, is_at_end = cursor.offset, cursor.done, b"", False
            digest = self._digest(stream, done)
            is_binary = False
            is_first = not start and not done
            begin = 0  # of the first document
            while True:
                if not is_at_end:
                    chunk = stream.read(units.UNIT_BYTES)
                    is_at_end = len(chunk) < units.UNIT_BYTES
                    buffer += chunk
                    self._look_for_crlf(buffer)
                if is_first:
                    begin = start = len(buffer) - len(without_bom(buffer))
                    buffer, is_first = without_bom(buffer), False
                if digest is None:
                    documents = buffer.split(separator) if separator else [buffer]
                    separators = len(documents) - 1
                    rest = documents[-1]
                    if is_at_end and (rest or not (start > begin or documents[:-1])):
                        rest = b""
                    else:
                        documents.pop()
                    start += len(buffer) - len(rest)
                    buffer = rest
                    if documents or is_at_end:
                        weight = sum(map(len, documents)) + 64 * len(documents)
                        place = None if is_at_end else Cursor(0, start)
                        piece = Piece("documents", path, documents, separators=separators)
                        yield piece, weight, place, stream.position
                    if is_at_end:
                        return
                    if len(buffer) < units.UNIT_BYTES:
                        continue
                    digest, done, is_binary = hashlib.sha256(), 0, False
                # The document is cut into segments. Its end may reach over the end of the buffer.
                end = buffer.find(separator) if separator else -1
                is_last = end >= 0 or is_at_end
                if end < 0:
                    end = len(buffer)
                limit = end if is_last else max(0, end - max(0, len(separator) - 1))
                is_binary = is_binary or b"\0" in buffer[:limit]
                if is_binary:
                    place_to_cut = limit
                    if not separator:
                        is_last = is_at_end = True  # nothing else is in this file
                else:
                    place_to_cut = limit if is_last else self.cut(buffer, limit)
                    if not place_to_cut and len(buffer) > MAX_WHOLE_BYTES:
                        raise PrepareError(
                            f"{path} holds a document of more than {MAX_WHOLE_BYTES / MB:.0f} MB that this tokenizer "
                            "must see as a whole, cut it into documents with --split-on or leave it out with --exclude")
                data = b"" if is_binary else buffer[:place_to_cut]
                digest.update(data)
                if is_last:
                    start += done + end + (len(separator) if end < len(buffer) else 0)
                    piece = Piece("segment", path, data, is_last=True, digest=digest.digest(), is_binary=is_binary,
                                  separators=int(end < len(buffer)))
                    is_file_done = is_at_end and end == len(buffer)
                    yield piece, end, None if is_file_done else Cursor(0, start), stream.position
                    if is_file_done or (is_binary and not separator):
                        return
                    buffer = buffer[end + len(separator):]
                    digest, done = None, 0
                else:
                    buffer = buffer[place_to_cut:]
                    done += place_to_cut
                    if data:
                        yield Piece("segment", path, data), len(data), Cursor(0, start, 1, done), stream.position

    def _look_for_crlf(self, buffer: bytes) -> None:
        if not self.has_crlf_separator and b"\n" in self.separator:
            self.has_crlf_separator = with_crlf(self.separator) in buffer

    def _digest(self, stream: Stream, done: int) -> Optional["hashlib._Hash"]:
        """Returns the hash of the finished part of a document in segments, which is read again; None for other
        documents."""
        if not done:
            return None
        digest = hashlib.sha256()
        while done > 0:
            part = stream.read(min(done, units.UNIT_BYTES))
            if not part:
                raise PrepareError(f"{stream.file.path} became shorter, run again with --restart")
            digest.update(part)
            done -= len(part)
        return digest


def is_read_by_worker(file: InputFile, separator: bytes) -> bool:
    return file.format == "text" and not file.compression and not separator and file.size <= units.UNIT_BYTES


def with_crlf(separator: bytes) -> bytes:
    return separator.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
