"""What may stand in OUTPUT and OUTPUT.partial: which files, and what a line of the journal holds."""
from __future__ import annotations

import os
import re
import sys

from .common import MAX_EXAMPLES, PrepareError, tell

MAX_SHARDS = 100_000  # five digits in the name keep the shards in order when sorted by name
MAX_COUNT = 1 << 62
# These stand beside a shard: its mask, Megatron's index, and the document indexes that ./train keeps there.
PREPARED_NAME = re.compile(r"meta\.json(\.bin)?|tokenizer\.json(\.bin)?|journal\.jsonl|document-[0-9]+\.tokens|"
                           r"(train|val)(-[0-9]{5})?\.(bin|mask|idx|docs|lengths|bin\.index)", re.ASCII)


def are_examples(value: object) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MAX_EXAMPLES and all(isinstance(name, str) for name in value)


def check_state(state: object) -> None:
    """Raises ValueError if a line of the journal is not what Output.state() gives."""
    count = (lambda value: type(value) is int and 0 <= value < MAX_COUNT)
    split = {"documents": count, "tokens": count, "bytes": count,
             "shards": lambda value: count(value) and value <= MAX_SHARDS,
             "open": lambda value: value is None or count(value)}
    number = (lambda value: isinstance(value, str) and re.fullmatch("-1|[0-9]{1,78}", value))
    known = {
        "cursor": lambda value: isinstance(value, list) and len(value) == 4 and all(map(count, value)),
        "position": count, "train": split, "val": split,
        "spool": lambda value: value is None or (isinstance(value, list) and len(value) == 3 and
                                                 all(map(count, value[:2])) and type(value[2]) is bool),
        "spools": count, "separators": count, "replaced": count, "smallest": number, "largest": number,
        "skipped": lambda value: isinstance(value, dict) and all(map(count, value.values())),
        "examples": lambda value: isinstance(value, dict) and all(map(are_examples, value.values())),
    }
    _check_fields(state, known)
    assert isinstance(state, dict)
    if state["skipped"].keys() != state["examples"].keys():
        raise ValueError("its examples are not of what was skipped")
    if any(side["open"] is not None and not side["shards"] for side in (state["train"], state["val"])):
        raise ValueError("it has an open shard among none")


def _check_fields(value: object, known: dict) -> None:
    if not isinstance(value, dict) or value.keys() != known.keys():
        raise ValueError("a line of its journal has not the keys of one")
    for key, is_right in known.items():
        if isinstance(is_right, dict):
            _check_fields(value[key], is_right)
        elif not is_right(value[key]):
            raise ValueError(f"'{key}' in its journal is {value[key]!r:.40}")


def is_prepared(item: "os.DirEntry[str]") -> bool:
    """Returns whether this program (or ./train) may have written the file, by its name: links and folders are not
    ours."""
    return PREPARED_NAME.fullmatch(item.name) is not None and item.is_file(follow_symlinks=False)


def check_output(output: str, overwrite: bool) -> None:
    """Refuses an output that stands in the way; called again before the switch, since a run may take hours."""
    if not os.path.lexists(output):
        return
    if not os.path.isdir(output):
        raise PrepareError(f"{output} is not a folder, choose another --output")
    try:
        with os.scandir(output) as scan:
            items = sorted(scan, key=lambda item: item.name)
    except OSError as error:
        raise PrepareError(f"cannot look into {output}: {error.strerror}, choose another --output") from error
    if items and not overwrite:
        raise PrepareError(f"{output} exists and is not empty, pass --overwrite to replace it or choose another "
                           "--output")
    if items and not any(item.name == "meta.json" for item in items):
        raise PrepareError(f"{output} holds no meta.json, so it was not prepared, and --overwrite leaves it alone, "
                           "move it away or choose another --output")
    for item in items:
        if not is_prepared(item):
            raise PrepareError(f"{output} holds {item.name}, which is no prepared file, so --overwrite leaves it "
                               "alone, move that away or choose another --output")


def remove_old(old: str) -> None:
    try:
        with os.scandir(old) as scan:
            for item in list(scan):
                if is_prepared(item):
                    os.remove(item.path)
        os.rmdir(old)
    except OSError as error:  # the new folder is in place, so this is no failure of the run
        tell(sys.stderr, f"prepare: the replaced folder is still at {old}: {error.strerror}\n")
