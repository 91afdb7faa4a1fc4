"""Files that several tests write: shards of tokens, sealed manifests, parts of a tokenizer.json; and where they go."""
from __future__ import annotations

import hashlib
import pathlib
import struct
import tempfile
from typing import Iterable, Optional

# How published models split text into words.
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN = LLAMA3.replace("{1,3}", "")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def temporary_folder(case) -> pathlib.Path:
    """A folder that is removed after the test, or, if `case` is a class, after its last test."""
    temporary = tempfile.TemporaryDirectory()
    (case.addClassCleanup if isinstance(case, type) else case.addCleanup)(temporary.cleanup)
    return pathlib.Path(temporary.name)


def shard(ids: Iterable[int] = range(64), magic: int = 20240520, version: int = 1, count: Optional[int] = None,
          code: str = "H") -> bytes:
    """Token ids as llm.c writes them; `count` is what the header says, if that is wrong."""
    ids = list(ids)
    header = [magic, version, len(ids) if count is None else count] + [0] * 253
    return struct.pack("<256i", *header) + struct.pack(f"<{len(ids)}{code}", *ids)


def sealed(body: str) -> str:
    """The manifest of a JSON object: its last key is the hash of all bytes before it."""
    body = body.rstrip()[:-1].rstrip() + ",\n  "
    return f'{body}"sha256": "{hashlib.sha256(body.encode("utf-8", "surrogateescape")).hexdigest()}"\n}}\n'


def byte_letters() -> list[str]:
    """The letter that stands for each byte in the vocabulary of a byte-level BPE."""
    itself = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in itself else chr(next(others)) for byte in range(256)]
