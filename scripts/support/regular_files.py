"""Opening files that others may have put there: only regular files are read, and writing follows no link.

Python's open() waits for a writer where a FIFO stands, and reads a device without an end. For writing it follows a link
and empties the file that the link names.
"""
from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO, Optional

READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def open_regular(path: str, dir_fd: Optional[int] = None, buffering: int = -1) -> BinaryIO:
    """Opens a regular file for reading, perhaps through a link. Raises OSError, at once, for anything else."""
    return _as_file(os.open(path, READ, dir_fd=dir_fd), path, "rb", buffering)


def read_regular(path: str, max_bytes: int) -> bytes:
    """Returns all of a regular file. Raises OSError if it cannot be read or has more than max_bytes."""
    with open_regular(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"it has more than {max_bytes} bytes", path)
    return content


def open_own(path: str, flags: int = 0, buffering: int = -1) -> BinaryIO:
    """Opens a file that this program wrote before, for reading and writing; flags: O_CREAT, O_APPEND.

    Raises OSError for a link, for anything but a regular file, and for a file with a second name (a hard link), whose
    owner would find our bytes in it."""
    number = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW | flags, 0o666)
    file = _as_file(number, path, "a+b" if flags & os.O_APPEND else "r+b", buffering)
    if os.fstat(file.fileno()).st_nlink > 1:
        file.close()
        raise OSError(errno.EMLINK, "it has another name too (a hard link)", path)
    return file


def create_new(path: str, buffering: int = -1) -> BinaryIO:
    """Makes a new, empty file for reading and writing, in a folder of this program's own. A file or link that has the
    name is unlinked first, so that nothing is written to it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        number = os.open(path, flags, 0o666)
    except FileExistsError:
        os.unlink(path)
        number = os.open(path, flags, 0o666)
    return os.fdopen(number, "w+b", buffering)


def write_whole(path: str, content: bytes, temporary: str) -> None:
    """Puts all of the content on the disk, or nothing; `temporary` is a name in the same folder that is used meanwhile.
    The new file replaces a file or a link of the name `path`."""
    with create_new(temporary) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)


def _as_file(number: int, path: str, mode: str, buffering: int) -> BinaryIO:
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "it is no regular file", path)
    return os.fdopen(number, mode, buffering)
