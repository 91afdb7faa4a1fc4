"""Tests that run ./train and the scripts as a user does, from the repository's root:

    python3 -m unittest -v tests/scripts/test_train.py
"""
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRAIN = os.environ.get("INGOT_TRAIN_BINARY", str(ROOT / "train"))

sys.path.insert(0, str(ROOT / "scripts"))  # so that tests can import the modules that scripts import


def run(*command, code=0, threads=1, **options):
    """Runs a command, which must end with `code`, and returns its result. Options: those of subprocess.run()."""
    result = subprocess.run([str(part) for part in command], capture_output=True,
                            env={**os.environ, "OMP_NUM_THREADS": str(threads)}, **options)
    if result.returncode != code:
        raise AssertionError(f"exit code {result.returncode}, not {code}: {' '.join(result.args)[:1000]}\n"
                             f"{result.stdout[-2000:]!s}\n{result.stderr[-2000:]!s}")
    return result


def set_options(assignments):
    """--set for each of them."""
    return [word for assignment in assignments for word in ("--set", assignment)]


def add_packages_of(venv: str) -> None:
    """Lets this process import the packages of a virtual environment in the root, where it has none of its own."""
    sys.path += [str(path) for path in (ROOT / venv).glob("lib/python3.*/site-packages")]
