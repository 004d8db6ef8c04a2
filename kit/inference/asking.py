"""The other side of the protocol: tensors become a request, an answer becomes tensors or an error.

For whoever asks a device or an endpoint from Python. Values travel as bytes after the JSON, so that nothing
is rounded on the way. It knows no signature and opens no connection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from kit.errors import InputError, UnavailableError
from kit.inference.binary import decode_binary, encode_binary
from kit.inference.body import write_json
from kit.inference.card import Reply
from kit.inference.failures import read_error
from kit.tensors import DTYPES, Tensors, TensorSpec
from kit.wire import DATATYPES, dtype_of

_HEADER_LENGTH = b"inference-header-content-length"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_request(tensors: Mapping[str, Any]) -> tuple[bytes, int]:
    """Write an infer request.

    Args:
        tensors: Inputs by name, arrays of shape (n_rows, ...).

    Returns:
        The body, and how many of its bytes are JSON.

    Raises:
        InputError: A tensor has a dtype that the protocol has no name for.
    """
    entries, parts = [], []
    for name, given in tensors.items():
        array = np.asarray(given)
        if array.dtype.kind == "U":
            array = array.astype(object)
        dtype = _NAMES.get(array.dtype)
        if dtype is None:
            raise InputError(f"input {name!r} has dtype {array.dtype}, which cannot be sent")
        raw = encode_binary(TensorSpec(name, dtype, (-1,)), array)
        entries.append(
            {
                "name": name,
                "datatype": DATATYPES[dtype],
                "shape": list(array.shape),
                "parameters": {"binary_data_size": len(raw)},
            }
        )
        parts.append(raw)
    header = write_json({"inputs": entries, "parameters": {"binary_data_output": True}})
    return b"".join((header, *parts)), len(header)


def read_answer(reply: Reply) -> Tensors:
    """Read the answer to an infer request.

    Raises:
        KitError: What was answered with another status than 200, of the kind that has this status.
        UnavailableError: The answer is none of the protocol.
    """
    if reply.status != 200:
        raise read_error(reply)
    length = dict(reply.headers).get(_HEADER_LENGTH)
    try:
        end = int(length) if length is not None else len(reply.body)
        value = json.loads(reply.body[:end])
        place, found = end, {}
        for entry in value["outputs"]:
            spec = TensorSpec(entry["name"], dtype_of(entry["datatype"]), (-1, *entry["shape"][1:]))
            if "data" in entry:
                found[spec.name] = np.array(entry["data"], dtype=DTYPES[spec.dtype]).reshape(entry["shape"])
                continue
            size = entry["parameters"]["binary_data_size"]
            raw = memoryview(reply.body)[place : place + size]
            found[spec.name] = decode_binary(spec, raw, shape=entry["shape"], what=f"output {spec.name!r}")
            place += size
    except (KeyError, TypeError, ValueError) as error:
        raise UnavailableError(f"what came is no answer of the protocol: {error}") from error
    return found
