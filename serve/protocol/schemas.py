"""JSON Schemas of what a served version reads and answers, and an example that it accepts.

A schema says what the signature says. What cannot be written as a schema, that the values of a tensor are as
many as its shape says, is left to the endpoint.
"""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np

from kit.inference.card import Card
from kit.inference.request import MAX_ID_CHARS
from kit.signature import Signature
from kit.tensors import DTYPES, TensorSpec
from kit.wire import DATATYPES

Schema = dict[str, Any]

ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string", "description": "One sentence."}},
    "additionalProperties": False,
}
PARAMETERS: Schema = {
    "type": ["object", "null"],
    "description": "Scalars by name. A release may hold a user by one of them.",
    "properties": {
        "priority": {
            "type": "integer",
            "minimum": 0,
            "description": "1 is served first, then 2; 0 is none.",
        },
        "timeout": {"type": "integer", "minimum": 0, "description": "Longest wait in microseconds."},
        "binary_data_output": {"type": "boolean", "description": "Answer with bytes after the JSON."},
        "sequence_id": {"enum": [0, "", False], "description": "Sequences are not kept."},
    },
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}
_ID: Schema = {"type": ["string", "null"], "maxLength": MAX_ID_CHARS}


def value_schema(spec: TensorSpec) -> Schema:
    """Say what one value of an input may be."""
    dtype = DTYPES[spec.dtype]
    if dtype.kind == "O":
        return {"type": ["string", "null"]} if spec.nullable else {"type": "string", "minLength": 1}
    if dtype.kind == "b":
        return {"type": ["boolean", "integer"], "minimum": 0, "maximum": 1}
    limits: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    number = float if dtype.kind == "f" else int
    low = number(limits.min) if spec.minimum is None else spec.minimum
    high = number(limits.max) if spec.maximum is None else spec.maximum
    kind = "number" if dtype.kind == "f" else "integer"
    return {"type": [kind, "null"] if spec.nullable else kind, "minimum": low, "maximum": high}


def row_schema(signature: Signature) -> Schema:
    """Say what a row of ``POST /predict`` is; columns that the model does not read are ignored."""
    properties: dict[str, Schema] = {}
    for spec in signature.inputs:
        value = value_schema(spec)
        for column in spec.columns:
            is_list = len(spec.columns) == 1 and spec.row_size > 1
            properties[column] = _list_of(value, spec.row_size) if is_list else value
    return {"type": "object", "required": list(properties), "properties": properties}


def rows_schema(card: Card, *, row: str) -> Schema:
    """Say what a request with rows is.

    Args:
        card: The version.
        row: Reference to the schema of a row.
    """
    rows = {"type": "array", "minItems": 1, "items": {"$ref": row}}
    wrapper = {
        "type": "object",
        "required": ["rows"],
        "properties": {"rows": rows, "id": _ID, "parameters": PARAMETERS},
        "additionalProperties": False,
    }
    return {"anyOf": [{"$ref": row}, rows, wrapper], "examples": [{"rows": [example_row(card.signature)]}]}


def answer_rows_schema(card: Card) -> Schema:
    """Say what the answer with rows is."""
    properties: dict[str, Schema] = {}
    for spec in card.signature.outputs:
        if spec.name == "logits":
            continue
        if spec.classes:
            properties[spec.name] = {"enum": list(spec.classes), "description": "The class's name."}
            properties["probability"] = {"type": ["number", "null"], "description": "The highest one."}
        else:
            value = _answer_value(spec)
            properties[spec.name] = value if len(spec.shape) == 1 else _list_of(value, spec.row_size)
    row = {"type": "object", "required": list(properties), "properties": properties}
    return {
        "type": "object",
        "required": ["model", "version", "rows"],
        "properties": {
            "model": {"const": card.name},
            "version": {"type": "string"},
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "rows": {"type": "array", "minItems": 1, "items": row},
        },
    }


def infer_schema(card: Card) -> Schema:
    """Say what an infer request is."""
    inputs = [_tensor_schema(spec, values=value_schema(spec), sent=True) for spec in card.signature.inputs]
    names = [spec.name for spec in card.signature.outputs]
    output = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"enum": names},
            "parameters": {"type": ["object", "null"], "properties": {"binary_data": {"type": "boolean"}}},
        },
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": _ID,
            "parameters": PARAMETERS,
            "inputs": {"type": "array", "prefixItems": inputs, "items": False, "minItems": len(inputs)},
            "outputs": {"type": ["array", "null"], "minItems": 1, "maxItems": len(names), "items": output},
            "model_name": {"description": "Not looked at."},
            "model_version": {"description": "Not looked at."},
        },
        "additionalProperties": False,
        "examples": [example_request(card.signature)],
    }


def infer_answer_schema(card: Card) -> Schema:
    """Say what the answer to an infer request is."""
    outputs = [
        _tensor_schema(spec, values=_answer_value(spec), sent=False) for spec in card.signature.outputs
    ]
    return {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"const": card.name},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "outputs": {"type": "array", "minItems": 1, "items": {"anyOf": outputs}},
        },
    }


def example_row(signature: Signature) -> dict[str, Any]:
    """Give a row the signature accepts."""
    row: dict[str, Any] = {}
    for spec in signature.inputs:
        value = _example(spec)
        is_list = len(spec.columns) == 1 and spec.row_size > 1
        row.update((column, [value] * spec.row_size if is_list else value) for column in spec.columns)
    return row


def example_csv(signature: Signature) -> str:
    """Give a table of one row the signature accepts."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    row = example_row(signature)
    cells = [str(cell).lower() if isinstance(cell, (bool, list)) else cell for cell in row.values()]
    writer.writerows((row, cells))
    return text.getvalue()


def example_request(signature: Signature) -> dict[str, Any]:
    """Give an infer request with one row that the signature accepts."""
    return {
        "inputs": [
            {
                "name": spec.name,
                "datatype": DATATYPES[spec.dtype],
                "shape": [1, *spec.row_shape],
                "data": [_example(spec)] * spec.row_size,
            }
            for spec in signature.inputs
        ]
    }


def _example(spec: TensorSpec) -> Any:
    if spec.dtype in ("string", "bool"):
        return "a" if spec.dtype == "string" else False
    low = spec.minimum if spec.minimum is not None else min(0, spec.maximum or 0)
    high = spec.maximum if spec.maximum is not None else max(0, low)
    return min(max(0, low), high)


def _answer_value(spec: TensorSpec) -> Schema:
    kinds: dict[str, Schema] = {
        "O": {"type": "string"},
        "b": {"type": "boolean"},
        "f": {"type": ["number", "null"]},
    }
    return kinds.get(DTYPES[spec.dtype].kind, {"type": "integer"})


def _tensor_schema(spec: TensorSpec, *, values: Schema, sent: bool) -> Schema:
    data: Schema = {"type": "array", "items": values, "description": "Flat, row by row; or nested."}
    if sent:
        data = {"type": "array", "minItems": 1, "items": {"anyOf": [values, {"type": "array"}]}}
    return {
        "type": "object",
        "required": ["name", "datatype", "shape", *(["data"] if sent else [])],
        "properties": {
            "name": {"const": spec.name},
            "datatype": {"const": DATATYPES[spec.dtype]},
            "shape": _shape(spec, exact=sent),
            "data": data,
            "parameters": {"type": ["object", "null"]},
        },
        "additionalProperties": False,
    }


def _shape(spec: TensorSpec, *, exact: bool) -> Schema:
    said = f"{list(spec.shape)}, where -1 stands for the rows"
    if not exact or not spec.row_shape:
        size: Schema = {"type": "integer", "minimum": 1}
        return {"description": said, **_list_of(size, len(spec.shape))}
    sizes = [{"type": "integer", "minimum": 1}, *({"const": size} for size in spec.row_shape)]
    return {
        "description": said,
        "type": "array",
        "prefixItems": sizes,
        "items": False,
        "minItems": len(sizes),
    }


def _list_of(value: Schema, size: int) -> Schema:
    return {"type": "array", "items": value, "minItems": size, "maxItems": size}
