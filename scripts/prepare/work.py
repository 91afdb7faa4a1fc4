"""Worker processes, which turn units of text into tokens of documents, in the order of the units."""
from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import queue
import re
import signal
import sys
from collections import deque
from concurrent import futures
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Iterator, NamedTuple, Optional

from support.regular_files import open_regular

from .common import MAX_TOKENS, MB, PrepareError, Stop
from .files import Skipped
from .tokenize import BytesTokenizer, JsonTokenizer, Text, Tokens, eot_bytes
from .units import MAX_WHOLE_BYTES, Piece, Unit, without_bom

READ_BYTES = 1 << 20
UNITS_PER_PROCESS = 3  # one is at work, one waits for the process, one waits to be written
WAIT_SECONDS = 0.1  # how long a stop signal may go unseen
SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass
class Documents:
    """The documents of one split: their tokens, each with its EOT, and how many tokens each has."""
    ids: bytes = b""
    targets: bytes = b""  # empty without --mask-field
    lengths: list[int] = field(default_factory=list)
    text_bytes: int = 0


class Document(NamedTuple):
    """A document's tokens; `number` is the hash that decides its split."""
    number: int
    text_bytes: int
    tokens: Tokens

    @classmethod
    def of(cls, key: bytes, text_bytes: int, tokens: Tokens) -> Document:
        return cls(int.from_bytes(hashlib.sha256(key).digest(), "big"), text_bytes, tokens)


@dataclass
class Result:
    """What a worker made of a unit. A segment's tokens are in train, without EOT; its piece has the rest."""
    train: Documents = field(default_factory=Documents)
    val: Documents = field(default_factory=Documents)
    skipped: Skipped = field(default_factory=Skipped)
    replaced: int = 0  # documents with bytes that are no UTF-8
    smallest: int = 2**256  # the smallest and the largest hash of a document
    largest: int = -1
    warnings: list[tuple[str, str]] = field(default_factory=list)  # path, message


@dataclass
class Worker:
    """A document whose SHA-256, as a number, is below val_below goes to val."""
    tokenizer: BytesTokenizer | JsonTokenizer
    field: str
    mask_field: Optional[str]
    val_below: int

    def work(self, unit: Unit) -> Result:
        result = Result()
        if unit.pieces[0].kind == "segment":
            self._segment(unit.pieces[0], result)
            return result
        sides: dict[bool, list[Document]] = {False: [], True: []}
        for document in self.documents(unit, result):
            result.smallest = min(result.smallest, document.number)
            result.largest = max(result.largest, document.number)
            sides[document.number < self.val_below].append(document)
        eot, is_first = eot_bytes(self.tokenizer), self.tokenizer.eot_side == "start"
        for is_val, documents in ((False, result.train), (True, result.val)):
            tokens = [document.tokens for document in sides[is_val]]
            documents.ids = b"".join(part for found in tokens
                                     for part in ((eot, found.ids) if is_first else (found.ids, eot)))
            documents.targets = b"".join(found.targets or b"" for found in tokens)
            documents.lengths = [len(found.ids) // self.tokenizer.width + 1 for found in tokens]
            documents.text_bytes = sum(document.text_bytes for document in sides[is_val])
        return result

    def documents(self, unit: Unit, result: Result) -> Iterator[Document]:
        texts: list[Text] = []
        paths: list[str] = []
        for piece in unit.pieces:
            for text in self._texts(piece, result):
                if text.data:
                    texts.append(text)
                    paths.append(piece.path)
                else:
                    result.skipped.add("empty", piece.path)
        tokens, replaced = self.tokenizer.encode(texts, self.mask_field is not None)
        result.replaced += replaced
        for text, path, found in zip(texts, paths, tokens):
            if found.ids:
                yield Document.of(text.data, len(text.data), found)
            else:  # a normalizer may leave nothing
                result.skipped.add("empty", path)

    def _segment(self, piece: Piece, result: Result) -> None:
        tokens, result.replaced = self.tokenizer.encode([Text(piece.data)], False)
        result.train.ids = tokens[0].ids
        result.train.text_bytes = len(piece.data)

    def _texts(self, piece: Piece, result: Result) -> Iterator[Text]:
        if piece.kind == "unreadable":
            self.skip_unreadable(piece, result)
        elif piece.kind == "file":
            try:
                document = read_document(piece.path)
            except OSError as error:
                result.skipped.add("unreadable", piece.path)
                result.warnings.append((piece.path, f"skipped {piece.path}: {error.strerror or error}"))
            else:
                yield from self._unless_binary(piece.path, [document], result)
        elif piece.kind == "documents":
            yield from self._unless_binary(piece.path, piece.data, result)
        elif piece.kind == "lines":
            yield from self.records(piece, result)
        else:
            for index, data in enumerate(piece.data):
                ranges = piece.masks[index] if piece.masks is not None else None
                yield self._text(data, None, ranges, f"row {piece.first + index} of {piece.path}")

    def skip_unreadable(self, piece: Piece, result: Result) -> None:
        result.skipped.add("unreadable", piece.path)
        result.warnings.append((piece.path, f"skipped {piece.path}: {piece.data}"))

    def _unless_binary(self, path: str, documents: list[bytes], result: Result) -> Iterator[Text]:
        for document in documents:
            if b"\0" in document:
                result.skipped.add("binary", path)
            else:
                yield Text(document)

    def records(self, piece: Piece, result: Result) -> Iterator[Text]:
        """Yields the texts of lines of JSONL."""
        for record, where in self.parsed(piece, (self.field, self.mask_field)):
            text = record[self.field]
            if text is None:
                text = ""
            if not isinstance(text, str):
                raise PrepareError(f"field '{self.field}' in {where} is no string, choose another one with --field")
            try:
                data = text.encode("utf-8")
            except UnicodeEncodeError:  # half a surrogate pair, which UTF-8 does not have
                text = SURROGATES.sub("\ufffd", text)
                data = text.encode("utf-8")
                result.replaced += 1
            yield self._text(data, text, record[self.mask_field] if self.mask_field else None, where)

    def parsed(self, piece: Piece, fields: tuple[Optional[str], ...]) -> Iterator[tuple[dict, str]]:
        """Yields the objects of lines of JSONL, which have these fields (None: no field), and where each is; blank
        lines are skipped."""
        options = [(name, option) for name, option in zip(fields, ("--field", "--mask-field")) if name is not None]
        lines = piece.data.split(b"\n")
        if piece.first == 1:
            lines[0] = without_bom(lines[0])
        quoted_names = [(name, option, {json.dumps(name, ensure_ascii=is_ascii).encode("utf-8", "surrogateescape")
                                        for is_ascii in (False, True)})
                        for name, option in options]
        for number, line in enumerate(lines, piece.first):
            if not line or line.isspace():
                continue
            where = f"line {number} of {piece.path}"
            try:
                record = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise PrepareError(f"invalid JSON in {where}: byte {error.start + 1} of the line is no UTF-8, "
                                   "mend it or leave the file out with --exclude") from error
            except (ValueError, RecursionError) as error:
                what = f"{error.msg} (column {error.colno})" if isinstance(error, json.JSONDecodeError) else str(error)
                raise PrepareError(f"invalid JSON in {where}: {what}, mend it, leave the file out with --exclude, or "
                                   "pass --input-format text if it is no JSONL") from error
            if not isinstance(record, dict):
                raise PrepareError(f"{where} is no JSON object, mend it or pass --input-format text if the file is "
                                   "no JSONL")
            for name, option in options:
                if name not in record:
                    raise PrepareError(f"no field '{name}' in {where}, choose one of its fields with {option}: "
                                       f"{', '.join(record) or 'it has none'}")
            for name, option, quoted in quoted_names:
                if sum(map(line.count, quoted)) > 1:  # a text may hold it too
                    self._refuse_twins(line, name, option, where)
            yield record, where

    def _refuse_twins(self, line: bytes, name: str, option: str, where: str) -> None:
        """Refuses a record whose field stands twice: Python would take the last one without a word."""
        keys: list[list[str]] = []  # of each object, the outermost last
        json.loads(line, object_pairs_hook=lambda pairs: keys.append([key for key, _ in pairs]))
        if keys[-1].count(name) > 1:
            raise PrepareError(f"field '{name}' stands twice in {where}, mend it or choose another one with {option}")

    def _text(self, data: bytes, text: Optional[str], ranges: object, where: str) -> Text:
        if len(data) >= MAX_TOKENS:
            raise PrepareError(f"{where} holds more than {MAX_TOKENS - 1} bytes, which no shard can hold, cut it up")
        if isinstance(self.tokenizer, JsonTokenizer) and self.tokenizer.cuts is None and len(data) > MAX_WHOLE_BYTES:
            raise PrepareError(f"{where} holds more than {MAX_WHOLE_BYTES / MB:.0f} MB, which this tokenizer must see "
                               "as a whole, cut it up or leave the file out with --exclude")
        if not ranges:
            return Text(data)
        if text is None:
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise PrepareError(f"{where} is no UTF-8, so that its '{self.mask_field}' cannot count characters, "
                                   "mend it or leave out --mask-field") from error
        return Text(data, merge_ranges(ranges, len(text), f"'{self.mask_field}' in {where}"))


def merge_ranges(ranges: object, length: int, where: str) -> tuple[tuple[int, int], ...]:
    """Checks ranges [[begin, end], ...] of characters and merges those that overlap or touch."""
    merged: list[list[int]] = []
    if not isinstance(ranges, list):
        raise PrepareError(f"{where} is no list of [begin, end] pairs, mend it or choose another --mask-field")
    for pair in ranges:
        is_pair = isinstance(pair, list) and len(pair) == 2 and all(type(value) is int for value in pair)
        if not is_pair or not 0 <= pair[0] <= pair[1] <= length:
            raise PrepareError(f"{where} holds {json.dumps(pair, default=str)}, which is no [begin, end] with 0 <= "
                               f"begin <= end <= {length}, the characters of the text: mend it or choose another "
                               "--mask-field")
    for begin, end in sorted(ranges):
        if begin == end:
            continue
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    return tuple((begin, end) for begin, end in merged)


def read_document(path: str) -> bytes:
    """Returns the text of a small file; a binary one is read little further than to its first NUL byte."""
    document = b""
    with open_regular(path, buffering=0) as file:
        while chunk := file.read(READ_BYTES):
            document += chunk
            if b"\0" in chunk:
                break
            if len(document) > MAX_WHOLE_BYTES:
                raise PrepareError(f"{path} grew while it was read, run again when nothing writes to it")
    return without_bom(document)


# ---- Processes ----


def serve(worker: Worker, connection: Connection, inherited: list[Connection]) -> None:
    """Runs in a worker process: answers each unit with ("result", Result) or ("error", message, exit code)."""
    for other in inherited:  # else no worker would notice that its parent is gone
        other.close()
    # Ctrl-C reaches every process of a terminal; when to end is up to the parent alone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        while True:
            unit = connection.recv()
            try:
                answer = ("result", worker.work(unit), 0)
            except PrepareError as error:
                answer = ("error", str(error), error.code)
            except MemoryError:
                answer = ("error", f"out of memory at {unit.pieces[0].path}, lower --processes", 1)
            except Exception as error:
                trace = error.__traceback__
                while trace is not None and trace.tb_next is not None:
                    trace = trace.tb_next
                line = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace else ""
                answer = ("error", f"internal fault: {type(error).__name__}: {error}, at {line}, please report it", 1)
            connection.send(answer)
    except (EOFError, OSError):
        os._exit(0)


class Pool:
    """Worker processes, each with a thread of this process that hands it units and waits for its results."""

    def __init__(self, worker: Worker, num_processes: int) -> None:
        context = multiprocessing.get_context("fork")  # the workers inherit the tokenizer, which loads for seconds
        self.processes = []
        connections: list[Connection] = []
        sys.stdout.flush()
        sys.stderr.flush()
        for _ in range(num_processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(worker, theirs, connections + [ours]), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            connections.append(ours)
        self.process_of = dict(zip(connections, self.processes))
        self.num_units = UNITS_PER_PROCESS * num_processes
        self.idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        for connection in connections:
            self.idle.put(connection)
        self.threads = futures.ThreadPoolExecutor(num_processes)

    def _ask(self, unit: Unit) -> Result:
        connection = self.idle.get()
        try:
            connection.send(unit)
            kind, answer, code = connection.recv()
        except (EOFError, OSError) as error:
            self._explain_death(connection, unit)
            raise PrepareError("a worker process was killed, most likely for memory: run the same command again, with "
                               "fewer --processes", code=1) from error
        finally:
            self.idle.put(connection)  # a dead one, too: whoever takes it next fails at once instead of waiting
        if kind == "error":
            raise PrepareError(answer, code)
        return answer

    def _explain_death(self, connection: Connection, unit: Unit) -> None:
        """Raises if the process ended itself, since a chat template took all of its time (chat.Bounds)."""
        process = self.process_of[connection]
        process.join(1)
        if process.exitcode == -signal.SIGPROF:
            raise PrepareError("the chat template took too much time in one operation, in a conversation of "
                               f"{unit.pieces[0].path}, name another one with --chat-template, or leave the file out "
                               "with --exclude")

    def run(self, units: Iterator[Unit], stop: Stop) -> Iterator[tuple[Unit, Result]]:
        """Yields the results in the order of the units; an error is raised after all results before it."""
        pending: deque[tuple[Unit, futures.Future[Result]]] = deque()
        failure: Optional[Exception] = None
        is_at_end = False
        while True:
            while not is_at_end and len(pending) < self.num_units:
                try:
                    unit = next(units, None)
                except (PrepareError, MemoryError) as error:
                    failure, unit = error, None
                if unit is None:
                    is_at_end = True
                else:
                    pending.append((unit, self.threads.submit(self._ask, unit)))
            if not pending:
                break
            unit, future = pending.popleft()
            while True:
                stop.check()
                try:
                    result = future.result(WAIT_SECONDS)
                    break
                except futures.TimeoutError:
                    continue
            yield unit, result
        if failure is not None:
            raise failure

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        for process in self.processes:
            process.kill()  # a process that still has the parent's handler would ignore SIGTERM
        for process in self.processes:
            process.join()
        self.threads.shutdown(wait=True)
