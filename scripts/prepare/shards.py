"""The files of a split: shards of llm.c, or one file for Megatron-LM or nanoGPT; and masks beside them."""
from __future__ import annotations

import array
import itertools
import os
import shutil
import struct
import sys
from dataclasses import dataclass, field
from typing import BinaryIO, Iterable, Optional

from support.regular_files import create_new, open_own

from .common import MAX_TOKENS, PrepareError
from .folder import MAX_SHARDS
from .work import Documents

OUTPUT_FORMATS = ("llmc", "megatron", "raw")
HEADER_INTS = 256
MAGIC_AND_VERSION = {2: (20240520, 1), 4: (20240801, 7)}  # llm.c's, by bytes per token
# These are Megatron-LM's codes of types (megatron/core/datasets/indexed_dataset.py). Its 32-bit type has a sign, which
# no id needs.
MEGATRON_MAGIC, MEGATRON_VERSION = b"MMIDIDX\0\0", 1
MEGATRON_CODES = {2: 8, 4: 4}  # uint16, int32
LENGTHS_SUFFIX = ".lengths"  # of the file beside an unfinished one for Megatron: the tokens of each document, int32
COPY_BYTES = 1 << 20
NO_LIMIT = 1 << 62


def dtype_of(format: str, width: int) -> str:
    """Returns the dtype of the ids in a file."""
    if width == 2:
        return "uint16"
    return "int32" if format == "megatron" else "uint32"


def header(width: int, tokens: int) -> bytes:
    return struct.pack(f"<{HEADER_INTS}i", *MAGIC_AND_VERSION[width], tokens, *[0] * (HEADER_INTS - 3))


@dataclass
class Split:
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    shards: list[str] = field(default_factory=list)


class SplitWriter:
    """Writes the documents of one split; for llm.c it starts a new shard where a document ends.

    Megatron's .idx has the length of each document, and how many there are before them: so the lengths grow in a file
    of their own, and the .idx is made at the end.
    """

    def __init__(self, folder: str, name: str, format: str, shard_tokens: int, width: int, has_masks: bool) -> None:
        self.folder, self.name, self.format, self.width = folder, name, format, width
        self.shard_tokens = shard_tokens if format == "llmc" else NO_LIMIT
        self.most_tokens = MAX_TOKENS if format == "llmc" else NO_LIMIT  # of a file
        self.has_masks = has_masks
        self.split = Split()
        self.file: Optional[BinaryIO] = None
        self.mask: Optional[BinaryIO] = None
        self.lengths: Optional[BinaryIO] = None
        self.tokens = 0  # in the open file

    def add(self, documents: Documents) -> None:
        begin = end = 0  # tokens of a run of documents for one shard
        for length in documents.lengths:
            if self.tokens + end - begin + length > self.most_tokens:
                begin = self._write(documents, begin, end)
                self.close()
            end += length
            if self.tokens + end - begin >= self.shard_tokens:
                begin = self._write(documents, begin, end)
                self.close()
        self._write(documents, begin, end)
        self._count_documents(documents.lengths, documents.text_bytes)

    def _write(self, documents: Documents, begin: int, end: int) -> int:
        if end > begin:
            self._open()
            self.file.write(memoryview(documents.ids)[begin * self.width:end * self.width])
            if self.mask is not None:
                self.mask.write(memoryview(documents.targets)[begin:end])
            self._count(end - begin)
        return end

    def add_spooled(self, spool: BinaryIO, eot: bytes, text_bytes: int) -> None:
        """Adds a document whose tokens, without EOT, fill the file `spool`; all of them are targets."""
        spool.seek(0, os.SEEK_END)
        length = spool.tell() // self.width + 1
        if self.tokens + length > self.most_tokens:
            self.close()
        self._open()
        spool.seek(0)
        shutil.copyfileobj(spool, self.file, COPY_BYTES)
        self.file.write(eot)
        if self.mask is not None:
            for begin in range(0, length, COPY_BYTES):
                self.mask.write(b"\1" * min(COPY_BYTES, length - begin))
        self._count(length)
        self._count_documents([length], text_bytes)
        if self.tokens >= self.shard_tokens:
            self.close()

    def _count(self, tokens: int) -> None:
        self.tokens += tokens
        self.split.tokens += tokens

    def _count_documents(self, lengths: list[int], text_bytes: int) -> None:
        if self.lengths is not None:
            self.lengths.write(little_endian("i", lengths))
        self.split.documents += len(lengths)
        self.split.bytes += text_bytes

    def _shard(self, index: int) -> str:
        return f"{self.name}-{index:05d}.bin" if self.format == "llmc" else f"{self.name}.bin"

    def _path(self, index: int, suffix: str = ".bin") -> str:
        return os.path.join(self.folder, os.path.splitext(self._shard(index))[0] + suffix)

    def _open(self) -> None:
        if self.file is not None:
            return
        index = len(self.split.shards)
        if index >= MAX_SHARDS:
            raise PrepareError(f"more than {MAX_SHARDS} {self.name} shards, raise --shard-tokens "
                               f"(now {self.shard_tokens})")
        self.file = create_new(self._path(index), buffering=COPY_BYTES)
        if self.has_masks:
            self.mask = create_new(self._path(index, ".mask"), buffering=COPY_BYTES)
        if self.format == "megatron":
            self.lengths = create_new(self._path(index, LENGTHS_SUFFIX), buffering=COPY_BYTES)
        self.split.shards.append(self._shard(index))
        if self.format == "llmc":
            self.file.write(header(self.width, 0))  # the count is known when the shard is closed

    def close(self) -> None:
        if self.file is None:
            return
        if self.format == "llmc":
            self.file.seek(0)
            self.file.write(header(self.width, self.tokens))
        self.sync()
        if self.lengths is not None:
            with create_new(self._path(0, ".idx"), buffering=COPY_BYTES) as index:
                write_megatron_index(index, self.lengths, self.split.documents, self.width)
                index.flush()
                os.fsync(index.fileno())
        for file in self._files():
            file.close()
        self.file = self.mask = self.lengths = None
        self.tokens = 0

    def _files(self) -> list[BinaryIO]:
        return [file for file in (self.file, self.mask, self.lengths) if file is not None]

    def sync(self) -> None:
        for file in self._files():
            file.flush()
            os.fsync(file.fileno())  # some file systems report a full disk only now

    def abandon(self) -> None:
        """Closes an unfinished file; the rest of its buffer may no longer fit on the disk."""
        for file in self._files():
            try:
                file.close()
            except OSError:
                pass
        self.file = self.mask = self.lengths = None

    def state(self) -> dict:
        return {"documents": self.split.documents, "tokens": self.split.tokens, "bytes": self.split.bytes,
                "shards": len(self.split.shards), "open": self.tokens if self.file is not None else None}

    def restore(self, state: dict) -> None:
        """Takes the files back to what state() told. Raises ValueError if they hold less than that."""
        num_shards, begin = state["shards"], HEADER_INTS * 4 if self.format == "llmc" else 0
        self.split = Split(state["documents"], state["tokens"], state["bytes"],
                           list(map(self._shard, range(num_shards))))
        if self.format != "llmc" and (num_shards > 1 or (num_shards == 1) != (state["open"] is not None)):
            raise ValueError("it has another number of files than its format")
        for index in range(num_shards - (state["open"] is not None)):
            path = self._path(index)
            with open_own(path) as file:
                count = struct.unpack("<3i", file.read(12))[2]
            sizes = [os.path.getsize(path), begin + count * self.width]
            sizes += [os.path.getsize(self._path(index, ".mask")), count] if self.has_masks else []
            if sizes[0] != sizes[1] or sizes[2:3] != sizes[3:]:
                raise ValueError(f"{path} is not whole")
        if state["open"] is not None:
            self.tokens = state["open"]
            last = num_shards - 1
            self.file = reopen(self._path(last), begin + self.tokens * self.width)
            if self.has_masks:
                self.mask = reopen(self._path(last, ".mask"), self.tokens)
            if self.format == "megatron":
                self.lengths = reopen(self._path(last, LENGTHS_SUFFIX), 4 * state["documents"])


def reopen(path: str, size: int) -> BinaryIO:
    """Opens a file behind its first size bytes, and cuts off what follows them."""
    file = open_own(path, buffering=COPY_BYTES)
    if file.seek(0, os.SEEK_END) < size:
        file.close()
        raise ValueError(f"{path} is too short")
    file.truncate(size)
    file.seek(size)
    return file


# ---- Megatron-LM's index ----


def little_endian(code: str, values: Iterable[int]) -> bytes:
    packed = array.array(code, values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def write_megatron_index(index: BinaryIO, lengths: BinaryIO, num_documents: int, width: int) -> None:
    """Writes the index. A document is a sequence, so that the document index counts from 0 to their number.

    `lengths` is a file of an int32 for each. The .idx has a header of 34 bytes, the lengths (int32), where each
    sequence begins in the .bin, in bytes (int64), and with which sequence each document begins (int64), the end
    included.
    """
    index.write(MEGATRON_MAGIC + struct.pack("<QBQQ", MEGATRON_VERSION, MEGATRON_CODES[width], num_documents,
                                             num_documents + 1))
    lengths.seek(0)
    shutil.copyfileobj(lengths, index, COPY_BYTES)
    lengths.seek(0)
    place = 0
    while part := lengths.read(COPY_BYTES):
        counts = array.array("i", part)
        if sys.byteorder == "big":
            counts.byteswap()
        *places, place = itertools.accumulate((count * width for count in counts), initial=place)
        index.write(little_endian("q", places))
    step = COPY_BYTES // 8
    for begin in range(0, num_documents + 1, step):
        index.write(little_endian("q", range(begin, min(begin + step, num_documents + 1))))
