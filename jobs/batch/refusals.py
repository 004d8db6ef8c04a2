"""Which rows are refused, and why: found by halving, so that one bad row costs one row.

The rule is the signature's or the engine's own; what is found here is only which rows break it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from kit.engines import Engine
from kit.errors import InputError
from kit.signature import Signature
from kit.tables import to_tensors
from kit.tensors import Tensors

if TYPE_CHECKING:
    import pyarrow as pa

_ROW = re.compile(r",? ?\brow \d+(?=[:,;]|$)")


def by_halves(n_rows: int, attempt: Callable[[int, int], Tensors]) -> tuple[Tensors, dict[int, str]]:
    """Do something with rows; where it is refused, with half of them, down to single rows.

    Args:
        n_rows: How many there are.
        attempt: Gives tensors for the rows from a first up to a last (not included), or raises
            ``InputError``.

    Returns:
        The tensors of the rows that were not refused, in order, and row to reason for the others.
    """
    done: list[Tensors] = []
    refused: dict[int, str] = {}
    waiting = [(0, n_rows)]
    while waiting:
        first, last = waiting.pop()
        try:
            done.append(attempt(first, last))
        except InputError as error:
            if last - first > 1:
                middle = (first + last) // 2
                waiting += [(middle, last), (first, middle)]
            else:
                refused[first] = _ROW.sub("", error.message, count=1)
    return joined(done or [attempt(0, 0)]), refused


def accepted(table: pa.Table, signature: Signature) -> tuple[Tensors, dict[int, str]]:
    """Make tensors out of the rows a signature accepts.

    Args:
        table: n_rows rows with the signature's columns.
        signature: What is allowed.

    Returns:
        The tensors of the accepted rows, in order, and row to reason for the others.

    Raises:
        InputError: The table is refused whatever its rows: a column is missing or of a wrong type.
    """
    try:
        return to_tensors(table, signature), {}
    except InputError:
        to_tensors(table.slice(0, 0), signature)
    return by_halves(
        table.num_rows, lambda first, last: to_tensors(table.slice(first, last - first), signature)
    )


class Batches:
    """Answers rows batch by batch, with fewer rows a batch once memory has run out.

    Args:
        engine: What answers.
        batch_rows: Rows per call at the start; halved whenever a call runs out of memory.
    """

    def __init__(self, engine: Engine, *, batch_rows: int) -> None:
        self.engine = engine
        self.batch_rows = batch_rows

    def answer(self, tensors: Tensors) -> tuple[Tensors, dict[int, str]]:
        """Answer validated rows.

        Args:
            tensors: Input name to array, shape (n_rows, ...).

        Returns:
            Output name to array over the rows that could be answered, and row to reason for the
            others.
        """
        n_rows = len(next(iter(tensors.values())))
        parts: list[Tensors] = []
        refused: dict[int, str] = {}
        start = 0
        while start < n_rows:
            stop = min(start + self.batch_rows, n_rows)
            try:
                answers, bad = self._answer({name: array[start:stop] for name, array in tensors.items()})
            except MemoryError as error:
                if stop - start > 1:
                    self.batch_rows = (stop - start) // 2
                    continue
                answers, bad = self._nothing(), {0: f"memory runs out over this row: {str(error)[:200]}"}
            parts.append(answers)
            refused |= {start + row: reason for row, reason in bad.items()}
            start = stop
        return joined(parts or [self._nothing()]), refused

    def _answer(self, batch: Tensors) -> tuple[Tensors, dict[int, str]]:
        try:
            return self.engine.run_validated(batch), {}
        except InputError:
            pass

        def attempt(first: int, last: int) -> Tensors:
            return self.engine.run_validated({name: array[first:last] for name, array in batch.items()})

        return by_halves(len(next(iter(batch.values()))), attempt)

    def _nothing(self) -> Tensors:
        return self.engine.run_validated(
            {spec.name: np.zeros((0, *spec.row_shape)) for spec in self.engine.signature.inputs}
        )


def joined(parts: list[Tensors]) -> Tensors:
    """Put tensors of consecutive rows together; at least one."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([each[name] for each in parts]) for name in parts[0]}
