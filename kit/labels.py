"""The column a model learns to predict: classes as indices, or values to regress on.

Refuses labels nothing can be learned from. How rows are split is not known here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kit.errors import InputError
from kit.signature import ClassName

#: Fewest rows of a class that can be split into three parts.
MIN_CLASS_ROWS = 5


def read_labels(column: Any, *, task: str, name: str) -> tuple[np.ndarray, tuple[ClassName, ...]]:
    """Make a table's label column what a model is fitted to.

    Args:
        column: A pyarrow column, n_rows > 0 values.
        task: ``classification`` or ``regression``.
        name: Of the column, for messages.

    Returns:
        Class indices (int64) and the classes they stand for, or values (float32) and nothing;
        shape (n_rows,).

    Raises:
        InputError: A value is missing, not finite or no class; all are the same; a class has too few rows.
    """
    if column.null_count:
        raise InputError(f"the label {name!r} is missing in {column.null_count} rows", hint="drop those rows")
    values = column.to_numpy(zero_copy_only=False)
    return (_targets(values, name), ()) if task == "regression" else _classes(column, values, name)


def _targets(values: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        targets = values.astype(np.float32) if values.dtype.kind in "fiu" else np.array([np.nan])
    if not np.isfinite(targets).all():
        raise InputError(
            f"the label {name!r} holds values that are not finite float32 numbers",
            hint="correct or drop those rows",
        )
    if len(targets) > 1 and (targets == targets[0]).all():
        raise InputError(
            f"the label {name!r} is {targets[0]:g} in every row, so there is nothing to learn",
            hint="name another label, or data in which it differs",
        )
    return np.asarray(targets, dtype=np.float32)


def _classes(column: Any, values: np.ndarray, name: str) -> tuple[np.ndarray, tuple[ClassName, ...]]:
    if not _is_class_type(column.type):
        raise InputError(
            f"the label {name!r} holds values of type {column.type}; classes are whole numbers or strings",
            hint='set task = "regression", or make the label a string',
        )
    classes, indices, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise InputError(
            f"the label {name!r} has the one value {classes[0]!r}; two classes are needed",
            hint="name another label, or data with more classes",
        )
    if counts.min() < MIN_CLASS_ROWS:
        small = classes[counts.argmin()]
        raise InputError(
            f"class {small!r} of the label {name!r} has {counts.min()} rows; {MIN_CLASS_ROWS} are needed to "
            "split it",
            hint="collect more rows of the class, or merge or drop it",
        )
    names: list[ClassName] = [str(value) if isinstance(value, str) else int(value) for value in classes]
    return indices.astype(np.int64), tuple(names)


def _is_class_type(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    checks = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string)
    return any(check(kind) for check in checks)
