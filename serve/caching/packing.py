"""Tensors as bytes: dtype, shape and values, and nothing that could be code.

    version     1 byte
    n_tensors   1 byte
    per tensor  name and dtype, each as text; n_dims, 1 byte; every dimension, 8 bytes; the values: raw in
                row-major order, or for strings each as text
    text        length, 4 bytes, and UTF-8

Integers are little-endian. It knows no cache and trusts nobody: whatever is not exactly this is refused.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from kit.errors import InputError
from kit.tensors import DTYPES, Tensors

VERSION = 1
_MOST_DIMS = 32
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH = struct.Struct("<I")
_SIZE = struct.Struct("<Q")


def pack(tensors: Tensors) -> bytes:
    """Write tensors.

    Raises:
        InputError: A dtype is none a signature may name, or there are more than 255 tensors.
    """
    if len(tensors) > 255:
        raise InputError(f"{len(tensors)} tensors are too many to pack")
    parts = [bytes((VERSION, len(tensors)))]
    for name, array in tensors.items():
        dtype = _NAMES.get(array.dtype)
        if dtype is None:
            raise InputError(f"tensor {name!r} is {array.dtype}, which is not packed")
        parts += [_text(name), _text(dtype), bytes((array.ndim,)), *map(_SIZE.pack, array.shape)]
        if dtype == "string":
            parts += [_text(text) for text in array.ravel().tolist()]
        else:
            parts.append(array.tobytes())
    return b"".join(parts)


def unpack(packed: bytes) -> Tensors:
    """Read tensors; their arrays are read-only views into ``packed``.

    Raises:
        InputError: These are not packed tensors of this version.
    """
    try:
        reader = _Reader(packed)
        if reader.byte() != VERSION:
            raise InputError("packed tensors have another version")
        tensors = dict(reader.tensor() for _ in range(reader.byte()))
    except (struct.error, IndexError, KeyError, ValueError) as error:
        raise InputError(f"packed tensors are damaged: {type(error).__name__}") from error
    if reader.place != len(packed):
        raise InputError(f"packed tensors end with {len(packed) - reader.place} bytes too many")
    return tensors


class _Reader:
    """A place in packed tensors."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed
        self.place = 0

    def take(self, n_bytes: int) -> bytes:
        end = self.place + n_bytes
        if end > len(self._packed):
            raise InputError(f"packed tensors end {end - len(self._packed)} bytes too early")
        taken = self._packed[self.place : end]
        self.place = end
        return taken

    def byte(self) -> int:
        return self.take(1)[0]

    def text(self) -> str:
        (length,) = _LENGTH.unpack(self.take(_LENGTH.size))
        return self.take(length).decode("utf-8", "surrogatepass")

    def tensor(self) -> tuple[str, np.ndarray]:
        name, dtype = self.text(), DTYPES[self.text()]
        n_dims = self.byte()
        if n_dims > _MOST_DIMS:
            raise InputError(f"packed tensor {name!r} has {n_dims} dimensions")
        shape = tuple(_SIZE.unpack(self.take(_SIZE.size))[0] for _ in range(n_dims))
        n_values = math.prod(shape)
        if dtype.hasobject:
            if n_values * _LENGTH.size > len(self._packed):
                raise InputError(f"packed tensor {name!r} is shorter than its shape {shape}")
            array = np.empty(n_values, dtype)
            array[:] = [self.text() for _ in range(n_values)]
            array = array.reshape(shape)
            array.setflags(write=False)
        else:
            array = np.frombuffer(self.take(n_values * dtype.itemsize), dtype).reshape(shape)
        return name, array


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return _LENGTH.pack(len(encoded)) + encoded
