"""Tests that run ./train and the scripts as a user does, from the repository's root:

    python3 -m unittest -v tests/scripts/test_train.py
"""
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRAIN = os.environ.get("INGOT_TRAIN_BINARY", str(ROOT / "train"))

sys.path.insert(0, str(ROOT / "scripts"))  # so that tests can import the modules that scripts import


def add_packages_of(venv: str) -> None:
    """Lets this process import the packages of a virtual environment in the root, where it has none of its own."""
    sys.path += [str(path) for path in (ROOT / venv).glob("lib/python3.*/site-packages")]
