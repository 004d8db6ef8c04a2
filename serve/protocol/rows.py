"""Rows: what ``POST /predict/MODEL`` reads and answers, as JSON objects or CSV.

A row goes by the names of the table's columns, and its answer by the model's outputs, where ``label`` is a
class's name, as in the tables a batch run writes; ``logits`` are left out, as there. What a value may be is
the signature's business.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from kit.errors import InputError, nearest
from kit.inference.body import MAX_SHOWN_CHARS, check_keys
from kit.inference.card import Card, Reply
from kit.inference.plan import plan_of
from kit.inference.request import NO_PARAMETERS, InferRequest, as_field, check_parameters, checked_id
from kit.signature import Signature
from kit.tensors import Tensors, TensorSpec
from serve.protocol.body import read_json

_LEAST_INT64 = -(1 << 63)
_WRAPPER_KEYS = frozenset({"rows", "id", "parameters"})
_LEFT_OUT = frozenset({"logits"})
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_CSV_HEADERS = ((b"content-type", b"text/csv; charset=utf-8; header=present"),)
_NUMPY = orjson.OPT_SERIALIZE_NUMPY


class JsonRows:
    """Rows that were sent as JSON.

    Attributes:
        id: What the client calls the request.
        parameters: The request's own parameters.
    """

    __slots__ = ("_body", "_rows", "id", "parameters")

    def __init__(self, body: bytes) -> None:
        self.id: str | None = None
        self.parameters = NO_PARAMETERS
        self._body = body
        value = read_json(body)
        self._rows: list[Any] = [value] if type(value) is dict else value
        n_keys = 0
        if type(value) is dict and type(value.get("rows")) is list and _WRAPPER_KEYS.issuperset(value):
            self._rows = value["rows"]
            n_keys = len(value)
        if type(self._rows) is not list or not self._rows:
            raise InputError(
                "the body holds no rows", hint='send an object, a list of objects, or {"rows": [...]}'
            )
        for index, row in enumerate(self._rows):
            if type(row) is not dict:
                raise InputError(f"row {index} is not an object")
            n_keys += len(row)
        if body.count(b":") != n_keys:
            check_keys(body, value)
        if self._rows is not value and type(value) is dict and value.get("rows") is self._rows:
            self._take(value)

    def _take(self, wrapper: dict[str, Any]) -> None:
        """Take what a request says beside its rows."""
        self.id = checked_id(wrapper.get("id"))
        parameters = wrapper.get("parameters")
        if parameters is not None:
            if type(parameters) is not dict:
                raise InputError("the 'parameters' of the request are not an object")
            check_parameters(parameters)
            self.parameters = parameters

    def field(self, name: str) -> str | None:
        """Give the first row's value of a column, or else a parameter, as a release's sticky value."""
        row = self._rows[0]
        return as_field(row[name] if name in row else self.parameters.get(name))

    def decode(self, signature: Signature) -> InferRequest:
        """Check the rows against a signature.

        Raises:
            InputError: A column is missing, or a value breaks the signature; the message names the row.
        """
        tensors = self._packed(signature)
        if tensors is None:
            try:
                tensors = signature.from_rows(self._rows)
            except RecursionError as error:
                raise InputError("a value of the rows is nested too deeply") from error
            for spec in signature.inputs:
                if spec.dtype == "int64" and (tensors[spec.name] == _LEAST_INT64).any():
                    self._refuse_rounded(spec)
        return InferRequest(self.id, tensors, len(self._rows), plan_of(signature).json_outputs)

    def _refuse_rounded(self, spec: TensorSpec) -> None:
        """Refuse -2^63 as a float, which JSON's parser makes of whole numbers below it too."""
        for row, cells in enumerate(self._rows):
            for column in spec.columns:
                for item in np.ravel(np.array(cells[column], dtype=object)):
                    if type(item) is float and item <= _LEAST_INT64:
                        raise InputError(f"column {column!r}, row {row}: {item} is not a whole int64")

    def _packed(self, signature: Signature) -> Tensors | None:
        """Read rows of plain numbers in one step of C; None where they are not, right or wrong."""
        if b"true" in self._body or b"false" in self._body:
            return None
        plan = plan_of(signature)
        tensors: Tensors = {}
        for input_plan, values_of in zip(plan.inputs, plan.rows, strict=True):
            if values_of is None:
                return None
            flat: list[Any] = []
            try:
                for row in self._rows:
                    flat += values_of(row)
            except KeyError:
                return None
            array = input_plan.pack(flat, n_rows=len(self._rows))
            if array is None:
                return None
            tensors[input_plan.name] = array
        return tensors


class CsvRows:
    """Rows that were sent as CSV with a header.

    Attributes:
        id: Always None: a table has no room for it.
        parameters: Always empty, for the same reason.
    """

    __slots__ = ("_header", "_lines", "id", "parameters")

    def __init__(self, body: bytes) -> None:
        self.id: str | None = None
        self.parameters = NO_PARAMETERS
        try:
            text = body.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"the body is not UTF-8: byte {error.start} is wrong") from error
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            self._header = next(reader, [])
            self._lines = [cells for cells in reader if cells]
        except csv.Error as error:
            raise InputError(f"line {reader.line_num} of the body is not CSV: {error}") from error
        if not self._lines:
            raise InputError("the body holds no rows", hint="send a line of column names, and a line per row")
        for name in self._header:
            if self._header.count(name) > 1:
                raise InputError(f"the body has the column {name[:MAX_SHOWN_CHARS]!r} twice")
        for row, cells in enumerate(self._lines):
            if len(cells) != len(self._header):
                raise InputError(f"row {row} has {len(cells)} cells where the header has {len(self._header)}")

    def field(self, name: str) -> str | None:
        """Give the first row's value of a column as a release's sticky value; None where there is none."""
        return self._lines[0][self._header.index(name)] or None if name in self._header else None

    def decode(self, signature: Signature) -> InferRequest:
        """Check the rows against a signature.

        Raises:
            InputError: A column is missing, or a value breaks the signature; the message names the row.
        """
        columns: dict[str, list[Any]] = {}
        for spec in signature.inputs:
            for name in spec.columns:
                if name not in self._header:
                    raise InputError(f"the body has no column {name!r}", hint=nearest(name, self._header))
                place = self._header.index(name)
                columns[name] = [
                    _cell(cells[place], spec.dtype, place=f"column {name!r}, row {row}")
                    for row, cells in enumerate(self._lines)
                ]
        tensors = signature.from_columns(columns)
        return InferRequest(None, tensors, len(self._lines), plan_of(signature).json_outputs)


def parse_rows(body: bytes, *, content_type: bytes = b"") -> JsonRows | CsvRows:
    """Read the body of a predict request.

    Args:
        body: One JSON object, a list of them, or ``{"rows": [...]}`` with optional ``id`` and ``parameters``;
            or a table in CSV whose first line names the columns.
        content_type: The header; CSV is read where it says ``text/csv``, JSON otherwise.

    Raises:
        InputError: The body is not what the header says, or holds no rows.
    """
    is_csv = content_type.partition(b";")[0].strip().lower() == b"text/csv"
    return CsvRows(body) if is_csv else JsonRows(body)


def encode_rows(
    request: InferRequest,
    card: Card,
    answers: Mapping[str, np.ndarray],
    *,
    accept: bytes = b"",
    parameters: Mapping[str, Any] | None = None,
) -> Reply:
    """Write the answer to a predict request, a row for each row.

    Args:
        request: What was asked.
        card: The version that answered.
        answers: Every output of the signature by name, shape (n_rows, ...).
        accept: The header: ``text/csv`` asks for CSV.
        parameters: What else is to be said of the answer; CSV has no room for it.
    """
    columns = _columns(card.signature, answers)
    if _prefers_csv(accept):
        return Reply(200, _csv(columns), _CSV_HEADERS)
    value: dict[str, Any] = {"model": card.name, "version": card.version}
    if request.id is not None:
        value["id"] = request.id
    if parameters:
        value["parameters"] = parameters
    lists = [column if type(column) is list else list(column) for column in columns.values()]
    value["rows"] = [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]
    return Reply(200, orjson.dumps(value, None, _NUMPY))


def _columns(signature: Signature, answers: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Lay answers out as columns: names or an array of shape (n_rows,) or (n_rows, k)."""
    columns: dict[str, Any] = {}
    for spec in signature.outputs:
        if spec.name in _LEFT_OUT:
            continue
        array = answers[spec.name]
        if spec.classes:
            classes = spec.classes
            columns[spec.name] = [classes[index] for index in array.tolist()]
            if "probabilities" in answers:
                columns["probability"] = answers["probabilities"].max(axis=1)
        elif array.dtype == object:
            columns[spec.name] = array.reshape(len(array), -1).tolist() if array.ndim > 1 else array.tolist()
        else:
            flat = array if array.ndim == 1 else array.reshape(len(array), -1)
            columns[spec.name] = np.ascontiguousarray(flat)
    return columns


def _csv(columns: Mapping[str, Any]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(_cells(column) for column in columns.values()), strict=True))
    return text.getvalue().encode()


def _cells(column: Any) -> Sequence[Any]:
    """Write a column's cells: numbers with no more digits than tell them apart, lists as JSON."""
    if type(column) is list:
        return [orjson.dumps(item).decode() if type(item) is list else item for item in column]
    if column.ndim > 1:
        return [orjson.dumps(row, None, _NUMPY).decode() for row in column]
    written = orjson.dumps(column, None, _NUMPY).decode()[1:-1].split(",")
    return ["" if cell == "null" else cell for cell in written]


def _cell(cell: str, dtype: str, *, place: str) -> Any:
    """Read a cell as a batch does; a list is left to the signature."""
    if dtype == "string" or cell.startswith("["):
        return cell
    bare = cell.strip()
    if not bare:
        return None
    if dtype == "bool":
        if bare.lower() not in _TRUTH:
            raise InputError(f"{place}: {cell[:MAX_SHOWN_CHARS]!r} is neither true nor false")
        return _TRUTH[bare.lower()]
    is_float = dtype.startswith("float")
    try:
        if "_" in bare:  # Python would read 1_000
            raise ValueError
        return float(bare) if is_float else _whole(bare)
    except ValueError as error:
        kind = "a number" if is_float else "a whole number"
        raise InputError(f"{place}: {cell[:MAX_SHOWN_CHARS]!r} is not {kind}") from error


def _whole(cell: str) -> int:
    try:
        return int(cell)
    except ValueError:  # 3.0 is a whole number too
        value = float(cell)
        if not value.is_integer():
            raise
        return int(value)


def _prefers_csv(accept: bytes) -> bool:
    """Say whether a client would rather have CSV than JSON (RFC 9110, 12.5.1)."""
    accept = accept.lower()
    if b"csv" not in accept:
        return False
    weights: dict[bytes, float] = {}
    for part in accept.split(b","):
        kind, *extras = (each.strip() for each in part.split(b";"))
        weight = 1.0
        for extra in extras:
            if extra.startswith(b"q="):
                try:
                    weight = float(extra[2:])
                except ValueError:
                    weight = 0.0
        weights[kind] = weight
    whole = weights.get(b"*/*", 0.0)
    return weights.get(b"text/csv", whole) > weights.get(b"application/json", whole)
