"""Tensors as the binary data extension writes them: little-endian, row-major, nothing between the values.

An element of BYTES is its length as 4 bytes, then that many bytes of UTF-8. It knows nothing of HTTP; gRPC's
raw contents are written in the same way.

Source: Triton Inference Server, "Binary Tensor Data Extension".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from kit.errors import InputError
from kit.tensors import DTYPES, TensorSpec

_LENGTH = struct.Struct("<I")
_WIRE_DTYPES: dict[str, Any] = {
    name: dtype.newbyteorder("<") for name, dtype in DTYPES.items() if dtype.kind in "fiu"
}


def decode_binary(
    spec: TensorSpec, buffer: bytes | memoryview, *, shape: Sequence[int] | None, what: str
) -> np.ndarray:
    """Read a tensor from its bytes.

    Args:
        spec: The tensor that is expected.
        buffer: All its bytes and no others.
        shape: Shape (n_rows, *spec.row_shape), checked before; None finds the rows out from the size.
        what: What messages call it, like ``input 'x'``.

    Returns:
        The array, aligned; it shares the buffer's memory where that is aligned, and is then read-only.

    Raises:
        InputError: The number of bytes is not what shape and dtype say, or they are no truth values or
            strings of UTF-8.
    """
    if spec.dtype == "string":
        return _decode_strings(spec, buffer, shape=shape, what=what)
    dtype = _WIRE_DTYPES.get(spec.dtype)
    item_bytes = 1 if dtype is None else dtype.itemsize
    n_bytes = len(buffer)
    if shape is None:
        row_bytes = item_bytes * spec.row_size
        if not n_bytes or n_bytes % row_bytes:
            raise InputError(f"{what} has {n_bytes} bytes, which are not whole rows of {row_bytes} bytes")
        shape = (n_bytes // row_bytes, *spec.row_shape)
    else:
        count = item_bytes
        for size in shape:
            count *= size
        if count != n_bytes:
            raise InputError(f"{what} has {n_bytes} bytes; its shape {list(shape)} says {count}")
    if dtype is None:
        truths = np.frombuffer(buffer, dtype=np.uint8)
        if truths.max() > 1:
            raise InputError(f"{what} holds the byte {truths.max()}, which is neither 0 nor 1 (BOOL)")
        return truths.view(np.bool_).reshape(shape)
    array: np.ndarray = np.frombuffer(buffer, dtype=dtype).reshape(shape)
    if array.flags.aligned and array.dtype.isnative:
        return array
    return array.astype(
        DTYPES[spec.dtype]
    )  # bytes lie where the JSON before them ended; engines want them aligned


def encode_binary(spec: TensorSpec, array: np.ndarray) -> bytes | memoryview:
    """Write a tensor as bytes, without a copy where the array is laid out so already."""
    if spec.dtype == "string":
        texts = [text.encode() for text in array.reshape(-1)]
        return b"".join(part for text in texts for part in (_LENGTH.pack(len(text)), text))
    wire = np.ascontiguousarray(array, dtype=_WIRE_DTYPES.get(spec.dtype))
    return wire.reshape(-1).view(np.uint8).data


def _decode_strings(
    spec: TensorSpec, buffer: bytes | memoryview, *, shape: Sequence[int] | None, what: str
) -> np.ndarray:
    end = len(buffer)
    count = 1
    for size in shape or ():
        count *= size
    texts: list[str] = []
    place = 0
    while place < end:
        start = place + 4
        if start > end:
            raise InputError(f"{what} ends within the length of string {len(texts)}")
        (n_bytes,) = _LENGTH.unpack_from(buffer, place)
        place = start + n_bytes
        if place > end:
            raise InputError(f"{what} ends within string {len(texts)}, which says it has {n_bytes} bytes")
        try:
            texts.append(str(buffer[start:place], "utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"{what}: string {len(texts)} is not UTF-8") from error
        if shape is not None and len(texts) > count:
            break
    if shape is None:
        if not texts or len(texts) % spec.row_size:
            raise InputError(f"{what} has {len(texts)} strings, which are not whole rows of {spec.row_size}")
        shape = (len(texts) // spec.row_size, *spec.row_shape)
    elif len(texts) != count:
        found = f"more than {count}" if len(texts) > count else len(texts)
        raise InputError(f"{what} has {found} strings; its shape {list(shape)} says {count}")
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array.reshape(shape)
