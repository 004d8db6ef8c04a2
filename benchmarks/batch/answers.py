"""Whether everybody gave the same answers, so that nobody is fast by being wrong.

Parts may hold the rows in any order: engines that shuffle files have no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet
from subjects import CLASSES

_SAMPLE = 500
_TOLERANCE = 1e-5  # of a probability; batches of other sizes add up in another order


@dataclass(frozen=True)
class Answers:
    """All rows of an output.

    Attributes:
        labels: Index of each row's class, shape (n,).
        probabilities: float32, shape (n, 10).
    """

    labels: np.ndarray
    probabilities: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> Answers:
        """Read what a contestant wrote; what starts with an underscore is its own affair."""
        labels, probabilities = [], []
        for path in parts(folder):
            with parquet.ParquetFile(path) as opened:
                table = opened.read(columns=["label", "probabilities"])
            names = table.column("label").cast(pa.string())
            labels.append(pc.index_in(names, value_set=pa.array(CLASSES)).to_numpy())
            probabilities.append(pc.list_flatten(table.column("probabilities")).to_numpy())
        return cls(np.concatenate(labels), np.concatenate(probabilities).reshape(-1, len(CLASSES)))

    def difference(self, reference: Answers) -> str | None:
        """Say how these answers differ from others; None when they do not.

        Counts the rows and the rows of each class, and looks for each of 500 rows of the reference.
        """
        if len(self.labels) != len(reference.labels):
            return f"{len(self.labels)} rows instead of {len(reference.labels)}"
        counts, expected = (
            np.bincount(each.labels.astype(np.int64), minlength=len(CLASSES)) for each in (self, reference)
        )
        if np.abs(counts - expected).sum() > 1e-5 * len(self.labels):
            return f"rows by class {counts.tolist()} instead of {expected.tolist()}"
        order = np.argsort(self.probabilities[:, 0])
        first = self.probabilities[order, 0]
        for index in np.random.default_rng(0).choice(len(reference.labels), _SAMPLE):
            wanted = reference.probabilities[index]
            low, high = np.searchsorted(first, [wanted[0] - _TOLERANCE, wanted[0] + _TOLERANCE])
            near = np.abs(self.probabilities[order[low:high]] - wanted).max(axis=1, initial=0.0) < _TOLERANCE
            if not (near & (self.labels[order[low:high]] == reference.labels[index])).any():
                return f"no row is answered with {wanted.round(5).tolist()}"
        return None


def parts(folder: Path) -> list[Path]:
    """List the Parquet files of an output."""
    return sorted(
        path
        for path in folder.rglob("*.parquet")
        if not any(each.startswith(("_", ".")) for each in path.relative_to(folder).parts)
    )


def count_rows(folder: Path) -> int:
    """Count the rows of an output by the footers of its files."""
    return sum(parquet.read_metadata(path).num_rows for path in parts(folder))
