"""--tokenizer train:N: a byte-level BPE tokenizer, trained on a sample of the input by the package `tokenizers`.

The sample is spread evenly over the input and does not depend on chance or on the number of processes.
"""
from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import Iterator

from support.regular_files import open_regular

from .common import MB, PrepareError, Stop
from .files import InputFile, Listing
from .streams import Stream
from .tokenize import EOT_NAMES, LLAMA3_PATTERN, BytesTokenizer
from .units import MAX_RECORD_BYTES, UNIT_BYTES, Cursor, Piece, without_bom
from .work import Result, Worker, read_document

EOT_NAME = EOT_NAMES[0]
MIN_VOCABULARY = 257  # every byte, and end-of-text
WINDOW_BYTES = 1 << 20  # are taken at one place of a large file
EXPANSION = 4  # compressed text is about so much longer; this weighs such files against others
MIN_FREQUENCY = 2  # a pair that was seen once is chance


class Sample:
    """Yields about `budget` bytes of text: whole small files, windows at even distances in large ones, and the
    beginnings of compressed and parquet files, which cannot be entered elsewhere."""

    def __init__(self, listing: Listing, budget: int, field: str, separator: bytes, stop: Stop) -> None:
        self.listing, self.budget, self.separator, self.stop = listing, budget, separator, stop
        self.worker = Worker(BytesTokenizer(), field, None, 0)
        self.bytes = 0
        self.fraction = min(1.0, budget / max(1, sum(map(expected_bytes, listing.files))))

    def __iter__(self) -> Iterator[str]:
        small = 0
        for file in self.listing.files:
            share = round(expected_bytes(file) * self.fraction)
            if file.size <= UNIT_BYTES:
                small += 1
                if int(small * self.fraction) == int((small - 1) * self.fraction):
                    continue
                share = max(share, self.budget)
            try:
                for data in self._texts(file, share):
                    if data:
                        self.bytes += len(data)
                        yield data.decode("utf-8", "replace")
            except OSError:
                continue  # the run itself names it
            if self.bytes >= self.budget:
                return

    def _texts(self, file: InputFile, share: int) -> Iterator[bytes]:
        if file.format == "parquet":
            yield from self._rows(file, share)
        elif file.format == "jsonl":
            for data, place in self._blocks(file, share, MAX_RECORD_BYTES):
                yield from self._records(file, data, place)
        elif file.size <= UNIT_BYTES and not file.compression:
            yield from self._without_separators(read_document(file.path))
        else:
            for data, place in self._blocks(file, share, WINDOW_BYTES):
                yield from self._without_separators(data if place else without_bom(data))

    def _rows(self, file: InputFile, share: int) -> Iterator[bytes]:
        from .parquet import open_parquet, rows
        parquet = open_parquet(file, self.worker.field, None)
        for piece, _, _, _ in rows(file, parquet, self.worker.field, None, Cursor()):
            for data in piece.data:
                if share <= 0:
                    return
                share -= len(data)
                yield data

    def _blocks(self, file: InputFile, share: int, max_line: int) -> Iterator[tuple[bytes, int]]:
        """Yields whole lines, about `share` bytes of them, and at which decompressed byte they begin."""
        if not file.compression:
            count = max(1, share // WINDOW_BYTES)
            with open_regular(file.path) as source:
                for index in range(count):
                    source.seek(file.size * index // count)
                    if index:
                        source.readline(max_line)
                    place = source.tell()
                    yield source.read(min(WINDOW_BYTES, share)) + source.readline(max_line), place
            return
        with Stream(file, self.stop) as stream:
            rest, place = b"", 0
            while share > 0 or not place:
                data = stream.read(WINDOW_BYTES)
                share -= len(data)
                rest += data
                end = len(rest) if not data or len(rest) > max_line else rest.rfind(b"\n") + 1
                if end:
                    yield rest[:end], place
                place += end
                rest = rest[end:]
                if not data:
                    return

    def _records(self, file: InputFile, data: bytes, place: int) -> Iterator[bytes]:
        try:
            texts = self.worker.records(Piece("lines", file.path, data, first=2 if place else 1), Result())
            yield from [text.data for text in texts]
        except PrepareError:  # parses again, to name the line
            with Stream(file, self.stop) as stream:
                first = 1
                while place > 0 and (part := stream.read(min(place, WINDOW_BYTES))):
                    first += part.count(b"\n")
                    place -= len(part)
            list(self.worker.records(Piece("lines", file.path, data, first=first), Result()))
            raise

    def _without_separators(self, data: bytes) -> Iterator[bytes]:
        if b"\0" not in data:
            yield from data.split(self.separator) if self.separator else [data]


def expected_bytes(file: InputFile) -> int:
    return file.size * (EXPANSION if file.compression or file.format == "parquet" else 1)


def train(sample: Sample, vocab_size: int) -> bytes:
    """Returns the tokenizer.json. Words are split as by Llama 3 (digits in runs of up to 3, no normalizer)."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=MIN_FREQUENCY, special_tokens=[EOT_NAME],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    failure: list[PrepareError] = []

    def texts() -> Iterator[str]:
        try:
            yield from sample
        except PrepareError as error:  # the package would wrap it
            failure.append(error)

    tokenizer.train_from_iterator(texts(), trainer)
    if failure:
        raise failure[0]
    if not sample.bytes:
        raise PrepareError("the input has no text to train a tokenizer on, check --input, --include and --exclude")
    return tokenizer.to_str(pretty=True).encode()


def serve_training(sample: Sample, vocab_size: int, num_threads: int, connection: Connection) -> None:
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    os.environ["RAYON_NUM_THREADS"] = str(num_threads)
    try:
        connection.send((train(sample, vocab_size), sample.bytes, 0))
    except PrepareError as error:
        connection.send((str(error), 0, error.code))
    except Exception as error:
        connection.send((f"internal fault: {type(error).__name__}: {error}, in training a tokenizer, please report it",
                         0, 1))


def train_in_child(sample: Sample, vocab_size: int, num_threads: int, stop: Stop) -> tuple[bytes, int]:
    """Returns the tokenizer.json and how much text it was trained on. A process of its own can be stopped at any
    moment, and gives all its memory back."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    process = context.Process(target=serve_training, args=(sample, vocab_size, num_threads, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        while not ours.poll(0.1):
            stop.check()
        answer, text_bytes, code = ours.recv()
    except (EOFError, OSError) as error:
        raise PrepareError("the training of the tokenizer was killed, most likely for memory, lower --train-mb "
                           f"(now {sample.budget / MB:.0f} MB)", code=1) from error
    finally:
        process.kill()
        process.join()
    if isinstance(answer, str):
        raise PrepareError(answer, code)
    return answer, text_bytes
