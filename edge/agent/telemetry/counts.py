"""What inputs and answers of one window look like, on the edges of the bundle's profile.

Requests are put aside as they come and counted together, many at a time; ``kit.observed`` does the counting,
as it does for batches. It runs where the model runs and knows no clock and no database.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kit.observed import MAX_COLUMNS, OBSERVED, Observed
from kit.signature import Signature
from kit.tensors import Tensors

_TOGETHER_ROWS = 256
_TOGETHER_BYTES = 1 << 20
_MAX_SAMPLE_BYTES = 16 << 10


class Counts:
    """Counts what one bundle is asked and answers.

    Args:
        profile: The bundle's; empty when it has none, and then nothing is counted.
        signature: The bundle's.
        max_samples: Requests of one window that are kept whole.
    """

    def __init__(self, profile: Mapping[str, Any], *, signature: Signature, max_samples: int = 0) -> None:
        self._columns: Mapping[str, Any] = profile.get("columns", {})
        self._answers: Mapping[str, Any] = profile.get("outputs", {}).get("columns", {})
        self._profile = {"columns": self._columns, "outputs": {"columns": self._answers}}
        self._signature = signature
        self._max_samples = max_samples
        self._names = [spec.name for spec in signature.inputs]
        self._counted = [spec.name for spec in signature.outputs if spec.name in OBSERVED]
        self._waiting: list[tuple[Tensors, Tensors]] = []
        self._n_rows = self._n_bytes = 0
        self._samples: list[dict[str, Any]] = []
        self._observed = self._begin()

    def add(self, inputs: Tensors, answers: Tensors) -> bool:
        """Put one request aside.

        Args:
            inputs: Validated tensors, shape (n_rows, ...); not changed afterwards by anybody.
            answers: What the model said.

        Returns:
            Whether enough wait to be counted; ``count`` does it, when nobody waits for an answer.
        """
        self._waiting.append((inputs, answers))
        for array in inputs.values():
            self._n_bytes += array.nbytes
        self._n_rows += len(array)
        return self._n_rows >= _TOGETHER_ROWS or self._n_bytes >= _TOGETHER_BYTES

    def count(self) -> None:
        """Count what was put aside."""
        waiting, self._waiting = self._waiting, []
        self._n_rows = self._n_bytes = 0
        if not waiting:
            return
        for inputs, answers in waiting[: max(0, self._max_samples - len(self._samples))]:
            sample = _sample(inputs, answers)
            if sample is not None:
                self._samples.append(sample)
        if not self._columns and not self._answers:
            return
        joined = {name: np.concatenate([each[name] for each, _ in waiting]) for name in self._names}
        said = {name: np.concatenate([each[name] for _, each in waiting]) for name in self._counted}
        self._observed.observe(joined, said)

    def take(self) -> dict[str, Any]:
        """Give what was counted since the last time, and begin anew.

        Returns:
            ``features`` and ``prediction``: column to ``counts`` and ``missing``. A column of numbers has
            the profile's bins with one more at either end, one of names the profile's categories in order
            and one for all others. ``samples``: requests kept whole, if any were asked for.
        """
        self.count()
        found = self._observed.to_json()
        self._observed = self._begin()
        samples, self._samples = self._samples, []
        return {
            "features": _on_edges(found["columns"], self._columns),
            "prediction": _on_edges(found["outputs"], self._answers),
            "samples": samples,
        }

    def _begin(self) -> Observed:
        return Observed(self._profile, signature=self._signature)


def _on_edges(found: Mapping[str, Any], profile: Mapping[str, Any]) -> dict[str, Any]:
    counted: dict[str, Any] = {}
    for name, column in found.items():
        if name not in profile or len(counted) >= MAX_COLUMNS:
            continue
        counts = column.get("counts")
        if counts is None:
            named = column["categories"]
            counts = [named.get(each, 0) for each in profile[name]["categories"]]
            counts.append(column["other"])
        counted[name] = {"counts": counts, "missing": column["missing"]}
    return counted


def _sample(inputs: Tensors, answers: Tensors) -> dict[str, Any] | None:
    """Give one request as JSON; None where it is larger than a record should be."""
    arrays = (*inputs.values(), *answers.values())
    if sum(array.size for array in arrays) * 8 > _MAX_SAMPLE_BYTES:
        return None
    return {
        "inputs": {name: _plain(array) for name, array in inputs.items()},
        "answers": {name: _plain(array) for name, array in answers.items()},
    }


def _plain(array: np.ndarray) -> Any:
    if array.dtype.kind != "f":
        return array.tolist()
    if np.isfinite(array).all():
        return array.tolist()
    wide = array.astype(object)
    wide[~np.isfinite(array)] = None
    return wide.tolist()
