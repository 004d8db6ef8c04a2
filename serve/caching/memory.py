"""Answers one process keeps: the least recently used go first, and all after a time.

Bounded by bytes. It knows no clock: the time is given, by one that runs forward.
"""

from __future__ import annotations

from collections import OrderedDict

from kit.tensors import Tensors

#: What an entry takes beside its values: its key and place, and for each tensor an array's head.
_ENTRY_BYTES = 600
_TENSOR_BYTES = 250
_TEXT_BYTES = 60


def owned(tensors: Tensors) -> Tensors:
    """Give tensors that own their memory and that nobody can change.

    A view is copied: it would keep the whole batch alive that it was cut from.
    """
    kept: Tensors = {}
    for name, array in tensors.items():
        kept[name] = array if array.base is None else array.copy()
        kept[name].setflags(write=False)
    return kept


def size_of(tensors: Tensors) -> int:
    """Estimate the memory an entry takes, in bytes."""
    size = _ENTRY_BYTES
    for array in tensors.values():
        size += _TENSOR_BYTES + array.nbytes
        if array.dtype.hasobject:
            # Four bytes a character is the most a string takes.
            size += sum(_TEXT_BYTES + 4 * len(text) for text in array.ravel().tolist())
    return size


class MemoryCache:
    """A byte-bounded LRU with a time to live.

    Args:
        max_bytes: Most that all entries take; a larger one is not kept.
        ttl_s: How long an entry is kept.

    Attributes:
        n_bytes: What the entries take now.
        n_evicted: Entries that went for others' sake.
    """

    def __init__(self, *, max_bytes: int, ttl_s: float) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._entries: OrderedDict[bytes, tuple[float, int, Tensors]] = OrderedDict()
        self.n_bytes = 0
        self.n_evicted = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, *, now_s: float) -> Tensors | None:
        """Give an entry's tensors and count it as used; None when there is none."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[0] <= now_s:
            self._remove(key)
            return None
        self._entries.move_to_end(key)
        return entry[2]

    def put(self, key: bytes, tensors: Tensors, *, now_s: float) -> None:
        """Keep tensors that are ``owned``, and let go of what was used longest ago."""
        size = size_of(tensors)
        if key in self._entries:
            self._remove(key)
        if size > self._max_bytes:
            return
        while self.n_bytes + size > self._max_bytes:
            self._remove(next(iter(self._entries)))
            self.n_evicted += 1
        self._entries[key] = (now_s + self._ttl_s, size, tensors)
        self.n_bytes += size

    def _remove(self, key: bytes) -> None:
        self.n_bytes -= self._entries.pop(key)[1]
