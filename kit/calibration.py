"""Calibration: whether an answer given with 80 % is right in 80 % of the cases.

The confidence of an answer is its largest probability. Not to be confused with the calibration of INT8
ranges (``edge.calibrate``). Knows nothing of models or files.

Source: Guo et al., "On Calibration of Modern Neural Networks" (2017): the expected calibration error over
15 bins of equal width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

N_BINS = 15


@dataclass(frozen=True)
class CalibrationCurve:
    """Confidence and accuracy, bin by bin.

    Attributes:
        edges: Bounds of the bins, ``N_BINS + 1`` of them, from 0 to 1; a bin holds its upper bound.
        confidence: Mean confidence of each bin's rows; None for a bin without rows.
        accuracy: Share of each bin's rows that are answered right; None for a bin without rows.
        counts: Rows of each bin.
    """

    edges: tuple[float, ...]
    confidence: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]
    counts: tuple[int, ...]


def error_by_bin(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Give each row's share in the calibration error, and the bin it falls into.

    Args:
        labels: Class indices, shape (n_rows,).
        probabilities: Shape (n_rows, n_classes).

    Returns:
        Right (1 or 0) minus confidence, shape (n_rows,); the row's bin, from 0; the number of bins. The error
        is the sum over bins of the absolute value of the bin's sum, divided by the number of rows.
    """
    confidence = probabilities.max(axis=1, initial=0.0).astype(np.float64)
    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    return right - confidence, _bins(confidence), N_BINS


def calibration_curve(labels: np.ndarray, probabilities: np.ndarray) -> CalibrationCurve:
    """Measure accuracy by confidence.

    Args:
        labels: Class indices, shape (n_rows,).
        probabilities: Shape (n_rows, n_classes), finite.
    """
    gaps, bins, n_bins = error_by_bin(labels, probabilities)
    confidence = probabilities.max(axis=1, initial=0.0).astype(np.float64)
    counts = np.bincount(bins, minlength=n_bins)
    sums = np.bincount(bins, weights=confidence, minlength=n_bins)
    rights = np.bincount(bins, weights=gaps + confidence, minlength=n_bins)
    return CalibrationCurve(
        edges=tuple(float(edge) for edge in np.linspace(0, 1, n_bins + 1)),
        confidence=tuple(float(s / n) if n else None for s, n in zip(sums, counts, strict=True)),
        accuracy=tuple(float(r / n) if n else None for r, n in zip(rights, counts, strict=True)),
        counts=tuple(int(count) for count in counts),
    )


def _bins(confidence: np.ndarray) -> np.ndarray:
    inner = np.linspace(0, 1, N_BINS + 1)[1:-1]
    return np.searchsorted(inner, confidence, side="left")
