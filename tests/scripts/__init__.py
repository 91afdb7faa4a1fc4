"""Tests that run ./train and the scripts as a user does, from the repository's root:

    python3 -m unittest -v tests/scripts/test_train.py
"""
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRAIN = os.environ.get("INGOT_TRAIN_BINARY", str(ROOT / "train"))

sys.path.insert(0, str(ROOT / "scripts"))  # so that tests can import the modules that scripts import
