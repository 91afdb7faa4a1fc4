"""The bytes of an input file, decompressed, read from any place on."""
from __future__ import annotations

import gzip
import zlib
from typing import BinaryIO, Optional

from support.regular_files import open_regular

from .common import PrepareError, Stop
from .files import InputFile

SKIP_BYTES = 1 << 20
# A block of zstd makes at most 128 KiB out of 4 bytes, so that so much input makes at most 128 MiB.
ZSTD_INPUT_BYTES = 4096
ZSTD_MAX_WINDOW = 1 << 31


class ZstdReader:
    """Reads zstd frames, one after another, and knows when the last one is cut short.

    zstandard's own stream_reader takes the end of a truncated file for the end of the data.
    """

    def __init__(self, raw: BinaryIO) -> None:
        import zstandard
        self.raw = raw
        self.error = zstandard.ZstdError
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_MAX_WINDOW)
        self.frame: Optional[object] = None
        self.input = b""
        self.output = bytearray()

    def read(self, size: int) -> bytes:
        while len(self.output) < size and self._fill():
            pass
        taken = bytes(memoryview(self.output)[:size])
        del self.output[:size]
        return taken

    def _fill(self) -> bool:
        if not self.input:
            self.input = self.raw.read(ZSTD_INPUT_BYTES)
        if not self.input:
            if self.frame is not None:
                raise EOFError("the file ends inside a frame")
            return False
        if self.frame is None:
            self.frame = self.decompressor.decompressobj()
        self.output += self.frame.decompress(self.input)
        self.input = b""
        if self.frame.eof:
            self.input = self.frame.unused_data
            self.frame = None
        return True


class Stream:
    """Reads the decompressed bytes of a file. Raises PrepareError for a broken one, OSError if it cannot be opened."""

    def __init__(self, file: InputFile, stop: Stop) -> None:
        self.file, self.stop = file, stop
        self.raw = open_regular(file.path, buffering=0)
        self.errors: tuple[type[BaseException], ...] = (EOFError,)
        if file.compression == "gz":
            self.reader = gzip.GzipFile(fileobj=self.raw)
            self.errors = (EOFError, gzip.BadGzipFile, zlib.error)
        elif file.compression == "zst":
            self.reader = ZstdReader(self.raw)
            self.errors = (EOFError, self.reader.error)
        else:
            self.reader = self.raw

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.raw.close()

    @property
    def position(self) -> int:
        """Returns how much of the file on the disk has been read."""
        return min(self.raw.tell(), self.file.size)

    def read(self, size: int) -> bytes:
        """Returns exactly size bytes, or fewer at the end of the file."""
        parts = []
        while size > 0:
            self.stop.check()
            try:
                part = self.reader.read(min(size, SKIP_BYTES))
            except self.errors as error:
                what = str(error).replace("zstd decompressor error: ", "")
                raise PrepareError(f"{self.file.path} is no whole {self.file.compression} file ({what}), "
                                   "copy it again or leave it out with --exclude") from error
            except OSError as error:
                raise PrepareError(f"cannot read {self.file.path}: {error.strerror or error}, "
                                   "mend that or leave it out with --exclude") from error
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def skip(self, count: int) -> None:
        if self.reader is self.raw:
            self.raw.seek(count, 1)
            return
        while count > 0:
            part = self.read(min(count, SKIP_BYTES))
            if not part:
                return  # the file is shorter than before, and the next read finds nothing
            count -= len(part)
