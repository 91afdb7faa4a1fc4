#!/usr/bin/env python3
"""Compare two runs step by step: the same bits, or within a tolerance. NaN never equals anything.

Reads log.jsonl of both run folders, and the tensors of the newest checkpoint that both have (weights and AdamW's
moments). What depends on the clock (seconds, tokens per second) is left out. Exit code 0: equal; 1: they differ; 2: bad
usage or input. Needs Python 3.9 or later and nothing else.
"""
from __future__ import annotations

import argparse
import json
import math
import operator
import pathlib
import sys
from array import array
from dataclasses import dataclass
from typing import BinaryIO, Iterator, NoReturn, Optional

FIELDS = ("loss", "val_loss", "grad_norm", "lr", "tokens", "loss_scale", "skipped")

EXAMPLES = """\
examples:
  python3 scripts/compare_runs.py runs/a runs/b                       the same bits?
  python3 scripts/compare_runs.py runs/a runs/b --tolerance 1e-5      within 1e-5?

With a tolerance, |a - b| <= tolerance * max(|a|, |b|) must hold for each logged value, and the same for each tensor,
| | being the L2 norm.
"""


def stop(message: str) -> NoReturn:
    print(f"compare_runs: error: {message}", file=sys.stderr)
    sys.exit(2)


def number(value: object) -> Optional[float]:
    """A logged value; non-finite ones are logged as strings, and None stands where a value does not apply."""
    return None if value is None else float(value)  # type: ignore[arg-type]


# ---- Logs -----------------------------------------------------------------------------------------------------------


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


# ---- Checkpoints ----------------------------------------------------------------------------------------------------

CHUNK = 1 << 20  # elements at a time: a checkpoint may be larger than memory


@dataclass
class Entry:
    """A tensor in a safetensors file (8 bytes of header length, the header as JSON, the data)."""
    path: pathlib.Path
    dtype: str
    shape: list[int]
    begin: int  # in the file
    end: int


def read_header(path: pathlib.Path) -> dict[str, Entry]:
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if length > size - 8:
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(length))
        entries = {}
        for name, tensor in header.items():
            if name == "__metadata__":
                continue
            begin, end = (8 + length + int(offset) for offset in tensor["data_offsets"])
            if not 8 + length <= begin <= end <= size:
                raise ValueError(f"{name} reaches beyond the file")
            entries[name] = Entry(path, tensor["dtype"], tensor["shape"], begin, end)
        return entries
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        stop(f"{path} is no whole safetensors file ({error}), resume the run, or compare others")


def chunks(file: BinaryIO, entry: Entry) -> Iterator[array]:
    file.seek(entry.begin)
    left = entry.end - entry.begin
    while left > 0:
        data = file.read(min(left, 4 * CHUNK))
        if not data:
            stop(f"{entry.path} became shorter while it was read")
        left -= len(data)
        values = array("f")
        values.frombytes(data)
        if sys.byteorder == "big":
            values.byteswap()
        yield values


def tensor_difference(a: Entry, b: Entry) -> tuple[bool, float]:
    """Whether the bits are the same and hold no NaN, and |a - b| / max(|a|, |b|) in the L2 norm."""
    is_same = True
    norm_a = norm_b = norm_difference = 0.0
    with open(a.path, "rb") as file_a, open(b.path, "rb") as file_b:
        for x, y in zip(chunks(file_a, a), chunks(file_b, b)):
            norm_a += sum(map(operator.mul, x, x))
            if x.tobytes() == y.tobytes():
                norm_b += sum(map(operator.mul, y, y))
                continue
            is_same = False
            norm_b += sum(map(operator.mul, y, y))
            difference = list(map(operator.sub, x, y))
            norm_difference += sum(map(operator.mul, difference, difference))
    if not math.isfinite(norm_a + norm_b):
        return False, math.nan  # squares of float32 fit a double: something is not finite
    return is_same, math.sqrt(norm_difference / max(norm_a, norm_b)) if norm_difference else 0.0


def steps_with_checkpoint(run: pathlib.Path) -> dict[int, pathlib.Path]:
    """Folders named step-00001000; those being written have another ending."""
    folders = (run / "checkpoints").glob("step-*")
    return {int(path.name[5:]): path for path in folders if path.name[5:].isdigit() and path.is_dir()}


def compare_checkpoints(run_a: pathlib.Path, run_b: pathlib.Path, tolerance: float) -> tuple[str, list[str]]:
    """What was compared, and the tensors that differ, the worst first."""
    a, b = steps_with_checkpoint(run_a), steps_with_checkpoint(run_b)
    if not a.keys() & b.keys():
        return "no checkpoint in common", []
    step = max(a.keys() & b.keys())
    files = sorted({path.name for folder in (a[step], b[step]) for path in folder.glob("*.safetensors")})
    differences: list[tuple[float, str]] = []
    num_tensors = 0
    for file in files:
        if not all((folder / file).exists() for folder in (a[step], b[step])):
            differences.append((math.inf, f"{file} is in one run alone"))
            continue
        one, other = read_header(a[step] / file), read_header(b[step] / file)
        for name in sorted(one.keys() | other.keys()):
            num_tensors += 1
            x, y = one.get(name), other.get(name)
            if x is None or y is None:
                differences.append((math.inf, f"{name} is in one run alone"))
            elif (x.dtype, x.shape) != (y.dtype, y.shape):
                differences.append((math.inf, f"{name} is {x.dtype} {x.shape} and {y.dtype} {y.shape}"))
            elif x.dtype != "F32":
                stop(f"{x.path}: {name} is {x.dtype}, only F32 can be compared")
            else:
                is_same, relative = tensor_difference(x, y)
                if not (is_same or (tolerance > 0 and relative <= tolerance)):
                    what = "holds values that are not finite" if math.isnan(relative) else f"differs by {relative:.2e}"
                    differences.append((math.inf if math.isnan(relative) else relative, f"{name} {what}"))
    differences.sort(key=lambda difference: -difference[0])
    lines = [f"checkpoint of step {step}: {text}" for _, text in differences]
    return f"{num_tensors} tensors of the checkpoint of step {step}", lines


def note_other_settings(run_a: pathlib.Path, run_b: pathlib.Path) -> None:
    """Says which fields of the resolved configs differ: often the answer to why the runs do."""
    def fields(value: object, path: str) -> dict[str, object]:
        if not isinstance(value, dict):
            return {path: value}
        return {key: leaf for name, inner in value.items() for key, leaf in fields(inner, f"{path}.{name}").items()}

    try:
        a, b = (fields(json.loads((run / "config.json").read_text(encoding="utf-8")), "") for run in (run_a, run_b))
    except (OSError, ValueError):
        return
    names = sorted(name[1:] for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    names = [name for name in names if name not in ("name", "run_dir")]
    if names:
        print(f"note: the configs differ in {', '.join(names)}")


# ---- The command line -----------------------------------------------------------------------------------------------


def show(differences: list[str]) -> None:
    for line in differences[:10]:
        print(line)
    if len(differences) > 10:
        print(f"... and {len(differences) - 10} more")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        stop(f"{message}, see --help")


def main() -> int:
    parser = Parser(prog="compare_runs", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
                    description="Compare two runs step by step.", epilog=EXAMPLES)
    parser.add_argument("run_a", type=pathlib.Path, metavar="RUN_A")
    parser.add_argument("run_b", type=pathlib.Path, metavar="RUN_B")
    parser.add_argument("--tolerance", type=float, default=0.0, metavar="X",
                        help="relative difference that is still equal; 0, the default, wants the same bits")
    args = parser.parse_args()
    if not 0 <= args.tolerance < math.inf:
        stop(f"--tolerance is {args.tolerance}, it must be 0 or more")
    a, b = read_log(args.run_a), read_log(args.run_b)
    common = a.keys() & b.keys()
    if not common:
        stop("the runs have no step in common, so there is nothing to compare")
    logs = compare_logs(a, b, args.tolerance)
    compared, checkpoints = compare_checkpoints(args.run_a, args.run_b, args.tolerance)
    show(logs)
    show(checkpoints)
    differs = bool(logs or checkpoints)
    if differs:
        note_other_settings(args.run_a, args.run_b)
    left_out = len(a.keys() ^ b.keys())
    print(f"{'differ' if differs else 'equal'}: {len(common)} common steps, {compared}"
          + (f", {left_out} steps in one run alone" if left_out else ""))
    return 1 if differs else 0


if __name__ == "__main__":
    sys.exit(main())
