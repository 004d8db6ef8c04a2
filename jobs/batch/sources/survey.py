"""What a table looks like at its beginning: its columns, and the types its text is brought to in a whole run.

The types of the signature's columns follow from the signature, so that no row of a run is read
otherwise than the first. Those of columns that are merely kept follow from the first rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.batch.sources.opening import opened
from jobs.batch.sources.pieces import Piece, Reading
from kit.errors import InputError, nearest
from kit.images import FILE_COLUMN, ImageLayout, require_pillow
from kit.signature import Signature
from kit.tables import TableFile, require_columns

if TYPE_CHECKING:
    import pyarrow as pa

_LOOK_BYTES = 1 << 20
_LOOK_ROWS = 10_000
_TEXTUAL = ("csv", "jsonl")
_OF_DTYPE = {
    "float16": "double",
    "float32": "double",
    "float64": "double",
    "bool": "bool",
    "string": "string",
}
_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")  # 007 is a name, not a number
_NUMBER = re.compile(r"-?(0|[1-9]\d*|(?=\.\d))(\.\d*)?([eE][+-]?\d+)?")
_TRUTH = ("true", "false")


def survey(
    uri: str,
    files: Sequence[TableFile],
    *,
    signature: Signature,
    columns: Sequence[str] = (),
    layout: ImageLayout | None = None,
) -> Reading:
    """Look at the first rows of a table and settle how all of it is read.

    Args:
        uri: The table.
        files: Its files, sorted.
        signature: What the model needs.
        columns: Columns that are kept beside the answers.
        layout: How images become rows; None of tables.

    Raises:
        InputError: The table has no rows, or lacks a column; or a kept column of a JSON file holds objects.
        MissingDependencyError: Images need Pillow, which is not installed.
        UnavailableError: S3 does not answer or refuses.
    """
    needed = tuple(dict.fromkeys((*signature.columns, *columns)))
    if layout is not None:
        require_pillow()
        there = [layout.column, FILE_COLUMN, *([layout.label] if layout.label is not None else [])]
        for name in needed:
            if name not in there:
                raise InputError(f"images have no column {name!r}", hint=nearest(name, there))
        return Reading(uri, needed, {}, layout)
    empty: Reading | None = None
    for file in files:
        if not file.size_bytes:
            continue
        look = _look_at_text if file.format in _TEXTUAL else _look_at_types
        types, has_rows = look(uri, file, needed, signature)
        if has_rows:
            return Reading(uri, needed, types)
        empty = empty or (Reading(uri, needed, types) if set(needed) <= set(types) else None)
    if empty is None:
        name = f": {files[0].name} is empty" if files else ""
        raise InputError(f"{uri} holds no rows{name}", hint="name a table with rows")
    return empty


def _look_at_types(
    uri: str, file: TableFile, needed: Sequence[str], signature: Signature
) -> tuple[dict[str, str], bool]:
    """Give the types that text of the same columns in other files is brought to."""
    from pyarrow import parquet

    from jobs.batch.sources import ipc

    with opened(uri, file) as source:
        if file.format == "parquet":
            metadata = parquet.read_metadata(source)
            schema, has_rows = metadata.schema.to_arrow_schema(), metadata.num_rows > 0
        else:
            schema = ipc.read_schema(source)
            source.seek(0)
            rows = ipc.batch_rows(source)
            has_rows = rows is None or sum(rows) > 0
    if has_rows:
        require_columns(schema.names, needed, file=file)
    specs = {column: spec for spec in signature.inputs for column in spec.columns}
    types = {
        name: _type_for(specs[name].dtype, ()) if name in specs else _type_like(schema.field(name).type)
        for name in needed
        if name in schema.names
    }
    return types, has_rows


def _type_like(kind: pa.DataType) -> str:
    """Give the type of text that stands beside values of a type of their own."""
    import pyarrow as pa

    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind):
        return "int64"
    return "double" if pa.types.is_floating(kind) else "string"


def _look_at_text(
    uri: str, file: TableFile, needed: Sequence[str], signature: Signature
) -> tuple[dict[str, str], bool]:
    """Give the types that text is brought to."""
    cells = _csv_cells(uri, file, needed) if file.format == "csv" else _json_cells(uri, file, needed)
    if cells is None:
        return {}, False
    has_rows = any(cells.values())
    specs = {column: spec for spec in signature.inputs for column in spec.columns}
    types = {}
    for name, values in cells.items():
        present = [value for value in values if value is not None and value != ""]
        if name in specs:
            types[name] = _type_for(specs[name].dtype, present)
        else:
            types[name] = _type_of(name, present, file=file)
    return types, has_rows


def _csv_cells(uri: str, file: TableFile, needed: Sequence[str]) -> dict[str, list[Any]] | None:
    """Give the first cells of each wanted column, as text; None of a file of blank lines."""
    from jobs.batch.sources import delimited
    from jobs.batch.sources.reading import read

    with opened(uri, file) as source:
        header = delimited.read_header(source, name=file.name)
        if header is None:
            return None
        source.seek(header.end)
        has_rows = bool(source.read(_LOOK_BYTES).strip(b"\r\n"))
    if not has_rows:
        return {name: [] for name in needed if name in header.names}
    require_columns(header.names, needed, file=file)
    as_text = Reading(uri, tuple(needed), dict.fromkeys(needed, "string"), chunk_bytes=_LOOK_BYTES)
    for chunk in read(as_text, Piece(file)):
        if chunk.table.num_rows:
            return chunk.table.slice(0, _LOOK_ROWS).to_pydict()
    return {name: [] for name in needed}


def _json_cells(uri: str, file: TableFile, needed: Sequence[str]) -> dict[str, list[Any]] | None:
    """Give the first values of each wanted column; None of a file without an object."""
    from jobs.batch.sources.lines import blocks, split_lines

    rows: list[Mapping[str, Any]] = []
    with opened(uri, file) as source:
        for block in blocks(source, first=0, stop=file.size_bytes, block_bytes=_LOOK_BYTES):
            for line in split_lines(block.data, spaces_count=False)[:_LOOK_ROWS]:
                try:
                    row = json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError):  # refused when it is read
                    continue
                if isinstance(row, dict):
                    rows.append(row)
            if rows:
                break
    if not rows:
        return None
    there = {name for row in rows for name in row}
    require_columns(list(there), needed, file=file)
    return {name: [row.get(name) for row in rows] for name in needed}


def _type_for(dtype: str, values: Sequence[Any]) -> str:
    """Give the type of a column that feeds an input.

    Args:
        dtype: Of the input.
        values: The first values that are there: text, or what JSON gave.
    """
    if any(isinstance(value, list) for value in values):
        items = [item for value in values if isinstance(value, list) for item in value]
        return f"list<item: {_type_for(dtype, [item for item in items if item is not None])}>"
    if values and dtype != "string":
        if all(isinstance(value, str) and value.lstrip().startswith("[") for value in values):
            return "string"  # lists in text, which the signature reads
        truth = [value is True or value is False or str(value).strip().lower() in _TRUTH for value in values]
        digits = [not isinstance(value, bool) and value in (0, 1, "0", "1") for value in values]
        if dtype == "bool" and all(digits) and not isinstance(values[0], str):
            return "int64"  # JSON's 0 and 1, which are not its true and false
        if any(truth) and all(either or digit for either, digit in zip(truth, digits, strict=True)):
            return "bool"
    return _OF_DTYPE.get(dtype, "int64")


def _type_of(name: str, values: Sequence[Any], *, file: TableFile) -> str:
    """Give the type of a column that is only kept: a number's where each text is a number, else text's."""
    nested = next((value for value in values if isinstance(value, dict)), None)
    if nested is not None:
        raise InputError(
            f"column {name!r} of {file.name} holds objects, which cannot be kept", hint="leave the column out"
        )
    if any(isinstance(value, list) for value in values):
        return f"list<item: {_type_of(name, [item for value in values for item in value or ()], file=file)}>"
    if not values:
        return "string"
    if all(isinstance(value, bool) for value in values):
        return "bool"
    texts = [value if isinstance(value, str) else _spelled(value) for value in values]
    as_text = isinstance(values[0], str)
    if any(isinstance(value, str) != as_text for value in values):
        return "string"
    if as_text and file.format == "jsonl":
        return "string"
    if all(_WHOLE.fullmatch(text) for text in texts):
        return "int64"
    return "double" if all(_NUMBER.fullmatch(text) for text in texts) else "string"


def _spelled(value: Any) -> str:
    return "" if isinstance(value, bool) else repr(value)
