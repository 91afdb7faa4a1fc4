"""Both splits, meta.json, and the folder in which they grow: OUTPUT.partial, whose journal lets a stopped run go on."""
from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import time
from typing import BinaryIO, Optional

from support.regular_files import create_new, open_own, write_whole

from .common import MAX_TOKENS, PrepareError
from .files import Skipped
from .folder import check_output, check_state, is_prepared, remove_old
from .shards import COPY_BYTES, LENGTHS_SUFFIX, SplitWriter, dtype_of, reopen
from .tokenize import BytesTokenizer, JsonTokenizer, eot_bytes
from .units import Cursor, Unit
from .work import Result

COMMIT_SECONDS = 1.0  # a sync after every unit would cost more than it saves
JOURNAL, SPOOL_SUFFIX = "journal.jsonl", ".tokens"
JOURNAL_BEGIN = b'{"version of prepare.py": '
MAX_JOURNAL_BYTES = 1 << 30


class Output:
    """Holds both splits, a document in segments, and all counters, as of one cursor in the input."""

    def __init__(self, folder: str, tokenizer: BytesTokenizer | JsonTokenizer, format: str, shard_tokens: int,
                 has_masks: bool) -> None:
        self.folder, self.width, self.eot = folder, tokenizer.width, eot_bytes(tokenizer)
        self.train = SplitWriter(folder, "train", format, shard_tokens, tokenizer.width, has_masks)
        self.val = SplitWriter(folder, "val", format, shard_tokens, tokenizer.width, has_masks)
        self.spool: Optional[BinaryIO] = None
        self.num_spools = 0
        self.spool_text_bytes = 0
        self.spool_is_replaced = False
        self.skipped = Skipped()
        self.separators = 0  # --split-on was found so often
        self.replaced = 0
        self.smallest, self.largest = 2**256, -1  # hashes; equal if there is one distinct document, this if none
        self.cursor = Cursor()
        self.position = 0

    def add(self, unit: Unit, result: Result, val_below: int) -> None:
        if unit.pieces[0].kind == "segment":
            self._add_segment(unit, result, val_below)
        else:
            self.train.add(result.train)
            self.val.add(result.val)
            self.replaced += result.replaced
            self._include(result.smallest, result.largest)
        self.skipped.include(result.skipped)
        self.separators += sum(piece.separators for piece in unit.pieces)
        self.cursor, self.position = unit.cursor, unit.position

    def _include(self, smallest: int, largest: int) -> None:
        self.smallest, self.largest = min(self.smallest, smallest), max(self.largest, largest)

    def _add_segment(self, unit: Unit, result: Result, val_below: int) -> None:
        """Spools the tokens in a file of their own, since the end of a document decides its split."""
        piece = unit.pieces[0]
        if self.spool is None:
            self.num_spools += 1
            self.spool = create_new(self._spool_path(), buffering=COPY_BYTES)
        self.spool.write(result.train.ids)
        self.spool_text_bytes += result.train.text_bytes
        self.spool_is_replaced |= result.replaced > 0
        if self.spool.tell() // self.width + 1 > MAX_TOKENS and not piece.is_binary:
            raise PrepareError(f"{piece.path} holds a document of more than {MAX_TOKENS - 1} tokens, which no shard "
                               "can hold, cut it into documents with --split-on or leave it out with --exclude")
        if not piece.is_last:
            return
        if piece.is_binary:
            self.skipped.add("binary", piece.path)
        elif not self.spool.tell():
            self.skipped.add("empty", piece.path)
        else:
            number = int.from_bytes(piece.digest, "big")
            self._include(number, number)
            self.replaced += self.spool_is_replaced
            (self.val if number < val_below else self.train).add_spooled(self.spool, self.eot, self.spool_text_bytes)
        self.spool.close()  # the file stays until a commit no longer needs it
        self.spool, self.spool_text_bytes, self.spool_is_replaced = None, 0, False

    def _spool_path(self) -> str:
        return os.path.join(self.folder, f"document-{self.num_spools}{SPOOL_SUFFIX}")

    def remove_old(self) -> None:
        """Removes files that the state does not need: finished spools, and files that were written after it."""
        kept = self.train.split.shards + self.val.split.shards
        if self.spool is not None:
            kept.append(os.path.basename(self._spool_path()))
        for name in os.listdir(self.folder):
            stem, suffix = os.path.splitext(name)
            is_ours = suffix in (".bin", ".mask", ".idx", LENGTHS_SUFFIX, SPOOL_SUFFIX)
            if is_ours and name not in kept and stem + ".bin" not in kept:
                os.remove(os.path.join(self.folder, name))

    def sync(self) -> None:
        self.train.sync()
        self.val.sync()
        if self.spool is not None:
            self.spool.flush()
            os.fsync(self.spool.fileno())

    def close(self) -> None:
        self.train.close()
        self.val.close()

    def abandon(self) -> None:
        self.train.abandon()
        self.val.abandon()
        if self.spool is not None:
            try:
                self.spool.close()
            except OSError:
                pass

    def state(self) -> dict:
        spool = None
        if self.spool is not None:
            spool = [self.spool.tell(), self.spool_text_bytes, self.spool_is_replaced]
        return {"cursor": list(self.cursor), "position": self.position, "train": self.train.state(),
                "val": self.val.state(), "spool": spool, "spools": self.num_spools,
                "skipped": dict(self.skipped.counts), "examples": self.skipped.examples,
                "separators": self.separators, "replaced": self.replaced,
                "smallest": str(self.smallest), "largest": str(self.largest)}

    def restore(self, state: dict) -> None:
        """Takes everything back to what state() returned. Raises ValueError or OSError where it cannot be so."""
        check_state(state)
        self.cursor, self.position = Cursor(*state["cursor"]), state["position"]
        self.train.restore(state["train"])
        self.val.restore(state["val"])
        self.num_spools = state["spools"]
        if state["spool"] is not None:
            size, self.spool_text_bytes, self.spool_is_replaced = state["spool"]
            self.spool = reopen(self._spool_path(), size)
        self.skipped, self.replaced = Skipped(state["skipped"], state["examples"]), state["replaced"]
        self.separators = state["separators"]
        self.smallest, self.largest = int(state["smallest"]), int(state["largest"])


# ---- Unfinished work ----


class Work:
    """OUTPUT.partial and its journal, which has a line with the command and one per commit; the last whole line counts.

    One process at a time owns the folder, by a lock on the journal.
    """

    def __init__(self, output: str) -> None:
        self.output = output
        self.folder = output + ".partial"
        path = os.path.join(self.folder, JOURNAL)
        try:
            os.makedirs(self.folder, exist_ok=True)
            if not stat.S_ISDIR(os.lstat(self.folder).st_mode):
                raise PrepareError(f"{self.folder} is a link, and what it names may be another's, remove it or choose "
                                   "another --output")
            with os.scandir(self.folder) as scan:
                items = sorted(scan, key=lambda item: item.name)
            foreign = [item.name for item in items if not is_prepared(item)]
            if not foreign and items and not os.path.lexists(path):
                foreign = [items[0].name]  # without a journal nothing says that these are of prepare.py
            if foreign:
                raise PrepareError(f"{self.folder} holds {foreign[0]}, which is no file of a stopped run, move that "
                                   "away or choose another --output")
            self.journal = open_own(path, os.O_CREAT | os.O_APPEND)
        except OSError as error:
            raise PrepareError(f"cannot make the folder {self.folder}: {error.strerror}, "
                               "choose another --output") from error
        try:
            fcntl.flock(self.journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.journal.close()
            raise PrepareError(f"another prepare.py is at work in {self.folder}, wait for it or choose another "
                               "--output") from error
        self.command: dict = {}
        self.state: Optional[dict] = None
        self.damage = ""  # why the run cannot go on with the journal
        self.last_commit = time.monotonic()
        self.num_spools = 0  # spools of Output that are removed
        try:
            self._read()
        except PrepareError:
            self.journal.close()
            raise

    def _read(self) -> None:
        self.journal.seek(0)
        first = self.journal.read(len(JOURNAL_BEGIN))
        if first != JOURNAL_BEGIN[:len(first)]:
            raise PrepareError(f"{self.folder} holds a {JOURNAL} that is none of prepare.py, move that away or choose "
                               "another --output")
        if os.fstat(self.journal.fileno()).st_size > MAX_JOURNAL_BYTES:
            self.damage = f"{JOURNAL} has more than {MAX_JOURNAL_BYTES} bytes"
            return
        self.journal.seek(0)
        command = state = None
        end = 0
        for line in self.journal:
            try:
                value = json.loads(line) if line.endswith(b"\n") else None
            except (ValueError, RecursionError):
                value = None
            if value is None:
                break
            end += len(line)
            if command is None:
                command = value
            else:
                state = value
        self.damage = self._damage(command, state)
        if isinstance(command, dict):
            self.command = command
        if not self.damage:
            self.journal.truncate(end)  # a kill or a full disk tore the rest
            self.state = state

    def _damage(self, command: object, state: object) -> str:
        if state is None:
            return ""  # nothing was committed
        border = command.get("val below") if isinstance(command, dict) else None
        if not isinstance(border, str) or not re.fullmatch("[0-9]{1,78}", border):
            return "the first line of its journal is no command"
        try:
            check_state(state)
        except ValueError as error:
            return str(error)
        return ""

    def begin(self, command: dict, keep: tuple[str, ...] = ()) -> None:
        """Begins anew: removes what is in the folder, and notes the command."""
        with os.scandir(self.folder) as scan:
            for item in list(scan):
                if item.name != JOURNAL and item.name not in keep:
                    os.remove(item.path)
        self.journal.truncate(0)
        self.command, self.state = command, None
        self._append(command)

    def commit(self, output: Output, is_due: bool = False) -> None:
        if not is_due and time.monotonic() - self.last_commit < COMMIT_SECONDS:
            return
        output.sync()
        self.state = output.state()
        self._append(self.state)
        if output.num_spools > self.num_spools:
            output.remove_old()
            self.num_spools = output.num_spools - (output.spool is not None)
        self.last_commit = time.monotonic()

    def _append(self, line: object) -> None:
        self.journal.write(json.dumps(line).encode() + b"\n")
        self.journal.flush()
        os.fsync(self.journal.fileno())

    def remove(self) -> None:
        """Removes the folder, its journal last: a folder without one is not taken for ours."""
        try:
            with os.scandir(self.folder) as scan:
                names = [item.name for item in scan if is_prepared(item) and item.name != JOURNAL]
            for name in [*names, JOURNAL]:
                os.remove(os.path.join(self.folder, name))
            os.rmdir(self.folder)
        except OSError:
            pass  # it can be removed by hand, or by the next run
        self.journal.close()

    def switch(self, overwrite: bool) -> None:
        """Puts the complete folder in place. The old one moves aside first and is deleted last."""
        check_output(self.output, overwrite)
        old = f"{self.output}.old-{os.getpid()}"
        if os.path.isdir(self.output) and os.listdir(self.output):
            os.rename(self.output, old)
        else:
            old = ""
        try:
            os.rename(self.folder, self.output)  # replaces an empty folder, and fails if it has just been filled
        except OSError:
            if old:
                os.rename(old, self.output)
            raise
        for name in os.listdir(self.output):
            if name == JOURNAL or name.endswith(LENGTHS_SUFFIX):
                os.remove(os.path.join(self.output, name))
        self.journal.close()
        if old:
            remove_old(old)


def write_file(folder: str, name: str, content: bytes) -> None:
    """Puts all of the content on the disk, or nothing."""
    path = os.path.join(folder, name)
    write_whole(path, content, path + ".bin")


def meta_json(output: Output, tokenizer: BytesTokenizer | JsonTokenizer, format: str, has_masks: bool) -> bytes:
    train, val = output.train.split, output.val.split
    meta: dict[str, object] = {"format": format, "dtype": dtype_of(format, tokenizer.width),
                               "tokenizer": tokenizer.name}
    if tokenizer.sha256 is not None:
        meta["tokenizer_sha256"] = tokenizer.sha256
    meta.update({
        "vocab_size": tokenizer.vocab_size,
        "eot_token": tokenizer.eot,
        "eot": tokenizer.eot_side,
        "bytes_per_token": (train.bytes + val.bytes) / (train.tokens + val.tokens),
    })
    if has_masks:
        meta["mask"] = True
    meta.update({"train": vars(train), "val": vars(val)})
    return (json.dumps(meta, indent=2) + "\n").encode()
