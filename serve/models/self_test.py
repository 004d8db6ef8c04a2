"""Whether an engine answers a version's golden rows as the version's reference did.

The rule is the one an export passes (architecture: parity): a number may be off by the version's tolerance
times the spread of its output over the golden rows, plus a few units in the last place; shares by the
tolerance itself; labels must agree but where the two best logits are as good as equal. NaN never passes.
It compares arrays, and neither loads nor runs anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kit.errors import ModelError, VerificationError
from kit.tensors import Tensors

#: What a version may differ by whose manifest names no tolerance of its own.
DEFAULT_TOLERANCE = 1e-4
#: TF32, which GPUs multiply in, keeps 10 bits of a factor where float32 keeps 23.
_DEVICE_FACTORS = {"cuda": 30.0, "tensorrt": 30.0}
_SHARES = "probabilities"
_FREE_ULPS = 8


def tolerance_of(manifest: Mapping[str, Any], *, device: str = "cpu") -> float:
    """Give how far a version's answers may be off, relative.

    Args:
        manifest: The version's manifest; its ``parity.tolerance`` counts where there is one.
        device: Where the engine computes.
    """
    parity = manifest.get("parity")
    own = parity.get("tolerance") if isinstance(parity, Mapping) else None
    tolerance = float(own) if isinstance(own, (int, float)) and own > 0 else DEFAULT_TOLERANCE
    return tolerance * _DEVICE_FACTORS.get(device, 1.0)


def check_answers(found: Tensors, expected: Tensors, *, tolerance: float) -> None:
    """Compare an engine's answers to the golden rows with the reference's.

    Args:
        found: Every output by name, shape (n_rows, ...).
        expected: The reference's.
        tolerance: Relative, above 0.

    Raises:
        ModelError: An answer is NaN.
        VerificationError: An output is missing, or an answer differs by more than it may; the message names
            the output, the sample (from 0) and both values.
    """
    for name, values in found.items():
        if values.dtype.kind == "f" and np.isnan(values).any():
            row = int(np.argmax(np.isnan(values).reshape(len(values), -1).any(axis=1)))
            raise ModelError(f"output {name!r} is NaN for golden sample {row}")
    scales: dict[str, np.ndarray] = {}
    for name, right in expected.items():
        if name not in found:
            raise VerificationError(f"output {name!r} of the golden samples is none of the model's")
        if found[name].shape != right.shape:
            raise VerificationError(
                f"output {name!r} has shape {list(found[name].shape)} for the golden samples, "
                f"not {list(right.shape)}"
            )
        if right.dtype.kind == "f":
            scales[name] = _scale(right, share=name == _SHARES, tolerance=tolerance)
            _check_numbers(name, found[name], right, bounds=tolerance * scales[name])
        elif name != "label":
            _check_equal(name, found[name], right)
    if "label" in expected:
        excused = np.zeros(len(expected["label"]), dtype=bool)
        if "logits" in scales and expected["logits"].ndim == 2 and expected["logits"].shape[1] > 1:
            ordered = np.sort(expected["logits"].astype(np.float64), axis=1)
            with np.errstate(invalid="ignore"):
                excused = (ordered[:, -1] - ordered[:, -2]) <= tolerance * scales["logits"]
        _check_equal("label", found["label"], expected["label"], excused=excused)


def _scale(values: np.ndarray, *, share: bool, tolerance: float) -> np.ndarray:
    """Give, per row, what the tolerance is multiplied with; float64, shape (n_rows,)."""
    wide = values.reshape(len(values), -1).astype(np.float64)
    finite = np.isfinite(wide)
    largest = np.where(finite, np.abs(wide), 0.0).max(axis=1, initial=0.0)
    usual = wide[finite]
    if share or len(values) < 2 or usual.size == 0 or usual.min() == usual.max():
        return np.asarray(np.maximum(1.0, largest))
    ulps = np.spacing(largest.astype(np.float32)).astype(np.float64)
    return np.asarray(usual.std() + _FREE_ULPS / tolerance * ulps)


def _check_numbers(name: str, found: np.ndarray, right: np.ndarray, *, bounds: np.ndarray) -> None:
    wide, other = (array.reshape(len(array), -1).astype(np.float64) for array in (right, found))
    with np.errstate(invalid="ignore"):
        gaps = np.where(wide == other, 0.0, np.abs(wide - other))  # equal infinities differ by nothing
    bad = ~(gaps <= bounds[:, None])  # written so that NaN fails
    if bad.any():
        row = int(np.argmax(bad.any(axis=1)))
        place = int(np.argmax(np.where(bad[row], gaps[row], -1.0)))
        raise VerificationError(
            f"output {name!r} is {other[row, place]:.9g} for golden sample {row}, value {place}, and was "
            f"{wide[row, place]:.9g} when the version was made: {gaps[row, place]:.3g} apart, "
            f"{bounds[row]:.3g} is allowed",
            hint="use another engine or device, or make the version again",
        )


def _check_equal(
    name: str, found: np.ndarray, right: np.ndarray, *, excused: np.ndarray | None = None
) -> None:
    unequal = (found != right).reshape(len(right), -1).any(axis=1)
    if excused is not None:
        unequal &= ~excused
    if unequal.any():
        row = int(np.argmax(unequal))
        raise VerificationError(
            f"output {name!r} is {found[row]!s} for golden sample {row}, and was {right[row]!s} when the "
            "version was made",
            hint="use another engine or device, or make the version again",
        )
