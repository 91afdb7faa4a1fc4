"""Reads the rows of a parquet file in batches of about a unit of work. Needs pyarrow."""
from __future__ import annotations

import json
from typing import Iterator, Optional

import pyarrow
import pyarrow.parquet

from support.regular_files import open_regular

from . import units
from .common import MB, PrepareError
from .files import InputFile
from .units import MAX_RECORD_BYTES, Cursor, Piece

MAX_BATCH_ROWS = 1 << 16


def broken(path: str, error: BaseException) -> PrepareError:
    what = " ".join(str(error).split()) or type(error).__name__
    return PrepareError(f"{path} is no whole parquet file ({what}), copy it again or leave it out with --exclude")


def open_parquet(file: InputFile, field: str, mask_field: Optional[str],
                 is_chat: bool = False) -> pyarrow.parquet.ParquetFile:
    """Checks that the columns are there and have a type that can be used. Raises OSError if the file cannot be
    opened."""
    with open_regular(file.path):
        pass  # an error of opening is another than one of the content
    try:
        parquet = pyarrow.parquet.ParquetFile(file.path, pre_buffer=False)
        schema = parquet.schema_arrow
    except (pyarrow.ArrowException, OSError) as error:
        raise broken(file.path, error) from error
    for name, option in ((field, "--field"), (mask_field, "--mask-field")):
        if name is not None and name not in schema.names:
            raise PrepareError(f"{file.path} has no column '{name}', choose one of its columns with {option}: "
                               f"{', '.join(schema.names)}")
        if name is not None and schema.names.count(name) > 1:
            raise PrepareError(f"{file.path} has {schema.names.count(name)} columns '{name}', rename all but one, or "
                               f"choose another column with {option}")
    column = schema.field(field).type
    types = pyarrow.types
    if is_chat:
        if not (holds_text(column) or types.is_list(column) or types.is_large_list(column)):
            raise PrepareError(f"column '{field}' of {file.path} is {column} and no list of messages, choose another "
                               "one with --field")
    elif not holds_text(column):
        raise PrepareError(f"column '{field}' of {file.path} is {column} and no text, choose another one with --field")
    return parquet


def holds_text(column: pyarrow.DataType) -> bool:
    """Returns whether the column has strings or bytes, in any layout of Arrow, or nulls alone, which have a type
    too."""
    types = pyarrow.types
    if types.is_dictionary(column):
        return holds_text(column.value_type)
    if isinstance(column, pyarrow.BaseExtensionType):
        return holds_text(column.storage_type)
    known = (types.is_null, types.is_string, types.is_large_string, types.is_binary, types.is_large_binary,
             getattr(types, "is_string_view", None), getattr(types, "is_binary_view", None))  # views: since pyarrow 16
    return any(is_kind is not None and is_kind(column) for is_kind in known)


def as_bytes(column: pyarrow.Array) -> list[Optional[bytes]]:
    """Returns the values of a column that holds_text()."""
    while not isinstance(column, pyarrow.NullArray):
        if isinstance(column, pyarrow.ExtensionArray):
            column = column.storage
        elif pyarrow.types.is_dictionary(column.type):
            column = column.dictionary.take(column.indices)
        else:
            break
    return column.cast(pyarrow.large_binary()).to_pylist()


def rows(file: InputFile, parquet: pyarrow.parquet.ParquetFile, field: str, mask_field: Optional[str],
         cursor: Cursor,
         is_chat: bool = False) -> Iterator[tuple[Piece, int, Optional[Cursor], int]]:
    """Yields pieces of kind rows from row cursor.offset on, as Reader's other sources do. With is_chat their data are
    records with the field and, where there are some, tools."""
    columns = [field] if mask_field in (None, field) else [field, mask_field]
    if is_chat and "tools" in parquet.schema_arrow.names and field != "tools":
        columns.append("tools")
    total = parquet.metadata.num_rows
    row = 0
    with parquet:
        for group in range(parquet.num_row_groups):
            metadata = parquet.metadata.row_group(group)
            if row + metadata.num_rows <= cursor.offset:
                row += metadata.num_rows
                continue
            bytes_per_row = max(1, metadata.total_byte_size // max(1, metadata.num_rows))
            batch_rows = max(1, min(MAX_BATCH_ROWS, units.UNIT_BYTES // bytes_per_row))
            batches = parquet.iter_batches(batch_rows, row_groups=[group], columns=columns, use_threads=False)
            while True:
                try:
                    batch = next(batches, None)
                    if batch is None:
                        break
                    texts, masks = _records(batch) if is_chat else _columns(batch, field, mask_field)
                except (pyarrow.ArrowException, OSError) as error:
                    raise broken(file.path, error) from error
                first, row = row, row + batch.num_rows
                skipped = max(0, cursor.offset - first)
                texts = [text or b"" for text in texts[skipped:]]
                masks = masks[skipped:] if masks is not None else None
                if any(len(text) > MAX_RECORD_BYTES for text in texts):
                    raise PrepareError(f"{file.path} holds a text of more than "
                                       f"{MAX_RECORD_BYTES / MB:.0f} MB in a row from {first + 1} to "
                                       f"{row}, cut it into several or leave the file out with --exclude")
                if texts:
                    data = list(map(json.loads, texts)) if is_chat else texts
                    piece = Piece("rows", file.path, data, first + skipped + 1, masks)
                    yield (piece, sum(map(len, texts)) + 64 * len(texts), Cursor(0, row),
                           file.size * row // max(1, total))


def _records(batch: pyarrow.RecordBatch) -> tuple[list[Optional[bytes]], None]:
    """Returns the records as JSON, in which a time or a decimal number is a string."""
    return [json.dumps(record, default=str).encode() for record in batch.to_pylist()], None


def _columns(batch: pyarrow.RecordBatch, field: str,
             mask_field: Optional[str]) -> tuple[list[Optional[bytes]], Optional[list]]:
    masks = None if mask_field is None else batch.column(batch.schema.get_field_index(mask_field)).to_pylist()
    return as_bytes(batch.column(batch.schema.get_field_index(field))), masks
