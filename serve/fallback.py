"""What answers while a version is broken: constants of its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kit.errors import InputError, nearest
from kit.signature import Signature
from kit.tensors import DTYPES, Tensors


def constant_outputs(signature: Signature, values: Mapping[str, Any], *, n_rows: int) -> Tensors:
    """Make an answer of constants, zeros where none is named.

    Args:
        signature: Of the version that would have answered.
        values: Output's name to its constant; a class's name may stand for ``label``.
        n_rows: Rows of the request.

    Raises:
        InputError: An output or a class is not known, or a value is not of the output's kind.
    """
    specs = {spec.name: spec for spec in signature.outputs}
    for name in values:
        if name not in specs:
            raise InputError(f"the fallback names an output {name!r}", hint=nearest(name, specs))
    outputs: Tensors = {}
    for name, spec in specs.items():
        value = values.get(name, 0)
        if name == "label" and isinstance(value, str):
            if value not in spec.classes:
                raise InputError(
                    f"the fallback's label is {value!r}", hint=nearest(value, map(str, spec.classes))
                )
            value = spec.classes.index(value)
        try:
            outputs[name] = np.full((n_rows, *spec.row_shape), value, dtype=DTYPES[spec.dtype])
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"the fallback's {name!r} cannot be {value!r}", hint="give a number") from error
    return outputs
