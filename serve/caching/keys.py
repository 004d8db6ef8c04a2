"""What makes two requests equal: the version's digest and every byte of every input.

A cryptographic hash, because whoever can make two inputs collide can have one client get the answer to
another's. It knows no cache.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np

from kit.tensors import Tensors

#: Goes into every key; changes when what is hashed changes.
_SCHEME = b"kit answers 1"
_DIGEST_BYTES = 32


def key_of(digest: str, inputs: Tensors) -> bytes:
    """Name an answer; takes 3 us and 1.2 us more per KB of inputs.

    Inputs that differ in a byte have different keys, also where they compare equal, like 0.0 and -0.0.

    Args:
        digest: The version's.
        inputs: Validated tensors, contiguous, in the signature's order.

    Returns:
        32 bytes.
    """
    named = hashlib.blake2b(_SCHEME, digest_size=_DIGEST_BYTES)
    named.update(_counted(digest.encode()))
    for name, array in inputs.items():
        # Every part says how long it is, so that no two requests run together into the same bytes.
        named.update(_counted(name.encode()))
        named.update(f"{array.dtype.str}{array.shape}".encode())
        if array.dtype.hasobject:
            named.update(_strings(array))
        else:
            named.update(np.ascontiguousarray(array).data)
    return named.digest()


def _counted(part: bytes) -> bytes:
    return struct.pack("<I", len(part)) + part


def _strings(array: np.ndarray) -> bytes:
    texts = [text.encode("utf-8", "surrogatepass") for text in array.ravel().tolist()]
    return struct.pack(f"<{len(texts)}I", *map(len, texts)) + b"".join(texts)
