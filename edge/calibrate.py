"""Calibration rows: which ones, and whether INT8 ranges may be taken from them.

Rows on another scale than the model's ruin an INT8 model without any error message (a top-1 of
0.99 fell to 0.20), so a set is checked against the validation rows before it is used. It knows
nothing of converters or files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge.core import Core
from kit.errors import InputError
from kit.files import sha256_bytes
from kit.rows import Split

MIN_ROWS = 10
"""Fewer rows say too little about the ranges."""

MAX_STD_RATIO = 2.0
"""The standard deviations may differ by this factor, either way."""

MAX_MEAN_SHIFT = 0.5
"""The means may differ by this many standard deviations of the validation rows."""


@dataclass(frozen=True)
class Calibration:
    """Rows that ranges may be taken from.

    Attributes:
        rows: What the network reads, float32, shape (n_rows, ...).
        fingerprint: The sha256 of their shape and bytes.
        n_left_out: Training rows that were not taken because the test rows hold the same.
    """

    rows: np.ndarray
    fingerprint: str
    n_left_out: int


def calibrate(core: Core, split: Split, *, n_rows: int, seed: int, for_ranges: bool = True) -> Calibration:
    """Take calibration rows from the training rows, and check them.

    Args:
        core: The network they are for, and its preprocessing.
        split: The project's data.
        n_rows: How many to take, at least ``MIN_ROWS``.
        seed: Decides which, among rows of equal label.
        for_ranges: Whether ranges will be taken from them; only then does their scale matter.

    Raises:
        InputError: There are too few rows, or ``check_rows`` refuses them.
    """
    rows, test = core.tensors(split.train.tensors), core.tensors(split.test.tensors)
    held_out = set(_bytes_of(test))
    allowed = np.array([digest not in held_out for digest in _bytes_of(rows)])
    positions = np.flatnonzero(allowed)
    chosen = choose_rows(split.train.labels[positions], n_rows=n_rows, seed=seed)
    taken = np.ascontiguousarray(rows[positions[chosen]])
    if for_ranges:
        check_rows(taken, core.tensors(split.validation.tensors), name=core.input.name)
    check_overlap(taken, test)
    header = f"{taken.dtype.str} {list(taken.shape)}\n".encode()
    return Calibration(taken, sha256_bytes(header + taken.tobytes()), int(len(rows) - len(positions)))


def check_overlap(rows: np.ndarray, test: np.ndarray) -> None:
    """Refuse calibration rows that are among the rows the result is judged on.

    Args:
        rows: Calibration rows as the network reads them, shape (n_rows, ...).
        test: Test rows, prepared the same way.

    Raises:
        InputError: They share a row.
    """
    held_out = set(_bytes_of(test))
    shared = [index for index, digest in enumerate(_bytes_of(rows)) if digest in held_out]
    if shared:
        raise InputError(
            f"{len(shared)} of {len(rows)} calibration rows are test rows too, the first is row {shared[0]}; "
            "what is measured on them would say nothing",
            hint="take calibration rows from the training rows alone",
        )


def _bytes_of(rows: np.ndarray) -> list[bytes]:
    return [np.ascontiguousarray(row).tobytes() for row in rows]


def choose_rows(labels: np.ndarray, *, n_rows: int, seed: int) -> np.ndarray:
    """Choose a stratified sample of rows.

    The rows are ordered by label (ties in a seeded order) and taken at equal distances: every
    class gets its share to within one row, and a regression's values are covered evenly.

    Args:
        labels: Class indices or values, shape (n,).
        n_rows: How many to choose.
        seed: Of the order among equal labels.

    Returns:
        Positions, ascending, shape (n_rows,). The same arguments give the same ones.

    Raises:
        InputError: ``n_rows`` is below ``MIN_ROWS`` or above what there is.
    """
    if n_rows < MIN_ROWS:
        raise InputError(
            f"{n_rows} calibration rows are too few", hint=f"set calibration_rows to {MIN_ROWS} or more"
        )
    if n_rows > len(labels):
        raise InputError(
            f"{n_rows} calibration rows are asked for, but there are {len(labels)} training rows",
            hint=f"set calibration_rows to {len(labels)} or less, or collect more rows",
        )
    ties = np.random.default_rng(seed).permutation(len(labels))
    order = np.lexsort((ties, labels))
    steps = (np.arange(n_rows) * 2 + 1) * len(labels) // (2 * n_rows)
    return np.sort(order[steps])


def check_rows(rows: np.ndarray, validation: np.ndarray, *, name: str) -> None:
    """Refuse calibration rows that would give wrong ranges.

    The rule, over all values of the tensor: the ratio of the standard deviations of calibration
    and validation rows lies between 1 / ``MAX_STD_RATIO`` and ``MAX_STD_RATIO``, and their means
    lie at most ``MAX_MEAN_SHIFT`` of the validation's standard deviations apart. A set that was
    not normalised, or normalised otherwise, breaks one of the two.

    Args:
        rows: Calibration rows as the network reads them, shape (n_rows, ...).
        validation: Validation rows, prepared the same way.
        name: The tensor, for messages.

    Raises:
        InputError: There are too few rows, one holds NaN or an infinity, all are equal, or the
            scale differs.
    """
    if len(rows) < MIN_ROWS:
        raise InputError(f"{len(rows)} calibration rows are too few", hint=f"give {MIN_ROWS} or more")
    for what, values in (("calibration", rows), ("validation", validation)):
        flat = values.reshape(len(values), -1)
        wrong = ~np.isfinite(flat)
        if wrong.any():
            row, position = (int(index) for index in np.argwhere(wrong)[0])
            raise InputError(
                f"{what} row {row} has {flat[row, position]} at position {position} of {name!r}, where the "
                "network expects a number",
                hint="let the preprocessing impute missing values, and train again",
            )
    mean, std = float(rows.mean(dtype=np.float64)), float(rows.std(dtype=np.float64))
    expected_mean = float(validation.mean(dtype=np.float64))
    expected_std = float(validation.std(dtype=np.float64))
    if std == 0.0:
        raise InputError(
            f"the calibration rows hold nothing but {mean:g} in {name!r}, so there is no range to take",
            hint="check the data and the preprocessing",
        )
    ratio = std / expected_std if expected_std else np.inf
    shift = abs(mean - expected_mean) / expected_std if expected_std else np.inf
    if not 1 / MAX_STD_RATIO <= ratio <= MAX_STD_RATIO or shift > MAX_MEAN_SHIFT:
        raise InputError(
            f"the calibration rows are on another scale than the validation rows: {name!r} has mean "
            f"{mean:.4g} and standard deviation {std:.4g}, not {expected_mean:.4g} and {expected_std:.4g}",
            hint="prepare calibration rows as the model's rows are prepared, or raise calibration_rows",
        )
