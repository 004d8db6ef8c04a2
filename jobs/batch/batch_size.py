"""How many rows a call of the engine should take: tried on the run's own rows, briefly."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np

from jobs.batch.refusals import joined
from kit.engines import Engine
from kit.errors import InputError
from kit.tensors import Tensors

SIZES = (64, 256, 1024, 4096, 16384)
_EACH_S = 0.06
_NEAR_BEST = 0.97  # the smallest size this close to the best is taken: it needs less memory
_PLAIN = 1024  # where nothing can be tried


def search(engine: Engine, tensors: Tensors, *, batch_rows: int | None = None) -> dict[str, Any]:
    """Try sizes on real rows.

    Args:
        engine: What answers.
        tensors: Validated rows, shape (n_rows, ...), n_rows > 0; repeated where a size needs more.
        batch_rows: The only size to measure; None searches.

    Returns:
        ``{"batch_rows": rows, "rows_per_second": speed of that size, "tried": {rows: speed}}``.
    """
    n_rows = len(next(iter(tensors.values())))
    sizes = (batch_rows,) if batch_rows else tuple(size for size in SIZES if size < 4 * n_rows) or SIZES[:1]
    tried: dict[int, float] = {}
    plain = batch_rows or _PLAIN
    for size in sizes:
        rows = max(min(n_rows, SIZES[-1]) // size, 1) * size
        taken = np.resize(np.arange(n_rows), rows) if rows > n_rows else slice(0, rows)
        try:
            speed = _speed(engine, {name: array[taken] for name, array in tensors.items()}, size=size)
        except MemoryError:
            plain = min(plain, size)
            break
        except InputError:  # a row the engine fails on is the run's business, not the search's
            continue
        tried[size] = round(speed, 1)
        if speed < max(tried.values()) / 2:  # past the top
            break
    best = max(tried.values(), default=None)
    chosen = next((size for size, speed in tried.items() if best and speed >= _NEAR_BEST * best), plain)
    return {
        "batch_rows": chosen,
        "rows_per_second": tried.get(chosen),
        "tried": {str(size): speed for size, speed in tried.items()},
    }


def _speed(engine: Engine, tensors: Tensors, *, size: int) -> float:
    """Measure rows per second with calls of one size: the best of a few rounds, the first not counted."""
    n_rows = len(next(iter(tensors.values())))
    batches = [
        {name: array[start : start + size] for name, array in tensors.items()}
        for start in range(0, n_rows, size)
    ]
    joined([engine.run_validated(batch) for batch in batches])
    best = float("inf")
    ends = time.perf_counter() + _EACH_S
    for count in itertools.count():
        started = time.perf_counter()
        joined([engine.run_validated(batch) for batch in batches])
        best = min(best, time.perf_counter() - started)
        if count >= 2 and time.perf_counter() >= ends:
            break
    return n_rows / best
