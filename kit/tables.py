"""Tables: where rows come from, and how they become tensors.

Parquet, CSV, JSON Lines and Arrow IPC, one file, a folder or a pattern of them, on disk or on S3, all
through pyarrow. What a value may be is the signature's business, where files lie is ``kit.table_files``'s,
and pictures are ``kit.images``'s.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from kit.errors import InputError, nearest
from kit.signature import Signature
from kit.table_files import FORMATS, TableFile, list_files, open_file_system, reading, storage_error
from kit.tensors import Tensors

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "FORMATS",
    "TableFile",
    "list_files",
    "open_file_system",
    "read_file",
    "read_table",
    "reading",
    "require_columns",
    "storage_error",
    "to_tensors",
]

_log = logging.getLogger("kit")
_NULL_LINE = re.compile(rb"^[ \t\r]*null[ \t\r]*$", re.MULTILINE)


def read_table(uri: str, *, columns: Sequence[str] | None = None, strings: Sequence[str] = ()) -> pa.Table:
    """Read a whole table into memory.

    Files without rows among others are left out with a warning that names them.

    Args:
        uri: A file, a folder, or either on S3.
        columns: Columns to read; all when None.
        strings: Columns whose cells are strings, also where a CSV or JSON file shows ``01`` or a date.

    Raises:
        InputError: A file cannot be read, the files' columns differ, or all are without content.
        UnavailableError: S3 does not answer or refuses.
    """
    import pyarrow as pa

    files = list_files(uri)
    read = [(file, _read_rows(uri, file, columns=columns, strings=strings)) for file in files]
    kept = [(file, table) for file, table in read if table.num_rows]
    empty = [file.name for file, table in read if not table.num_rows]
    if not kept:  # their columns still make a table, which the caller may accept without rows
        kept = [(file, table) for file, table in read if table.num_columns]
    elif empty:
        more = ", ..." if len(empty) > 5 else ""
        _log.warning("skipped %d files without rows: %s%s", len(empty), ", ".join(empty[:5]), more)
    if not kept:
        raise InputError(f"{uri} holds no rows: {files[0].name} is empty", hint="name a table with rows")
    for file, table in kept:
        require_columns(table.column_names, columns, file=file)
    if columns is None:
        _require_same_columns(kept)
    tables = [table.select(list(columns)) if columns is not None else table for _, table in kept]
    _require_same_types([file for file, _ in kept], [table.schema for table in tables])
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(
            f"the files of {uri} cannot be put together: {error}",
            hint="store each column with one type in every file",
        ) from error


def _require_same_columns(kept: Sequence[tuple[TableFile, pa.Table]]) -> None:
    """Refuse a file that lacks a column of another: Arrow would fill it with nulls."""
    owner = {name: file for file, table in reversed(kept) for name in table.column_names}
    for file, table in kept:
        there = set(table.column_names)
        lacking = next((name for name in owner if name not in there), None)
        if lacking is not None:
            raise InputError(
                f"{file.name} has no column {lacking!r}, which {owner[lacking].name} has",
                hint="give every file the same columns, or move the file out of the folder",
            )


def _require_same_types(files: Sequence[TableFile], schemas: Sequence[pa.Schema]) -> None:
    """Refuse types of a column that Arrow cannot put together; whole and other numbers it can."""
    if len(set(schemas)) < 2:
        return
    for name in schemas[0].names:
        seen: dict[pa.DataType, TableFile] = {}
        for file, schema in zip(files, schemas, strict=True):
            kind = schema.field(name).type
            for other, earlier in seen.items():
                if kind != other and not _go_together(other, kind):
                    raise InputError(
                        f"column {name!r} holds values of type {other} in {earlier.name} and of type {kind} "
                        f"in {file.name}",
                        hint="store the column with one type in every file",
                    )
            seen.setdefault(kind, file)


def _go_together(first: pa.DataType, second: pa.DataType) -> bool:
    import pyarrow as pa

    schemas = [pa.schema([("column", kind)]) for kind in (first, second)]
    try:
        pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return False
    return True


def read_file(
    uri: str, file: TableFile, *, columns: Sequence[str] | None = None, strings: Sequence[str] = ()
) -> pa.Table:
    """Read one file of a table; see ``read_table``. One without any content has no columns."""
    table = _read_rows(uri, file, columns=columns, strings=strings)
    if not table.num_columns and not table.num_rows:
        return table
    require_columns(table.column_names, columns, file=file)
    return table.select(list(columns)) if columns is not None else table


def _read_rows(
    uri: str, file: TableFile, *, columns: Sequence[str] | None, strings: Sequence[str]
) -> pa.Table:
    """Read a file; of a file without content, a table without columns."""
    import pyarrow as pa
    from pyarrow import parquet

    if not file.size_bytes:
        return pa.table({})
    system, _ = open_file_system(uri, patient=True)
    with reading(uri, file):
        if file.format == "ipc":
            with system.open_input_file(file.path) as source:
                return _read_ipc(source, file, columns)
        if file.format == "parquet":
            with parquet.ParquetFile(file.path, filesystem=system) as opened:
                names = opened.schema_arrow.names
                if opened.metadata.num_rows:
                    require_columns(names, columns, file=file)  # before the bytes are read
                wanted = [name for name in columns if name in names] if columns is not None else None
                return opened.read(columns=wanted)
        with system.open_input_stream(file.path) as stream:
            if file.format == "csv":
                return _read_csv(stream, file, strings)
            return _read_jsonl(stream, strings)


def _read_ipc(source: Any, file: TableFile, columns: Sequence[str] | None) -> pa.Table:
    """Read an Arrow file, or the stream some programs write under the same suffix."""
    from pyarrow import ipc

    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    with ipc.open_file(source) if is_file else ipc.open_stream(source) as opened:
        names = opened.schema.names
        table = opened.read_all()
    if table.num_rows:
        require_columns(names, columns, file=file)
    table.validate(full=True)  # damaged offsets would be followed otherwise
    return table.select([name for name in columns if name in names]) if columns is not None else table


def _read_csv(stream: Any, file: TableFile, strings: Sequence[str]) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv

    options = csv.ConvertOptions(
        null_values=[""], strings_can_be_null=True, column_types=dict.fromkeys(strings, pa.string())
    )
    try:
        table = csv.read_csv(stream, convert_options=options)
    except pa.ArrowInvalid as error:
        if "Empty CSV file" in str(error):  # blank lines alone
            return pa.table({})
        raise
    for field in table.schema:
        if pa.types.is_binary(field.type):  # what Arrow makes of text that is not UTF-8
            raise InputError(
                f"{file.name}, column {field.name!r}: the text is not UTF-8", hint="save the file as UTF-8"
            )
    return table


def _read_jsonl(stream: Any, strings: Sequence[str]) -> pa.Table:
    import pyarrow as pa
    from pyarrow import json as jsonl

    content = stream.read()
    if not content.strip():
        return pa.table({})
    if _NULL_LINE.search(content):  # which ends the process in pyarrow 26
        raise pa.ArrowInvalid("JSON parse error: a line is null instead of an object")
    table = jsonl.read_json(BytesIO(content))
    # Arrow makes a timestamp of a string that looks like one. It is not told of all strings at
    # once, because it invents the columns that are not there.
    dates = [
        name
        for name in strings
        if name in table.column_names and pa.types.is_timestamp(table.schema.field(name).type)
    ]
    if not dates:
        return table
    options = jsonl.ParseOptions(explicit_schema=pa.schema([(name, pa.string()) for name in dates]))
    return jsonl.read_json(BytesIO(content), parse_options=options)


def to_tensors(table: pa.Table | pa.RecordBatch, signature: Signature) -> Tensors:
    """Make validated input tensors out of a table.

    Args:
        table: n_rows rows with at least the signature's columns.
        signature: Which columns make which tensor.

    Raises:
        InputError: A column is missing or of the wrong type, or a value is not allowed.
    """
    names = table.schema.names
    columns = {name: _to_numpy(name, table.column(name)) for name in signature.columns if name in names}
    if len(columns) < len(set(signature.columns)):
        columns |= dict.fromkeys(set(names) - set(columns))  # lets the error list what is there
    return signature.from_columns(columns)


def _to_numpy(name: str, column: Any) -> Any:
    """Give a column as numpy where that is exact, else as Python values."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):  # to combine a single chunk would copy it
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # no chunks at all
        column = pa.array([], column.type)
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if pa.types.is_boolean(kind) and column.null_count:
        return column.to_pylist()
    if pa.types.is_null(kind) or _is_text(kind):
        return column.to_pylist()
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _lists(name, column)
    if (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and not column.null_count:
        return np.from_dlpack(column)  # to_numpy would import pandas, 0.3 s of every worker's start
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return column.to_numpy(zero_copy_only=False)
    raise InputError(f"column {name!r} holds values of type {kind}; numbers, strings or lists are expected")


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _lists(name: str, column: Any) -> Any:
    import pyarrow.compute as pc

    if column.null_count:
        raise InputError(
            f"column {name!r}, row {pc.index(column.is_null(), True).as_py()}: a value is missing"
        )
    if not len(column):
        return []
    lengths = pc.list_value_length(column)
    width = lengths[0].as_py()
    uneven = pc.index(pc.equal(lengths, width), False).as_py()
    if uneven >= 0:
        raise InputError(f"column {name!r}, row {uneven}: {lengths[uneven]} values where row 0 has {width}")
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), width)


def require_columns(there: Sequence[str], columns: Sequence[str] | None, *, file: TableFile) -> None:
    """Refuse a file that lacks a column or has one twice.

    Args:
        there: Its columns.
        columns: Those that are needed; None for any.
        file: The file, for the message.

    Raises:
        InputError: A column is missing, or two have one name.
    """
    twice = next((name for name in there if there.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{file.name} has the column {twice!r} more than once", hint="rename one of them")
    for column in columns or ():
        if column not in there:
            raise InputError(f"{file.name} has no column {column!r}", hint=nearest(column, there))
