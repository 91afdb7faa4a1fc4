#!/usr/bin/env python3
"""Compare two runs step by step: the same bits, or within a tolerance. NaN never equals anything.

Reads log.jsonl of both run folders, and the tensors of the newest checkpoint that both have (weights and AdamW's
moments), also while they run. What depends on the clock (seconds, tokens per second) is left out. Exit code 0: equal;
1: they differ; 2: they could not be compared, for bad usage or input. Needs Python 3.9 or later and nothing else.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import math
import operator
import os
import pathlib
import re
import sys
from array import array
from dataclasses import dataclass
from typing import BinaryIO, Iterator, NoReturn, Optional

from support.messages import printable
from support.regular_files import open_regular, read_regular

FIELDS = ("loss", "val_loss", "hellaswag", "grad_norm", "lr", "tokens", "loss_scale", "skipped")
NEW_FIELDS = ("hellaswag",)  # logs of older versions do not have these

EXAMPLES = """\
examples:
  python3 scripts/compare_runs.py runs/a runs/b                       the same bits?
  python3 scripts/compare_runs.py runs/a runs/b --tolerance 1e-5      within 1e-5?

With a tolerance, |a - b| <= tolerance * max(|a|, |b|) must hold for each logged value, and the same for each tensor,
| | being the L2 norm.
"""


MAX_NUMBER = 2**63 - 1  # ./train counts in int64
MAX_LINE_BYTES = 1 << 20  # the lines of ./train have less than 1000
MAX_SHOWN = 1000  # characters of a message: text from a file may be longer


class CannotCompare(Exception):
    """Ends the program with one line on stderr and code 2."""


def shown(text: str) -> str:
    """Returns the text as a message shows it."""
    text = printable(text)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def distinct_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


def parse_json(data: bytes) -> object:
    """Raises ValueError, also for JSON outside the standard: NaN, or a key that stands twice."""
    try:
        return json.loads(data.decode("utf-8"), parse_constant=refuse_constant, object_pairs_hook=distinct_keys)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def count_of(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise ValueError(f"{value!r:.40} is no whole number from 0 to {MAX_NUMBER}")
    return value


# ---- Logs -----------------------------------------------------------------------------------------------------------


def number(value: object) -> Optional[float]:
    """Reads a logged value: ./train logs non-finite ones as strings, and null where a value does not apply."""
    if value is None or value in ("nan", "inf", "-inf"):
        return None if value is None else float(value)  # type: ignore[arg-type]
    if not isinstance(value, (bool, int, float)):
        raise ValueError(f"{value!r:.40} is no number")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise ValueError("a number is larger than any that is logged")
    return result


def read_log(run: pathlib.Path) -> dict[int, dict]:
    path = run / "log.jsonl"
    steps: dict[int, dict] = {}
    try:
        with open_regular(str(path)) as file:
            for index, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
                where = f"{path}, line {index}"
                try:
                    if len(line) > MAX_LINE_BYTES:
                        raise ValueError(f"it is longer than {MAX_LINE_BYTES} bytes")
                    entry = parse_json(line)
                    if not isinstance(entry, dict):
                        raise ValueError("it is no JSON object")
                    entry = {**dict.fromkeys(NEW_FIELDS), **entry}
                    missing = [field for field in ("step", *FIELDS) if field not in entry]
                    if missing:
                        raise ValueError(f"it has no {missing[0]}")
                    values = {field: number(entry[field]) for field in FIELDS}
                    step = count_of(entry["step"])
                except ValueError as error:
                    raise CannotCompare(f"{where}: no log line ({error}), was the run killed? Resume it first") \
                        from error
                if step in steps:
                    raise CannotCompare(f"{where}: step {step} stands there twice")
                steps[step] = values
    except OSError as error:
        raise CannotCompare(f"cannot read {path}: {error.strerror}, name a run folder") from error
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

CHUNK = 1 << 20  # elements are compared at a time: a checkpoint may be larger than memory
ELEMENT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4,
                 "U16": 2, "U8": 1, "BOOL": 1}
MAX_HEADER_BYTES = 100_000_000  # the safetensors library has this limit
ATTEMPTS = 20  # to open a checkpoint that both have: a run may remove its own meanwhile


@dataclass
class Entry:
    """A tensor in a safetensors file (8 bytes of header length, the header as JSON, the data)."""
    path: str
    file: BinaryIO
    dtype: str
    shape: list[int]
    begin: int  # in the file
    end: int


def read_header(path: str, file: BinaryIO) -> dict[str, Entry]:
    try:
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise ValueError("the header is longer than the file, or than any header")
        header = parse_json(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        entries = {name: read_entry(path, file, name, tensor, 8 + length)
                   for name, tensor in header.items() if name != "__metadata__"}
    except (OSError, ValueError) as error:
        raise CannotCompare(f"{path} is no whole safetensors file ({error}), resume the run, or compare others") \
            from error
    at = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            raise CannotCompare(f"{path} is no whole safetensors file ({name} begins at byte {entry.begin} and not at "
                                f"{at}, where the tensor before it ends), resume the run, or compare others")
        at = entry.end
    if at != size:
        raise CannotCompare(f"{path} is no whole safetensors file (it has {size} bytes, its tensors end at {at}), "
                            "resume the run, or compare others")
    return entries


def read_entry(path: str, file: BinaryIO, name: str, tensor: object, data: int) -> Entry:
    """`data` is where the tensors begin in the file."""
    keys = ("dtype", "shape", "data_offsets")
    if not isinstance(tensor, dict) or sorted(tensor) != sorted(keys):
        raise ValueError(f"{name} has not the keys dtype, shape and data_offsets alone")
    dtype, shape, offsets = (tensor[key] for key in keys)
    if not isinstance(dtype, str) or dtype not in ELEMENT_BYTES:
        raise ValueError(f"{name} has the dtype {dtype!r:.40}")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError(f"{name} has no shape, or not two data_offsets")
    num_bytes = math.prod(map(count_of, shape)) * ELEMENT_BYTES[dtype]
    begin, end = map(count_of, offsets)
    if end - begin != num_bytes:
        raise ValueError(f"{name} is {dtype} {shape}, which are {num_bytes} bytes, and has {end - begin}")
    return Entry(path, file, dtype, shape, data + begin, data + end)


@dataclass
class Tensor:
    """A tensor that one rank wrote whole, or in fragments, NAME[begin:end], in the files of several ranks."""
    dtype: str
    shape: list[int]  # of fragments: [number of elements]
    pieces: list[Entry]
    is_whole: bool

    def is_like(self, other: Tensor) -> bool:
        if self.dtype != other.dtype:
            return False
        if self.is_whole and other.is_whole:
            return self.shape == other.shape
        return math.prod(self.shape) == math.prod(other.shape)


def join_fragments(folder: str, entries: list[tuple[str, Entry]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    fragments: dict[str, list[tuple[int, int, Entry]]] = {}
    for name, entry in entries:
        match = re.fullmatch(r"(.+)\[([0-9]{1,18}):([0-9]{1,18})\]", name, re.DOTALL)
        if match:
            fragments.setdefault(match[1], []).append((int(match[2]), int(match[3]), entry))
        elif name in tensors:
            raise CannotCompare(f"{folder} has {name} twice")
        else:
            tensors[name] = Tensor(entry.dtype, entry.shape, [entry], True)
    for name, parts in fragments.items():
        parts.sort(key=lambda part: part[:2])
        at = 0
        for begin, end, entry in parts:
            if begin != at or entry.shape != [end - begin] or entry.dtype != parts[0][2].dtype or name in tensors:
                raise CannotCompare(f"{entry.path}: {name}[{begin}:{end}] does not fit the other fragments of {name}")
            at = end
        tensors[name] = Tensor(parts[0][2].dtype, [at], [entry for _, _, entry in parts], False)
    return tensors


def chunks(tensor: Tensor) -> Iterator[array]:
    values = array("f")
    for piece in tensor.pieces:
        piece.file.seek(piece.begin)
        left = piece.end - piece.begin
        while left > 0:
            size = min(left, 4 * (CHUNK - len(values)))
            data = piece.file.read(size)
            if len(data) != size:
                raise CannotCompare(f"{piece.path} became shorter while it was read")
            left -= size
            part = array("f")
            part.frombytes(data)
            if sys.byteorder == "big":
                part.byteswap()
            values.extend(part)
            if len(values) == CHUNK:
                yield values
                values = array("f")
    if values:
        yield values


def tensor_difference(a: Tensor, b: Tensor) -> tuple[bool, float]:
    """Returns whether the bits are the same and hold no NaN, and |a - b| / max(|a|, |b|) in the L2 norm."""
    is_same = True
    norm_a = norm_b = norm_difference = 0.0
    for x, y in zip(chunks(a), chunks(b)):  # both have as many elements, and so the same chunks
        norm_a += sum(map(operator.mul, x, x))
        norm_b += sum(map(operator.mul, y, y))
        if x.tobytes() != y.tobytes():
            is_same = False
            difference = list(map(operator.sub, x, y))
            norm_difference += sum(map(operator.mul, difference, difference))
    if not math.isfinite(norm_a + norm_b):
        return False, math.nan  # squares of float32 fit a double: something is not finite
    return is_same, math.sqrt(norm_difference / max(norm_a, norm_b)) if norm_difference else 0.0


def steps_with_checkpoint(run: pathlib.Path) -> dict[int, str]:
    """Finds folders named step-00001000; a folder that is being written or removed has another ending."""
    try:
        names = os.listdir(run / "checkpoints")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise CannotCompare(f"cannot look into {run / 'checkpoints'}: {error.strerror}") from error
    steps = {int(name[5:]): str(run / "checkpoints" / name) for name in names
             if re.fullmatch("step-[0-9]{8,19}", name) and name == f"step-{int(name[5:]):08}"}
    return {step: path for step, path in steps.items() if os.path.isdir(path)}


def open_checkpoint(folder: str, closing: contextlib.ExitStack) -> dict[str, BinaryIO]:
    """Opens all safetensors files of a checkpoint, so that a run that removes it now takes nothing from us.

    Raises FileNotFoundError if it was removed meanwhile (its folder is renamed before its files go)."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    closing.callback(os.close, number)
    files = {}
    for name in sorted(os.listdir(number)):
        if name.endswith(".safetensors"):
            try:
                files[name] = closing.enter_context(open_regular(name, number))
            except FileNotFoundError:
                raise
            except OSError as error:
                raise CannotCompare(f"cannot read {folder}/{name}: {error.strerror}") from error
    now, then = os.stat(folder), os.fstat(number)
    if (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino):
        raise FileNotFoundError(folder)
    return files


def compare_checkpoints(run_a: pathlib.Path, run_b: pathlib.Path, tolerance: float) -> tuple[str, list[str]]:
    """Returns what was compared, and the tensors that differ, the worst first."""
    had_common = False
    for _ in range(ATTEMPTS):
        a, b = steps_with_checkpoint(run_a), steps_with_checkpoint(run_b)
        if not a.keys() & b.keys():
            break
        had_common = True
        step = max(a.keys() & b.keys())
        with contextlib.ExitStack() as closing:
            try:
                files_a, files_b = open_checkpoint(a[step], closing), open_checkpoint(b[step], closing)
            except (FileNotFoundError, NotADirectoryError):
                continue  # it was removed: the runs may have a newer one
            except OSError as error:
                raise CannotCompare(f"cannot read the checkpoints of step {step}: {error.strerror}") from error
            return compare_files(step, (a[step], files_a), (b[step], files_b), tolerance)
    if had_common:
        raise CannotCompare("the runs remove their checkpoints faster than they are read, compare them when they have "
                            "ended, or let them keep more (checkpoint.keep)")
    return "no checkpoint in common" if a or b else "no checkpoint in common, since neither has one", []


def kind_of(file: str) -> str:
    """Returns "model" for "model-00000-of-00002.safetensors": runs of other numbers of ranks have other files."""
    match = re.fullmatch(r"(.+)-[0-9]{5,}-of-[0-9]{5,}\.safetensors", file)
    return match[1] if match else file


def compare_files(step: int, one: tuple[str, dict[str, BinaryIO]], other: tuple[str, dict[str, BinaryIO]],
                  tolerance: float) -> tuple[str, list[str]]:
    """Does what compare_checkpoints does, for one step; `one` and `other` are a folder and its open files."""
    (folder_a, files_a), (folder_b, files_b) = one, other
    if not files_a and not files_b:
        raise CannotCompare(f"{folder_a} and {folder_b} hold no safetensors file, so that no weights can be compared")
    differences: list[tuple[float, str]] = []
    num_tensors = 0
    kinds_a, kinds_b = set(map(kind_of, files_a)), set(map(kind_of, files_b))
    for file in sorted(files_a.keys() | files_b.keys()):
        if kind_of(file) in kinds_a ^ kinds_b:
            differences.append((math.inf, f"{file} is in one run alone"))
    for kind in sorted(kinds_a & kinds_b):
        tensors_a, tensors_b = (
            join_fragments(folder, [entry for file in sorted(files) if kind_of(file) == kind
                                    for entry in read_header(f"{folder}/{file}", files[file]).items()])
            for folder, files in (one, other))
        for name in sorted(tensors_a.keys() | tensors_b.keys()):
            num_tensors += 1
            x, y = tensors_a.get(name), tensors_b.get(name)
            if x is None or y is None:
                differences.append((math.inf, f"{name} is in one run alone"))
            elif not x.is_like(y):
                differences.append((math.inf, f"{name} is {x.dtype} {x.shape} and {y.dtype} {y.shape}"))
            elif x.dtype != "F32":
                raise CannotCompare(f"{x.pieces[0].path}: {name} is {x.dtype}, only F32 can be compared")
            else:
                is_same, relative = tensor_difference(x, y)
                if not (is_same or (tolerance > 0 and relative <= tolerance)):
                    what = "holds values that are not finite" if math.isnan(relative) else f"differs by {relative:.2e}"
                    differences.append((math.inf if math.isnan(relative) else relative, f"{name} {what}"))
    if not num_tensors and not differences:
        raise CannotCompare(f"the checkpoints of step {step} hold no tensors, so that no weights can be compared")
    differences.sort(key=lambda difference: -difference[0])
    lines = [f"checkpoint of step {step}: {text}" for _, text in differences]
    return f"{num_tensors} tensors of the checkpoint of step {step}", lines


def note_other_settings(run_a: pathlib.Path, run_b: pathlib.Path) -> None:
    """Says which fields of the resolved configs differ, which is often why the runs do."""
    def fields(value: object, path: str) -> dict[str, object]:
        if not isinstance(value, dict):
            return {path: value}
        return {key: leaf for name, inner in value.items() for key, leaf in fields(inner, f"{path}.{name}").items()}

    try:
        a, b = (fields(parse_json(read_regular(str(run / "config.json"), MAX_LINE_BYTES)), "")
                for run in (run_a, run_b))
    except (OSError, ValueError, RecursionError):
        return
    names = sorted(name[1:] for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    names = [name for name in names if name not in ("name", "run_dir")]
    if names:
        print(shown(f"note: the configs differ in {', '.join(names)}"))


# ---- The command line -----------------------------------------------------------------------------------------------


def show(differences: list[str]) -> None:
    for line in differences[:10]:
        print(shown(line))
    if len(differences) > 10:
        print(f"... and {len(differences) - 10} more")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"compare_runs: error: {shown(message)}, see --help\n")


def compare(args: argparse.Namespace) -> int:
    if not 0 <= args.tolerance < math.inf:
        raise CannotCompare(f"--tolerance is {args.tolerance}, it must be 0 or more")
    a, b = read_log(args.run_a), read_log(args.run_b)
    common = a.keys() & b.keys()
    if not common:
        raise CannotCompare("the runs have no step in common, so there is nothing to compare")
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


def main() -> int:
    parser = Parser(prog="compare_runs", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
                    description="Compare two runs step by step.", epilog=EXAMPLES)
    parser.add_argument("run_a", type=pathlib.Path, metavar="RUN_A")
    parser.add_argument("run_b", type=pathlib.Path, metavar="RUN_B")
    parser.add_argument("--tolerance", type=float, default=0.0, metavar="X",
                        help="relative difference that is still equal; 0, the default, wants the same bits")
    args = parser.parse_args()
    try:
        code = compare(args)
        sys.stdout.flush()
        return code
    except CannotCompare as error:
        message = f"could not compare: {error}"
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # nobody reads on, and there is nowhere to say so
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except Exception as error:  # 1 would say that the runs differ
        message = f"could not compare: internal fault: {type(error).__name__}: {error}, please report it"
    sys.stdout.flush()
    print(f"compare_runs: error: {shown(message)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
