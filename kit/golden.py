"""Sample tensors on disk: what a model was asked once, and what it answered.

An ``.npz`` without pickled objects, whose bytes depend on the tensors alone. Runs on a device:
standard library and numpy only.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kit.errors import InputError, VerificationError
from kit.files import write_atomic
from kit.tensors import Tensors

_EPOCH = (1980, 1, 1, 0, 0, 0)
# What numpy and zipfile raise on bytes that are no archive of arrays; TypeError and AttributeError when
# it is one bare array, MemoryError when a damaged header names a size.
_UNREADABLE = (
    *(ValueError, OSError, EOFError, KeyError, TypeError, AttributeError, MemoryError, OverflowError),
    *(NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error, SyntaxError),
)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write named tensors to one file, atomically and reproducibly.

    Args:
        path: The file, ``*.npz``.
        tensors: Name to array; object arrays must hold strings.

    Raises:
        InputError: An object array holds something else.
        UnavailableError: The disk is full or cannot be written.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted(tensors.items()):
            plain = _plain_strings(name, array) if array.dtype == object else array
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(plain), version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH), member.getvalue())
    write_atomic(path, buffer.getvalue())


def read_tensors(path: Path) -> Tensors:
    """Read named tensors; strings come back as object arrays of str.

    Raises:
        VerificationError: The file is not such a file, or holds anything that is not a plain array.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except _UNREADABLE as error:
        raise VerificationError(f"{path.name} cannot be read as tensors: {error}") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufU":
            raise VerificationError(f"{path.name} holds {name!r}, which is not a tensor")
    return {
        name: array.astype(object) if array.dtype.kind == "U" else array for name, array in arrays.items()
    }


def _plain_strings(name: str, array: np.ndarray) -> np.ndarray:
    for value in array.reshape(-1):
        if not isinstance(value, str):
            raise InputError(f"tensor {name!r} holds {value!r}, a {type(value).__name__}, not a string")
    return array.astype(np.str_)
