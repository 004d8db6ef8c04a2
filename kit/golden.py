"""Sample tensors on disk: what a model was asked once, and what it answered.

An ``.npz`` without pickled objects, whose bytes depend on the tensors alone. Runs on a device:
standard library and numpy only.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kit.errors import VerificationError
from kit.files import write_atomic
from kit.signature import Tensors

_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write named tensors to one file, atomically and reproducibly.

    Args:
        path: The file, ``*.npz``.
        tensors: Name to array; object arrays must hold strings.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted(tensors.items()):
            plain = array.astype(np.str_) if array.dtype == object else array
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
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise VerificationError(f"{path.name} cannot be read as tensors: {error}") from error
    return {
        name: array.astype(object) if array.dtype.kind == "U" else array for name, array in arrays.items()
    }
