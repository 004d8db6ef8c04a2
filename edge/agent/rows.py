"""Rows in, answers out: JSON Lines, JSON and CSV with the standard library alone.

A row is a JSON object, column to value; a CSV cell becomes a number, a truth value or a string as
the signature wants it. Whether a value is allowed is for ``kit.signature`` to say.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kit.errors import InputError, nearest
from kit.signature import Signature
from kit.tensors import ClassName

SUFFIXES = (".csv", ".json", ".jsonl")
"""File types that can be read; the suffix decides."""

_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_Rows = Iterator[dict[str, Any]]


def read_rows(path: Path, *, signature: Signature, limit: int | None = None) -> list[dict[str, Any]]:
    """Read rows of a file.

    Args:
        path: ``.csv`` with a header, ``.jsonl`` with an object per line, or ``.json`` with one list of
            objects; UTF-8.
        signature: Says which CSV columns are strings or truth values.
        limit: Most rows to read, from the first; None for all.

    Returns:
        One object per row, column to value; an empty CSV cell of a number is None. None at all for a
        CSV file with a header alone.

    Raises:
        InputError: The file is absent, of another type, empty or not what its suffix says; the sentence
            names the row, counted from 0.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"rows cannot be read from {path}", hint=f"name a file of {', '.join(SUFFIXES)}")
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist", hint="name a file of rows") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return parse_rows(data, path=path, signature=signature, limit=limit)


def parse_rows(
    data: bytes, *, path: Path, signature: Signature, limit: int | None = None
) -> list[dict[str, Any]]:
    """Read rows of a file that somebody else has opened.

    Args:
        data: All of it.
        path: What messages call it; its suffix decides.
        signature: See ``read_rows``.
        limit: See ``read_rows``.

    Raises:
        InputError: See ``read_rows``.
    """
    readers = {".csv": _csv_rows, ".json": _json_rows, ".jsonl": _jsonl_rows}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise InputError(f"rows cannot be read from {path}", hint=f"name a file of {', '.join(SUFFIXES)}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: byte {error.start} is wrong") from error
    rows = list(itertools.islice(readers[suffix](text, path, signature), limit))
    if not rows and (suffix != ".csv" or not text.strip()):  # a header alone is a table of no rows
        raise InputError(f"{path} holds no rows")
    return rows


def answer_lines(answers: Mapping[str, np.ndarray], *, signature: Signature) -> Iterator[str]:
    """Write answers as JSON Lines, without their newlines; see ``answer_rows``."""
    for row in answer_rows(answers, classes=signature.classes):
        yield json.dumps(row, ensure_ascii=False)


def answer_rows(
    answers: Mapping[str, np.ndarray], *, classes: Sequence[ClassName]
) -> Iterator[dict[str, Any]]:
    """Give answers row by row.

    Args:
        answers: What ``kit.runner.Runner.run`` returned.
        classes: Names the classes.

    Yields:
        One object per row: ``label`` (the class's name) and ``probabilities`` (in the order of the classes),
        or ``value``; None where a figure is not finite.
    """
    if "value" in answers:
        for value in answers["value"]:
            yield {"value": _short(value)}
        return
    for row, label in enumerate(answers["label"]):
        probabilities = [_short(value) for value in answers["probabilities"][row]]
        yield {"label": classes[int(label)], "probabilities": probabilities}


def _short(value: Any) -> float | None:
    """Give a float32 with no more digits than tell it from its neighbours.

    JSON has neither NaN nor infinity; both become null, as over HTTP.
    """
    return float(str(value)) if np.isfinite(value) else None


def _jsonl_rows(text: str, path: Path, signature: Signature) -> _Rows:
    lines = (line for line in text.split("\n") if line.strip())
    for row, line in enumerate(lines):
        yield _object(_parsed(line, f"{path}, row {row},"), f"{path}, row {row},")


def _json_rows(text: str, path: Path, signature: Signature) -> _Rows:
    values = _parsed(text, str(path))
    if not isinstance(values, list):
        raise InputError(f"{path} holds a {type(values).__name__} where a list of objects is expected")
    for row, value in enumerate(values):
        yield _object(value, f"{path}, row {row},")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} holds a {type(value).__name__} where an object is expected")
    return value


def _csv_rows(text: str, path: Path, signature: Signature) -> _Rows:
    dtypes = {column: spec.dtype for spec in signature.inputs for column in spec.columns}
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        twice = [name for name in header if header.count(name) > 1]
        if twice:
            raise InputError(f"{path} has the column {twice[0]!r} twice")
        absent = [name for name in signature.columns if name not in header]
        if absent and header:
            raise InputError(f"{path} has no column {absent[0]!r}", hint=nearest(absent[0], header))
        for row, cells in enumerate(cells for cells in reader if cells):
            where = f"{path}, row {row}"
            if len(cells) != len(header):
                raise InputError(f"{where} has {len(cells)} cells where the header has {len(header)}")
            yield {
                name: _cell(cell, dtypes[name], f"{where}, column {name!r}")
                for name, cell in zip(header, cells)
                if name in dtypes
            }
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} is not CSV: {error}") from error


def _whole(cell: str) -> int:
    try:
        return int(cell)
    except ValueError:  # 3.0 is a whole number too, as in a batch
        value = float(cell)
        if not value.is_integer():
            raise
        return int(value)


def _cell(cell: str, dtype: str, where: str) -> Any:
    if dtype == "string" or cell.startswith("["):  # a list is the signature's to read
        return cell
    if not cell.strip():
        return None
    if dtype == "bool":
        if cell.strip().lower() not in _TRUTH:
            raise InputError(f"{where}: {cell!r} is neither true nor false")
        return _TRUTH[cell.strip().lower()]
    try:
        if "_" in cell:  # Python would read 1_000
            raise ValueError
        return float(cell) if dtype.startswith("float") else _whole(cell)
    except ValueError as error:
        kind = "a number" if dtype.startswith("float") else "a whole number"
        raise InputError(f"{where}: {cell!r} is not {kind}") from error
