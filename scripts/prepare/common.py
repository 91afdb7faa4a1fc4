"""All parts of prepare.py share these: errors, stop signals, messages, progress, packages that may be missing."""
from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from typing import TextIO

from support.packages import ROOT, go_on_in_venv

MB = 1e6
MAX_TOKENS = 2**31 - 1  # the header of a shard counts tokens in an int32
MAX_EXAMPLES = 3  # are named of the inputs that were skipped for one reason


class PrepareError(Exception):
    """Ends the run with one line on stderr; code 2: usage or input, code 1: a fault of the machine."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


class Interrupted(Exception):
    """A stop signal came; `advice` is what the user can do then."""
    advice = "the output was not touched, run again to start over"

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Stop:
    """Remembers a stop signal until the work asks for it.

    An exception raised by a signal handler could land anywhere, also between writing tokens and noting that they are
    written. Asking at safe points leaves no such gap, and a second Ctrl-C cannot break the cleaning up.
    """

    def __init__(self) -> None:
        self.signum = 0

    def install(self) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) != signal.SIG_IGN:  # nohup and background jobs ignore some on purpose
                signal.signal(signum, self._remember)

    def _remember(self, signum: int, _frame: object) -> None:
        self.signum = self.signum or signum

    def check(self) -> None:
        if self.signum:
            raise Interrupted(self.signum)


def tell(stream: TextIO, text: str) -> None:
    """Writes a message. A pipe that its reader has closed must not end a run that goes well."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def counted(number: int, noun: str) -> str:
    """Writes "1 document", "2 documents"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


class Progress:
    """Shows a bar on a terminal, a plain line every five seconds anywhere else, on stderr.

    Counts bytes of the input as they lie on the disk; those done by an earlier run count as done, but not as speed.
    """

    def __init__(self, total_bytes: int, done: int = 0) -> None:
        self.total = total_bytes
        self.done = self.first = done
        self.terminal = sys.stderr.isatty()
        self.interval = 0.1 if self.terminal else 5.0
        self.start = self.last = time.monotonic()

    def advance(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last >= self.interval:
            self.last = now
            self._show(now)

    def _show(self, now: float) -> None:
        speed = (self.done - self.first) / MB / max(now - self.start, 1e-9)
        text = f"{self.done / MB:.1f} of {self.total / MB:.1f} MB, {speed:.1f} MB/s"
        if self.done > self.first:
            left = round(max(0, self.total - self.done) / MB / max(speed, 1e-9))
            text += f", {left // 60}m{left % 60:02}s left"
        if self.terminal:
            filled = int(30 * min(1.0, self.done / max(self.total, 1)))
            tell(sys.stderr, f"\r[{'#' * filled}{'.' * (30 - filled)}] {text}\033[K")
        else:
            tell(sys.stderr, f"prepare: {text}\n")

    def finish(self) -> None:
        if self.terminal:
            tell(sys.stderr, "\r\033[K")


def require_packages(needed: dict[str, str]) -> None:
    """`needed` maps a package to what needs it. Where this Python lacks one, the command goes on in that of .venv, or
    is refused if there is none."""
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise PrepareError(f"{needed[missing[0]]} needs the Python package {missing[0]}, get it with:  "
                           f"{go_on_in_venv(ROOT / 'scripts/prepare.py', missing)}")
