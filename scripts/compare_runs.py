#!/usr/bin/env python3
"""Compare two runs step by step: the same bits, or within a tolerance. NaN never equals anything.

Reads log.jsonl of both run folders and, where both have a checkpoint of their last common step, its tensors. What
depends on the clock (seconds, tokens per second) is left out. Exit code 0: equal; 1: they differ; 2: bad usage or input.
Needs Python 3.9 or later and nothing else.
"""
from __future__ import annotations

import argparse
import json
import math
import pathlib
import sys
from typing import NoReturn, Optional

FIELDS = ("loss", "val_loss", "grad_norm", "lr", "tokens", "loss_scale", "skipped")

EXAMPLES = """\
examples:
  python3 scripts/compare_runs.py runs/a runs/b                       the same bits?
  python3 scripts/compare_runs.py runs/a runs/b --tolerance 1e-5      relative difference of each value at most 1e-5
"""


def stop(message: str) -> NoReturn:
    print(f"compare_runs: error: {message}", file=sys.stderr)
    sys.exit(2)


def number(value: object) -> Optional[float]:
    """A logged value; non-finite ones are logged as strings, and None stands where a value does not apply."""
    return None if value is None else float(value)  # type: ignore[arg-type]


def read_log(run: pathlib.Path) -> dict[int, dict]:
    path = run / "log.jsonl"
    steps: dict[int, dict] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        stop(f"cannot read {path}: {error.strerror}, name a run folder")
    for index, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            values = {field: number(entry.get(field)) for field in FIELDS}
            step = int(entry["step"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            stop(f"{path}, line {index}: no log line ({error}), was the run killed? Resume it first")
        if step in steps:
            stop(f"{path}, line {index}: step {step} stands there twice")
        steps[step] = values
    return steps


def equal(a: Optional[float], b: Optional[float], tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    if tolerance == 0:
        return a == b and math.copysign(1, a) == math.copysign(1, b)
    return abs(a - b) <= tolerance * max(abs(a), abs(b)) if math.isfinite(a) and math.isfinite(b) else False


def compare_logs(a: dict[int, dict], b: dict[int, dict], tolerance: float) -> list[str]:
    differences = []
    for step in sorted(a.keys() & b.keys()):
        for field in FIELDS:
            if not equal(a[step][field], b[step][field], tolerance):
                differences.append(f"step {step}: {field} is {a[step][field]!r} and {b[step][field]!r}")
    return differences


def compare_checkpoints(a: pathlib.Path, b: pathlib.Path, step: int) -> tuple[int, list[str]]:
    """How many files were compared, and those whose bytes differ."""
    name = pathlib.Path("checkpoints") / f"step-{step:08}"
    files = {path.name for run in (a, b) for path in (run / name).glob("*.safetensors")}
    if not ((a / name).is_dir() and (b / name).is_dir()):
        return 0, []
    differences = []
    for file in sorted(files):
        one, other = a / name / file, b / name / file
        if not (one.exists() and other.exists()) or one.read_bytes() != other.read_bytes():
            differences.append(f"step {step}: {file} differs")
    return len(files), differences


def main() -> int:
    parser = argparse.ArgumentParser(prog="compare_runs", formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description="Compare two runs step by step.", epilog=EXAMPLES)
    parser.add_argument("run_a", type=pathlib.Path, metavar="RUN_A")
    parser.add_argument("run_b", type=pathlib.Path, metavar="RUN_B")
    parser.add_argument("--tolerance", type=float, default=0.0, metavar="X",
                        help="relative difference that is still equal; 0, the default, wants the same bits")
    args = parser.parse_args()
    if not args.tolerance >= 0:
        stop(f"--tolerance is {args.tolerance}, it must be 0 or more")
    a, b = read_log(args.run_a), read_log(args.run_b)
    common = sorted(a.keys() & b.keys())
    if not common:
        stop("the runs have no step in common")
    differences = compare_logs(a, b, args.tolerance)
    num_files = 0
    if args.tolerance == 0:
        num_files, found = compare_checkpoints(args.run_a, args.run_b, common[-1])
        differences += found
    for line in differences[:10]:
        print(line)
    if len(differences) > 10:
        print(f"... and {len(differences) - 10} more")
    left_out = len(a.keys() ^ b.keys())
    what = f"{len(common)} common steps" + (f", {num_files} checkpoint files" if num_files else "")
    what += f", {left_out} steps in one run alone" if left_out else ""
    print(f"{'differ' if differences else 'equal'}: {what}")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
