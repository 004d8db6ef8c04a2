"""JSON Lines: one object a line; a line that is none is refused by itself.

Blocks of whole lines go through pyarrow. Where it fails, and where a line may be something it cannot take,
Python looks at every line of the block, and pyarrow reads those that are objects with values of the types.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import json as arrow_json

from jobs.batch.sources.cells import TYPES
from jobs.batch.sources.lines import Cut, blocks, cuts, n_lines_from, split_lines
from jobs.batch.sources.pieces import Chunk, Piece, Reading, Refused
from kit.errors import InputError, nearest

_BOM = b"\xef\xbb\xbf"
_LIST = re.compile(r"list<(?:item|element): (.+)>")
# pyarrow 26 ends the process over a bare null, and takes several objects of one line for several rows.
_MORE = re.compile(rb"\}[ \t]*[^,\]}\s]")
_KINDS = {"int64": "a whole number", "double": "a number", "bool": "true or false", "string": "a string"}


def arrow_type(text: str) -> pa.DataType:
    """Give the type a plan names, lists included; what it does not know is text."""
    inner = _LIST.fullmatch(text)
    return pa.list_(arrow_type(inner[1])) if inner else TYPES.get(text, pa.string())


def find_cuts(source: Any, *, size_bytes: int, every_bytes: int) -> tuple[list[Cut], int] | None:
    """Find where a file may be cut."""
    return cuts(source, first=0, stop=size_bytes, every_bytes=every_bytes, spaces_count=False)


def read_jsonl(reading: Reading, piece: Piece, *, source: Any) -> Iterator[Chunk]:
    """Read a piece of a JSON Lines file; see ``jobs.batch.sources.read``."""
    stop = piece.file.size_bytes if piece.length is None else piece.first + piece.length
    row, looked = piece.row, piece.first > 0
    for block in blocks(source, first=piece.first, stop=stop, block_bytes=reading.chunk_bytes):
        data = block.data.removeprefix(_BOM) if block.first == 0 else block.data
        chunk = _parse(reading, piece, data=data, row=row)
        if not looked and chunk.table.num_rows:
            _require_keys(reading, piece, chunk.table, data=data)
            looked = True
        row += chunk.table.num_rows + len(chunk.refused)
        yield chunk


def _parse(reading: Reading, piece: Piece, *, data: bytes, row: int) -> Chunk:
    schema = pa.schema([(name, arrow_type(reading.types.get(name, "string"))) for name in reading.columns])
    n_rows = n_lines_from(data, mark=b"{")
    if n_rows is not None and not _MORE.search(data):
        if not n_rows:
            return Chunk(schema.empty_table(), piece.file.name, np.empty(0, dtype=np.int64))
        try:
            table = _table(data, schema)
            if table.num_rows == n_rows:
                return Chunk(table, piece.file.name, np.arange(row, row + n_rows, dtype=np.int64))
        except pa.ArrowInvalid:  # below it is found out which lines are to blame
            pass
    lines = split_lines(data, spaces_count=False)
    reasons: dict[int, str] = {}
    good: list[tuple[int, bytes]] = []
    for index, line in enumerate(lines):
        checked = _checked(line, types=reading.types, columns=reading.columns)
        if isinstance(checked, str):
            reasons[index] = checked
        else:
            good.append((index, checked))
    tables = list(_bisected(good, schema, reasons))
    table = pa.concat_tables(tables).combine_chunks() if tables else schema.empty_table()
    rows = np.setdiff1d(np.arange(len(lines), dtype=np.int64), np.array(list(reasons), dtype=np.int64))
    refused = tuple(
        Refused(
            piece.file.name,
            row + index,
            reasons[index],
            {"line": lines[index].decode("utf-8", "backslashreplace")},
        )
        for index in sorted(reasons)
    )
    return Chunk(table, piece.file.name, row + rows, refused)


def _table(data: bytes, schema: pa.Schema) -> pa.Table:
    table = arrow_json.read_json(
        BytesIO(data),
        read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )
    table.validate(full=True)  # pyarrow does not look whether strings are UTF-8
    return table.select(schema.names)


def _bisected(
    lines: Sequence[tuple[int, bytes]], schema: pa.Schema, reasons: dict[int, str]
) -> Iterator[pa.Table]:
    """Read lines, halving what pyarrow refuses until the lines it refuses are known."""
    if not lines:
        return
    try:
        yield _table(b"\n".join(line for _, line in lines) + b"\n", schema)
        return
    except pa.ArrowInvalid as error:
        if len(lines) == 1:
            reasons[lines[0][0]] = " ".join(str(error).split())[:200]
            return
    middle = len(lines) // 2
    yield from _bisected(lines[:middle], schema, reasons)
    yield from _bisected(lines[middle:], schema, reasons)


def _checked(line: bytes, *, types: Mapping[str, str], columns: Sequence[str]) -> bytes | str:
    """Look at a line; returns it, rewritten where a whole number is written 3.0, or why it is no row."""
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError:
        return "the text is not UTF-8"
    except (ValueError, RecursionError) as error:
        return f"the line is not JSON: {' '.join(str(error).split())[:120]}"
    if not isinstance(value, dict):
        return f"the line is {_called(value)} and not an object"
    changed = {}
    for name in columns:
        cell = value.get(name)
        fits, brought = _brought(cell, types.get(name, "string"))
        if not fits:
            wanted = types.get(name, "string")
            expected = _KINDS.get(wanted, "a list")
            return f"column {name!r}: {json.dumps(cell, ensure_ascii=False)[:80]} is not {expected}"
        if brought is not cell:
            changed[name] = brought
    if not changed:
        return line
    return json.dumps({name: value.get(name) for name in columns} | changed).encode()


def _brought(cell: Any, wanted: str) -> tuple[bool, Any]:
    """Say whether a value is of a type, and give it as pyarrow takes it."""
    if cell is None:
        return True, cell
    inner = _LIST.fullmatch(wanted)
    if inner:
        if not isinstance(cell, list):
            return False, cell
        each = [_brought(item, inner[1]) for item in cell]
        same = all(new is old for (_, new), old in zip(each, cell, strict=True))
        return all(fits for fits, _ in each), cell if same else [value for _, value in each]
    number = isinstance(cell, (int, float)) and not isinstance(cell, bool)
    if wanted == "int64":
        if number and isinstance(cell, float) and cell.is_integer():
            cell = int(cell)
        return isinstance(cell, int) and number and -(2**63) <= cell < 2**63, cell
    if wanted == "double":
        return number, cell
    return isinstance(cell, bool if wanted == "bool" else str), cell


def _called(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _require_keys(reading: Reading, piece: Piece, table: pa.Table, *, data: bytes) -> None:
    """Refuse a file no line of whose beginning has a column; a line that lacks it has no value there."""
    for name in reading.columns:
        if table.column(name).null_count < table.num_rows:
            continue
        spelled = {json.dumps(name, ensure_ascii=ascii_only).encode() for ascii_only in (True, False)}
        if any(each in data for each in spelled):
            continue
        there = {key for line in split_lines(data, spaces_count=False)[:100] for key in _keys(line)}
        if name not in there:
            raise InputError(f"{piece.file.name} has no column {name!r}", hint=nearest(name, there))


def _keys(line: bytes) -> Sequence[str]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return ()
    return list(value) if isinstance(value, dict) else ()
