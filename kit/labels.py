"""The column a model learns to predict: classes as indices, or values to regress on.

Refuses labels nothing can be learned from, and those a model that exists already does not know. How rows
are split is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kit.errors import InputError, nearest
from kit.row_codes import as_array
from kit.tensors import ClassName

#: Fewest rows of a class that can be split into three parts.
MIN_CLASS_ROWS = 5


def read_labels(
    column: Any, *, task: str, name: str, classes: Sequence[ClassName] | None = None
) -> tuple[np.ndarray, tuple[ClassName, ...]]:
    """Make a table's label column what a model is fitted to or measured on.

    Args:
        column: A pyarrow column, n_rows > 0 values.
        task: ``classification`` or ``regression``.
        name: Of the column, for messages.
        classes: What the model knows, in the order of its indices and empty for regression: the labels
            then only have to be among them. None where they are to be learned from.

    Returns:
        Class indices (int64) and the classes they stand for, or values (float32) and nothing;
        shape (n_rows,).

    Raises:
        InputError: A value is missing (null, or an empty string), not finite or no class. Of labels to
            learn from, all are the same, or a class has too few rows; of others, the model does not know one.
    """
    array = as_array(column)
    n_missing = array.null_count + _n_empty(array)
    if n_missing:
        raise InputError(f"the label {name!r} is missing in {n_missing} rows", hint="fill or drop those rows")
    if task == "regression":
        _require_numbers(array, name)
        return _targets(array, name, learned=classes is None), ()
    if not _is_class_type(array.type):
        raise InputError(
            f"the label {name!r} holds values of type {array.type}; classes are whole numbers or strings",
            hint='set task = "regression", or make the label a string'
            if classes is None
            else "store the label as the model learned it",
        )
    found, indices, counts = np.unique(
        array.to_numpy(zero_copy_only=False), return_inverse=True, return_counts=True
    )
    names = tuple(str(value) if isinstance(value, str) else int(value) for value in found)
    if classes is None:
        _require_learnable(names, counts, name)
        return indices.astype(np.int64), names
    return _known(names, counts, classes, name)[indices], tuple(classes)


def _targets(array: Any, name: str, *, learned: bool) -> np.ndarray:
    values = array.to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        targets = values.astype(np.float32) if values.dtype.kind in "fiu" else np.array([np.nan])
    if not np.isfinite(targets).all():
        raise InputError(
            f"the label {name!r} holds values that are not finite float32 numbers",
            hint="correct or drop those rows",
        )
    if learned and len(targets) > 1 and (targets == targets[0]).all():
        raise InputError(
            f"the label {name!r} is {targets[0]:g} in every row, so there is nothing to learn",
            hint="name another label, or data in which it differs",
        )
    return np.asarray(targets, dtype=np.float32)


def _require_numbers(array: Any, name: str) -> None:
    import pyarrow as pa

    if pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        return
    strings = pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
    kind = "strings" if strings else f"values of type {array.type}"
    example = f", such as {array[0].as_py()!r}" if len(array) else ""
    raise InputError(
        f"the label {name!r} holds {kind}{example}; a regression learns numbers",
        hint='store the column as numbers, or set task = "classification"',
    )


def _require_learnable(names: Sequence[ClassName], counts: np.ndarray, name: str) -> None:
    if len(names) < 2:
        raise InputError(
            f"the label {name!r} has the one value {names[0]!r}; two classes are needed",
            hint="name another label, or data with more classes",
        )
    if counts.min() < MIN_CLASS_ROWS:
        raise InputError(
            f"class {names[int(counts.argmin())]!r} of the label {name!r} has {counts.min()} rows; "
            f"{MIN_CLASS_ROWS} are needed to split it",
            hint="collect more rows of the class, or merge or drop it",
        )


def _known(
    names: Sequence[ClassName], counts: np.ndarray, classes: Sequence[ClassName], name: str
) -> np.ndarray:
    """Give the index of each class that was found among those a model knows."""
    index_of = {known: index for index, known in enumerate(classes)}
    for value, count in zip(names, counts, strict=True):
        if value in index_of:
            continue
        if not any(isinstance(known, type(value)) for known in classes):  # "1" is not nearest to 1
            wanted = "strings" if isinstance(classes[0], str) else "whole numbers"
            hint = f"store the label as {wanted}, as the model learned it"
        else:
            hint = nearest(str(value), map(str, classes))
        raise InputError(
            f"the label {name!r} has the class {value!r} in {count} rows, which the model does not know",
            hint=hint,
        )
    return np.array([index_of[value] for value in names], dtype=np.int64)


def _n_empty(array: Any) -> int:
    """Count the empty strings, which are what a CSV file's missing values are in other formats."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        return 0
    return int(pc.sum(pc.equal(array, pa.scalar("", array.type))).as_py() or 0)


def _is_class_type(kind: Any) -> bool:
    import pyarrow as pa

    checks = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string)
    return any(check(kind) for check in checks)
