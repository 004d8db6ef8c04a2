"""What each layer of a network adds to the error of a quantised one.

Sums over rows, so that no layer's answers are kept. It knows no runtime: a converter names the layers, says
which feed which, and shows both answers row by row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Layer:
    """One layer, beside itself in float.

    Attributes:
        name: As the converter names it.
        kind: Its operator.
        error: Mean absolute difference, in standard deviations of the float layer's answers.
        added: How much of it was not in its inputs yet, at least 0.
    """

    name: str
    kind: str
    error: float
    added: float

    def to_json(self) -> dict[str, str | float]:
        """Give the layer as JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "error": float(f"{self.error:.4g}"),
            "added": float(f"{self.added:.4g}"),
        }


@dataclass(frozen=True)
class Place:
    """A layer's place in the graph.

    Attributes:
        name: As the converter names it.
        kind: Its operator.
        inputs: Names of the places it reads from.
        can_be_kept: Whether it can stay in float by itself.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    can_be_kept: bool = True


class LayerErrors:
    """Errors of all places, summed up over rows."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = tuple(places)
        self._sums: dict[str, np.ndarray] = {each.name: np.zeros(4) for each in places}

    def add(self, float_answers: Mapping[str, np.ndarray], answers: Mapping[str, np.ndarray]) -> None:
        """Add what the places answered to some rows, in float and quantised; absent ones are skipped."""
        for name, sums in self._sums.items():
            if name not in float_answers or name not in answers:
                continue
            expected = np.asarray(float_answers[name], dtype=np.float64)
            found = np.asarray(answers[name], dtype=np.float64)
            if expected.shape == found.shape:
                gap = float(np.abs(expected - found).sum())
                sums += (gap, float(expected.sum()), float((expected**2).sum()), expected.size)

    def layers(self) -> tuple[Layer, ...]:
        """Give every layer that was seen and can be kept in float, in the order of the graph."""
        errors: dict[str, float] = {}
        found = []
        for place in self._places:
            before = max((errors[name] for name in place.inputs if name in errors), default=0.0)
            gap, total, squares, count = self._sums[place.name]
            if not count:
                errors[place.name] = before  # not comparable: what it reads is what it has
                continue
            spread = float(np.sqrt(max(squares / count - (total / count) ** 2, 0.0)))
            errors[place.name] = error = gap / count / spread if spread > 0 else 0.0
            if place.can_be_kept:
                found.append(Layer(place.name, place.kind, error, max(0.0, error - before)))
        return tuple(found)


def most_sensitive(layers: Sequence[Layer], *, n_layers: int) -> tuple[str, ...]:
    """Name the layers that add most, the worst first; ties in the order of the graph."""
    ranked = sorted(enumerate(layers), key=lambda each: (-each[1].added, each[0]))
    return tuple(layer.name for _, layer in ranked[:n_layers])
