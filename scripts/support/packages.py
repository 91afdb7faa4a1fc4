"""What a command does when this Python lacks a package that it needs."""
from __future__ import annotations

import os
import pathlib
import shlex
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"


def go_on_in_venv(script: pathlib.Path, missing: list[str]) -> str:
    """Starts the script again in the Python of .venv. If there is none, or this is it, returns the line for a shell
    that installs the missing packages there."""
    python = VENV / "bin/python"
    if python.exists() and pathlib.Path(sys.prefix).resolve() != VENV.resolve():
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(python, [str(python), str(script), *sys.argv[1:]])
    install = f".venv/bin/pip install {' '.join(missing)}"
    if not python.exists():
        install = f"python3 -m venv .venv && {install}"
    return f"cd {shlex.quote(str(ROOT))} && {install}"
