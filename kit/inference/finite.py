"""Engines whose answers are numbers: NaN and infinity are failures of the model, not answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from kit.inference.errors import NotFiniteError
from kit.signature import Signature
from kit.tensors import Tensors

#: What runs an engine: validated tensors in, one array per output with as many rows out.
Run = Callable[[Tensors], Tensors]


def float_outputs(signature: Signature) -> tuple[str, ...]:
    """Name the outputs that must hold numbers."""
    return tuple(spec.name for spec in signature.outputs if spec.dtype.startswith("float"))


def only_finite(run: Run, *, outputs: Sequence[str]) -> Run:
    """Wrap an engine so that NaN and infinity in its answers are failures of the model.

    Args:
        run: The engine.
        outputs: Float outputs that are finite on the golden rows.

    Returns:
        An engine that raises ``NotFiniteError`` for other answers; ``run`` itself without outputs.
    """
    if not outputs:
        return run
    names = tuple(outputs)
    isfinite = np.isfinite

    def checked(inputs: Tensors) -> Tensors:
        answers = run(inputs)
        for name in names:
            # 1.1 us for ten numbers and faster than a sum for many, which may overflow.
            if not isfinite(answers[name]).all():
                raise NotFiniteError(f"the model answers {name!r} with numbers that are not finite")
        return answers

    return checked
