"""Tables: where rows come from, and how they become tensors.

Parquet, CSV and JSON Lines, one file or a folder of them, on disk or on S3, all through
pyarrow. What a value may be is the signature's business, and pictures are ``kit.images``'s.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kit.errors import InputError, MissingDependencyError, UnavailableError, install_line, nearest
from kit.signature import Signature, Tensors

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import fs

#: File suffix to the format it means.
FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl"}
_log = logging.getLogger("kit")


@dataclass(frozen=True)
class TableFile:
    """One file of a table.

    Attributes:
        path: As the file system names it.
        name: Relative to the table, for messages and fingerprints.
        format: A value of ``FORMATS``, or ``image``.
        size_bytes: Its size.
    """

    path: str
    name: str
    format: str
    size_bytes: int


def open_file_system(uri: str) -> tuple[fs.FileSystem, str]:
    """Find the file system a place belongs to.

    Args:
        uri: A local path, or ``s3://bucket/key``.

    Returns:
        The file system, and the place as it names it.

    Raises:
        InputError: The scheme is neither a path nor s3.
    """
    try:
        from pyarrow import fs
    except ImportError as error:
        raise MissingDependencyError(
            "tables need pyarrow, which is not installed", hint=install_line("cluster")
        ) from error
    if uri.startswith("s3://"):
        if "?" in uri:
            raise InputError(
                f"{uri!r} holds a '?'; a table's address has no query",
                hint="set AWS_ENDPOINT_URL and AWS_REGION in the environment instead",
            )
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        if not bucket or key.startswith("/"):
            raise InputError(f"{uri!r} names no bucket and key", hint="write s3://bucket/folder/file")
        scheme, endpoint = _s3_endpoint()
        system = fs.S3FileSystem(
            endpoint_override=endpoint, scheme=scheme, connect_timeout=5, request_timeout=30
        )
        return system, f"{bucket}/{key}".rstrip("/")
    if "://" in uri:
        raise InputError(f"{uri!r} is neither a path nor an s3:// address")
    return fs.LocalFileSystem(), str(Path(uri).expanduser())


def _s3_endpoint() -> tuple[Literal["http", "https"], str | None]:
    """Read the variables boto3 reads; pyarrow's S3FileSystem looks at neither."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not url:
        return "https", None
    scheme, _, host = url.partition("://")
    if scheme not in ("http", "https") or not host:  # not shown: it may hold a password
        raise InputError(
            "the S3 endpoint that was configured is not a URL",
            hint="set AWS_ENDPOINT_URL to http(s)://host:port",
        )
    return "http" if scheme == "http" else "https", host.rstrip("/")


def list_files(uri: str, *, formats: Mapping[str, str] = FORMATS) -> tuple[TableFile, ...]:
    """List a table's files, sorted by name.

    Args:
        uri: A file, a folder, or either on S3.
        formats: File suffix to format; other files are passed over, and so are tables below a name
            that starts with ``.`` or ``_`` and images below one that starts with ``.``.

    Raises:
        InputError: Nothing is there, or nothing in it is a table.
        UnavailableError: S3 does not answer or refuses.
    """
    import pyarrow as pa
    from pyarrow import fs

    system, root = open_file_system(uri)
    try:
        info = system.get_file_info(root)
        if info.type == fs.FileType.Directory:
            found = system.get_file_info(fs.FileSelector(root, recursive=True))
        else:
            found = [info] if info.type == fs.FileType.File else []
    except OSError as error:
        raise storage_error(uri, error) from error
    except pa.ArrowInvalid as error:  # for one, a NUL in the name
        raise InputError(f"{uri!r} is no place of a table: {str(error)[:100]!r}") from error
    files = []
    for entry in sorted(found, key=lambda item: item.path):
        name = entry.path[len(root) :].lstrip("/") or entry.base_name
        kind = _format(entry.extension, formats)
        marks = (".",) if kind == "image" else (".", "_")  # a class may well be called _noise
        hidden = any(part.startswith(marks) for part in name.split("/"))
        if entry.type == fs.FileType.File and not hidden and kind is not None:
            files.append(TableFile(entry.path, name, kind, entry.size))
    if not files:
        if uri.startswith("s3://") and info.type == fs.FileType.NotFound:
            _require_bucket(system, uri)
        what = "does not exist" if info.type == fs.FileType.NotFound else "holds no table"
        if "image" in formats.values() and what == "holds no table":
            what = "holds neither a table nor an image"
        raise InputError(f"{uri} {what}", hint=f"name a file or folder of {', '.join(formats)}")
    return tuple(files)


def _format(extension: str, formats: Mapping[str, str]) -> str | None:
    lower = formats.get(f".{extension.lower()}")
    return lower if lower == "image" else formats.get(f".{extension}")  # cameras write .JPG


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
        _require(table.column_names, columns, file)
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
    _require(table.column_names, columns, file)
    return table.select(list(columns)) if columns is not None else table


def _read_rows(
    uri: str, file: TableFile, *, columns: Sequence[str] | None, strings: Sequence[str]
) -> pa.Table:
    """Read a file; of a file without content, a table without columns."""
    import pyarrow as pa
    from pyarrow import parquet

    if not file.size_bytes:
        return pa.table({})
    system, _ = open_file_system(uri)
    with reading(uri, file):
        if file.format == "parquet":
            with parquet.ParquetFile(file.path, filesystem=system) as opened:
                names = opened.schema_arrow.names
                if opened.metadata.num_rows:
                    _require(names, columns, file)  # before the bytes are read
                wanted = [name for name in columns if name in names] if columns is not None else None
                return opened.read(columns=wanted)
        with system.open_input_stream(file.path) as stream:
            if file.format == "csv":
                return _read_csv(stream, file, strings)
            return _read_jsonl(stream, strings)


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


@contextlib.contextmanager
def reading(uri: str, file: TableFile) -> Iterator[None]:
    """Give what pyarrow raises while it reads a file as one sentence that names the file.

    Args:
        uri: The table the file belongs to.
        file: The file.

    Raises:
        InputError: Its content cannot be read.
        UnavailableError: S3 does not answer or refuses.
    """
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{file.name} cannot be read as {file.format}: {error}") from error
    except OSError as error:
        if "AWS Error" not in str(error) and file.format == "parquet":  # damaged pages are OSErrors too
            raise InputError(
                f"{uri} ({file.name}) cannot be read: {' '.join(str(error)[:300].split())}"
            ) from error
        raise storage_error(f"{uri} ({file.name})", error) from error


def _read_jsonl(stream: Any, strings: Sequence[str]) -> pa.Table:
    import pyarrow as pa
    from pyarrow import json as jsonl

    content = stream.read()
    if not content.strip():
        return pa.table({})
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

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # no chunks at all
        column = pa.array([], column.type)
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if pa.types.is_boolean(kind) and column.null_count:
        return column.to_pylist()
    if pa.types.is_null(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column.to_pylist()
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _lists(name, column)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return column.to_numpy(zero_copy_only=False)
    raise InputError(f"column {name!r} holds values of type {kind}; numbers, strings or lists are expected")


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


def _require(there: Sequence[str], columns: Sequence[str] | None, file: TableFile) -> None:
    twice = next((name for name in there if there.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{file.name} has the column {twice!r} more than once", hint="rename one of them")
    for column in columns or ():
        if column not in there:
            raise InputError(f"{file.name} has no column {column!r}", hint=nearest(column, there))


def _require_bucket(system: fs.FileSystem, uri: str) -> None:
    """Tell a bucket that is not there from a key that is not in it, which Arrow calls the same."""
    from pyarrow import fs

    bucket = uri.removeprefix("s3://").partition("/")[0]
    try:
        there = system.get_file_info(bucket).type != fs.FileType.NotFound
    except OSError as error:
        raise storage_error(uri, error) from error
    if not there:
        raise _no_bucket(uri)


def _no_bucket(uri: str) -> UnavailableError:
    return UnavailableError(f"{uri}: the bucket does not exist", hint="make the bucket or correct its name")


def storage_error(uri: str, error: OSError) -> UnavailableError | InputError:
    """Give what a file system raised as one sentence: who must act, and on what.

    Args:
        uri: The place that was read or written.
        error: What pyarrow raised there.
    """
    text = str(error)
    if not uri.startswith("s3://"):
        return InputError(f"{uri} cannot be read: {text[:300]}")
    if "NO_SUCH_BUCKET" in text or "NoSuchBucket" in text:
        return _no_bucket(uri)
    if "ACCESS_DENIED" in text or "403" in text or "credential" in text.lower():
        return UnavailableError(
            f"{uri}: S3 refuses access",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        )
    return UnavailableError(
        f"{uri}: S3 does not answer: {text[:200]}", hint="check the network and AWS_ENDPOINT_URL"
    )
